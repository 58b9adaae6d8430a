"""ObjectIndex: where in the segments an object lies, in one file of hashed pages.

Layer: storage. It maps object ids to places and decides nothing; what it says is checked against
the record it points to, and lost or damaged it is made anew from the segments. Unix counterpart:
a pack index of git, kept up in place. Format: docs/formats.md.

Extendible hashing (Fagin et al., 1979): a directory in memory names the page for the leading bits
of a key's hash; a full page splits in two by its next bit, and only when its depth has reached the
directory's does that double. So growth never stops the caller for longer than one page takes. The
hash is seeded, so that nobody can choose content that meets in one page.

Entries of records that were just appended wait in memory. When many do, the oldest is written with
all that share its group (:mod:`nexus.storage.object_store.waiting_entries`), so that a page is
written for several of them and no caller waits for many pages. After a kill those that waited are
found in the log, past the place that the header names. Objects that are small and new, which most
are, the index appends to the log itself, so that storing one is one call.

Invariants:

1. A page in the file holds every entry of its range that no deeper page covers, except those that
   :attr:`ObjectIndex.covered` leaves to the log. A new page is written before the page it was
   split from, so a kill in between loses nothing, and the next opening finishes the split.
2. A page is read from the file only if its checksum matches and its header is one that a page can
   have, else CorruptionError. The pages count only if they share all hashes, each in one of them.
3. The header says *clean* only while the file is as a synced close left it; the first change takes
   that back, durably. Without it the file counts only within the boot that wrote it: what a power
   cut leaves of pages that were written in any order is nothing to build on.
4. A page in memory is never changed, only replaced.
5. An entry that waits is newer than any in a page.

Locks: none. The owner calls it from one thread at a time, :meth:`ObjectIndex.peek` aside.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from nexus.contracts.errors import CorruptionError
from nexus.contracts.metadata import Buffer
from nexus.lib.block_seals import BLOCK_BYTES
from nexus.lib.boot_id import NO_BOOT, boot_number
from nexus.lib.disk import Disk
from nexus.storage.object_store.entry import LOG_START, End, Entry, IndexLostError, Place
from nexus.storage.object_store.segment_file import UNIT, packed_record
from nexus.storage.object_store.waiting_entries import WaitingEntries

PAGE_BYTES = 4096
_MAGIC = b"NXOI"
_VERSION = 2
_HEADER = struct.Struct("<4sIQQIIQII")
"""magic, version, seed, boot, clean, segment and end of the log, segment and offset covered"""
_CHECKSUM = struct.Struct("<Q")
_PAGE_HEADER = struct.Struct("<QIBBH")  # checksum, prefix, depth, 0, entries
_ENTRY = struct.Struct("<32sIIIIQ")
_PAGE_ENTRIES = (PAGE_BYTES - _PAGE_HEADER.size) // _ENTRY.size
_ID_BYTES = 32
_MAX_DEPTH = 28
_HASH_BITS = 64
_CACHED_PAGES = 4096
_DIRTY_PAGES = 256
_WAITING_ENTRIES = 4096
_WAITING_BYTES = 32 << 20
"""What the log is read for at most after a kill, beside one object."""


class _Map(NamedTuple):
    """The directory, and how far a hash is shifted to give its place there."""

    pages: array[int]
    shift: int


class ObjectIndex:
    """An open index file. Belongs to one store, which takes turns on it."""

    def __init__(self, path: str, *, disk: Disk, boot: int | None = None) -> None:
        """Open the file. Errors: IndexLostError; OSError."""
        self._path = path
        self._disk = disk
        self._boot = boot_number() if boot is None else boot
        self._pages: dict[int, bytes] = {}
        self._waiting = WaitingEntries()
        self.end: End | None = None
        """None unless the index was closed cleanly: then records may lie past any known end."""
        self.covered = LOG_START
        """The pages have the entry of every record before it; of later ones the log tells."""
        try:
            self._fd = disk.open(path, os.O_RDWR)
        except FileNotFoundError as error:
            raise IndexLostError("there is no index") from error
        try:
            self._read_header()
            self._page_count = disk.size(self._fd) // PAGE_BYTES
            pages = self._load_map() if self.end else None
            self._map = _map_of(pages or self._map_from_pages())
        except BaseException:
            disk.close(self._fd)
            raise

    @staticmethod
    def create(
        path: str,
        fill: Callable[[ObjectIndex], None],
        *,
        disk: Disk,
        boot: int | None = None,
    ) -> ObjectIndex:
        """Make an index in place of any other, with what ``fill`` puts into it or not at all.

        Errors: OSError; those of ``fill``.
        """
        staging = path + ".new"
        fd = disk.open(staging, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # Clean for the moment in which it holds nothing: it is opened like any other.
            seed = int.from_bytes(os.urandom(8), "big")
            header = _header(seed, NO_BOOT, End(0, 0), LOG_START)
            disk.pwrite_all(fd, header + _sealed(1, _build_page(0, 0, [])), 0)
        finally:
            disk.close(fd)
        index = ObjectIndex(staging, disk=disk, boot=boot)
        try:
            fill(index)
            index.flush()
            index._soil()
            disk.rename(staging, path)
        except BaseException:
            disk.close(index._fd)
            raise
        index._path = path
        return index

    # -- looking up ---------------------------------------------------------------------------

    def peek(self, object_id: bytes) -> Entry | None:
        """Return the entry if it is known from memory. Any thread may call this at any time."""
        waiting = self._waiting.by_id.get(object_id)
        if waiting is not None:
            return waiting
        pages, shift = self._map
        page = self._pages.get(pages[xxh3_64_intdigest(object_id, self._seed) >> shift])
        if page is None:
            return None
        position = _find(page, object_id)
        return None if position < 0 else Entry._make(_ENTRY.unpack_from(page, position))

    def get(self, object_id: bytes) -> Entry | None:
        """Return the entry, or None. Errors: CorruptionError; OSError."""
        waiting = self._waiting.by_id.get(object_id)
        if waiting is not None:
            return waiting
        page = self._page(self._number_for(object_id))
        position = _find(page, object_id)
        return None if position < 0 else Entry._make(_ENTRY.unpack_from(page, position))

    @property
    def page_count(self) -> int:
        """How many pages there are; the entries are in those from 1 on."""
        return self._page_count

    def entries_in(self, number: int) -> list[Entry]:
        """Return the entries of a page as they are now. Errors: CorruptionError; OSError.

        Those that wait and have no older one in a page are in none. Going through the pages in
        order while others change them, an entry may come twice, since a split moves it to the
        end, but none is missed.
        """
        found = _entries(self._pages.get(number) or self._read_page(number))
        waiting = self._waiting.by_id
        return [waiting.get(entry.object_id, entry) for entry in found]

    def waiting(self) -> dict[bytes, Entry]:
        """Return the entries that are in no page yet, by object id."""
        return dict(self._waiting.by_id)

    def damaged_pages(self) -> list[int]:
        """Return the numbers of the pages that are damaged in the file. Errors: OSError."""
        found = []
        for number in range(1, self._page_count):
            try:
                self._read_page(number)
            except CorruptionError:
                found.append(number)
        return found

    # -- changing -----------------------------------------------------------------------------

    def add(self, entries: Sequence[Entry]) -> None:
        """Enter records that were just appended, in the order of the log.

        They are found from now on, and again after a kill. Errors: CorruptionError; OSError.
        """
        self._soil()
        self._make_room(len(entries))  # first: what is not entered yet is not acknowledged either
        for entry in entries:
            self._waiting.add(entry, self._hash(entry.object_id))

    def append_new(
        self, log: int, segment: int, start: int, objects: Sequence[tuple[str, Buffer]], at_ns: int
    ) -> bool:
        """Append the records of objects to a segment at a byte, in one write, and enter them.

        ``log`` is the segment's descriptor. Return False, with nothing written, unless every object
        is at most one block long and has no entry and no namesake. Errors: CorruptionError;
        OSError; nothing is entered then, whatever of the records was written.
        """
        entries: dict[bytes, Entry] = {}
        records: list[bytes] = []
        at = start
        for object_id, data in objects:
            key = bytes.fromhex(object_id)
            if len(data) > BLOCK_BYTES or key in entries or self.get(key) is not None:
                return False
            entries[key] = Entry(key, segment, at // UNIT, len(data), 0, at_ns)
            records.append(packed_record(key, bytes(data), at_ns))
            at += len(records[-1])
        self._soil()
        self._make_room(len(entries))  # once the records are written, nothing fails any more
        self._disk.pwrite_all(log, b"".join(records), start)
        for entry in entries.values():
            self._waiting.add(entry, self._hash(entry.object_id))
        return True

    def _make_room(self, needed: int) -> None:
        waiting = self._waiting
        while (oldest := waiting.oldest()) is not None and (
            len(waiting) + needed > _WAITING_ENTRIES or waiting.size_bytes > _WAITING_BYTES
        ):
            hashed = self._hash(oldest.object_id)
            group = waiting.group(hashed)
            self._put_in_pages(group)
            waiting.discard_group(hashed)  # last: readers of other threads look here first
            self._cover(group)

    def _cover(self, written: Collection[Entry]) -> None:
        """Note in the file from where on the log has entries that no page has."""
        oldest = self._waiting.oldest()
        self.covered = oldest.place if oldest else max(entry.place for entry in written)
        self._disk.pwrite_all(self._fd, self._header(None), 0)

    def flush(self) -> None:
        """Write the entries that wait to their pages. Errors: CorruptionError; OSError."""
        entries = self._waiting.by_id.values()
        if not entries:
            return
        self._soil()
        self._put_in_pages(entries)
        self._waiting = WaitingEntries()  # last: readers of other threads look here first
        self._cover(entries)

    def put_many(self, entries: Iterable[Entry]) -> None:
        """Change entries; they are in the file when this returns. Errors: as :meth:`flush`."""
        self._soil()
        changed = list(entries)
        self._put_in_pages(changed)
        for entry in changed:
            self._waiting.discard(entry.object_id, self._hash(entry.object_id))

    def _put_in_pages(self, entries: Iterable[Entry]) -> None:
        dirty: dict[int, bytearray] = {}
        for entry in entries:
            number = self._number_for(entry.object_id)
            while not _set(self._changing(number, dirty), entry):
                self._write_page(number, dirty.pop(number))  # the split starts from the file
                self._split(number)
                number = self._number_for(entry.object_id)
            if len(dirty) > _DIRTY_PAGES:
                self._write_pages(dirty)
        self._write_pages(dirty)

    def remove_many(self, object_ids: Iterable[bytes]) -> None:
        """Remove entries; an absent one is no error. Errors: as :meth:`put_many`."""
        self._soil()
        dirty: dict[int, bytearray] = {}
        for object_id in object_ids:
            self._waiting.discard(object_id, self._hash(object_id))
            page = self._changing(self._number_for(object_id), dirty)
            position = _find(page, object_id)
            if position >= 0:
                count = _count(page) - 1
                last = _PAGE_HEADER.size + count * _ENTRY.size
                page[position : position + _ENTRY.size] = page[last : last + _ENTRY.size]
                page[last : last + _ENTRY.size] = bytes(_ENTRY.size)
                _set_count(page, count)
            if len(dirty) > _DIRTY_PAGES:
                self._write_pages(dirty)
        self._write_pages(dirty)

    def _split(self, number: int) -> None:
        """Move the entries with the next bit set to a new page at the end of the file."""
        page = self._page(number)
        _, prefix, depth, _, _ = _PAGE_HEADER.unpack_from(page)
        if depth == _MAX_DEPTH:
            raise CorruptionError("index", self._path, "too many objects meet in one page")
        stay, move = self._halves(page)
        moved = self._page_count
        try:
            self._write_page(moved, move)
            self._write_page(number, stay)
        except BaseException:
            # A page of the file that is not in the directory would count after a restart, without
            # what came into its range until then.
            self._keep(number, page)
            self._disk.truncate(self._fd, moved * PAGE_BYTES)
            raise
        self._page_count = moved + 1
        self._map = self._map_after_split(prefix, depth, moved)

    def _halves(self, page: bytes) -> tuple[bytearray, bytearray]:
        """Return what a split leaves in a page, and what it moves out."""
        _, prefix, depth, _, _ = _PAGE_HEADER.unpack_from(page)
        shift, size = _HASH_BITS - 1 - depth, _ENTRY.size
        halves: tuple[list[bytes], list[bytes]] = ([], [])
        first = _PAGE_HEADER.size
        for start in range(first, first + _count(page) * size, size):
            entry = page[start : start + size]
            halves[xxh3_64_intdigest(entry[:_ID_BYTES], self._seed) >> shift & 1].append(entry)
        stay = _build_page(prefix << 1, depth + 1, halves[0])
        return stay, _build_page(prefix << 1 | 1, depth + 1, halves[1])

    def _map_after_split(self, prefix: int, depth: int, moved: int) -> _Map:
        pages, shift = self._map
        if depth == _HASH_BITS - shift:
            pages = array("I", (number for number in pages for _ in (0, 1)))
            shift -= 1
        else:
            pages = pages[:]
        width = 1 << (_HASH_BITS - shift - depth - 1)
        first = (prefix << 1 | 1) * width
        pages[first : first + width] = array("I", [moved]) * width
        return _Map(pages, shift)

    # -- closing ------------------------------------------------------------------------------

    def close(self, end: End | None) -> None:
        """Close; with ``end``, say durably that the index is complete.

        Errors: CorruptionError, OSError; the file is closed, and as it was.
        """
        try:
            if end is not None and self.end != end:
                self.flush()
                self._store_map()
                self._disk.fsync(self._fd)
                self._disk.pwrite_all(self._fd, self._header(end), 0)
                self._disk.fsync(self._fd)
        finally:
            self._disk.close(self._fd)

    def _soil(self) -> None:
        if self.end is not None:
            self._disk.pwrite_all(self._fd, self._header(None), 0)
            self._disk.fdatasync(self._fd)
            self.end = None

    def _header(self, end: End | None) -> bytes:
        return _header(self._seed, self._boot, end, self.covered)

    # -- the file -----------------------------------------------------------------------------

    def _number_for(self, object_id: bytes) -> int:
        pages, shift = self._map
        return pages[self._hash(object_id) >> shift]

    def _hash(self, object_id: bytes) -> int:
        return xxh3_64_intdigest(object_id, self._seed)

    def _changing(self, number: int, dirty: dict[int, bytearray]) -> bytearray:
        page = dirty.get(number)
        if page is None:
            page = dirty[number] = bytearray(self._page(number))
        return page

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            page = self._read_page(number)
            self._keep(number, page)
        return page

    def _keep(self, number: int, page: bytes) -> None:
        if len(self._pages) >= _CACHED_PAGES and number not in self._pages:
            del self._pages[next(iter(self._pages))]
        self._pages[number] = page

    def _write_pages(self, dirty: dict[int, bytearray]) -> None:
        for number, page in dirty.items():
            self._write_page(number, page)
        dirty.clear()

    def _write_page(self, number: int, page: bytearray) -> None:
        written = _sealed(number, page)
        self._disk.pwrite_all(self._fd, written, number * PAGE_BYTES)
        self._keep(number, written)

    def _read_page(self, number: int) -> bytes:
        page = self._disk.pread(self._fd, PAGE_BYTES, number * PAGE_BYTES)
        if (
            len(page) != PAGE_BYTES
            or _sealed(number, bytearray(page)) != page
            or not _is_possible(page)
        ):
            raise CorruptionError("index", self._path, f"page {number} of the index is damaged")
        return page

    def _read_header(self) -> None:
        header = self._disk.pread(self._fd, PAGE_BYTES, 0)
        if len(header) != PAGE_BYTES or _sealed_header(header[: _HEADER.size]) != header:
            raise IndexLostError("the header of the index is damaged")
        fields = _HEADER.unpack_from(header)
        magic, version, self._seed, boot, clean, segment, offset, *covered = fields
        self.covered = Place._make(covered)
        if (magic, version) != (_MAGIC, _VERSION):
            raise IndexLostError("the index has another format")
        if clean:
            self.end = End(segment, offset)
        elif boot == NO_BOOT or boot != self._boot:
            raise IndexLostError("the machine went down while the index was in use")

    def _load_map(self) -> array[int] | None:
        """Return the directory that a clean close stored; None where it is missing or damaged."""
        try:
            fd = self._disk.open(self._path + ".map", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            stored = self._disk.pread(fd, self._disk.size(fd), 0)
        finally:
            self._disk.close(fd)
        if stored[:8] != self._map_checksum(stored[8:]):
            return None
        return self._sound_map(stored[8:])

    def _sound_map(self, stored: bytes) -> array[int] | None:
        if len(stored).bit_count() != 1 or len(stored) < array("I").itemsize:
            return None
        pages = array("I", stored)
        return pages if min(pages) > 0 and max(pages) < self._page_count else None

    def _store_map(self) -> None:
        stored = self._map.pages.tobytes()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        fd = self._disk.open(self._path + ".map", flags, 0o600)
        try:
            self._disk.write_all(fd, self._map_checksum(stored) + stored)
            self._disk.fsync(fd)
        finally:
            self._disk.close(fd)

    def _map_checksum(self, stored: bytes) -> bytes:
        # With the number of pages in it, so that one of an earlier close never counts.
        return _CHECKSUM.pack(xxh3_64_intdigest(stored, self._seed ^ self._page_count))

    def _map_from_pages(self) -> array[int]:
        """Return the directory that the pages' own headers give. Errors: IndexLostError."""
        found: dict[tuple[int, int], int] = {}
        for number in range(1, self._page_count):
            try:
                _, prefix, depth, _, _ = _PAGE_HEADER.unpack_from(self._read_page(number))
            except CorruptionError as error:
                raise IndexLostError(error.reason) from error
            found[depth, prefix] = number
        self._finish_split(found)
        bits = max((depth for depth, _ in found), default=0)
        # Before the directory is made: it is larger than the file where that holds no such pages.
        if sum(1 << (bits - depth) for depth, _ in found) != 1 << bits:
            raise IndexLostError("a page of the index is missing")
        pages = array("I", [0]) * (1 << bits)
        for (depth, prefix), number in found.items():
            width = 1 << (bits - depth)
            pages[prefix * width : (prefix + 1) * width] = array("I", [number]) * width
        if 0 in pages:
            raise IndexLostError("a page of the index is missing, and two are of the same hashes")
        return pages

    def _finish_split(self, found: dict[tuple[int, int], int]) -> None:
        """Take out of the old page of a split what a kill left there though it has moved.

        The next split of that page would move it once more, over what came to the new page since.
        """
        for (depth, prefix), number in list(found.items()):
            if (depth + 1, prefix << 1 | 1) in found:
                self._soil()
                stay, _ = self._halves(self._read_page(number))
                self._write_page(number, stay)
                found[depth + 1, prefix << 1] = found.pop((depth, prefix))


