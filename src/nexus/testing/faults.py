"""FaultyDisk: a disk that fails when a test says so.

Layer: testing. Everything that is not told to fail reaches the real disk, so a driver under test
runs as it always does up to the chosen call. Holds no knowledge of any driver.

Lock: one, around the counters and the plan; never held during a system call.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nexus.contracts.metadata import Buffer
from nexus.lib.disk import Disk

OPERATIONS = frozenset(
    name for name, member in vars(Disk).items() if callable(member) and not name.startswith("_")
)
"""Names of the operations that can be counted and made to fail."""


@dataclass(slots=True)
class _Fault:
    error_number: int
    calls_until: int | None
    """How many calls from now fails, once; None: every call fails."""
    bytes_kept: int = 0
    """For the writing operations: how many bytes reach the file before the failure."""


class FaultyDisk(Disk):
    """A :class:`Disk` with planned failures. May be shared between threads.

    ``calls`` counts the calls of each operation, failed ones too. An operation that is made of
    others (``fsync_directory`` of open, fsync and close) counts and fails as those do as well; so
    does ``fdatasync`` as an ``fsync``: no disk fails the one and not the other.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._faults: dict[str, _Fault] = {}
        self._lock = threading.Lock()

    def fail(self, operation: str, error_number: int = errno.EIO, *, nth: int = 1) -> None:
        """Make the ``nth`` call of the operation from now on fail, once."""
        self._plan(operation, _Fault(error_number, nth))

    def fail_always(self, operation: str, error_number: int = errno.EIO) -> None:
        """Make every call of the operation fail until :meth:`heal`."""
        self._plan(operation, _Fault(error_number, None))

    def cut_write(
        self,
        bytes_kept: int,
        error_number: int = errno.ENOSPC,
        *,
        nth: int = 1,
        operation: str = "write_all",
    ) -> None:
        """Make the ``nth`` write from now on fail after ``bytes_kept`` bytes: a full disk."""
        self._plan(operation, _Fault(error_number, nth, bytes_kept))

    def heal(self, operation: str | None = None) -> None:
        """Cancel what is planned for one operation, or for all of them."""
        with self._lock:
            if operation is None:
                self._faults.clear()
            else:
                self._faults.pop(operation, None)

    @contextmanager
    def failing(self, operation: str, error_number: int = errno.EIO) -> Iterator[None]:
        """Make every call of the operation fail inside the ``with`` block."""
        self.fail_always(operation, error_number)
        try:
            yield
        finally:
            self.heal(operation)

    def _plan(self, operation: str, fault: _Fault) -> None:
        assert operation in OPERATIONS, f"no such disk operation: {operation}"
        with self._lock:
            self._faults[operation] = fault

    def _due(self, operation: str) -> _Fault | None:
        """Count a call; return the fault that it must meet."""
        with self._lock:
            self.calls[operation] += 1
            fault = self._faults.get(operation)
            if fault is None or fault.calls_until is None:
                return fault
            fault.calls_until -= 1
            if fault.calls_until > 0:
                return None
            del self._faults[operation]
            return fault

    def _enter(self, operation: str, path: str | None = None) -> None:
        fault = self._due(operation)
        if fault is not None:
            raise _os_error(fault, path)

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        self._enter("open", path)
        return super().open(path, flags, mode)

    def close(self, fd: int) -> None:
        # A failing close(2) has released the descriptor all the same.
        fault = self._due("close")
        super().close(fd)
        if fault is not None:
            raise _os_error(fault, None)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self._enter("pread")
        return super().pread(fd, count, offset)

    def write_all(self, fd: int, data: Buffer) -> None:
        fault = self._due("write_all")
        if fault is None:
            super().write_all(fd, data)
            return
        if fault.bytes_kept:
            super().write_all(fd, memoryview(data)[: fault.bytes_kept])
        raise _os_error(fault, None)

    def pwrite_all(self, fd: int, data: Buffer, offset: int) -> None:
        fault = self._due("pwrite_all")
        if fault is None:
            super().pwrite_all(fd, data, offset)
            return
        if fault.bytes_kept:
            super().pwrite_all(fd, memoryview(data)[: fault.bytes_kept], offset)
        raise _os_error(fault, None)

    def pwrite_parts(self, fd: int, parts: Sequence[Buffer], offset: int) -> None:
        self.pwrite_all(fd, b"".join(parts), offset)  # one write, with the faults of one

    def fsync(self, fd: int) -> None:
        self._enter("fsync")
        super().fsync(fd)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._enter("truncate")
        super().truncate(fd, size_bytes)

    def size(self, fd: int) -> int:
        self._enter("size")
        return super().size(fd)

    def fdatasync(self, fd: int) -> None:
        self._enter("fdatasync")
        self._enter("fsync")
        super().fdatasync(fd)

    def syncfs(self, fd: int) -> None:
        self._enter("syncfs")
        super().syncfs(fd)

    def punch_hole(self, fd: int, offset: int, count: int) -> bool:
        self._enter("punch_hole")
        return super().punch_hole(fd, offset, count)

    def rename(self, source: str, target: str) -> None:
        self._enter("rename", target)
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._enter("unlink", path)
        super().unlink(path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._enter("mkdir", path)
        super().mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        self._enter("rmdir", path)
        super().rmdir(path)

    def fsync_directory(self, path: str) -> None:
        self._enter("fsync_directory", path)
        super().fsync_directory(path)


def _os_error(fault: _Fault, path: str | None) -> OSError:
    return OSError(fault.error_number, os.strerror(fault.error_number), path)


class KilledError(BaseException):
    """The process ended at this call, so to speak."""


class KillingDisk(Disk):
    """A disk that nothing reaches any more from the n-th changing call on, as after SIGKILL.

    Errors: KilledError from each of those calls; reading goes on, for who has to let go.
    """

    def __init__(self, nth: int | None = None) -> None:
        """Count from now on; with None, only once :attr:`left` is set."""
        self.left = nth
        """How many changing calls are still to come through, None for all."""

    def _live(self) -> None:
        if self.left is not None:
            self.left = max(0, self.left - 1)
            if not self.left:
                raise KilledError

    def write_all(self, fd: int, data: Buffer) -> None:
        self._live()
        super().write_all(fd, data)

    def pwrite_all(self, fd: int, data: Buffer, offset: int) -> None:
        self._live()
        super().pwrite_all(fd, data, offset)

    def pwrite_parts(self, fd: int, parts: Sequence[Buffer], offset: int) -> None:
        for part in parts:  # a process may end between any two of them
            self.pwrite_all(fd, part, offset)
            offset += len(part)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._live()
        super().truncate(fd, size_bytes)

    def fsync(self, fd: int) -> None:
        self._live()
        super().fsync(fd)

    def fdatasync(self, fd: int) -> None:
        self._live()
        super().fdatasync(fd)

    def punch_hole(self, fd: int, offset: int, count: int) -> bool:
        self._live()
        return super().punch_hole(fd, offset, count)

    def rename(self, source: str, target: str) -> None:
        self._live()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._live()
        super().unlink(path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._live()
        super().mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        self._live()
        super().rmdir(path)
