"""A segment: one file of the log that holds packed objects, record after record.

Layer: storage. Knows the bytes of a segment and how to read one that was damaged; which records
count is the index's. Unix counterpart: a segment of a log-structured filesystem (Rosenblum and
Ousterhout, 1991). Format, all numbers little-endian::

    segment   magic "NXSG", version u32, number u32, zeros to 64 bytes; then records
    record    magic "NXOB", size u32, stored-at u64 (unix ns), id (32 bytes), check u64, seal u64;
              the object's bytes; zeros to a multiple of 8
    check     XXH3-64 of the 48 bytes before it
    seal      XXH3-64, with the check as the seed, of the object's bytes; where they are more than
              one block, of the seals of their blocks (:mod:`nexus.lib.block_seals`)

The seal costs a fraction of the hash and binds the bytes to the record they were written in.
Records start at multiples of 8. Past the last one there may be zeros, written ahead.

Invariant: what :func:`records` finds after damage is what its id says. Content may hold bytes that
look like a record; it is taken for one only where the bytes match the hash, and then it is one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from weakref import ref

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import Extent
from nexus.lib.block_seals import (
    BLOCK_BYTES,
    SEAL_BYTES,
    block_count,
    block_seals,
    blocks_around,
)
from nexus.lib.disk import Disk
from nexus.lib.native import chosen
from nexus.storage.object_store.entry import Entry

UNIT = 8
"""Bytes that records are aligned to."""

FIRST_OFFSET = 64
"""Where the first record of a segment starts, in bytes."""

RECORD_HEADER_BYTES = 64
_MAGIC = b"NXSG"
_VERSION = 2
_RECORD_MAGIC = b"NXOB"
_SEGMENT_HEADER = struct.Struct("<4sII52x")
_FIELDS = struct.Struct("<4sIQ32s")
_SEALS = struct.Struct("<QQ")  # check, seal
_ID = slice(16, 48)
_ONE_READ_BYTES = BLOCK_BYTES
"""Up to here a record is read in one call and cut; above, copying costs more than a call."""

Wanted = tuple[int, int, int, int, int, bytes]
"""A part of an object: descriptor, where the object's bytes start in the file, the object's size;
the first byte that is wanted, how many are; the seals of all blocks."""


class Record(NamedTuple):
    """A record found in a segment. ``intact`` says that its seal holds."""

    object_id: bytes
    offset: int
    """In units of 8 bytes."""
    size: int
    stored_at_ns: int
    intact: bool


class SegmentFile:
    """An open segment. Shared by all readers; closed when the last one lets go of it."""

    __slots__ = ("__weakref__", "_disk", "fd", "number")

    def __init__(self, disk: Disk, path: str, number: int, *, create: bool = False) -> None:
        """Open a segment for reading and appending. Errors: OSError."""
        self.fd = -1
        self.number = number
        self._disk = disk
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        self.fd = disk.open(path, flags, 0o600)
        if create:
            disk.pwrite_all(self.fd, _SEGMENT_HEADER.pack(_MAGIC, _VERSION, number), 0)

    def __del__(self) -> None:
        # A reader may still be in a segment that compaction has unlinked: closing it by hand could
        # give its descriptor's number to another file under that reader.
        if self.fd >= 0:
            with suppress(OSError):
                os.close(self.fd)

    def read(self, entry: Entry) -> bytes | None:
        """Return the bytes of the object, or None unless its record is here and sealed."""
        start = entry.offset * UNIT
        size = entry.size
        if size <= _ONE_READ_BYTES:
            record = self._disk.pread(self.fd, RECORD_HEADER_BYTES + size, start)
            data = record[RECORD_HEADER_BYTES:]
        else:
            record = self._disk.pread(self.fd, RECORD_HEADER_BYTES, start)
            data = self._disk.pread(self.fd, size, start + RECORD_HEADER_BYTES)
        if len(data) != size or record[_ID] != entry.object_id:
            return None
        check, seal = _SEALS.unpack_from(record, _FIELDS.size)
        return data if _seal(data, check) == seal else None

    def wanted(self, entry: Entry, start: int, count: int, seals: bytes) -> Wanted:
        """Return what :func:`read_sealed` needs to read a part while this segment lives."""
        offset = entry.offset * UNIT + RECORD_HEADER_BYTES
        return self.fd, offset, entry.size, start, count, seals

    def extent(self, entry: Entry) -> Extent | None:
        """Return where a small object lies; None for one that is read in parts."""
        if entry.size > _ONE_READ_BYTES:
            return None
        native = chosen().module
        if native is None or type(self._disk) is not Disk:
            return SegmentExtent(self, entry)
        place = (self.fd, entry.offset * UNIT, entry.size, entry.object_id)
        extent: Extent = native.SegmentExtent(self, *place)
        return extent

    def holds(self, entry: Entry, data: Buffer, seals: bytes | None = None) -> bool:
        """Return whether the record is whole, header and all, and has just these bytes.

        ``seals`` are the block seals of ``data``, where they are known.
        """
        start = entry.offset * UNIT
        header = self._disk.pread(self.fd, RECORD_HEADER_BYTES, start)
        stored = self._disk.pread(self.fd, entry.size, start + RECORD_HEADER_BYTES)
        # A view would be compared item by item, which takes longer than copying it.
        if not _is_whole(header) or stored != bytes(data):
            return False
        check, seal = _SEALS.unpack_from(header, _FIELDS.size)
        return bool(_seal(stored, check, seals) == seal)

    def read_unsealed(self, entry: Entry) -> bytes:
        """Return the bytes where the object should be, whatever they are."""
        return self._disk.pread(self.fd, entry.size, entry.offset * UNIT + RECORD_HEADER_BYTES)

    def size(self) -> int:
        """Return the length of the file in bytes."""
        return self._disk.size(self.fd)

    def records(self, start: int) -> Iterator[Record]:
        """Yield the records from a byte on at which one starts; see :func:`records`."""
        tail = self._disk.pread(self.fd, max(0, self.size() - start), start)
        for found in records(tail, 0):
            yield found._replace(offset=found.offset + start // UNIT)


class SegmentExtent:
    """A record that is read again and again. Keeps its segment neither open nor on the disk."""

    __slots__ = ("_entry", "_segment")

    def __init__(self, segment: SegmentFile, entry: Entry) -> None:
        self._segment = ref(segment)
        self._entry = entry

    def read(self) -> bytes | None:
        """Return the object, or None; see :class:`nexus.contracts.object_store.Extent`."""
        segment = self._segment()
        try:
            return None if segment is None else segment.read(self._entry)
        except OSError:
            return None  # whoever asks the store next is told


def read_sealed(disk: Disk, count: int, wanted: Sequence[Wanted]) -> bytes | None:
    """Return parts of objects, one after the other.

    None unless all can be read, are what their block seals say and add up to ``count`` bytes.
    """
    found: list[bytes | memoryview] = []
    for part in wanted:
        data = _read_part(disk, part)
        if data is None:
            return None
        found.append(data)
    whole = b"".join(found)
    return whole if len(whole) == count else None


def _read_part(disk: Disk, wanted: Wanted) -> bytes | memoryview | None:
    fd, offset, size, start, count, seals = wanted
    stop = start + count
    if count == 0 or stop > size or len(seals) != block_count(size) * SEAL_BYTES:
        return None
    first, last = blocks_around(start, stop, size)
    try:
        data = disk.pread(fd, last - first, offset + first)
    except OSError:
        return None  # whoever asks for the object next is told
    at = first // BLOCK_BYTES * SEAL_BYTES
    found = block_seals(data)
    if len(data) != last - first or seals[at : at + len(found)] != found:
        return None
    return data if count == len(data) else memoryview(data)[start - first : stop - first]


def record_bytes(size: int) -> int:
    """Return how much of a segment the record of an object takes."""
    return (RECORD_HEADER_BYTES + size + UNIT - 1) & -UNIT


def record_header(
    object_id: bytes, data: Buffer, stored_at_ns: int, seals: bytes | None = None
) -> bytes:
    """Return the bytes that stand before the object's own, whose block seals may be known."""
    fields, check = _fields(object_id, len(data), stored_at_ns)
    return fields + _SEALS.pack(check, _seal(data, check, seals))


