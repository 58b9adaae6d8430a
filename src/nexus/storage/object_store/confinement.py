"""Keeps every access below one folder, whatever symbolic links lie in it.

Layer: storage. Resolves keys to real paths and decides; moves no bytes. Unix counterpart:
openat2(2) with RESOLVE_IN_ROOT, except that a link that leaves is refused, not bent.

Invariants:

1. A path that is returned lay below the root when it was resolved, and had no link in it.
2. Resolving never opens what is there for reading, so that a fifo neither blocks nor is disturbed.
3. A file is read through the very descriptor that was checked; one that was created by a returned
   path is checked before a byte passes. So a link that is swapped in meanwhile gains nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

import msgspec

from nexus.contracts.errors import (
    AccessDeniedError,
    ContentNotFoundError,
    InvalidArgumentError,
    PathIsDirectoryError,
)

_DESCRIPTORS = "/proc/self/fd/"
_NOTHING_THERE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_READ_FOREIGN = os.O_RDONLY | os.O_NONBLOCK
_DELETED = " (deleted)"
_ATTEMPTS = 1000
_LEAVES = "a symbolic link leads out of the root"
_O_PATH = getattr(os, "O_PATH", 0)


class Place(msgspec.Struct, frozen=True):
    """A real path below the root, and what is there (None: nothing)."""

    path: str
    status: os.stat_result | None

    @property
    def is_file(self) -> bool:
        """Whether a regular file is there."""
        return self.status is not None and stat.S_ISREG(self.status.st_mode)

    @property
    def is_directory(self) -> bool:
        """Whether a directory is there."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)


class Confinement:
    """The rule of one root, which is a real path. Stateless, so shared freely."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._prefix = root.rstrip("/") + "/"
        # Without O_PATH and /proc each resolution walks the path in Python instead.
        self._by_descriptor = bool(_O_PATH) and os.path.isdir(_DESCRIPTORS)

    def locate(self, operation: str, key: str) -> Place:
        """Follow every link in the key. Errors: AccessDeniedError where it leads out; OSError."""
        path = self._prefix + key
        try:
            place = self._follow(path)
        except OSError as error:
            if error.errno not in _NOTHING_THERE:
                raise
            place = Place(os.path.realpath(path), None)
        if not self.holds(place.path):
            raise AccessDeniedError(operation, key, _LEAVES)
        return place

    def locate_entry(self, operation: str, key: str) -> str:
        """Follow every link but the last name. Errors: as :meth:`locate`, ContentNotFoundError."""
        parent, _, name = key.rpartition("/")
        place = self.locate(operation, parent)
        return place.path.rstrip("/") + "/" + name

    def check_move(self, operation: str, key: str, old: str, new: str) -> None:
        """Refuse to move a link where it would lead to itself, or no more to what it leads to.

        Errors: InvalidArgumentError; OSError.
        """
        if not os.path.islink(old):
            return
        target = os.path.realpath(old)
        if old != new and os.path.exists(new) and os.path.samefile(old, new):
            reason = "a symbolic link would replace the very file that it leads to"
            raise InvalidArgumentError(operation, key, reason)
        if os.path.realpath(os.path.join(os.path.dirname(new), os.readlink(old))) != target:
            reason = "a relative symbolic link would lead elsewhere from there"
            raise InvalidArgumentError(operation, key, reason)

    def open_file(self, operation: str, key: str, open_call: Callable[[str, int], int]) -> int:
        """Open a file for reading. Errors: AccessDeniedError, PathIsDirectoryError; OSError."""
        if not self._by_descriptor:
            place = self.locate(operation, key)
            self._check_file(operation, key, place)
            return open_call(place.path, _READ_FOREIGN | os.O_NOFOLLOW)
        try:
            fd = os.open(self._prefix + key, _O_PATH)
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                self.locate(operation, key)  # a link that leaves is refused wherever it leads
            raise
        try:
            link = f"{_DESCRIPTORS}{fd}"
            place = Place(os.readlink(link), os.fstat(fd))
            self._check_file(operation, key, place)
            return open_call(link, _READ_FOREIGN)
        finally:
            os.close(fd)

    def _check_file(self, operation: str, key: str, place: Place) -> None:
        if not self.holds(place.path):
            raise AccessDeniedError(operation, key, _LEAVES)
        must_exist(operation, key, place)
        must_be_file(operation, key, place)
        if place.is_directory:
            raise PathIsDirectoryError(operation, key, "is a directory")

    def check_descriptor(self, operation: str, key: str, fd: int) -> None:
        """Check that what was opened lies below the root. Errors: AccessDeniedError."""
        if self._by_descriptor and not self.holds(os.readlink(f"{_DESCRIPTORS}{fd}")):
            raise AccessDeniedError(operation, key, _LEAVES)

    def holds(self, real_path: str) -> bool:
        """Return whether a real path is the root or lies below it."""
        return real_path.startswith(self._prefix) or real_path == self.root

    def _follow(self, path: str) -> Place:
        if not self._by_descriptor:
            real_path = os.path.realpath(path, strict=True)
            return Place(real_path, os.lstat(real_path))
        for _ in range(_ATTEMPTS):
            fd = os.open(path, _O_PATH)
            try:
                place = Place(os.readlink(f"{_DESCRIPTORS}{fd}"), os.fstat(fd))
            finally:
                os.close(fd)
            # The kernel marks the path of what was replaced or removed since it was opened.
            if not place.path.endswith(_DELETED) or _is_named(place):
                return place
        raise OSError(errno.EBUSY, "replaced again and again", path)


def _is_named(place: Place) -> bool:
    try:
        there = os.lstat(place.path)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return False
        raise
    return place.status is not None and os.path.samestat(there, place.status)


def must_be_file(operation: str, key: str, place: Place) -> None:
    """Refuse what cannot be read or replaced as a file, directories aside.

    Errors: AccessDeniedError for a socket, a fifo or a device.
    """
    if place.status is not None and not place.is_file and not place.is_directory:
        raise AccessDeniedError(operation, key, "not a regular file")


def must_exist(operation: str, key: str, place: Place) -> os.stat_result:
    """Return the status of what is there. Errors: ContentNotFoundError."""
    if place.status is None:
        raise ContentNotFoundError(operation, key, "no such file or directory")
    return place.status
