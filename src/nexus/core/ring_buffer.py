"""RingBuffer: messages in the order in which they came, bounded by bytes.

Layer: core, beneath :mod:`nexus.core.pipe_manager`. It neither waits nor synchronises: its owner
holds a mutex. It runs no I/O and copies no bytes. Unix counterpart: ``kfifo``.

Invariants:

1. First in, first out; a message is taken whole, once.
2. The charges of the messages held never exceed the capacity, but for what was put back.
3. A message is charged its bytes, and one byte at least, so that empty ones are bounded too.
"""

from __future__ import annotations

from collections import deque


def charge(message: bytes) -> int:
    """Return how much of a capacity a message takes up."""
    return len(message) or 1


class RingBuffer:
    """Messages of a pipe. Not thread-safe."""

    __slots__ = ("_messages", "capacity_bytes", "used_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._messages: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def put_nowait(self, message: bytes) -> bool:
        """Add a message at the end; return False, with nothing changed, where it does not fit."""
        used = self.used_bytes + (len(message) or 1)
        if used > self.capacity_bytes:
            return False
        self.used_bytes = used
        self._messages.append(message)
        return True

    def put_back(self, message: bytes) -> None:
        """Make a message that was taken the first one again, whether or not it fits."""
        self.used_bytes += charge(message)
        self._messages.appendleft(message)

    def get_nowait(self) -> bytes | None:
        """Take the first message; None where there is none."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self.used_bytes -= len(message) or 1
        return message

    def clear(self) -> None:
        """Drop every message."""
        self._messages.clear()
        self.used_bytes = 0