def chunk_header(object_id: bytes, size: int, stored_at_ns: int, seals: bytes) -> bytes:
    """Return what stands before the bytes of an object of several blocks, from their seals."""
    fields, check = _fields(object_id, size, stored_at_ns)
    return fields + _SEALS.pack(check, xxh3_64_intdigest(seals, check))


def _fields(object_id: bytes, size: int, stored_at_ns: int) -> tuple[bytes, int]:
    fields = _FIELDS.pack(_RECORD_MAGIC, size, stored_at_ns, object_id)
    return fields, xxh3_64_intdigest(fields)


def _seal(data: Buffer, check: int, seals: bytes | None = None) -> int:
    if len(data) <= BLOCK_BYTES:
        return xxh3_64_intdigest(data, check)
    return xxh3_64_intdigest(block_seals(data) if seals is None else seals, check)


def packed_record(object_id: bytes, data: bytes, stored_at_ns: int, /) -> bytes:
    """Return the whole record of an object."""
    header = record_header(object_id, data, stored_at_ns)
    return b"".join((header, data, padding(len(data))))


def padding(size: int) -> bytes:
    """Return the zeros that stand after the object's bytes."""
    return bytes(-size % UNIT)


def records(segment: bytes, position: int = FIRST_OFFSET) -> Iterator[Record]:
    """Yield the records of a segment's bytes from a position on, past damage too."""
    while True:
        record = _parse(segment, position, len(segment))
        if record is None:
            record = _search(segment, position + UNIT)
            if record is None:
                return
        yield record
        position = record.offset * UNIT + record_bytes(record.size)


def _search(segment: bytes, start: int) -> Record | None:
    """Return the next record that proves itself by its hash."""
    position = segment.find(_RECORD_MAGIC, start)
    while position >= 0:
        record = _parse(segment, position, len(segment)) if position % UNIT == 0 else None
        if record is not None:
            first = position + RECORD_HEADER_BYTES
            if blake3(segment[first : first + record.size]).digest() == record.object_id:
                return record
        position = segment.find(_RECORD_MAGIC, position + 1)
    return None


def _parse(segment: bytes, position: int, end: int) -> Record | None:
    """Return the record whose header is at a position; None where there is none, or it is cut."""
    header = segment[position : position + RECORD_HEADER_BYTES]
    if not _is_whole(header):
        return None
    _, size, stored_at_ns, object_id = _FIELDS.unpack_from(header)
    check, seal = _SEALS.unpack_from(header, _FIELDS.size)
    first = position + RECORD_HEADER_BYTES
    if first + size > end:
        return None
    intact = _seal(segment[first : first + size], check) == seal
    return Record(object_id, position // UNIT, size, stored_at_ns, intact)


def _is_whole(header: bytes) -> bool:
    if len(header) < RECORD_HEADER_BYTES or header[:4] != _RECORD_MAGIC:
        return False
    check: int = _SEALS.unpack_from(header, _FIELDS.size)[0]
    return xxh3_64_intdigest(header[: _FIELDS.size]) == check
