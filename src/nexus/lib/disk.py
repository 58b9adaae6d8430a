"""The system calls that reach a local disk, in one place.

Layer: lib. Drivers do their file I/O through a :class:`Disk` handed to them, so that a test can
hand in one that fails at a chosen call (:class:`nexus.testing.faults.FaultyDisk`). Errors are
those of the operating system; :func:`storage_error` translates them at the driver's edge.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from nexus.contracts.errors import (
    AccessDeniedError,
    NexusError,
    NoSpaceError,
    ReadOnlyError,
    StorageError,
)
from nexus.contracts.metadata import Buffer

_KEEP_SIZE = 1  # linux/falloc.h
_PUNCH_HOLE = 2
_MOST_PARTS = 1024  # IOV_MAX of Linux and of the BSDs
FULL_HINT = "delete something, or run `nexus gc`"
_fdatasync = getattr(os, "fdatasync", os.fsync)


def _pwritev(fd: int, parts: Sequence[Buffer], offset: int) -> int:
    """Return how many bytes were written: none where the system has no pwritev(2)."""
    return os.pwritev(fd, parts[:_MOST_PARTS], offset) if hasattr(os, "pwritev") else 0


class Disk:
    """Plain operating system calls. Stateless, so shared freely between threads."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        """open(2), close-on-exec; returns a file descriptor."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Read up to ``count`` bytes at ``offset``, fewer only at the end of the file."""
        piece = os.pread(fd, count, offset)
        if len(piece) == count or not piece:
            return piece
        pieces = [piece]
        got = len(piece)
        while got < count:
            piece = os.pread(fd, count - got, offset + got)
            if not piece:
                break
            pieces.append(piece)
            got += len(piece)
        return b"".join(pieces)

    def write_all(self, fd: int, data: Buffer) -> None:
        """Write every byte at the file's position. Errors: OSError, with a prefix written."""
        written = os.write(fd, data)
        if written == len(data):
            return
        rest = memoryview(data)
        while written < len(rest):
            written += os.write(fd, rest[written:])

    def pwrite_all(self, fd: int, data: Buffer, offset: int) -> None:
        """Write every byte at ``offset``. Errors: OSError, with a prefix written."""
        written = os.pwrite(fd, data, offset)
        if written == len(data):
            return
        rest = memoryview(data)
        while written < len(rest):
            written += os.pwrite(fd, rest[written:], offset + written)

    def pwrite_parts(self, fd: int, parts: Sequence[Buffer], offset: int) -> None:
        """Write buffers one after the other from ``offset`` on, without joining them.

        Errors: OSError, with a prefix written.
        """
        written = _pwritev(fd, parts, offset)
        for part in parts:
            if written < len(part):  # counts bytes: a record's parts are flat
                self.pwrite_all(fd, memoryview(part)[max(0, written) :], offset + max(0, written))
            written -= len(part)
            offset += len(part)

    def truncate(self, fd: int, size_bytes: int) -> None:
        """ftruncate(2)."""
        os.ftruncate(fd, size_bytes)

    def size(self, fd: int) -> int:
        """Return the size of an open file: fstat(2)."""
        return os.fstat(fd).st_size

    def fsync(self, fd: int) -> None:
        """fsync(2)."""
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        """fdatasync(2): the bytes and the size, not the times; fsync(2) where there is none."""
        _fdatasync(fd)

    def syncfs(self, fd: int) -> None:
        """syncfs(2): write out the whole filesystem that holds ``fd``.

        Reports write errors since ``fd`` was opened. Call only where :func:`can_syncfs`.
        """
        libc = _libc()
        if libc.syncfs(fd) != 0:
            number = _last_c_error()
            raise OSError(number, os.strerror(number))

    def punch_hole(self, fd: int, offset: int, count: int) -> bool:
        """fallocate(2): give a range of a file back to the disk, so that it reads as zeros.

        Return False where the filesystem cannot.
        """
        if not sys.platform.startswith("linux"):
            return False
        if _fallocate()(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, count) == 0:
            return True
        number = _last_c_error()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(number, os.strerror(number))

    def rename(self, source: str, target: str) -> None:
        """rename(2): atomic, replaces a file at the target."""
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        """unlink(2)."""
        os.unlink(path)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        """mkdir(2)."""
        os.mkdir(path, mode)

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""
        os.rmdir(path)

    def fsync_directory(self, path: str) -> None:
        """Make the entries of a directory durable: open(2), fsync(2), close(2)."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.fsync(fd)
        finally:
            self.close(fd)


def put_in_place(written: str, path: str, disk: Disk) -> None:
    """Have a file that is written take its place, durably: whole, or as if it had never been.

    Syncs the file, renames it, which replaces what is there, and syncs the directory. Errors:
    OSError.
    """
    fd = disk.open(written, os.O_RDWR)
    try:
        disk.fsync(fd)
    finally:
        disk.close(fd)
    disk.rename(written, path)
    disk.fsync_directory(os.path.dirname(path))


def folder_place(path: str) -> tuple[str, ...]:
    """Return what tells a folder and those above it apart, whatever names they go by.

    Outermost first; ``path`` is real and absolute. Errors: OSError.
    """
    parts = path.rstrip("/").split("/")
    folders = ("/".join(parts[:end]) or "/" for end in range(1, len(parts) + 1))
    return tuple(f"{status.st_dev:x}:{status.st_ino:x}" for status in map(os.stat, folders))


def places_overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether two places are one folder, or one lies within the other."""
    return bool(one and other) and (one[-1] in other or other[-1] in one)


@cache
def can_syncfs() -> bool:
    """Return whether syncfs(2) is there and reports write errors: Linux from 5.8 on."""
    if not sys.platform.startswith("linux"):
        return False
    major, minor = (int("".join(filter(str.isdigit, part))) for part in _release()[:2])
    return (major, minor) >= (5, 8)


def _release() -> list[str]:
    return (os.uname().release + ".0").replace("-", ".").split(".")


@cache
def _libc() -> Any:
    import ctypes  # costs a millisecond at start-up, which most runs do not need

    return ctypes.CDLL(None, use_errno=True)


@cache
def _fallocate() -> Any:
    import ctypes  # as above

    function = _libc().fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def _last_c_error() -> int:
    import ctypes  # as above

    return ctypes.get_errno()


def storage_error(operation: str, path: str | None, error: OSError) -> NexusError:
    """Return the NexusError for an error of the operating system."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(operation, path, reason, hint=FULL_HINT)
    if error.errno == errno.EROFS:
        return ReadOnlyError(operation, path, reason)
    if error.errno in (errno.EACCES, errno.EPERM):
        return AccessDeniedError(operation, path, reason)
    return StorageError(operation, path, reason)
