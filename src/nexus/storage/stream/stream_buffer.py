"""StreamBuffer: the latest messages of a stream, bounded by bytes.

Layer: storage, beneath :mod:`nexus.storage.stream.memory`. It copies no bytes, raises nothing, and
knows no end of a stream. Unix counterpart: the ring of printk.

Invariants:

1. A message is at its offset until it is let go of. Offsets count up from 0; none is used twice.
2. The charges of the messages held never exceed the capacity; the oldest go first.
3. A message is charged its bytes and ``RECORD_BYTES``.

Locks: none. Who changes it takes turns; reading takes part in no turn, since a dict lookup is one
step.
"""

from __future__ import annotations

from nexus.contracts.stream_backend import RECORD_BYTES


class StreamBuffer:
    """The messages of one stream by offset. Readers share it with one writer at a time."""

    __slots__ = ("_messages", "begin", "capacity_bytes", "end", "used_bytes")

    def __init__(self, capacity_bytes: int, /) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.begin = 0
        self.end = 0
        self._messages: dict[int, bytes] = {}

    def append(self, message: bytes, /) -> int | None:
        """Add a message in the place of the oldest ones; return its offset.

        None, with nothing changed, where it would not fit an empty buffer.
        """
        charge = len(message) + RECORD_BYTES
        if charge > self.capacity_bytes:
            return None
        while self.used_bytes + charge > self.capacity_bytes:
            begin = self.begin
            self.begin = begin + 1  # first, so that a reader that misses it knows why
            self.used_bytes -= len(self._messages.pop(begin)) + RECORD_BYTES
        offset = self.end
        self._messages[offset] = message
        self.used_bytes += charge
        self.end = offset + 1
        return offset

    def read(self, offset: int, /) -> bytes | None:
        """Return the message at an offset; None where there is none, or none any more."""
        return self._messages.get(offset)

    def clear(self) -> None:
        """Let go of every message."""
        self.begin = self.end
        self._messages.clear()
        self.used_bytes = 0
