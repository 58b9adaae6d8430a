"""MemoryStream: a stream in the memory of this process. It is empty after a restart.

Layer: storage. The messages are those of a ``StreamBuffer``; here are its errors and its end. Unix
counterpart: the kernel's log buffer, ``/dev/kmsg``.

Lock: ``_mutex``, a leaf; reading what is there takes none.
"""

from __future__ import annotations

import threading

from nexus.contracts.errors import ClosedError, EndOfStreamError, StreamOffsetError
from nexus.contracts.stream_backend import StreamBackend, StreamInfo, StreamStore
from nexus.storage.primitives import StreamBuffer
from nexus.storage.stream.charging import too_large


class MemoryStream(StreamBackend):
    """The messages of one stream, by offset."""

    def __init__(self, capacity_bytes: int) -> None:
        self._mutex = threading.Lock()
        self._buffer = StreamBuffer(capacity_bytes)  # this and all below changed under _mutex
        self._look = self._buffer.read  # bound once: reading is what a stream does most
        self._ended: str | None = None
        self._closed = False

    def append(self, path: str, message: bytes) -> int:
        with self._mutex:
            self._check_open("write", path)
            offset = self._buffer.append(message)
        if offset is None:
            raise too_large(path, message, self._buffer.capacity_bytes)
        return offset

    def read(self, path: str, offset: int) -> bytes | None:
        message = self._look(offset)
        if message is not None:
            return message
        with self._mutex:
            self._check_open("read", path)
            message = self._look(offset)
            if message is not None:
                return message
            begin, end = self._buffer.begin, self._buffer.end
            if offset != end:
                raise StreamOffsetError("read", path, offset, begin=begin, end=end)
            if self._ended is not None:
                raise EndOfStreamError("read", path, self._ended)
            return None

    def info(self) -> StreamInfo:
        with self._mutex:
            self._check_open("stat", None)
            buffer = self._buffer
            return StreamInfo(
                buffer.begin,
                buffer.end,
                buffer.used_bytes,
                buffer.capacity_bytes,
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
            self._buffer.clear()

    def _check_open(self, operation: str, path: str | None) -> None:
        if self._closed:
            raise ClosedError(operation, path, "the stream is closed")


class MemoryStreams(StreamStore):
    """Streams in memory, each gone once it is closed."""

    name = "memory"

    def open(self, stream_id: str, capacity_bytes: int, *, strict: bool = False) -> StreamBackend:
        return MemoryStream(capacity_bytes)

    def remove(self, stream_id: str) -> None:
        pass
