"""Content-defined chunking: cut large content where its bytes say so.

Layer: lib. Bytes in, chunks out; it neither hashes nor stores. The algorithm is FastCDC (2020): of
the Rust crate where it was built, else of pyfastcdc, which copies each chunk of a stream once more.
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
from types import ModuleType
from typing import TYPE_CHECKING, Final

import msgspec

from nexus.contracts.metadata import Buffer
from nexus.lib.native import chosen

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

    from nexus._kernel import Chunker

_KERNEL: Final = chosen().module
_STEP_BYTES = 1 << 20


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
    # Half of the mean, 370 KiB. No cut is looked for below it, which halves the work of cutting.
    min_bytes=192 << 10,
    # From here on cuts are made easily: an edit rewrites about as much, and a gibibyte has a few
    # thousand chunks.
    average_bytes=256 << 10,
    # Bounds what one small read has to fetch and verify, and the memory of every stream.
    max_bytes=1 << 20,
)


def chunk_buffer(
    data: Buffer, parameters: ChunkingParameters, *, kernel: ModuleType | None = _KERNEL
) -> Iterator[memoryview]:
    """Yield the chunks of bytes in memory, as views of them."""
    if kernel is None:
        return (chunk.data for chunk in _cutter(parameters).cut_buf(data))
    return _views(data, _native(kernel, parameters))


def chunk_stream(
    pieces: Iterable[Buffer],
    parameters: ChunkingParameters = DEFAULT_CHUNKING,
    *,
    kernel: ModuleType | None = _KERNEL,
) -> Iterator[memoryview]:
    """Yield the chunks of the concatenation of ``pieces``.

    Reads at most two chunks of the largest size ahead and holds as much. A chunk's memory is its
    own, or that of a piece that is ``bytes``: nobody writes to it again. An exception of the
    iterable reaches the caller.
    """
    if kernel is None:
        cut = _cutter(parameters).cut_stream(_PieceReader(pieces))
        return (memoryview(bytes(chunk.data)) for chunk in cut)
    return _joined(pieces, _native(kernel, parameters))


def _native(kernel: ModuleType, parameters: ChunkingParameters) -> Chunker:
    cutter: Chunker = kernel.Chunker(
        parameters.min_bytes, parameters.average_bytes, parameters.max_bytes
    )
    return cutter


def _views(data: Buffer, cutter: Chunker) -> Iterator[memoryview]:
    """Yield the chunks as views of the data."""
    # A step at a time: then what is hashed next is still in the CPU's cache.
    view = memoryview(data)
    start = 0
    for at in range(0, len(view), _STEP_BYTES):
        stop = at + _STEP_BYTES
        if isinstance(data, bytes):
            ends = cutter.feed(data, at, stop)
        else:
            ends = cutter.feed(bytes(view[at:stop]), 0, _STEP_BYTES)
        for end in ends:
            yield view[start : at + end]
            start = at + end
    if start < len(view):
        yield view[start:]


def _joined(pieces: Iterable[Buffer], cutter: Chunker) -> Iterator[memoryview]:
    """Yield chunks as views of the piece they lie in; those that span pieces are joined."""
    carried = bytearray()
    for piece in pieces:
        # What is not bytes, its owner may fill again.
        held = piece if isinstance(piece, bytes) else bytes(piece)
        view = memoryview(held)
        for at in range(0, len(held), _STEP_BYTES):
            start, stop = at, min(at + _STEP_BYTES, len(held))
            for end in cutter.feed(held, at, stop):
                if end < 0:  # the last byte fed before belongs to the next chunk
                    last = carried.pop()
                    yield memoryview(carried)
                    carried = bytearray((last,))
                elif carried:
                    carried += view[start : at + end]
                    yield memoryview(carried)
                    carried = bytearray()
                else:
                    yield view[start : at + end]
                start = max(start, at + end)
            carried += view[start:stop]
    if carried:
        yield memoryview(carried)


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
