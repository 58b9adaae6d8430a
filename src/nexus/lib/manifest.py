"""The manifest codec: the list of chunks that make up one large content.

Layer: lib. Bytes in, bytes out; it neither stores nor hashes them. Unix counterpart: an inode's
block map. All numbers are unsigned and little endian::

    offset  bytes  field
    0       4      magic, "NXCM"
    4       4      version, 3
    8       8      total size of the content in bytes
    16      4      number of chunks, at least 1
    20      36     for each chunk: its BLAKE3 hash (32 bytes), its size in bytes (4)
    ...     8      for each block of each chunk: its seal (:mod:`nexus.lib.block_seals`)

The hash names a chunk; the seals are what a read checks, at a fraction of the cost and only of
the blocks that it wants. The manifest's own hash covers both.

Version 3 also stands for the chunking that made the list (:data:`DEFAULT_CHUNKING` in
:mod:`nexus.lib.chunking`): other parameters give other ids, so they need another version.

1. There is one encoding of a list of chunks: decoding and encoding again gives the same bytes.
2. What decodes has no empty chunk, and its sizes add up to its total.
3. Decoding allocates in proportion to the bytes at hand, whatever they claim.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from nexus.lib.block_seals import SEAL_BYTES, block_count

MAGIC = b"NXCM"
VERSION = 3
HASH_BYTES = 32

_HEADER = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<32sI")
_ENTRY_SIZE = struct.Struct("<32xI")


class ManifestError(ValueError):
    """The bytes are not a well-formed manifest."""


class ChunkRef(NamedTuple):
    """One chunk of a content: the object that holds it, where it starts, its size and seals."""

    object_id: str
    start: int
    size: int
    seals: bytes


class Manifest:
    """A decoded manifest. Immutable, so shared freely between threads.

    Kept packed (about 90 bytes a chunk): a content of a tebibyte has about three million chunks.
    """

    __slots__ = ("_ends", "_seal_ends", "encoded", "size")

    def __init__(self, encoded: bytes, ends: array[int], seal_ends: array[int]) -> None:
        self.encoded = encoded
        self.size = ends[-1]
        self._ends = ends
        self._seal_ends = seal_ends  # in bytes, from the first seal on

    @classmethod
    def decode(cls, encoded: bytes) -> Manifest:
        """Return the manifest. Errors: ManifestError for anything :meth:`encode` never gives."""
        if len(encoded) < _HEADER.size:
            raise ManifestError(f"{len(encoded)} bytes are too few for a manifest")
        magic, version, total, count = _HEADER.unpack_from(encoded)
        if magic != MAGIC:
            raise ManifestError(f"a manifest does not start with {magic!r}")
        if version != VERSION:
            raise ManifestError(f"version {version} is not known here")
        seals = _HEADER.size + count * _ENTRY.size
        if count == 0 or len(encoded) < seals:
            raise ManifestError(f"{count} chunks do not fit in {len(encoded)} bytes")
        entries = memoryview(encoded)[_HEADER.size : seals]
        sizes = array("I", (size for (size,) in _ENTRY_SIZE.iter_unpack(entries)))
        if 0 in sizes:
            raise ManifestError("a chunk is empty")
        ends = array("Q", accumulate(sizes))
        if ends[-1] != total:
            raise ManifestError(f"the chunks add up to {ends[-1]} bytes, not {total}")
        seal_ends = array("Q", accumulate(map(_seal_bytes, sizes)))
        if len(encoded) != seals + seal_ends[-1]:
            raise ManifestError(f"{len(encoded) - seals} bytes of seals are not {seal_ends[-1]}")
        return cls(encoded, ends, seal_ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ChunkRef:
        if not 0 <= index < len(self._ends):
            raise IndexError(index)
        digest, size = _ENTRY.unpack_from(self.encoded, _HEADER.size + index * _ENTRY.size)
        seals = self._seals(index, index + 1)
        return ChunkRef(digest.hex(), self._ends[index] - size, size, seals)

    def _seals(self, first: int, last: int) -> bytes:
        base = _HEADER.size + len(self._ends) * _ENTRY.size
        start = self._seal_ends[first - 1] if first else 0
        end = self._seal_ends[last - 1] if last else 0
        return self.encoded[base + start : base + end]

    def object_ids(self) -> Iterator[str]:
        """Yield the object id of every chunk, in order, repeated where a chunk repeats."""
        entries, _, _ = self.entries(0, len(self))
        return (digest.hex() for digest, _ in _ENTRY.iter_unpack(entries))

    def index_at(self, position: int) -> int:
        """Return the index of the chunk that holds the byte at ``position`` (< size)."""
        return bisect_right(self._ends, position)

    def boundary_index(self, position: int) -> int | None:
        """Return the index of the chunk that starts at ``position`` (> 0), if one does.

        The end of the content counts as the start of the chunk after the last.
        """
        index = bisect_left(self._ends, position)
        if index < len(self._ends) and self._ends[index] == position:
            return index + 1
        return None

    def covering(self, start: int, end: int) -> Iterator[ChunkRef]:
        """Yield the chunks that hold the bytes from ``start`` up to ``end``, in order."""
        end = min(end, self.size)
        index = self.index_at(start)
        while start < end:
            chunk = self[index]
            yield chunk
            start = chunk.start + chunk.size
            index += 1

    def parts(self, start: int, end: int) -> list[tuple[str, int, int, bytes]]:
        """Return what of which chunks holds the bytes from ``start`` up to ``end`` (<= size).

        For each the object's id, the first byte that is wanted, how many are, and its seals.
        """
        found: list[tuple[str, int, int, bytes]] = []
        ends, seal_ends, encoded = self._ends, self._seal_ends, self.encoded
        seals_at = _HEADER.size + len(ends) * _ENTRY.size
        index = bisect_right(ends, start)
        seal_start = seal_ends[index - 1] if index else 0
        while start < end:
            digest, size = _ENTRY.unpack_from(encoded, _HEADER.size + index * _ENTRY.size)
            chunk_end, seal_end = ends[index], seal_ends[index]
            seals = encoded[seals_at + seal_start : seals_at + seal_end]
            count = min(chunk_end, end) - start
            found.append((digest.hex(), start - chunk_end + size, count, seals))
            start += count
            seal_start = seal_end
            index += 1
        return found

    def entries(self, first: int, last: int) -> tuple[memoryview, bytes, Iterator[int]]:
        """Return the packed entries from ``first`` up to ``last``, their seals and sizes."""
        start, end = (_HEADER.size + index * _ENTRY.size for index in (first, last))
        packed = memoryview(self.encoded)[start:end]
        sizes = (size for (size,) in _ENTRY_SIZE.iter_unpack(packed))
        return packed, self._seals(first, last), sizes


class ManifestBuilder:
    """Collects chunks in order. Belongs to one thread."""

    def __init__(self) -> None:
        self.size = 0
        self._packed = bytearray()
        self._seals = bytearray()
        self._ends = array("Q")
        self._seal_ends = array("Q")

    def add(self, object_id: str, size: int, seals: bytes) -> None:
        """Append one chunk of ``size`` bytes (1 to 2**32 - 1) with the seals of its blocks."""
        self._packed += _ENTRY.pack(bytes.fromhex(object_id), size)
        self._seals += seals
        self._end(size)

    def _end(self, size: int) -> None:
        self.size += size
        self._ends.append(self.size)
        self._seal_ends.append(_seal_bytes(size) + (self._seal_ends[-1] if self._seal_ends else 0))

    def extend(self, manifest: Manifest, first: int, last: int) -> None:
        """Append the chunks from ``first`` up to ``last`` of another manifest."""
        packed, seals, sizes = manifest.entries(first, last)
        self._packed += packed
        self._seals += seals
        for size in sizes:
            self._end(size)

    def finish(self) -> Manifest:
        """Return the manifest of the chunks collected, of which there is at least one."""
        header = _HEADER.pack(MAGIC, VERSION, self.size, len(self._ends))
        return Manifest(header + self._packed + self._seals, self._ends, self._seal_ends)


def _seal_bytes(size: int) -> int:
    return block_count(size) * SEAL_BYTES
