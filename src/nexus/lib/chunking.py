"""Content-defined chunking: cut large content where its bytes say so.

Layer: lib. Bytes in, chunks out; it neither hashes nor stores. The algorithm is FastCDC (2020).
An edit moves only the cuts near it, so that two versions of a large content share their other
chunks.

1. The cuts are those of cutting the whole content at once, however it was fed.
2. Whether a chunk ends at a position depends on the bytes from the chunk's start up to and
   including the one byte after its end. So a change can move the end of the chunk that holds the
   byte before the first changed one, and of no earlier chunk; and where a cut after the last
   changed byte falls on an old cut, all later cuts are the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import msgspec

from nexus.contracts.metadata import Buffer

if TYPE_CHECKING:
    from pyfastcdc import FastCDC


class ChunkingParameters(msgspec.Struct, frozen=True):
    """Where content is cut. Changing them changes the ids of everything over the threshold."""

    threshold_bytes: int
    min_bytes: int
    average_bytes: int
    max_bytes: int


DEFAULT_CHUNKING = ChunkingParameters(
    # One blob up to here: most files of agents are far smaller, and reading, verifying and
    # rewriting a mebibyte takes about as long as the bookkeeping of a manifest saves.
    threshold_bytes=1 << 20,
    # Below this, a chunk's own cost (file, hash, 36 bytes of manifest) outweighs what it shares.
    min_bytes=64 << 10,
    # The target beyond the minimum: an edit rewrites about this much, and a gibibyte has a few
    # thousand chunks.
    average_bytes=256 << 10,
    # Bounds what one small read has to fetch and verify, and the memory of every stream.
    max_bytes=1 << 20,
)


def chunk_buffer(data: Buffer, parameters: ChunkingParameters) -> Iterator[memoryview]:
    """Yield the chunks of bytes in memory, as views of them."""
    return (chunk.data for chunk in _cutter(parameters).cut_buf(data))


def chunk_stream(
    pieces: Iterable[Buffer], parameters: ChunkingParameters = DEFAULT_CHUNKING
) -> Iterator[memoryview]:
    """Yield the chunks of the concatenation of ``pieces``.

    Holds two chunks of the largest size in memory and reads that far ahead. A chunk is valid only
    until the next one is asked for: its memory is used again. An exception of the iterable
    reaches the caller.
    """
    return (chunk.data for chunk in _cutter(parameters).cut_stream(_PieceReader(pieces)))


def _cutter(parameters: ChunkingParameters) -> FastCDC:
    # Imported here: only large content needs it, and it costs start-up time.
    from pyfastcdc import FastCDC

    return FastCDC(
        avg_size=parameters.average_bytes,
        min_size=parameters.min_bytes,
        max_size=parameters.max_bytes,
        normalized_chunking=1,
        seed=0,
    )


_NOTHING = memoryview(b"")


class _PieceReader:
    """An iterable of pieces as the cutter wants to read it. Asks for a piece when it needs it."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        self._pieces = iter(pieces)
        self._rest = _NOTHING

    def readinto(self, b: memoryview) -> int:
        while not self._rest:
            self._rest = _NOTHING  # no view of the last piece: its owner may fill it again
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece).cast("B")
        taken = min(len(b), len(self._rest))
        b[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken
