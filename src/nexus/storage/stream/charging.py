"""What a message costs of a stream's capacity. Layer: storage."""

from __future__ import annotations

from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.stream_backend import RECORD_BYTES


def charge(path: str, message: bytes, capacity_bytes: int) -> int:
    """Return what a message takes up. Errors: InvalidArgumentError where that is too much."""
    cost = len(message) + RECORD_BYTES
    if cost > capacity_bytes:
        raise too_large(path, message, capacity_bytes)
    return cost


def too_large(path: str, message: bytes, capacity_bytes: int) -> InvalidArgumentError:
    """Return the error for a message that would not fit an empty stream."""
    return InvalidArgumentError(
        "write",
        path,
        f"a message of {len(message)} bytes, and the stream keeps {capacity_bytes}, "
        f"of which each message takes {RECORD_BYTES} more than its own",
    )
