"""Key order and conditions, the parts that every ordered store shares.

Layer: storage. Pure functions; they hold no state and do no I/O.
"""

from __future__ import annotations

from typing import TypeAlias

from nexus.contracts.errors import ConflictError
from nexus.contracts.metastore import Condition

KeyRange: TypeAlias = tuple[bytes, bool, bytes | None]
"""A lower bound, whether itself is included, and an upper bound, which is not; None: there is none.
"""


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
        return prefix, True, upper
    return after, False, upper


def conflict_error(condition: Condition, found: int) -> ConflictError:
    """Return the error for a condition that does not hold; ``found`` is the key's version."""
    wanted = f"version {condition.version}" if condition.version else "absent"
    actual = f"at version {found}" if found else "absent"
    reason = f"key {condition.key!r} is {actual}, the condition wants {wanted}"
    return ConflictError("commit", None, reason, hint="read again and retry")
