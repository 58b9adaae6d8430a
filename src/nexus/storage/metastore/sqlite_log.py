"""LogFile: the write-ahead log of a SQLite store, as its owner sees it beside SQLite.

Layer: storage. SQLite writes the log and reads it; this syncs it, keeps room in it and tells how
far it has come. It knows the frames' layout and nothing of what is in them.

Syncing a file that grows makes the filesystem commit its own journal too, which takes longer than
the data. So whoever syncs often has the log filled with zeros ahead of SQLite: it then overwrites
what is allocated. SQLite ends its log at the first frame without the salt and the checksum of the
present log, so zeros behind the last commit are no part of it, at a recovery either.

Invariants:

1. Nothing is written before the end of the file as SQLite left it.
2. On a full disk the filling is undone whole: it takes no space that a commit could have.

Locks: none; its owner lets neither SQLite nor another thread write the log meanwhile.
"""

from __future__ import annotations

import errno

from nexus.lib.disk import Disk
from nexus.storage.metastore.sqlite_file import PAGE_BYTES

FRAME_BYTES = 24 + PAGE_BYTES
_HEADER_BYTES = 32
_LEAST_FILL_BYTES = 64 << 10
MOST_FILL_BYTES = 1 << 20


class LogFile:
    """A descriptor of the log. Not thread-safe."""

    def __init__(self, fd: int, *, disk: Disk) -> None:
        """Take over the descriptor, which is open for reading and writing."""
        self._fd = fd
        self._disk = disk
        self._filled_bytes = 0
        """Size of the file when it was filled last."""

    def sync(self) -> None:
        """Make what is in the log survive a power cut. Errors: OSError."""
        self._disk.fdatasync(self._fd)

    def outgrows_filling(self) -> bool:
        """Return whether SQLite has written beyond what was filled. Errors: OSError."""
        return self._disk.size(self._fd) > self._filled_bytes

    def fill_ahead(self, limit_bytes: int) -> None:
        """Add zeros, as many as are there already within bounds, up to the limit. OSError."""
        size = self._disk.size(self._fd)
        wanted = min(max(size, _LEAST_FILL_BYTES), MOST_FILL_BYTES, limit_bytes - size)
        self._filled_bytes = size
        if wanted <= 0:
            return
        try:
            self._disk.pwrite_all(self._fd, bytes(wanted), size)
        except OSError as error:
            self._disk.truncate(self._fd, size)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        else:
            self._filled_bytes += wanted

    def holds_frames(self, count: int) -> bool:
        """Return whether the log holds that many frames. Errors: OSError.

        Its file is overwritten from the start, so the size says nothing; a frame is of the
        present log when it carries the salt of the log's header.
        """
        at = _HEADER_BYTES + (count - 1) * FRAME_BYTES
        salt = self._disk.pread(self._fd, 8, at + 8)
        return len(salt) == 8 and salt == self._disk.pread(self._fd, 8, 16)

    def close(self) -> None:
        """Release the descriptor. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._disk.close(fd)
