"""PipeManager: pipes that carry messages from many producers to many consumers.

Layer: core. A pipe is a buffer in the memory of this process, known by an id; what path leads to
it, and who may use it, is decided above. Unix counterpart: pipe(2) in packet mode (``O_DIRECT``).

Invariants:

1. One write is one message and one read takes one message: nothing is lost, split or seen twice.
2. Messages leave in the order in which they entered. Writers enter, and readers are served, in
   the order in which they came; a large message is not overtaken by later ones that would fit.
3. A pipe holds no more than its capacity. A full one makes writers wait, an empty one readers.
4. A message whose read was interrupted after it was handed over becomes the first one again, or
   goes to the next reader. A write that was interrupted was done entirely or not at all.
5. Removing or closing a pipe ends every wait on it, and every later call, with one error.

Lock order: the mutex of PipeManager or that of a pipe, then the mutex of a wait queue. No lock is
held while a caller waits.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple

from nexus.contracts.errors import (
    ClosedError,
    InvalidArgumentError,
    NexusError,
    PathNotFoundError,
    WaitTimeoutError,
    WouldBlock,
)
from nexus.core.primitives import RingBuffer
from nexus.core.ring_buffer import charge
from nexus.lib.steps import Steps, run
from nexus.lib.waiting import Waiter, WaitQueue

DEFAULT_PIPE_BYTES: Final = 65_536
"""As a pipe of Linux."""

_DONE: Final = True


class PipeInfo(NamedTuple):
    """What a pipe holds at a moment, and who waits for it."""

    capacity_bytes: int
    queued_bytes: int
    queued_messages: int
    waiting_readers: int
    waiting_writers: int


class Pipe:
    """One pipe. Shared by all threads and event loops.

    ``timeout_s`` is how long to wait: None without end, 0 not at all. ``path`` is for errors.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._mutex = threading.Lock()
        self._ring = RingBuffer(capacity_bytes)  # this and all below guarded by _mutex
        # A reader waits only while the ring is empty and no writer waits.
        self._readers: WaitQueue[bytes] = WaitQueue(self._take_back)
        self._writers: WaitQueue[bool] = WaitQueue(lambda _: None)
        self._closed: tuple[type[NexusError], str] | None = None
        # How many callers wait, and one more once it is closed: 0 is what the short way asks for.
        self._concerns = 0
        self._put = self._ring.put_nowait
        self._get = self._ring.get_nowait

    # -- messages -----------------------------------------------------------------------------

    def write(self, path: str, message: bytes, timeout_s: float | None = None) -> None:
        """Add a message, waiting for room.

        Errors: WouldBlock with a timeout of 0, else WaitTimeoutError; InvalidArgumentError for a
        message larger than the capacity; what the pipe was closed with.
        """
        with self._mutex:
            if not self._concerns and self._put(message):
                return
        run(self.writing(path, message, timeout_s))

    def writing(self, path: str, message: bytes, timeout_s: float | None = None) -> Steps[None]:
        """As :meth:`write`, for a thread or a task."""
        waiter = self._offer(path, message, timeout_s)
        if waiter is not None:
            try:
                done = yield from waiter.steps(timeout_s)
                if done is None:
                    raise WaitTimeoutError("write", path, "the pipe stayed full")
            finally:
                self._leave()

    def read(self, path: str, timeout_s: float | None = None) -> bytes:
        """Take the first message, waiting for one.

        Errors: WouldBlock with a timeout of 0, else WaitTimeoutError; what the pipe was closed
        with.
        """
        with self._mutex:
            message = self._get()
            if message is not None:
                if self._concerns:
                    self._admit_locked()
                return message
        return run(self.reading(path, timeout_s))

    def reading(self, path: str, timeout_s: float | None = None) -> Steps[bytes]:
        """As :meth:`read`, for a thread or a task."""
        found = self._take(path, timeout_s)
        if isinstance(found, bytes):
            return found
        try:
            message = yield from found.steps(timeout_s)
            if message is None:
                raise WaitTimeoutError("read", path, "the pipe stayed empty")
            return message
        finally:
            self._leave()

    def info(self) -> PipeInfo:
        """Return what the pipe holds."""
        with self._mutex:
            ring = self._ring
            return PipeInfo(
                ring.capacity_bytes,
                ring.used_bytes,
                len(ring),
                len(self._readers),
                len(self._writers),
            )

    def close(self, kind: type[NexusError], path: str | None, reason: str) -> None:
        """Drop what the pipe holds and end every wait with an error of a kind. Idempotent."""
        with self._mutex:
            if self._closed is None:
                self._closed = kind, reason
                self._concerns += 1
                self._ring.clear()
                self._readers.close(kind("read", path, reason))
                self._writers.close(kind("write", path, reason))

    # -- helpers ------------------------------------------------------------------------------

    def _offer(self, path: str, message: bytes, timeout_s: float | None) -> Waiter[bool] | None:
        """Deliver a message, or return a place in the queue of writers."""
        with self._mutex:
            if self._closed is not None:
                raise self._closed[0]("write", path, self._closed[1])
            if self._readers and self._readers.wake_one(message):
                return None
            if not self._writers and self._put(message):
                return None
            capacity_bytes = self._ring.capacity_bytes
            if charge(message) > capacity_bytes:
                raise InvalidArgumentError(
                    "write",
                    path,
                    f"a message of {len(message)} bytes, and the pipe holds {capacity_bytes}",
                )
            if timeout_s == 0:
                raise WouldBlock("write", path, "the pipe is full")
            self._concerns += 1
            return self._writers.enter(message)

    def _take(self, path: str, timeout_s: float | None) -> Waiter[bytes] | bytes:
        """Return the first message, or a place in the queue of readers."""
        with self._mutex:
            if self._closed is not None:
                raise self._closed[0]("read", path, self._closed[1])
            message = self._get()
            if message is not None:
                self._admit_locked()
                return message
            if timeout_s == 0:
                raise WouldBlock("read", path, "the pipe is empty")
            self._concerns += 1
            return self._readers.enter()

    def _leave(self) -> None:
        """Count a wait as over, and let those writers in who stood behind it."""
        with self._mutex:
            self._concerns -= 1
            self._admit_locked()

    def _admit_locked(self) -> None:
        while (waiter := self._writers.first()) is not None:
            message: bytes = waiter.request
            if self._ring.used_bytes + charge(message) > self._ring.capacity_bytes:
                return
            if waiter.wake(_DONE):
                self._deliver_locked(message)

    def _deliver_locked(self, message: bytes) -> None:
        if not self._readers.wake_one(message):
            self._put(message)

    def _take_back(self, message: bytes) -> None:
        with self._mutex:
            if self._closed is None and not self._readers.wake_one(message):
                self._ring.put_back(message)


class PipeManager:
    """The pipes of one volume, by id. Shared by all threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._pipes: dict[str, Pipe] = {}  # this and all below guarded by _mutex
        self._closed: str | None = None

    def open(self, pipe_id: str, capacity_bytes: int) -> Pipe:
        """Return the pipe with an id, a new and empty one at first. Errors: ClosedError."""
        with self._mutex:
            if self._closed is not None:
                raise ClosedError("pipe", None, self._closed)
            pipe = self._pipes.get(pipe_id)
            if pipe is None:
                pipe = self._pipes[pipe_id] = Pipe(capacity_bytes)
            return pipe

    def remove(self, pipe_id: str, path: str) -> None:
        """End a pipe and every wait on it; does nothing where it was never opened."""
        with self._mutex:
            pipe = self._pipes.pop(pipe_id, None)
        if pipe is not None:
            pipe.close(PathNotFoundError, path, "the pipe was removed")

    def close(self, reason: str) -> None:
        """End every pipe with ClosedError. Idempotent."""
        with self._mutex:
            if self._closed is None:
                self._closed = reason
            pipes = list(self._pipes.values())
        for pipe in pipes:
            pipe.close(ClosedError, None, reason)
