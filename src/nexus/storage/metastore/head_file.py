"""HeadFile: a witness of the newest revision, so that a lost end of a log cannot go unseen.

Layer: storage. A store whose log drops a damaged record drops every later commit with it and
says nothing. This file remembers how far the store had come. It holds nothing else: missing or
damaged, it is made anew.

One page, shared with the kernel through mmap: recording is a store to memory, which survives
the death of the process. Four slots, each in a sector of its own, little-endian::

    offset     0   512   recent revision, two slots written in turn
    offset  1024  1536   synced revision, two slots written in turn
    slot: revision u64 | boot u64 | xxh3_64(revision, boot; seed = store identity) u64

Invariants:

1. A slot that fails its checksum, or belongs to another store, counts as empty. A flipped bit
   therefore lowers the witness, it never raises it.
2. A recent slot counts only within the boot that wrote it: what was not synced may rightly be
   gone after a power cut. A synced slot counts always.

Locks: none; the owner calls it from one thread at a time.
"""

from __future__ import annotations

import mmap
import os
import struct

import xxhash

from nexus.contracts.errors import CorruptionError
from nexus.lib.boot_id import NO_BOOT, boot_number
from nexus.lib.disk import Disk

_SIZE_BYTES = 4096
_SLOT = struct.Struct("<QQQ")
_PAYLOAD = struct.Struct("<QQ")
_RECENT_OFFSETS = (0, 512)
_SYNCED_OFFSETS = (1024, 1536)


def lost_commits(count: int) -> str:
    """Return the reason of an error for commits that a store no longer has."""
    return f"the last {count} commits are missing: the end of the log is damaged or gone"


class HeadFile:
    """The witness of one store. Not thread-safe."""

    def __init__(self, path: str, *, identity: int, disk: Disk, boot: int | None = None) -> None:
        """Open the file, making it when absent or of the wrong size. Errors: OSError."""
        self._identity = identity
        self._boot = boot_number() if boot is None else boot
        fd = disk.open(path, os.O_RDWR | os.O_CREAT)
        try:
            if os.fstat(fd).st_size != _SIZE_BYTES:
                # Written, not only sized: a store into a hole is SIGBUS on a full disk.
                os.ftruncate(fd, 0)
                disk.write_all(fd, bytes(_SIZE_BYTES))
            self._page = mmap.mmap(fd, _SIZE_BYTES)
        finally:
            disk.close(fd)
        self._next_recent = 0
        self._next_synced = 0

    def newest(self) -> int:
        """Return the revision that the store must have reached, 0 when nothing is known."""
        synced = [self._read(offset)[0] for offset in _SYNCED_OFFSETS]
        recent = [self._read(offset) for offset in _RECENT_OFFSETS]
        same_boot = [
            revision for revision, boot in recent if boot == self._boot and boot != NO_BOOT
        ]
        return max(synced + same_boot)

    def missing(self, revision: int, store: str, *, accept_loss: bool) -> int:
        """Return how many commits a store that was opened at a revision has lost.

        Errors: CorruptionError where it has lost some, unless that is accepted.
        """
        count = max(0, self.newest() - revision)
        if count and not accept_loss:
            hint = "`nexus fsck --repair` accepts the loss"
            raise CorruptionError("open", store, lost_commits(count), hint=hint)
        return count

    def record(self, revision: int) -> None:
        """Remember a revision that is committed."""
        self._next_recent ^= 1
        self._write(_RECENT_OFFSETS[self._next_recent], revision)

    def record_synced(self, revision: int) -> None:
        """Remember a revision that survives a power cut."""
        self._next_synced ^= 1
        self._write(_SYNCED_OFFSETS[self._next_synced], revision)

    def restart(self, revision: int) -> None:
        """Forget everything but this revision."""
        for offset in _RECENT_OFFSETS + _SYNCED_OFFSETS:
            self._write(offset, revision)

    def close(self) -> None:
        """Release the page. Idempotent."""
        self._page.close()

    def _checksum(self, revision: int, boot: int) -> int:
        return xxhash.xxh3_64_intdigest(_PAYLOAD.pack(revision, boot), seed=self._identity)

    def _read(self, offset: int) -> tuple[int, int]:
        revision, boot, checksum = _SLOT.unpack_from(self._page, offset)
        if checksum != self._checksum(revision, boot):
            return 0, NO_BOOT
        return revision, boot

    def _write(self, offset: int, revision: int) -> None:
        checksum = self._checksum(revision, self._boot)
        _SLOT.pack_into(self._page, offset, revision, self._boot, checksum)
