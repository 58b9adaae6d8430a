"""What keys, topics, patterns and payloads of a cache store are, for every driver. Layer: lib."""

from __future__ import annotations

import re
import threading

from nexus.contracts.cache_store import MAX_NAME_BYTES
from nexus.contracts.errors import InvalidArgumentError, shown


def topic_matcher(pattern: str) -> re.Pattern[str]:
    """Return what matches the topics of a pattern by ``fullmatch``.

    ``*`` stands for any text, also none; everything else for itself. Matching takes time in
    proportion to the topic for each ``*``. Errors: InvalidArgumentError.
    """
    check_name("subscribe", "pattern", pattern)
    first, *rest = (re.escape(part) for part in pattern.split("*"))
    if not rest:
        return re.compile(first, re.DOTALL)
    # Atomic groups: the first place where a part is found is the best one, so none is tried
    # again, and a pattern of many stars is not exponential.
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(f"{first}{middle}.*{rest[-1]}", re.DOTALL)


def check_name(operation: str, what: str, name: object) -> None:
    """Raise unless a key, a topic or a pattern is one. Errors: InvalidArgumentError."""
    if not isinstance(name, str) or not name:
        raise InvalidArgumentError(operation, None, f"{what} is {shown(name)}, not text")
    size_bytes = len(name.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_NAME_BYTES:
        raise InvalidArgumentError(
            operation, None, f"{what} has {size_bytes} bytes, more than {MAX_NAME_BYTES}"
        )


def check_payload(operation: str, payload: object) -> None:
    """Raise unless a value or a message is bytes. Errors: InvalidArgumentError."""
    if not isinstance(payload, bytes):
        raise InvalidArgumentError(operation, None, f"{shown(payload)} is not bytes")


def check_ttl(ttl_s: object) -> None:
    """Raise unless a time to live is None or above 0. Errors: InvalidArgumentError."""
    if ttl_s is not None and not (_is_number(ttl_s) and 0 < ttl_s < float("inf")):  # type: ignore[operator]
        raise InvalidArgumentError("set", None, f"ttl is {shown(ttl_s)}, not seconds above 0")


def check_timeout(timeout_s: object) -> None:
    """Raise unless a timeout is None or can be waited. Errors: InvalidArgumentError."""
    longest = threading.TIMEOUT_MAX
    if timeout_s is not None and not (_is_number(timeout_s) and 0 <= timeout_s <= longest):  # type: ignore[operator]
        raise InvalidArgumentError("receive", None, f"timeout is {shown(timeout_s)}, not seconds")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