def _map_of(pages: array[int]) -> _Map:
    return _Map(pages, _HASH_BITS - (len(pages).bit_length() - 1))


def _header(seed: int, boot: int, end: End | None, covered: Place) -> bytes:
    segment, offset = end or End(0, 0)
    fields = (_MAGIC, _VERSION, seed, boot, int(end is not None), segment, offset, *covered)
    return _sealed_header(_HEADER.pack(*fields))


def _sealed_header(header: bytes) -> bytes:
    return (header + _CHECKSUM.pack(xxh3_64_intdigest(header))).ljust(PAGE_BYTES, b"\0")


def _sealed(number: int, page: bytearray) -> bytes:
    _CHECKSUM.pack_into(page, 0, xxh3_64_intdigest(memoryview(page)[8:], number))
    return bytes(page)


def _build_page(prefix: int, depth: int, entries: list[bytes]) -> bytearray:
    """Return a page, not sealed yet, of entries as they are stored."""
    header = _PAGE_HEADER.pack(0, prefix, depth, 0, len(entries))
    return bytearray(b"".join((header, *entries)).ljust(PAGE_BYTES, b"\0"))


def _entries(page: bytes) -> Iterator[Entry]:
    start = _PAGE_HEADER.size
    packed = memoryview(page)[start : start + _count(page) * _ENTRY.size]
    return map(Entry._make, _ENTRY.iter_unpack(packed))


