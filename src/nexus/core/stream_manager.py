"""StreamManager: streams that keep their messages for readers who each read at their own offset.

Layer: core. It adds waiting to what a :class:`~nexus.contracts.stream_backend.StreamBackend`
keeps; what path leads to a stream, and which backend a mount has, is decided above. Unix
counterpart: ``tail -f`` on an append-only file.

Invariants:

1. A read at an offset returns the message there and the offset of the next; it takes nothing away.
2. A reader of what is not kept any more gets an error that says where the stream begins.
3. Readers neither hold up writers nor one another.
4. A read at the end waits, and ends once a message is appended: no append falls between the look
   and the wait.
5. Removing or closing a stream ends every wait on it, and every later call, with one error.

Lock order: the mutex of StreamManager, or that of a stream, then the backend's own locks and the
mutex of the wait queue. Appending holds none of the former; no lock is held while a caller waits.
"""

from __future__ import annotations

import threading
import time
from typing import Final

from nexus.contracts.errors import (
    ClosedError,
    NexusError,
    PathNotFoundError,
    WaitTimeoutError,
    WouldBlock,
)
from nexus.contracts.metadata import StreamMessage
from nexus.contracts.stream_backend import StreamBackend, StreamInfo, StreamStore
from nexus.lib.steps import Steps, run
from nexus.lib.waiting import Alarm, Waiter, WaitQueue

DEFAULT_STREAM_BYTES: Final = 1 << 22

_NEWS: Final = True


class Stream:
    """One stream. Shared by all threads and event loops.

    ``timeout_s`` is how long to wait: None without end, 0 not at all. ``path`` is for errors.
    """

    def __init__(self, backend: StreamBackend) -> None:
        self._backend = backend
        self._mutex = threading.Lock()  # guards _closed, and orders looking against waking
        self._readers: WaitQueue[bool] = WaitQueue(lambda _: None)
        self._closed: tuple[type[NexusError], str] | None = None
        backend.attach(self._wake)

    def append(self, path: str, message: bytes) -> int:
        """Add a message; return its offset. Errors: those of the backend; what closed it."""
        try:
            offset = self._backend.append(path, message)
        except ClosedError as error:
            raise self._why_closed("write", path, error) from None
        self._wake()
        return offset

    def read(self, path: str, offset: int, timeout_s: float | None = None) -> StreamMessage:
        """Return the message at an offset, waiting for it where it is the next one.

        Errors: WouldBlock with a timeout of 0, else WaitTimeoutError; those of the backend; what
        closed it.
        """
        found = self._look(path, offset, timeout_s)
        if isinstance(found, StreamMessage):
            return found
        return run(self._waiting(path, offset, timeout_s, found))

    def reading(
        self, path: str, offset: int, timeout_s: float | None = None
    ) -> Steps[StreamMessage]:
        """As :meth:`read`, for a thread or a task."""
        found = self._look(path, offset, timeout_s)
        if isinstance(found, StreamMessage):
            return found
        return (yield from self._waiting(path, offset, timeout_s, found))

    def _waiting(
        self, path: str, offset: int, timeout_s: float | None, waiter: Waiter[bool]
    ) -> Steps[StreamMessage]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            news = yield from waiter.steps(left, self._poll(path, offset, waiter))
            if news is None:
                raise WaitTimeoutError("read", path, "no message came")
            found = self._look(path, offset, timeout_s)
            if isinstance(found, StreamMessage):
                return found
            waiter = found

    def info(self) -> StreamInfo:
        """Return what the stream keeps. Errors: those of the backend; what closed it."""
        try:
            return self._backend.info()
        except ClosedError as error:
            raise self._why_closed("stat", None, error) from None

    def waiting(self) -> int:
        """Return how many readers wait."""
        return len(self._readers)

    def sync(self) -> None:
        """Make what was appended durable. Errors: StorageError."""
        try:
            self._backend.sync()
        except ClosedError:
            if self._closed is None:
                raise

    def close(self, kind: type[NexusError], path: str | None, reason: str) -> None:
        """End every wait with an error of a kind, and close the backend. Idempotent."""
        with self._mutex:
            if self._closed is not None:
                return
            self._closed = kind, reason
            self._readers.close(kind("read", path, reason))
        self._backend.close()

    # -- helpers ------------------------------------------------------------------------------

    def _look(
        self, path: str, offset: int, timeout_s: float | None
    ) -> StreamMessage | Waiter[bool]:
        """Return a message, or a place in the queue of readers."""
        try:
            message = self._backend.read(path, offset)
            if message is None:
                if timeout_s == 0:
                    raise WouldBlock("read", path, f"the stream ends at offset {offset}")
                with self._mutex:
                    message = self._backend.read(path, offset)
                    if message is None:
                        return self._readers.enter()
        except ClosedError as error:
            raise self._why_closed("read", path, error) from None
        return StreamMessage(message, offset)

    def _wake(self) -> None:
        with self._mutex:
            if self._readers:
                self._readers.wake_all(_NEWS)

    def _poll(self, path: str, offset: int, waiter: Waiter[bool]) -> Alarm | None:
        """Return what looks, less and less often, for messages of other processes."""
        if self._backend.poll_s is None:
            return None
        pause_s, longest_s = self._backend.poll_s

        def look() -> float:
            nonlocal pause_s
            info = self.info()
            if info.end > offset or info.ended:
                waiter.wake(_NEWS)
            due_s, pause_s = pause_s, min(pause_s * 2, longest_s)
            return due_s

        return look

    def _why_closed(self, operation: str, path: str | None, error: ClosedError) -> NexusError:
        if self._closed is None:
            return error
        return self._closed[0](operation, path, self._closed[1])


class StreamManager:
    """The streams of one store, by id. Shared by all threads."""

    def __init__(self, store: StreamStore, *, strict: bool) -> None:
        self.store = store
        self._strict = strict
        self._mutex = threading.Lock()
        self._streams: dict[str, Stream] = {}  # this and all below guarded by _mutex
        self._closed: str | None = None

    def open(self, stream_id: str, capacity_bytes: int) -> Stream:
        """Return the stream with an id, opened in the store at first.

        Errors: those of the store; ClosedError.
        """
        with self._mutex:
            if self._closed is not None:
                raise ClosedError("stream", None, self._closed)
            stream = self._streams.get(stream_id)
            if stream is None:
                stream = Stream(self.store.open(stream_id, capacity_bytes, strict=self._strict))
                self._streams[stream_id] = stream
            return stream

    def remove(self, stream_id: str, path: str) -> None:
        """End a stream and every wait on it, and remove what is stored of it.

        Errors: StorageError, with the stream ended all the same.
        """
        with self._mutex:
            stream = self._streams.pop(stream_id, None)
        if stream is not None:  # which may take a while, where a child has to end
            stream.close(PathNotFoundError, path, "the stream was removed")
        self.store.remove(stream_id)

    def sync(self) -> None:
        """Make every stream durable. Errors: StorageError."""
        with self._mutex:
            streams = list(self._streams.values())
        for stream in streams:
            stream.sync()

    def close(self, reason: str) -> None:
        """End every stream with ClosedError; what is stored stays. Idempotent."""
        with self._mutex:
            if self._closed is None:
                self._closed = reason
            streams = list(self._streams.values())
        for stream in streams:
            stream.close(ClosedError, None, reason)
