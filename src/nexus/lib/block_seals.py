"""Block seals: checksums of large bytes that let a part of them be checked by itself.

Layer: lib. Bytes in, seals out. Bytes are taken in blocks of 64 KiB, of which the last may be
shorter; the seal of a block is its XXH3-64, 8 bytes in the canonical order (big endian). Unix
counterpart: the block checksums of ZFS and Btrfs.
"""

from __future__ import annotations

from xxhash import xxh3_64_digest

from nexus.contracts.metadata import Buffer

BLOCK_BYTES = 64 << 10
SEAL_BYTES = 8


def block_seals(data: Buffer) -> bytes:
    """Return the seals of all blocks, one after the other."""
    view = memoryview(data)
    starts = range(0, len(view), BLOCK_BYTES)
    return b"".join([xxh3_64_digest(view[start : start + BLOCK_BYTES]) for start in starts])


def block_count(size: int) -> int:
    """Return how many blocks so many bytes have."""
    return (size + BLOCK_BYTES - 1) // BLOCK_BYTES


def blocks_around(start: int, stop: int, size: int) -> tuple[int, int]:
    """Return from where up to where the blocks reach that hold ``start`` up to ``stop``."""
    return start - start % BLOCK_BYTES, min(size, block_count(stop) * BLOCK_BYTES)