def _find(page: bytes | bytearray, object_id: bytes) -> int:
    """Return where the entry of an object starts in a page, -1 where there is none."""
    end = _PAGE_HEADER.size + _count(page) * _ENTRY.size
    position = page.find(object_id, _PAGE_HEADER.size, end)
    while position >= 0 and (position - _PAGE_HEADER.size) % _ENTRY.size:
        position = page.find(object_id, position + 1, end)
    return position


def _set(page: bytearray, entry: Entry) -> bool:
    """Put an entry into a page; return False where that is full."""
    position = _find(page, entry.object_id)
    if position < 0:
        count = _count(page)
        if count == _PAGE_ENTRIES:
            return False
        position = _PAGE_HEADER.size + count * _ENTRY.size
        _set_count(page, count + 1)
    _ENTRY.pack_into(page, position, *entry)
    return True


def _is_possible(page: bytes) -> bool:
    prefix: int
    depth: int
    count: int
    _, prefix, depth, _, count = _PAGE_HEADER.unpack_from(page)
    return bool(depth <= _MAX_DEPTH and prefix >> depth == 0 and count <= _PAGE_ENTRIES)


def _count(page: bytes | bytearray) -> int:
    return page[14] | page[15] << 8


def _set_count(page: bytearray, count: int) -> None:
    page[14], page[15] = count & 0xFF, count >> 8
