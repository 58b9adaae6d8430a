"""StdioStream: the lines that a child process writes, as a stream; writes are lines to its input.

Layer: storage. A line is a message, without its newline. The child is started from a list of
arguments, never through a shell, in a process group of its own; what it says on standard error
goes where this process's does. Unix counterpart: popen(3), both ways.

Invariants:

1. A line that the child completed is a message, once and in order; an unfinished last one too.
2. Writing never waits for the child: lines wait in a backlog, bounded by the capacity.
3. Once the child has closed its output and all was read, a read says so.
4. After :meth:`StdioStream.close` neither the child nor its process group is alive, nor a zombie.

Lock: ``_ready`` guards the backlog and what a flag says; no I/O is done under it. Two threads
serve a child: one reads its output, one writes its input.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Final

from nexus.contracts.errors import (
    ClosedError,
    EndOfStreamError,
    InvalidArgumentError,
    StorageError,
    WouldBlock,
)
from nexus.contracts.stream_backend import RECORD_BYTES, StreamBackend, StreamInfo, StreamStore
from nexus.lib.disk import storage_error
from nexus.storage.stream.charging import charge
from nexus.storage.stream.memory import MemoryStream

GRACE_S: Final = 2.0
"""How long a child may take to end after its input was closed, and again after SIGTERM."""


class StdioStream(StreamBackend):
    """One child and what it wrote."""

    def __init__(self, command: Sequence[str], capacity_bytes: int) -> None:
        """Start the child. Errors: StorageError where it cannot be started."""
        self._lines = MemoryStream(capacity_bytes)
        self._capacity_bytes = capacity_bytes
        self._notify: Callable[[], None] = lambda: None
        self._ready = threading.Condition()
        self._backlog: deque[bytes] = deque()  # this and all below guarded by _ready
        self._backlog_bytes = 0
        self._closing = False
        self._closed = False
        self._deaf: str | None = None  # why the child's input takes no more
        try:
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise storage_error("open", None, error) from error
        assert self._child.stdin
        assert self._child.stdout
        self._reader = self._started("read", self._read_lines, self._child.stdout)
        self._writer = self._started("write", self._write_lines, self._child.stdin)

    def _started(
        self, what: str, serve: Callable[[IO[bytes]], None], end: IO[bytes]
    ) -> threading.Thread:
        name = f"nexus-stdio-{what}-{self._child.pid}"
        thread = threading.Thread(target=serve, args=(end,), name=name, daemon=True)
        thread.start()
        return thread

    # -- the interface ------------------------------------------------------------------------

    def attach(self, notify: Callable[[], None]) -> None:
        self._notify = notify

    def append(self, path: str, message: bytes) -> int:
        """Send a line to the child; return the offset at which its next line will be."""
        cost = charge(path, message, self._capacity_bytes)
        if b"\n" in message:
            raise InvalidArgumentError("write", path, "a message to a child is one line")
        with self._ready:
            if self._closing:
                raise ClosedError("write", path, "the stream is closed")
            if self._deaf is not None:
                raise StorageError("write", path, self._deaf)
            if self._backlog_bytes + cost > self._capacity_bytes:
                raise WouldBlock("write", path, "the child does not read what was written to it")
            end = self._lines.info().end
            self._backlog.append(message)
            self._backlog_bytes += cost
            self._ready.notify()
        return end

    def read(self, path: str, offset: int) -> bytes | None:
        try:
            return self._lines.read(path, offset)
        except EndOfStreamError as error:
            raise EndOfStreamError("read", path, self._status() or error.reason) from error

    def info(self) -> StreamInfo:
        return self._lines.info()

    def sync(self) -> None:
        pass

    def close(self) -> None:
        with self._ready:
            if self._closed:
                return
            self._closed = self._closing = True
            self._ready.notify()
        self._end_child()
        self._lines.close()

    # -- the child ----------------------------------------------------------------------------

    def _end_child(self) -> None:
        """Let the child end by itself, else make it, with whatever it started in its group.

        Nobody reaps the child before its group is killed: until then no other has its id.
        """
        self._reader.join(GRACE_S)
        if self._reader.is_alive():
            self._child.terminate()
            self._reader.join(GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._writer.join(GRACE_S)
        self._reader.join(GRACE_S)

    def _status(self) -> str | None:
        """Return how the child ended, None while it lives or once it was reaped."""
        with suppress(ChildProcessError):
            found = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                kind = "status" if found.si_code == os.CLD_EXITED else "signal"
                return f"the child ended with {kind} {found.si_status}"
        return None

    def _read_lines(self, output: IO[bytes]) -> None:
        longest = self._capacity_bytes - RECORD_BYTES + 1  # the newline
        with output:
            while line := output.readline(longest):
                if not self._closed:
                    self._lines.append("", line.removesuffix(b"\n"))
                    self._notify()
        self._lines.end("the child closed its output")
        self._notify()

    def _write_lines(self, input_: IO[bytes]) -> None:
        try:
            with input_:
                while (line := self._next_line()) is not None:
                    input_.write(line + b"\n")
                    input_.flush()
        except OSError as error:
            with self._ready:
                self._deaf = f"the child takes no input: {error.strerror}"

    def _next_line(self) -> bytes | None:
        """Wait for a line to write; None once the stream is closed and all was written."""
        with self._ready:
            while not self._backlog and not self._closing:
                self._ready.wait()
            if not self._backlog:
                return None
            line = self._backlog.popleft()
            self._backlog_bytes -= len(line) + RECORD_BYTES
            return line


class StdioStreams(StreamStore):
    """Streams that are each a child of one command, started when the stream is first used."""

    name = "stdio"

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)

    def open(self, stream_id: str, capacity_bytes: int, *, strict: bool = False) -> StreamBackend:
        return StdioStream(self._command, capacity_bytes)

    def remove(self, stream_id: str) -> None:
        pass
