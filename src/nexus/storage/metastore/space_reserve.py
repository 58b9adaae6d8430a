"""SpaceReserve: disk space set aside so that a full disk can still be emptied.

Layer: storage. Deleting needs space too: a log record, a rewritten page. The reserve is a file
of really allocated blocks that is given back to the disk when such a commit finds none left.
It decides nothing: who may use the space is the store's rule.

States::

    held --release()--> released --restore(), with room again--> held

Locks: none; the owner calls it from one thread at a time.
"""

from __future__ import annotations

import errno
import os
import sys

from nexus.contracts.errors import NoSpaceError
from nexus.lib.disk import FULL_HINT, Disk, storage_error

_HEADROOM_BYTES = 256 << 10
"""Free space to leave beyond the reserve: taking the last block would fail the next commit."""


class SpaceReserve:
    """A file of ``size_bytes`` allocated bytes; a size of 0 keeps no reserve."""

    def __init__(self, path: str, *, size_bytes: int, disk: Disk) -> None:
        self._path = path
        self.size_bytes = size_bytes
        self._disk = disk
        self.held = size_bytes == 0 or self._is_allocated()

    def is_scarce(self, wanted_bytes: int) -> bool:
        """Return whether there is a reserve and less than this is free besides. OSError."""
        return self.size_bytes > 0 and self._free_bytes() < wanted_bytes

    def restore(self) -> bool:
        """Allocate the reserve when the disk has room; return whether it is held. OSError."""
        if self.held:
            return True
        if self._free_bytes() < self.size_bytes + _HEADROOM_BYTES:
            return False
        fd = self._disk.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            self._allocate(fd)
            self.held = True
        except OSError as error:
            # Others took the space in between: give back what was got and stay released.
            os.ftruncate(fd, 0)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        finally:
            self._disk.close(fd)
        return self.held

    def restore_for(self, store: str) -> None:
        """Restore the reserve before a commit that may not use it up.

        Errors: NoSpaceError while there is no room; those of storage_error.
        """
        try:
            if self.restore():
                return
        except OSError as error:
            raise storage_error("commit", store, error) from error
        raise NoSpaceError("commit", store, "the disk is full", hint=FULL_HINT)

    def release_for(self, store: str) -> bool:
        """Release the reserve for a commit that frees space. Errors: those of storage_error."""
        try:
            return self.release()
        except OSError as error:
            raise storage_error("commit", store, error) from error

    def release(self) -> bool:
        """Give the space back to the disk; return whether there was any. Errors: OSError."""
        if not self.held or self.size_bytes == 0:
            return False
        os.truncate(self._path, 0)
        self.held = False
        return True

    def _allocate(self, fd: int) -> None:
        if sys.platform == "linux":
            os.posix_fallocate(fd, 0, self.size_bytes)
        else:
            self._disk.write_all(fd, bytes(self.size_bytes))

    def _is_allocated(self) -> bool:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return False
        return min(status.st_size, status.st_blocks * 512) >= self.size_bytes

    def _free_bytes(self) -> int:
        status = os.statvfs(os.path.dirname(self._path))
        return status.f_bavail * status.f_frsize
