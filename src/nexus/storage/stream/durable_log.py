"""DurableLog: a stream in append-only files, which survives the death of its process.

Layer: storage. A stream is a folder; a segment is a file in it, named by the offset of its first
message. Unix counterpart: a journal.

Invariants:

1. An acknowledged message is in the file, whole; with ``strict`` it is synced as well, and no
   reader sees it before. Appends at the same time share a sync.
2. Bytes that fail their checksum are never returned. The message is an error, others are not.
3. Opening cuts off a torn end, which no acknowledged message is in, and tells how long it was.
4. After a failed write or sync nothing is appended until what may be left of it is cut off.
5. A full segment is synced before the next begins, so a power cut tears the last one alone.

6. Every message that is written and not synced yet lies at the end of the last segment.

Locks, in order: the turn of ``_rounds`` (whatever syncs, or begins a segment), ``_writing``
(appends, one after another; not held for the sync of a message), ``_mutex`` (the index, a leaf held
for no I/O). A reader opens the file itself, so it neither waits for a sync nor for another reader.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from array import array
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final

from nexus.contracts.errors import (
    ClosedError,
    CorruptionError,
    NexusError,
    StorageFailedError,
    StreamOffsetError,
)
from nexus.contracts.stream_backend import RECORD_BYTES, StreamBackend, StreamInfo, StreamStore
from nexus.lib.disk import Disk, storage_error
from nexus.lib.shared_rounds import SharedRounds
from nexus.storage.stream.charging import charge
from nexus.storage.stream.log_record import DAMAGED, decode, encode, identity_of, scan

_SEGMENTS: Final = 8
"""How many segments the capacity makes, so that letting go of one keeps most of it."""
_LARGEST_SEGMENT: Final = 8 << 20
_ENDING: Final = ".log"

_log = logging.getLogger(__name__)


class _Segment:
    """One file. ``positions`` has an entry for each message; guarded by the log's ``_mutex``."""

    __slots__ = ("first", "path", "positions", "size")

    def __init__(self, folder: str, first: int) -> None:
        self.path = f"{folder}/{first:020d}{_ENDING}"
        self.first = first
        self.positions: array[int] = array("Q")
        self.size = 0

    @property
    def end(self) -> int:
        return self.first + len(self.positions)

    def span(self, offset: int) -> tuple[int, int] | None:
        """Return where a message lies and how long its record is; None for a damaged one."""
        index = offset - self.first
        start = self.positions[index]
        after = self.positions[index + 1] if index + 1 < len(self.positions) else self.size
        if start == DAMAGED:
            return None
        return start, after - start if after != DAMAGED else 0


class _Unsynced:
    """A message that is written but not synced: where, and what became of it."""

    __slots__ = ("cost", "error", "start")

    def __init__(self, start: int, cost: int) -> None:
        self.start = start
        self.cost = cost
        self.error: OSError | None = None


