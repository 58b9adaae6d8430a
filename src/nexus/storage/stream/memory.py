"""StreamBuffer: a stream in the memory of this process. It is empty after a restart.

Layer: storage. Unix counterpart: the kernel's log buffer, ``/dev/kmsg``.

Lock: ``_mutex``, a leaf; reading takes none, since a dict lookup is one step.
"""

from __future__ import annotations

import threading

from nexus.contracts.errors import ClosedError, EndOfStreamError, StreamOffsetError
from nexus.contracts.stream_backend import RECORD_BYTES, StreamBackend, StreamInfo, StreamStore
from nexus.storage.stream.charging import charge


class StreamBuffer(StreamBackend):
    """The messages of one stream, by offset."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._mutex = threading.Lock()
        self._messages: dict[int, bytes] = {}  # this and all below changed under _mutex
        self._begin = 0
        self._end = 0
        self._used_bytes = 0
        self._ended: str | None = None
        self._closed = False

    def append(self, path: str, message: bytes) -> int:
        cost = charge(path, message, self._capacity_bytes)
        with self._mutex:
            self._check_open("write", path)
            while self._used_bytes + cost > self._capacity_bytes:
                begin = self._begin
                self._begin = begin + 1  # first, so that a reader that misses it knows why
                self._used_bytes -= len(self._messages.pop(begin)) + RECORD_BYTES
            offset = self._end
            self._messages[offset] = message
            self._used_bytes += cost
            self._end = offset + 1
            return offset

    def read(self, path: str, offset: int) -> bytes | None:
        message = self._messages.get(offset)
        if message is not None:
            return message
        with self._mutex:
            self._check_open("read", path)
            message = self._messages.get(offset)
            if message is not None:
                return message
            if offset != self._end:
                raise StreamOffsetError("read", path, offset, begin=self._begin, end=self._end)
            if self._ended is not None:
                raise EndOfStreamError("read", path, self._ended)
            return None

    def info(self) -> StreamInfo:
        with self._mutex:
            self._check_open("stat", None)
            return StreamInfo(
                self._begin,
                self._end,
                self._used_bytes,
                self._capacity_bytes,
                self._ended is not None,
            )

    def end(self, reason: str) -> None:
        """Say that nothing will follow, and why."""
        with self._mutex:
            self._ended = reason

    def sync(self) -> None:
        pass

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            self._messages.clear()

    def _check_open(self, operation: str, path: str | None) -> None:
        if self._closed:
            raise ClosedError(operation, path, "the stream is closed")


class MemoryStreams(StreamStore):
    """Streams in memory, each gone once it is closed."""

    name = "memory"

    def open(self, stream_id: str, capacity_bytes: int, *, strict: bool = False) -> StreamBackend:
        return StreamBuffer(capacity_bytes)

    def remove(self, stream_id: str) -> None:
        pass
