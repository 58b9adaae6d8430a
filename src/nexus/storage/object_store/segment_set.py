"""SegmentSet: the segments of one folder, the index of their records, and what is not synced yet.

Layer: storage, beneath :mod:`nexus.storage.object_store.segment_objects`. It appends, finds, moves
and syncs records; what an object's life is, and which segments are worth emptying, is decided
above. Unix counterpart: a log-structured filesystem. Beneath ``root``::

    %08x.seg        segments (:mod:`nexus.storage.object_store.segment_file`)
    objects.idx     where each object lies (:mod:`nexus.storage.object_store.object_index`)
    objects.idx.map its directory, as a clean close left it

After an end that was not clean the next record goes to a new segment: nobody knows where the last
one ends, and what lies there may have been acknowledged.

Invariants:

1. An entry of the index is written after the record it points to.
2. A segment is only appended to.
3. After a failed sync the bytes it covered are suspect: a later sync may succeed although the
   system has dropped them. They are written again, to a new segment, before another sync counts.
4. An index that proves damaged is made anew from the segments, and asked again, whoever asked.

Locks: :attr:`SegmentSet.lock` guards everything but reading; it is held for writes to the page
cache, never for a sync. Its owner sees to it that one :meth:`SegmentSet.sync` runs at a time.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from nexus.contracts.errors import (
    ClosedError,
    ContentNotFoundError,
    CorruptionError,
    NexusError,
    StorageFailedError,
)
from nexus.contracts.metadata import Buffer
from nexus.lib.block_seals import BLOCK_BYTES
from nexus.lib.chunking import Chunk
from nexus.lib.disk import Disk, storage_error
from nexus.lib.logs import log_of
from nexus.storage.object_store.entry import LOG_START, End, Entry, IndexLostError, Place
from nexus.storage.object_store.segment_file import (
    FIRST_OFFSET,
    UNIT,
    SegmentFile,
    chunk_header,
    padding,
    record_bytes,
    record_header,
)
from nexus.storage.primitives import create_index, open_index, packed_record

if TYPE_CHECKING:
    from nexus.storage.object_store.object_index import ObjectIndex

SEGMENT_BYTES = 64 << 20
"""A segment takes no record past this. Few enough files, and little to copy at a time."""

_ZEROS_AHEAD = bytes(1 << 20)
"""Syncing an append into written blocks costs half of one that makes the file grow."""

_OPEN_SEGMENTS = 128
_MOVED_AT_A_TIME = 64
_INDEX = "objects.idx"
_SUFFIX = ".seg"

T = TypeVar("T")

Item = tuple[bytes, Buffer, int, bytes | None]
"""An object on its way to a segment: its id, its bytes, when it was stored, its block seals."""


class SegmentSet:
    """Segments on a local disk. Shared by the threads of its owner, which alone knows of it."""

    def __init__(
        self,
        root: str,
        *,
        disk: Disk,
        zeros_ahead: bool,
        segment_bytes: int,
        boot: int | None,
    ) -> None:
        """Open the segments in a folder, made where it is missing. Errors: StorageError."""
        self.root = root
        self.segment_bytes = segment_bytes
        self._disk = disk
        self._zeros_ahead = zeros_ahead
        self._boot = boot
        self.lock = threading.Lock()  # guards all below
        self._closed = False
        self.open_segments: dict[int, SegmentFile] = {}  # readers only look
        self._active: SegmentFile | None = None
        self._end = 0  # of the active segment, in bytes
        self._zeroed_to = 0
        self._unsynced: dict[int, int] = {}  # segment to the first byte that may not be durable
        self._suspect: dict[int, int] = {}  # likewise, after a failed sync
        self._names_changed = False
        with translated("open", root):
            os.makedirs(root, mode=0o700, exist_ok=True)
            self._open()

    def _open(self) -> None:
        numbers = self.segment_numbers()
        self._last_number = numbers[-1] if numbers else 0
        path = os.path.join(self.root, _INDEX)
        try:
            self.index = open_index(path, self._disk, self._boot)
        except IndexLostError as error:
            if numbers:
                log_of(__name__).warning("%s: %s; it is made anew from the segments", path, error)
            self.index = self._new_index()
        end = self.index.end
        if end is None:
            # Whoever wrote here may have ended without a sync, and before the index was flushed.
            self._enter_records(self.index, self.index.covered)
            self._unsynced = dict.fromkeys(numbers, FIRST_OFFSET)
            self._names_changed = bool(numbers)
        elif end.segment in numbers:
            segment = self._segment_locked(end.segment)
            if segment.size() >= end.offset:
                self._active = segment
                self._end = self._zeroed_to = end.offset

    @contextmanager
    def locked(self, operation: str, what: str) -> Iterator[None]:
        """Hold the lock for a block, whose OSErrors become StorageErrors. Errors: ClosedError."""
        with self.lock:
            self.check_open(operation, what)
            with translated(operation, what):
                yield

    def check_open(self, operation: str, what: str) -> None:
        """Raise ClosedError once closed."""
        if self._closed:
            raise ClosedError(operation, what, "the content store is closed")

    def close(self) -> None:
        """Write the index's directory and release everything; syncs nothing. Idempotent."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            try:
                with translated("close", self.root):
                    self.index.close(self._known_end_locked())
            finally:
                self.open_segments.clear()
                self._active = None

    def _known_end_locked(self) -> End | None:
        """Return where the last segment ends, with the index complete; None with syncs missing."""
        if self._unsynced or self._suspect or self._names_changed:
            return None
        self._indexed_locked(lambda index: index.flush())
        return End(self._active.number, self._end) if self._active else End(0, 0)

    # -- appending ----------------------------------------------------------------------------

    def append_new_locked(
        self, objects: Sequence[tuple[str, Buffer]], at_ns: int, largest_bytes: int
    ) -> bool:
        """Append objects, and then their entries, in one call of the index.

        Return False, with nothing done, unless all are small and new and go to one segment.
        """
        segment, start = self._active, self._end
        end = start
        for _, data in objects:
            size = len(data)
            if size > largest_bytes:
                return False
            end += record_bytes(size)
        if segment is None or end > self.segment_bytes:
            return False
        if self._zeros_ahead:
            self._write_zeros_locked(segment, end)
        self._unsynced.setdefault(segment.number, start)
        # Before the index, whatever interrupts: a record that an entry points to must not be
        # written over.
        self._end = end
        place = segment.fd, segment.number, start
        try:
            if self._indexed_locked(lambda index: index.append_new(*place, objects, at_ns)):
                return True
        except (OSError, CorruptionError):
            self._end = start
            raise
        self._end = start
        if self._unsynced[segment.number] == start:
            del self._unsynced[segment.number]
        return False

    def append_locked(self, items: Sequence[Item]) -> None:
        """Append records, and then their entries."""
        total = sum(record_bytes(len(item[1])) for item in items)
        if self._active is not None and self._end + total <= self.segment_bytes:
            self._write_locked(self._active, items, total)
            return
        start = 0
        while start < len(items):
            segment = self._active
            stop, length = start, 0
            while stop < len(items):
                more = record_bytes(len(items[stop][1]))
                if segment is None or self._end + length + more > self.segment_bytes:
                    break
                length += more
                stop += 1
            if segment is None or (stop == start and self._end > FIRST_OFFSET):
                self._start_segment_locked()
                continue
            if stop == start:  # larger than a whole segment
                stop, length = start + 1, record_bytes(len(items[start][1]))
            self._write_locked(segment, items[start:stop], length)
            start = stop

    def _write_locked(self, segment: SegmentFile, items: Sequence[Item], length: int) -> None:
        parts = _parts(items)
        if len(parts) > 1 and len(items) > 1:
            parts = [b"".join(parts)]
        sizes = ((key, len(data), at_ns) for key, data, at_ns, _ in items)
        self._write_parts_locked(segment, parts, length, sizes)

    def append_chunks_locked(self, chunks: Mapping[bytes, Chunk], at_ns: int) -> None:
        """Append the records of chunks, without joining their parts, and then their entries."""
        run: list[tuple[bytes, Chunk]] = []
        length = 0
        for key, chunk in chunks.items():
            more = record_bytes(chunk.size)
            if self._active is None or self._end + length + more > self.segment_bytes:
                self._write_chunks_locked(run, length, at_ns)
                run, length = [], 0
                if self._active is None or self._end > FIRST_OFFSET:
                    self._start_segment_locked()
            run.append((key, chunk))
            length += more
        self._write_chunks_locked(run, length, at_ns)

    def _write_chunks_locked(
        self, chunks: Sequence[tuple[bytes, Chunk]], length: int, at_ns: int
    ) -> None:
        if not chunks:
            return
        assert self._active is not None
        parts: list[Buffer] = []
        for key, chunk in chunks:
            parts += _chunk_parts(key, chunk, at_ns)
        sizes = ((key, chunk.size, at_ns) for key, chunk in chunks)
        self._write_parts_locked(self._active, parts, length, sizes)

    def _write_parts_locked(
        self,
        segment: SegmentFile,
        parts: list[Buffer],
        length: int,
        sizes: Iterable[tuple[bytes, int, int]],
    ) -> None:
        """Write records and enter them; ``sizes`` has the id, size and time of each object."""
        if self._zeros_ahead:
            self._write_zeros_locked(segment, self._end + length)
        entries: list[Entry] = []
        end = self._end
        for key, size, at_ns in sizes:
            entries.append(Entry(key, segment.number, end // UNIT, size, 0, at_ns))
            end += record_bytes(size)
        self._unsynced.setdefault(segment.number, self._end)
        if len(parts) > 1:
            self._disk.pwrite_parts(segment.fd, parts, self._end)
        else:
            self._disk.pwrite_all(segment.fd, parts[0], self._end)
        # Before the index: a record that an entry points to must not be written over.
        self._end = end
        self._indexed_locked(lambda index: index.add(entries))

    def _write_zeros_locked(self, segment: SegmentFile, needed: int) -> None:
        while self._zeroed_to < needed:
            start = max(self._zeroed_to, self._end)
            self._zeroed_to = start + len(_ZEROS_AHEAD)
            try:
                self._disk.pwrite_all(segment.fd, _ZEROS_AHEAD, start)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return  # there may be room for the record alone

    def _start_segment_locked(self) -> None:
        number = self._last_number + 1
        self._last_number = number  # whatever a failure leaves of it
        segment = SegmentFile(self._disk, self._path_of(number), number, create=True)
        self._names_changed = True
        self._unsynced[number] = 0
        self._keep_open_locked(segment)
        self._active = segment
        self._end = self._zeroed_to = FIRST_OFFSET

    def move(self, entries: list[Entry]) -> None:
        """Append once more what the entries point to and what can be read."""
        for start in range(0, len(entries), _MOVED_AT_A_TIME):
            with self.locked("compact", self.root):
                for entry in entries[start : start + _MOVED_AT_A_TIME]:
                    self._move_locked(entry)

    def _move_locked(self, entry: Entry) -> None:
        if self.entry_locked(entry.object_id) != entry:
            return  # set aside, forgotten or stored anew meanwhile
        data = self._bytes_at_locked(entry)
        if data is None:
            return
        self.append_locked([(entry.object_id, data, entry.at_ns, None)])
        if entry.aside:
            moved = self.entry_locked(entry.object_id)
            assert moved is not None
            self.set_locked([moved._replace(aside=1)])

    def active_locked(self) -> tuple[int, int]:
        """Return the segment that is appended to and where it ends; zeros for none."""
        return (self._active.number, self._end) if self._active else (0, 0)

    def leave_active_locked(self) -> None:
        """Append to a new segment from now on."""
        self._active = None

    # -- durability ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Make what was appended so far durable. Errors: StorageFailedError."""
        self._write_suspects_afresh()
        self._sync_unsynced()

    def _sync_unsynced(self) -> None:
        with self.locked("sync", self.root):
            segments = [self._segment_locked(number) for number in self._unsynced]
            unsynced, self._unsynced = self._unsynced, {}
            names_changed, self._names_changed = self._names_changed, False
        try:
            for segment in segments:
                self._disk.fdatasync(segment.fd)
            if names_changed:
                self._disk.fsync_directory(self.root)
        except BaseException as error:
            self._suspect_from(unsynced)
            if not isinstance(error, OSError):
                raise
            reason = error.strerror or str(error)
            hint = "what was stored since the last sync is written again by the next one"
            raise StorageFailedError("sync", self.root, reason, hint=hint) from error

    def _suspect_from(self, starts: dict[int, int]) -> None:
        with self.lock:
            for number, start in starts.items():
                self._suspect[number] = min(start, self._suspect.get(number, start))
            self._names_changed = True
            self._active = None  # what comes next goes to a segment that nothing has failed on

    def _write_suspects_afresh(self) -> None:
        for number, start in list(self._suspect.items()):
            # What cannot be read any more is lost: reading it says so.
            self.move(self.entries_of(number, start))
            del self._suspect[number]

    # -- the index ----------------------------------------------------------------------------

    def entry_locked(self, key: bytes) -> Entry | None:
        """Return where an object lies, None for nowhere."""
        return self._indexed_locked(lambda index: index.get(key))

    def set_locked(self, entries: list[Entry]) -> None:
        """Change what the index says of objects."""
        self._indexed_locked(lambda index: index.put_many(entries))

    def forget_locked(self, entries: list[Entry]) -> None:
        """Remove objects from the index; their records stay until the segment goes."""
        self._indexed_locked(lambda index: index.remove_many(e.object_id for e in entries))

    def page_locked(self, number: int) -> list[Entry]:
        """Return the entries of a page, none where there is no such page."""
        return self._indexed_locked(
            lambda index: index.entries_in(number) if number < index.page_count else []
        )

    def page_numbers(self) -> Iterator[int]:
        """Yield every page's number; from the first again where the index is made anew."""
        index, number = self.index, 1
        while number < self.index.page_count:
            yield number
            number += 1
            if self.index is not index:
                index, number = self.index, 1

    def entries(self) -> Iterator[Entry]:
        """Yield every entry, in bounded memory; one that moves while this runs may come twice."""
        # Not flushed to the pages first: that takes space, and this is how space is found.
        with self.locked("list", self.root):
            waiting = self.index.waiting()
        yield from waiting.values()
        for number in self.page_numbers():
            with self.locked("list", self.root):
                entries = self.page_locked(number)
            yield from (entry for entry in entries if entry.object_id not in waiting)

    def entries_of(self, number: int, start: int = 0) -> list[Entry]:
        """Return what lies in a segment from a byte on."""
        found = self.entries()
        return [e for e in found if e.segment == number and e.offset * UNIT >= start]

    def _indexed_locked(self, call: Callable[[ObjectIndex], T]) -> T:
        """Ask the index, or change it; one that proves damaged is made anew, and asked again."""
        try:
            return call(self.index)
        except CorruptionError as error:
            log_of(__name__).warning("%s; it is made anew from the segments", error)
            self.make_index_anew_locked()
            return call(self.index)

    def make_index_anew_locked(self) -> None:
        """Put an index made from the segments in the place of the present one."""
        old = self.index
        self.index = self._new_index()
        old.close(None)

    def _new_index(self) -> ObjectIndex:
        path = os.path.join(self.root, _INDEX)
        return create_index(path, self._enter_records, self._disk, self._boot)

    def _enter_records(self, index: ObjectIndex, start: Place = LOG_START) -> None:
        """Enter the records from a place on: the last intact one of an object counts."""
        for number in self.segment_numbers():
            if number < start.segment:
                continue
            first = start.offset * UNIT if number == start.segment else FIRST_OFFSET
            for found in self._segment_locked(number).records(first):
                if found.intact or index.get(found.object_id) is None:
                    place = (number, found.offset, found.size, 0, found.stored_at_ns)
                    index.add([Entry(found.object_id, *place)])

    # -- segments -----------------------------------------------------------------------------

    def segment_numbers(self) -> list[int]:
        """Return the numbers of all segments, oldest first."""
        names = os.listdir(self.root)
        stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return sorted(int(stem, 16) for stem in stems if len(stem) == 8 and _is_hex(stem))

    def _path_of(self, number: int) -> str:
        return f"{self.root}/{number:08x}{_SUFFIX}"

    def _segment_locked(self, number: int) -> SegmentFile:
        segment = self.open_segments.get(number)
        if segment is None:
            segment = SegmentFile(self._disk, self._path_of(number), number)
            self._keep_open_locked(segment)
        return segment

    def _keep_open_locked(self, segment: SegmentFile) -> None:
        if len(self.open_segments) >= _OPEN_SEGMENTS:
            del self.open_segments[next(iter(self.open_segments))]
        self.open_segments[segment.number] = segment

    def segment_of_locked(self, object_id: str, entry: Entry) -> SegmentFile:
        """Return the segment that an entry points to. Errors: ContentNotFoundError: it is gone."""
        try:
            return self._segment_locked(entry.segment)
        except FileNotFoundError as error:
            reason = f"object {object_id} was in segment {entry.segment:08x}, which is gone"
            raise ContentNotFoundError("fetch", object_id, reason) from error

    def holds_locked(self, entry: Entry, data: Buffer, seals: bytes | None = None) -> bool:
        """Return whether an object is stored, whole; one that cannot be read is not."""
        try:
            return self._segment_locked(entry.segment).holds(entry, data, seals)
        except OSError as error:
            log_of(__name__).warning("segment %08x: %s", entry.segment, error)
            return False

    def _bytes_at_locked(self, entry: Entry) -> bytes | None:
        """Return the sealed bytes of an entry, or None where they are damaged or unreadable."""
        try:
            return self._segment_locked(entry.segment).read(entry)
        except OSError as error:
            log_of(__name__).warning("segment %08x: %s", entry.segment, error)
            return None

    def allocated(self, number: int) -> int:
        """Return how many bytes of the disk a segment takes."""
        with translated("compact", self.root):
            return os.stat(self._path_of(number)).st_blocks * 512

    def remove_segment(self, number: int) -> int:
        """Remove a segment in which nothing in use is left; return the bytes given back."""
        allocated = self.allocated(number)
        with self.locked("compact", self.root):
            segment = self._segment_locked(number)
            del self.open_segments[number]
            self._unsynced.pop(number, None)
            self._disk.unlink(self._path_of(number))
            self._names_changed = True
            # Whoever still has it open, if only in an error's traceback, keeps no space. A reader
            # that is in it finds nothing, and looks again where its object has gone.
            self._disk.truncate(segment.fd, 0)
        return allocated

    def punch_gaps(self, number: int) -> int:
        """Give the blocks between the objects of a segment back; return how many bytes."""
        before = self.allocated(number)
        taken = sorted(
            (entry.offset * UNIT, entry.offset * UNIT + record_bytes(entry.size))
            for entry in self.entries_of(number)
        )
        with self.locked("compact", self.root):
            segment = self._segment_locked(number)
            gap = FIRST_OFFSET
            for start, end in [*taken, (segment.size(), 0)]:
                if start > gap:
                    self._disk.punch_hole(segment.fd, gap, start - gap)
                gap = max(gap, end)
        return max(0, before - self.allocated(number))


def _parts(items: Sequence[Item]) -> list[Buffer]:
    """Return the records of objects in pieces; joining large ones would copy them once more."""
    parts: list[Buffer] = []
    for key, data, at_ns, seals in items:
        if len(data) <= BLOCK_BYTES:
            parts.append(packed_record(key, bytes(data), at_ns))
        else:
            parts += (record_header(key, data, at_ns, seals), data, padding(len(data)))
    return parts


def _chunk_parts(key: bytes, chunk: Chunk, at_ns: int) -> list[Buffer]:
    if chunk.size <= BLOCK_BYTES:
        return [packed_record(key, bytes(chunk.joined()), at_ns)]
    header = chunk_header(key, chunk.size, at_ns, chunk.seals)
    return [header, *chunk.parts, padding(chunk.size)]


@contextmanager
def translated(operation: str, what: str) -> Iterator[None]:
    """Make StorageErrors of the OSErrors of a block."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NexusError):
            raise
        raise storage_error(operation, what, error) from error


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)