class DurableLog(StreamBackend):
    """The messages of one stream, in a folder of its own that one object at a time has open."""

    def __init__(
        self, folder: str, stream_id: str, capacity_bytes: int, *, disk: Disk, strict: bool
    ) -> None:
        """Open the stream, making the folder when absent. Errors: StorageError."""
        self._folder = folder
        self._identity = identity_of(stream_id)
        self._capacity_bytes = capacity_bytes
        self._segment_bytes = min(capacity_bytes // _SEGMENTS, _LARGEST_SEGMENT)
        self._disk = disk
        self._strict = strict
        self._rounds = SharedRounds()
        self._writing = threading.Lock()
        self._fd = -1  # replaced under the turn as well; this and the next four guarded by _writing
        self._unsynced: list[_Unsynced] = []
        self._failed = False
        self._is_synced = False
        self._is_new = False
        self._mutex = threading.Lock()
        self._segments: list[_Segment] = []  # this and all below guarded by _mutex
        self._used_bytes = 0
        self._cut_bytes = 0
        self._closed = False
        try:
            self._load()
        except NexusError:
            raise
        except OSError as error:
            raise storage_error("open", None, error) from error

    # -- opening ------------------------------------------------------------------------------

    def _load(self) -> None:
        if not os.path.isdir(self._folder):
            self._disk.mkdir(self._folder, 0o700)
            self._is_new = True
            if self._strict:
                self._sync_parent()
        for first in sorted(_first_of(name) for name in os.listdir(self._folder)):
            segment = _Segment(self._folder, first)
            if self._segments:
                self._fill_gap(self._segments[-1], first)
            self._read_segment(segment)
            self._segments.append(segment)
        if not self._segments:
            self._start_segment(0)
            return
        self._used_bytes = sum(segment.size for segment in self._segments)
        last = self._segments[-1]
        self._fd = self._disk.open(last.path, os.O_RDWR)
        torn = os.fstat(self._fd).st_size - last.size
        if torn:
            self._disk.truncate(self._fd, last.size)
            self._cut_bytes = torn
            _log.warning("stream %s: cut off %d bytes of a torn write", self._folder, torn)

    def _read_segment(self, segment: _Segment) -> None:
        fd = self._disk.open(segment.path, os.O_RDONLY)
        try:
            data = self._disk.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            self._disk.close(fd)
        segment.positions, segment.size = scan(data, segment.first, self._identity)

    def _fill_gap(self, segment: _Segment, end: int) -> None:
        """Count as damaged what is missing before the next segment; drop what overlaps it."""
        missing = end - segment.end
        if missing >= 0:
            segment.positions.extend([DAMAGED] * missing)
        else:
            starts = [start for start in segment.positions[missing:] if start != DAMAGED]
            segment.size = min(starts, default=segment.size)
            del segment.positions[missing:]

    # -- the interface ------------------------------------------------------------------------

    def append(self, path: str, message: bytes) -> int:
        cost = charge(path, message, self._capacity_bytes)
        while True:
            with self._writing:
                self._check_open("write", path)
                if not self._failed and self._has_room(cost):
                    offset, written = self._write(path, message, cost)
                    break
            self._prepare_to_write(path, cost)
        if self._strict:
            self._rounds.join(self._sync_written)
            if written.error is not None:
                raise storage_error("write", path, written.error) from written.error
        return offset

    def _write(self, path: str, message: bytes, cost: int) -> tuple[int, _Unsynced]:
        last = self._segments[-1]
        offset = last.end + len(self._unsynced)
        written = _Unsynced(self._tail(), cost)
        try:
            self._disk.pwrite_all(self._fd, encode(message, offset, self._identity), written.start)
        except OSError as error:
            self._failed = True
            raise storage_error("write", path, error) from error
        self._unsynced.append(written)
        if not self._strict:
            self._is_synced = False
            self._publish(1)
        return offset, written

    def _sync_written(self) -> None:
        """Sync what is written by now. What fails is said to those whose messages it is."""
        with self._writing:
            count = len(self._unsynced)
            fd = self._fd
        if not count:
            return
        try:
            self._disk.fdatasync(fd)
        except OSError as error:
            with self._writing:
                self._give_up_unsynced(error)
        else:
            with self._writing:
                self._is_synced = True
                self._publish(count)

    def _publish(self, count: int) -> None:
        """Let readers have the first of the messages that are written."""
        segment = self._segments[-1]
        with self._mutex:
            for written in self._unsynced[:count]:
                segment.positions.append(written.start)
                segment.size += written.cost
                self._used_bytes += written.cost
        del self._unsynced[:count]

    def _give_up_unsynced(self, error: OSError) -> None:
        """After a failed sync, nobody knows what of these the disk has."""
        self._failed = True
        for written in self._unsynced:
            written.error = error
        self._unsynced.clear()

    def read(self, path: str, offset: int) -> bytes | None:
        while True:
            found = self._find(path, offset)
            if found is None:
                return None
            file, start, length = found
            try:
                record = self._read_record(file, start, length)
            except FileNotFoundError:
                if self._find(path, offset) == found:
                    raise self._damaged(path, offset, "its file is gone") from None
                continue  # let go of in the meantime
            except OSError as error:
                raise storage_error("read", path, error) from error
            message = decode(record, offset, self._identity)
            if message is None:
                raise self._damaged(path, offset, "its checksum does not match")
            return message

    def info(self) -> StreamInfo:
        with self._mutex:
            self._check_open("stat", None)
            return StreamInfo(
                self._segments[0].first,
                self._segments[-1].end,
                self._used_bytes,
                self._capacity_bytes,
                cut_bytes=self._cut_bytes,
            )

    def sync(self) -> None:
        with self._rounds.turn, self._writing:
            self._check_open("sync", None)
            if self._failed:
                self._recover("sync", None)
            elif self._is_synced:
                return
            try:
                self._sync_file()
                self._disk.fsync_directory(self._folder)
                if self._is_new:
                    self._sync_parent()
                self._is_synced = True
            except OSError as error:
                self._failed = True
                raise storage_error("sync", None, error) from error

    def close(self) -> None:
        with self._rounds.turn:
            with self._writing, self._mutex:
                if self._closed:
                    return
                self._closed = True
            self._sync_written()  # for those who wait for it
            self._disk.close(self._fd)

    # -- helpers ------------------------------------------------------------------------------

    def _sync_parent(self) -> None:
        self._disk.fsync_directory(os.path.dirname(self._folder))
        self._is_new = False

    def _check_open(self, operation: str, path: str | None) -> None:
        if self._closed:
            raise ClosedError(operation, path, "the stream is closed")

    def _damaged(self, path: str, offset: int, how: str) -> CorruptionError:
        return CorruptionError(
            "read",
            path,
            f"the message at offset {offset} is damaged: {how}",
            hint=f"read on from offset {offset + 1}",
        )

    def _find(self, path: str, offset: int) -> tuple[str, int, int] | None:
        """Return file, position and length of a message's record; None at the end."""
        with self._mutex:
            self._check_open("read", path)
            begin, end = self._segments[0].first, self._segments[-1].end
            if offset == end:
                return None
            if not begin <= offset < end:
                raise StreamOffsetError("read", path, offset, begin=begin, end=end)
            place = bisect_right(self._segments, offset, key=lambda segment: segment.first) - 1
            span = self._segments[place].span(offset)
            if span is None:
                raise self._damaged(path, offset, "its header does not match its checksum")
            return self._segments[place].path, *span

    def _read_record(self, file: str, start: int, length: int) -> bytes:
        fd = self._disk.open(file, os.O_RDONLY)
        try:
            if length:
                return self._disk.pread(fd, length, start)
            # What follows is damaged, so only the header tells the length.
            header = self._disk.pread(fd, RECORD_BYTES, start)
            return header + self._disk.pread(
                fd, int.from_bytes(header[4:8], "little"), start + RECORD_BYTES
            )
        finally:
            self._disk.close(fd)

    def _tail(self) -> int:
        """Return where the next record goes in the last segment."""
        return self._segments[-1].size + sum(written.cost for written in self._unsynced)

    def _fits_segment(self, cost: int) -> bool:
        tail = self._tail()
        return not tail or tail + cost <= self._segment_bytes

    def _fits_capacity(self, cost: int) -> bool:
        unsynced_bytes = sum(written.cost for written in self._unsynced)
        return self._used_bytes + unsynced_bytes + cost <= self._capacity_bytes

    def _has_room(self, cost: int) -> bool:
        return self._fits_segment(cost) and self._fits_capacity(cost)

    def _prepare_to_write(self, path: str, cost: int) -> None:
        """Recover from a failure; begin a segment where the last is full; let go of the oldest."""
        with self._rounds.turn, self._writing:
            self._check_open("write", path)
            if self._failed:
                self._recover("write", path)
            try:
                if not self._fits_segment(cost):
                    self._sync_file()
                    self._start_segment(self._segments[-1].end)
                while not self._fits_capacity(cost):
                    self._drop_oldest()
            except OSError as error:
                self._failed = True
                raise storage_error("write", path, error) from error

    def _sync_file(self) -> None:
        """Sync the last segment, and let readers have what was written there."""
        try:
            self._disk.fsync(self._fd)
        except OSError as error:
            self._give_up_unsynced(error)
            raise
        self._publish(len(self._unsynced))

    def _drop_oldest(self) -> None:
        # Out of the index first: a reader that misses the file looks there for the reason.
        with self._mutex:
            oldest = self._segments.pop(0)
            self._used_bytes -= oldest.size
        try:
            self._disk.unlink(oldest.path)
        except OSError:
            with self._mutex:
                self._segments.insert(0, oldest)
                self._used_bytes += oldest.size
            raise

    def _start_segment(self, first: int) -> None:
        segment = _Segment(self._folder, first)
        fd = self._disk.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if self._strict:
                self._disk.fsync_directory(self._folder)
        except BaseException:
            self._disk.close(fd)
            raise
        if self._fd >= 0:
            self._disk.close(self._fd)
        self._fd = fd
        with self._mutex:
            if self._segments and self._segments[-1].first == first:
                del self._segments[-1]
            self._segments.append(segment)

    def _recover(self, operation: str, path: str | None) -> None:
        """Cut off what a failed write left, sync the rest, and go on in a new file."""
        try:
            self._disk.truncate(self._fd, self._tail())
            self._sync_file()
            self._start_segment(self._segments[-1].end)
        except OSError as error:
            reason = f"an earlier write failed and the log has not recovered: {error.strerror}"
            raise StorageFailedError(operation, path, reason) from error
        self._failed = False


def _first_of(name: str) -> int:
    stem, ending = os.path.splitext(name)
    if ending != _ENDING or not stem.isdecimal():
        raise CorruptionError("open", None, f"{name} is no segment of a stream")
    return int(stem)


def _size_of(folder: str) -> int:
    with os.scandir(folder) as files:
        return sum(file.stat().st_size for file in files)


class DurableStreams(StreamStore):
    """Durable streams beneath a folder, each in a folder named by its id."""

    name = "durable_log"

    def __init__(self, root: str, *, disk: Disk) -> None:
        self._root = root
        self._disk = disk

    def open(self, stream_id: str, capacity_bytes: int, *, strict: bool = False) -> StreamBackend:
        try:
            if not os.path.isdir(self._root):
                os.makedirs(self._root, mode=0o700, exist_ok=True)
                self._disk.fsync_directory(os.path.dirname(self._root))
        except OSError as error:
            raise storage_error("open", None, error) from error
        return DurableLog(
            f"{self._root}/{stream_id}",
            stream_id,
            capacity_bytes,
            disk=self._disk,
            strict=strict,
        )

    def stored(self) -> Mapping[str, int]:
        try:
            with os.scandir(self._root) as folders:
                return {folder.name: _size_of(folder.path) for folder in folders}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise storage_error("list", None, error) from error

    def remove(self, stream_id: str) -> None:
        folder = f"{self._root}/{stream_id}"
        try:
            for name in sorted(os.listdir(folder)):
                self._disk.unlink(f"{folder}/{name}")
            os.rmdir(folder)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise storage_error("remove", None, error) from error
