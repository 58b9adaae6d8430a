"""Key order and conditions, the parts that every ordered store shares.

Layer: storage. Pure functions; they hold no state and do no I/O.
"""

from __future__ import annotations

from typing import NamedTuple

from nexus.contracts.errors import ConflictError
from nexus.contracts.metastore import Condition


class KeyRange(NamedTuple):
    """The keys from ``lower`` (itself included or not) up to and without ``upper``."""

    lower: bytes
    includes_lower: bool
    upper: bytes | None
    """None: no upper bound."""


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the least key greater than every key with the prefix, None when there is none."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return None
    return stem[:-1] + bytes((stem[-1] + 1,))


def scan_range(prefix: bytes, after: bytes, before: bytes | None) -> KeyRange:
    """Return the range of keys that a scan with these arguments visits."""
    upper = prefix_end(prefix)
    if before is not None and (upper is None or before < upper):
        upper = before
    if after < prefix:
        return KeyRange(prefix, True, upper)
    return KeyRange(after, False, upper)


def conflict_error(condition: Condition, found: int) -> ConflictError:
    """Return the error for a condition that does not hold; ``found`` is the key's version."""
    wanted = f"version {condition.version}" if condition.version else "absent"
    actual = f"at version {found}" if found else "absent"
    reason = f"key {condition.key!r} is {actual}, the condition wants {wanted}"
    return ConflictError("commit", None, reason, hint="read again and retry")
