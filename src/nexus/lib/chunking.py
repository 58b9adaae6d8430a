"""Content-defined chunking: cut large content where its bytes say so, and name what was cut.

Layer: lib. Bytes in, chunks out, each with its id and the seals of its blocks; it stores nothing.
The algorithm is FastCDC (2020): of the Rust crate where it was built, which cuts, hashes and seals
while the bytes are in the processor's cache; else of pyfastcdc, which copies each chunk of a stream
once more. An edit moves only the cuts near it, so that two versions of a large content share their
other chunks.

1. The cuts are those of cutting the whole content at once, however it was fed.
2. Whether a chunk ends at a position depends on the bytes from the chunk's start up to and
   including the one byte after its end. So a change can move the end of the chunk that holds the
   byte before the first changed one, and of no earlier chunk; and where a cut after the last
   changed byte falls on an old cut, all later cuts are the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from nexus.contracts.metadata import Buffer
from nexus.lib.block_seals import block_seals
from nexus.lib.content_id import object_id_of
from nexus.lib.native import chosen

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

    from nexus._kernel import ChunkSealer

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


class Chunk(NamedTuple):
    """A chunk of a content: what names it, what checks a part of it, and where its bytes are."""

    object_id: str
    size: int
    seals: bytes
    parts: tuple[memoryview, ...]
    """One after the other. A chunk that spans pieces need not be joined to be written."""

    def joined(self) -> Buffer:
        """Return the bytes, copied only where they are in several parts."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)


def chunk_buffer(
    data: Buffer, parameters: ChunkingParameters, *, kernel: ModuleType | None = _KERNEL
) -> Iterator[list[Chunk]]:
    """Yield the chunks of bytes in memory, several at a time."""
    if kernel is None:
        return ([_chunk(chunk.data)] for chunk in _cutter(parameters).cut_buf(data))
    view = memoryview(data)
    if isinstance(view.obj, bytes):
        return _sealed((_held(view),), _sealer(kernel, parameters))
    steps = (view[at : at + _STEP_BYTES] for at in range(0, len(view), _STEP_BYTES))
    return _sealed(map(bytes, steps), _sealer(kernel, parameters))


def chunk_stream(
    pieces: Iterable[Buffer],
    parameters: ChunkingParameters = DEFAULT_CHUNKING,
    *,
    kernel: ModuleType | None = _KERNEL,
) -> Iterator[list[Chunk]]:
    """Yield the chunks of the concatenation of ``pieces``, several at a time.

    Reads at most two chunks of the largest size ahead and holds as much. A chunk's memory is its
    own, or that of pieces that are ``bytes``: nobody writes to it again. An exception of the
    iterable reaches the caller.
    """
    if kernel is None:
        cut = _cutter(parameters).cut_stream(_PieceReader(pieces))
        return ([_chunk(memoryview(bytes(chunk.data)))] for chunk in cut)
    return _sealed(_gathered(pieces, parameters.min_bytes), _sealer(kernel, parameters))


def _chunk(data: memoryview) -> Chunk:
    return Chunk(object_id_of(data), len(data), block_seals(data), (data,))


def _sealer(kernel: ModuleType, parameters: ChunkingParameters) -> ChunkSealer:
    sealer: ChunkSealer = kernel.ChunkSealer(
        parameters.min_bytes, parameters.average_bytes, parameters.max_bytes
    )
    return sealer


def _gathered(pieces: Iterable[Buffer], least_bytes: int) -> Iterator[bytes]:
    """Yield pieces as they are, small ones joined: a chunk has few parts, however it was fed."""
    gathered = bytearray()
    for piece in pieces:
        held = _held(piece)
        if len(held) < least_bytes:
            gathered += held
            if len(gathered) < least_bytes:
                continue
            held = b""
        if gathered:
            yield bytes(gathered)
            gathered.clear()
        if held:
            yield held
    if gathered:
        yield bytes(gathered)


def _held(piece: Buffer) -> bytes:
    """Return the bytes of a piece, copied unless nobody can write to them again."""
    if isinstance(piece, memoryview) and isinstance(piece.obj, bytes):
        whole = piece.c_contiguous and piece.nbytes == len(piece.obj)
        return piece.obj if whole else bytes(piece)
    return piece if isinstance(piece, bytes) else bytes(piece)


def _sealed(pieces: Iterable[bytes], sealer: ChunkSealer) -> Iterator[list[Chunk]]:
    """Yield the chunks as views of the pieces they lie in."""
    parts: list[memoryview] = []  # of the chunk at hand
    for piece in pieces:
        view = memoryview(piece)
        for at in range(0, len(piece), _STEP_BYTES):
            start, stop = at, min(at + _STEP_BYTES, len(piece))
            chunks: list[Chunk] = []
            for end, object_id, seals in sealer.feed(piece, at, stop):
                after: list[memoryview] = []
                if end < 0:  # the last byte fed before belongs to the next chunk
                    last = parts.pop()
                    parts.append(last[:-1])
                    after.append(last[-1:])
                elif start < at + end:
                    parts.append(view[start : at + end])
                    start = at + end
                chunks.append(_of_parts(object_id, seals, parts))
                parts = after
            if start < stop:
                parts.append(view[start:stop])
            if chunks:
                yield chunks
    ended = sealer.finish()
    if ended is not None:
        _, object_id, seals = ended
        yield [_of_parts(object_id, seals, parts)]


def _of_parts(object_id: str, seals: bytes, parts: list[memoryview]) -> Chunk:
    held = tuple(part for part in parts if part)
    return Chunk(object_id, sum(map(len, held)), seals, held)


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
