"""SegmentObjects: small objects packed into append-only segments, large ones loose.

Layer: storage. A file for each small object costs several times an append, in time, syncs and
inodes. Unix counterparts: a log-structured filesystem, git's packs. Beneath ``root``::

    %08x.seg        segments (:mod:`nexus.storage.object_store.segment_file`)
    objects.idx     where each object lies (:mod:`nexus.storage.object_store.object_index`)
    objects.idx.map its directory, as a clean close left it

After an end that was not clean the next record goes to a new segment: nobody knows where the last
one ends, and what lies there may have been acknowledged. Compaction copies what is in use out of
segments that are mostly forgotten, makes that durable, and only then removes them.

Invariants:

1. An entry of the index is written after the record it points to.
2. A segment is only appended to; once nothing in use is left in it, it is removed.
3. After a failed sync the bytes it covered are suspect: a later sync may succeed although the
   system has dropped them. They are written again, to a new segment, before another sync counts.
4. An object that was forgotten or set aside may be there again once the index had to be made anew:
   nothing names it, so the next collection takes it again.

Locks, outermost first: the turn of ``_rounds`` (one round of syncing); ``_lock`` (everything but
reading; held for writes to the page cache, never for a sync). A reader that finds its object by
:meth:`ObjectIndex.peek` takes neither.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from blake3 import blake3

from nexus.contracts.errors import (
    ClosedError,
    ContentNotFoundError,
    CorruptionError,
    NexusError,
    NoSpaceError,
    StorageFailedError,
)
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import Leftovers, StoredObject
from nexus.lib.disk import Disk, storage_error
from nexus.lib.shared_rounds import SharedRounds
from nexus.storage.object_store.loose_objects import LooseObjects, damaged, not_stored
from nexus.storage.object_store.object_database import ObjectDatabase
from nexus.storage.object_store.object_index import (
    LOG_START,
    End,
    Entry,
    IndexLostError,
    ObjectIndex,
    Place,
)
from nexus.storage.object_store.segment_file import (
    FIRST_OFFSET,
    UNIT,
    SegmentFile,
    padding,
    record_bytes,
    record_header,
)

SEGMENT_BYTES = 64 << 20
"""A segment takes no record past this. Few enough files, and little to copy at a time."""

LARGEST_PACKED_BYTES = 1 << 20
"""Objects above this lie loose: forgetting one then gives its space back without copying."""

_ZEROS_AHEAD = bytes(1 << 20)
"""Syncing an append into written blocks costs half of one that makes the file grow."""

_JOINED_BYTES = 64 << 10
"""A record above this is written in parts: joining them would copy it once more."""

_OPEN_SEGMENTS = 128
_AT_A_TIME = 64
_INDEX = "objects.idx"
_SUFFIX = ".seg"
_log = logging.getLogger(__name__)

_Item = tuple[bytes, Buffer, int]
"""An object on its way to a segment: its id, its bytes, when it was stored."""


class SegmentObjects(ObjectDatabase):
    """Objects in segments on a local disk. Shared freely between threads; owns ``loose``."""

    persistent = True

    def __init__(
        self,
        root: str,
        loose: LooseObjects,
        *,
        disk: Disk,
        clock_ns: Callable[[], int],
        zeros_ahead: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
        largest_bytes: int = LARGEST_PACKED_BYTES,
        boot: int | None = None,
    ) -> None:
        """Open the segments in a folder, made where it is missing.

        ``zeros_ahead`` is for who syncs every write. ``boot`` is which uptime of the machine this
        is, by default what the machine says. Errors: StorageError and its kin.
        """
        self.place = loose.place
        self._root = root
        self._loose = loose
        self._disk = disk
        self._clock_ns = clock_ns
        self._zeros_ahead = zeros_ahead
        self._segment_bytes = segment_bytes
        self._largest_bytes = largest_bytes
        self._boot = boot
        self._rounds = SharedRounds()
        self._lock = threading.Lock()  # guards all below
        self._closed = False
        self._compacting = False
        self._any_loose: bool | None = None  # None: not looked yet
        self._segments: dict[int, SegmentFile] = {}  # open ones; readers only look
        self._active: SegmentFile | None = None
        self._end = 0  # of the active segment, in bytes
        self._zeroed_to = 0
        self._unsynced: dict[int, int] = {}  # segment to the first byte that may not be durable
        self._suspect: dict[int, int] = {}  # likewise, after a failed sync
        self._names_changed = False
        with _translated("open", root):
            os.makedirs(root, mode=0o700, exist_ok=True)
            self._open()

    def _open(self) -> None:
        numbers = self._segment_numbers()
        self._last_number = numbers[-1] if numbers else 0
        path = os.path.join(self._root, _INDEX)
        try:
            self._index = ObjectIndex(path, disk=self._disk, boot=self._boot)
        except IndexLostError as error:
            if numbers:
                _log.warning("%s: %s; it is made anew from the segments", path, error)
            self._index = self._new_index()
        end = self._index.end
        if end is None:
            # Whoever wrote here may have ended without a sync, and before the index was flushed.
            self._enter_records(self._index, self._index.covered)
            self._unsynced = dict.fromkeys(numbers, FIRST_OFFSET)
            self._names_changed = bool(numbers)
        elif end.segment in numbers:
            segment = self._segment_locked(end.segment)
            if segment.size() >= end.offset:
                self._active = segment
                self._end = self._zeroed_to = end.offset

    # -- reading ------------------------------------------------------------------------------

    def get(self, object_id: str, *, size: int | None = None, seal: int | None = None) -> bytes:
        """Return the object's bytes; the record's own seal is checked, whatever is handed in."""
        key = bytes.fromhex(object_id)
        entry = self._index.peek(key)
        if entry is not None and not entry.aside:
            segment = self._segments.get(entry.segment)
            if segment is not None:
                try:
                    data = segment.read(entry)
                except OSError as error:
                    raise storage_error("fetch", object_id, error) from error
                if data is not None:
                    return data
        found = self._find(object_id, key)
        return self._loose.get(object_id, size=size, seal=seal) if found is None else found

    def _find(self, object_id: str, key: bytes) -> bytes | None:
        """Return an object that is out of reach without the lock; None where it is not packed."""
        tried: Entry | None = None
        while True:
            with self._locked("fetch", object_id):
                entry = self._entry_locked(key)
                if entry is None:
                    return None
                if entry.aside:
                    raise not_stored(object_id)
                segment = self._segment_of_locked(object_id, entry)
            with _translated("fetch", object_id):
                data = segment.read(entry)
                if data is not None:
                    return data
                if entry == tried:  # compaction has not moved it in between
                    return self._unsealed(object_id, segment, entry)
            tried = entry

    def _unsealed(self, object_id: str, segment: SegmentFile, entry: Entry) -> bytes:
        """Return bytes that match their hash although what stands before them is damaged."""
        data = segment.read_unsealed(entry)
        if blake3(data).digest() != entry.object_id:
            raise damaged(object_id, "its bytes do not match its hash")
        return data

    def contains(self, object_id: str) -> bool:
        with self._locked("exists", object_id):
            entry = self._entry_locked(bytes.fromhex(object_id))
        return self._loose.contains(object_id) if entry is None else not entry.aside

    def verify(self, object_id: str) -> int:
        with self._locked("verify", object_id):
            entry = self._entry_locked(bytes.fromhex(object_id))
            if entry is not None and entry.aside:
                raise not_stored(object_id)
            segment = None if entry is None else self._segment_of_locked(object_id, entry)
        if entry is None or segment is None:
            return self._loose.verify(object_id)
        with _translated("verify", object_id):
            data = self._unsealed(object_id, segment, entry)
            if not segment.holds(entry, data):
                raise damaged(object_id, "its bytes are whole but what stands before them is not")
        return len(data)

    def objects(self) -> Iterator[StoredObject]:
        for entry in self._entries():
            if not entry.aside:
                yield StoredObject(entry.object_id.hex(), entry.size, entry.at_ns)
        yield from self._loose.objects()

    # -- storing ------------------------------------------------------------------------------

    def put_many(self, objects: Sequence[tuple[str, Buffer]]) -> None:
        """Store objects in one append, those that are too large for a segment aside."""
        loose: list[tuple[str, Buffer]] = []
        items: dict[bytes, _Item] = {}
        with self._lock:
            self._check_open("store", self._root)
            at_ns = self._clock_ns()
            try:
                for object_id, data in objects:
                    key = bytes.fromhex(object_id)
                    entry = self._entry_locked(key)
                    if entry is None:
                        # What lies loose is compared there, and healed there.
                        if len(data) > self._largest_bytes or self._is_loose_locked(object_id):
                            loose.append((object_id, data))
                        else:
                            items[key] = (key, data, at_ns)
                    elif not self._holds_locked(entry, data):
                        items[key] = (key, data, at_ns)  # heals it
                    elif entry.aside:
                        self._set_locked([entry._replace(aside=0, at_ns=at_ns)])
                if items:
                    self._append_locked(list(items.values()))
            except OSError as error:
                if isinstance(error, NexusError):
                    raise
                raise storage_error("store", self._root, error) from error
        if loose:
            self._any_loose = True
            self._loose.put_many(loose)

    def _is_loose_locked(self, object_id: str) -> bool:
        if self._any_loose is None:
            self._any_loose = not self._loose.is_empty()
        return self._any_loose and self._loose.contains(object_id)

    def _append_locked(self, items: Sequence[_Item]) -> None:
        """Append records, and then their entries."""
        start = 0
        while start < len(items):
            segment = self._active
            stop, length = start, 0
            while stop < len(items):
                more = record_bytes(len(items[stop][1]))
                if segment is None or self._end + length + more > self._segment_bytes:
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

    def _write_locked(self, segment: SegmentFile, items: Sequence[_Item], length: int) -> None:
        if self._zeros_ahead:
            self._write_zeros_locked(segment, self._end + length)
        parts: list[Buffer] = []
        entries: list[Entry] = []
        end = self._end
        for key, data, at_ns in items:
            parts += (record_header(key, data, at_ns), data, padding(len(data)))
            entries.append(Entry(key, segment.number, end // UNIT, len(data), 0, at_ns))
            end += record_bytes(len(data))
        self._unsynced.setdefault(segment.number, self._end)
        at = self._end
        for part in parts if length > _JOINED_BYTES and len(items) == 1 else (b"".join(parts),):
            self._disk.pwrite_all(segment.fd, part, at)
            at += len(part)
        # Before the index: a record that an entry points to must not be written over.
        self._end = end
        self._add_locked(entries)

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

    # -- setting aside, and giving space back -------------------------------------------------

    def set_aside(self, object_id: str, at_ns: int) -> bool:
        with self._locked("quarantine", object_id):
            entry = self._entry_locked(bytes.fromhex(object_id))
            if entry is not None and not entry.aside:
                self._set_locked([entry._replace(aside=1, at_ns=at_ns)])
                return True
        return entry is None and self._loose.set_aside(object_id, at_ns)

    def bring_back(self, object_id: str) -> bool:
        with self._locked("restore", object_id):
            entry = self._entry_locked(bytes.fromhex(object_id))
            if entry is not None:
                segment = self._segment_of_locked(object_id, entry)
                data = self._unsealed(object_id, segment, entry)
                if not segment.holds(entry, data):
                    self._append_locked([(entry.object_id, data, self._clock_ns())])
                    return True
                if entry.aside:
                    self._set_locked([entry._replace(aside=0, at_ns=self._clock_ns())])
                return bool(entry.aside)
        return self._loose.bring_back(object_id)

    def purge(self, before_ns: int) -> int:
        freed = 0
        for number in self._page_numbers():
            with self._locked("purge", self._root):
                entries = self._page_locked(number)
                expired = [entry for entry in entries if entry.aside and entry.at_ns < before_ns]
                if expired:
                    self._index.remove_many(entry.object_id for entry in expired)
                freed += sum(entry.size for entry in expired)
        return freed + self._loose.purge(before_ns)

    def compact(self) -> int:
        """Empty the segments that are forgotten by half, and join small ones; see the contract.

        A second call at the same time gives nothing back. A kill at any moment leaves an object
        in its old place, in the new one, or in both.
        """
        with self._locked("compact", self._root):
            if self._compacting:
                return 0
            self._compacting = True
        try:
            freed = 0
            self._leave_active_segment()
            while more := self._compact_some():
                freed += more
            return freed
        finally:
            self._compacting = False

    def _compact_some(self) -> int:
        used = self._bytes_used()
        empty = [number for number in used if not used[number]]
        if empty:
            return sum([self._remove_segment(number) for number in empty])
        victims = self._victims(used)
        entries = [entry for entry in self._entries() if entry.segment in victims]
        try:
            self._move(entries)
        except NoSpaceError:
            # Without room for copies, the gaps can be given back where they are.
            return sum([self._punch_gaps(number) for number in victims])
        if entries:
            self.sync()  # the copies, before what they were copied from goes
        # Whatever could not be read keeps its segment.
        used = self._bytes_used()
        return sum([self._remove_segment(number) for number in victims if not used[number]])

    def _leave_active_segment(self) -> None:
        """Stop appending to a segment that is forgotten by half, so that it can be emptied."""
        with self._locked("compact", self._root):
            active = self._active
            end = self._end
        if active is None:
            return
        used = sum(record_bytes(entry.size) for entry in self._entries_of(active.number))
        if used * 2 <= end:
            with self._locked("compact", self._root):
                self._active = None

    def _bytes_used(self) -> dict[int, int]:
        """Return how much of each segment its objects take, without the one to append to.

        That one is left out from the start: others take no more records, so what is counted
        while writers go on can only become less.
        """
        with self._locked("compact", self._root):
            active = self._active.number if self._active else 0
            used = {number: 0 for number in self._segment_numbers() if number != active}
        for entry in self._entries():
            if entry.segment in used:
                used[entry.segment] += record_bytes(entry.size)
        return used

    def _victims(self, used: dict[int, int]) -> list[int]:
        """Return some of the segments worth emptying, those with the least in them first."""
        numbers = sorted(used, key=used.__getitem__)
        forgotten = [n for n in numbers if used[n] * 2 <= self._allocated(n)]
        small = [n for n in numbers if n not in forgotten and used[n] * 4 <= self._segment_bytes]
        return (forgotten + (small if len(small) > 1 else []))[:_AT_A_TIME]

    def _remove_segment(self, number: int) -> int:
        allocated = self._allocated(number)
        with self._locked("compact", self._root):
            segment = self._segment_locked(number)
            del self._segments[number]
            self._unsynced.pop(number, None)
            self._disk.unlink(self._path_of(number))
            self._names_changed = True
            # Whoever still has it open, if only in an error's traceback, keeps no space. A reader
            # that is in it finds nothing, and looks again where its object has gone.
            self._disk.truncate(segment.fd, 0)
        return allocated

    def _punch_gaps(self, number: int) -> int:
        """Give the blocks between the objects of a segment back; return how many bytes."""
        before = self._allocated(number)
        taken = sorted(
            (entry.offset * UNIT, entry.offset * UNIT + record_bytes(entry.size))
            for entry in self._entries_of(number)
        )
        with self._locked("compact", self._root):
            segment = self._segment_locked(number)
            gap = FIRST_OFFSET
            for start, end in [*taken, (segment.size(), 0)]:
                if start > gap:
                    self._disk.punch_hole(segment.fd, gap, start - gap)
                gap = max(gap, end)
        return max(0, before - self._allocated(number))

    def _allocated(self, number: int) -> int:
        """Return how many bytes of the disk a segment takes."""
        with _translated("compact", self._root):
            return os.stat(self._path_of(number)).st_blocks * 512

    def _move(self, entries: list[Entry]) -> None:
        """Append once more what the entries point to and what can be read."""
        for start in range(0, len(entries), _AT_A_TIME):
            with self._locked("compact", self._root):
                for entry in entries[start : start + _AT_A_TIME]:
                    self._move_locked(entry)

    def _move_locked(self, entry: Entry) -> None:
        if self._entry_locked(entry.object_id) != entry:
            return  # set aside, forgotten or stored anew meanwhile
        data = self._bytes_at_locked(entry)
        if data is None:
            return
        self._append_locked([(entry.object_id, data, entry.at_ns)])
        if entry.aside:
            moved = self._entry_locked(entry.object_id)
            assert moved is not None
            self._set_locked([moved._replace(aside=1)])

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool) -> Leftovers:
        return self._loose.remove_leftovers(untouched_since_ns, dry_run=dry_run)

    # -- durability ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Make what was stored so far durable; callers at the same time share a round."""
        self._rounds.join(self._run_round)

    def _run_round(self) -> None:
        self._write_suspects_afresh()
        self._sync_segments()
        self._loose.sync()

    def _sync_segments(self) -> None:
        with self._locked("sync", self._root):
            segments = [self._segment_locked(number) for number in self._unsynced]
            unsynced, self._unsynced = self._unsynced, {}
            names_changed, self._names_changed = self._names_changed, False
        try:
            for segment in segments:
                self._disk.fdatasync(segment.fd)
            if names_changed:
                self._disk.fsync_directory(self._root)
        except BaseException as error:
            self._suspect_from(unsynced)
            if not isinstance(error, OSError):
                raise
            reason = error.strerror or str(error)
            hint = "what was stored since the last sync is written again by the next one"
            raise StorageFailedError("sync", self._root, reason, hint=hint) from error

    def _suspect_from(self, starts: dict[int, int]) -> None:
        with self._lock:
            for number, start in starts.items():
                self._suspect[number] = min(start, self._suspect.get(number, start))
            self._names_changed = True
            self._active = None  # what comes next goes to a segment that nothing has failed on

    def _write_suspects_afresh(self) -> None:
        for number, start in list(self._suspect.items()):
            # What cannot be read any more is lost: reading it says so.
            self._move(self._entries_of(number, start))
            del self._suspect[number]

    # -- the index ----------------------------------------------------------------------------

    def check(self, *, repair: bool) -> list[str]:
        """Read every page of the index, and with ``repair`` make a damaged one anew."""
        found = self._loose.check(repair=repair)
        with self._locked("check", self._root):
            pages = self._index.damaged_pages()
            if pages:
                shown = ", ".join(map(str, pages[:10]))
                found.append(
                    f"the index of the segments is damaged, in {len(pages)} pages: {shown}"
                )
                if repair:
                    self._make_index_anew_locked()
        return found

    def _page_numbers(self) -> Iterator[int]:
        """Yield every page's number; from the first again where the index is made anew."""
        index, number = self._index, 1
        while number < self._index.page_count:
            yield number
            number += 1
            if self._index is not index:
                index, number = self._index, 1

    def _entries(self) -> Iterator[Entry]:
        # Not flushed to the pages first: that takes space, and this is how space is found.
        with self._locked("list", self._root):
            waiting = self._index.waiting()
        yield from waiting.values()
        for number in self._page_numbers():
            with self._locked("list", self._root):
                entries = self._page_locked(number)
            yield from (entry for entry in entries if entry.object_id not in waiting)

    def _entries_of(self, number: int, start: int = 0) -> list[Entry]:
        """Return what lies in a segment from a byte on."""
        found = self._entries()
        return [e for e in found if e.segment == number and e.offset * UNIT >= start]

    def _entry_locked(self, key: bytes) -> Entry | None:
        try:
            return self._index.get(key)
        except CorruptionError as error:
            self._make_index_anew_locked(error)
            return self._index.get(key)

    def _page_locked(self, number: int) -> list[Entry]:
        try:
            return self._index.entries_in(number)
        except CorruptionError as error:
            self._make_index_anew_locked(error)
            return self._index.entries_in(number) if number < self._index.page_count else []

    def _add_locked(self, entries: list[Entry]) -> None:
        try:
            self._index.add(entries)
        except CorruptionError as error:
            self._make_index_anew_locked(error)  # which finds them in the log

    def _flush_locked(self) -> None:
        try:
            self._index.flush()
        except CorruptionError as error:
            self._make_index_anew_locked(error)

    def _set_locked(self, entries: list[Entry]) -> None:
        try:
            self._index.put_many(entries)
        except CorruptionError as error:
            self._make_index_anew_locked(error)
            self._index.put_many(entries)

    def _make_index_anew_locked(self, error: CorruptionError | None = None) -> None:
        if error is not None:
            _log.warning("%s; it is made anew from the segments", error)
        old = self._index
        self._index = self._new_index()
        old.close(None)

    def _new_index(self) -> ObjectIndex:
        path = os.path.join(self._root, _INDEX)
        return ObjectIndex.create(path, self._enter_records, disk=self._disk, boot=self._boot)

    def _enter_records(self, index: ObjectIndex, start: Place = LOG_START) -> None:
        """Enter the records from a place on: the last intact one of an object counts."""
        for number in self._segment_numbers():
            if number < start.segment:
                continue
            first = start.offset * UNIT if number == start.segment else FIRST_OFFSET
            for found in self._segment_locked(number).records(first):
                if found.intact or index.get(found.object_id) is None:
                    place = (number, found.offset, found.size, 0, found.stored_at_ns)
                    index.add([Entry(found.object_id, *place)])

    # -- segments -----------------------------------------------------------------------------

    def _segment_numbers(self) -> list[int]:
        names = os.listdir(self._root)
        stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return sorted(int(stem, 16) for stem in stems if len(stem) == 8 and _is_hex(stem))

    def _path_of(self, number: int) -> str:
        return f"{self._root}/{number:08x}{_SUFFIX}"

    def _segment_locked(self, number: int) -> SegmentFile:
        segment = self._segments.get(number)
        if segment is None:
            segment = SegmentFile(self._disk, self._path_of(number), number)
            self._keep_open_locked(segment)
        return segment

    def _keep_open_locked(self, segment: SegmentFile) -> None:
        if len(self._segments) >= _OPEN_SEGMENTS:
            del self._segments[next(iter(self._segments))]
        self._segments[segment.number] = segment

    def _segment_of_locked(self, object_id: str, entry: Entry) -> SegmentFile:
        try:
            return self._segment_locked(entry.segment)
        except FileNotFoundError as error:
            reason = f"object {object_id} was in segment {entry.segment:08x}, which is gone"
            raise ContentNotFoundError("fetch", object_id, reason) from error

    def _holds_locked(self, entry: Entry, data: Buffer) -> bool:
        """Return whether an object is stored, whole; one that cannot be read is not."""
        try:
            return self._segment_locked(entry.segment).holds(entry, data)
        except OSError as error:
            _log.warning("segment %08x: %s", entry.segment, error)
            return False

    def _bytes_at_locked(self, entry: Entry) -> bytes | None:
        """Return the sealed bytes of an entry, or None where they are damaged or unreadable."""
        try:
            return self._segment_locked(entry.segment).read(entry)
        except OSError as error:
            _log.warning("segment %08x: %s", entry.segment, error)
            return None

    # -- the rest -----------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                with _translated("close", self._root):
                    self._index.close(self._known_end_locked())
            finally:
                self._segments.clear()
                self._active = None
                self._loose.close()

    def _known_end_locked(self) -> End | None:
        """Return where the last segment ends, with the index complete; None with syncs missing."""
        if self._unsynced or self._suspect or self._names_changed:
            return None
        self._flush_locked()
        return End(self._active.number, self._end) if self._active else End(0, 0)

    @contextmanager
    def _locked(self, operation: str, what: str) -> Iterator[None]:
        with self._lock:
            self._check_open(operation, what)
            with _translated(operation, what):
                yield

    def _check_open(self, operation: str, what: str) -> None:
        if self._closed:
            raise ClosedError(operation, what, "the content store is closed")


@contextmanager
def _translated(operation: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, NexusError):
            raise
        raise storage_error(operation, what, error) from error


def _is_hex(text: str) -> bool:
    return all(digit in "0123456789abcdef" for digit in text)
