from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import chain
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.contracts.metadata import Buffer
from nexus.lib.block_seals import block_seals
from nexus.lib.chunking import (
    DEFAULT_CHUNKING,
    Chunk,
    ChunkingParameters,
    chunk_buffer,
    chunk_stream,
)
from nexus.lib.content_id import object_id_of

SMALL = ChunkingParameters(threshold_bytes=1024, min_bytes=64, average_bytes=256, max_bytes=1024)
ODD = ChunkingParameters(threshold_bytes=1025, min_bytes=65, average_bytes=257, max_bytes=1025)


def rust() -> ModuleType:
    module: ModuleType = pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")
    return module


@pytest.fixture(params=["python", "rust"], scope="module")
def kernel(request: pytest.FixtureRequest) -> ModuleType | None:
    return None if request.param == "python" else rust()


def bytes_of(runs: Iterable[list[Chunk]]) -> list[bytes]:
    """Return the bytes of each chunk, what is said of which must hold."""
    found = []
    for chunk in chain.from_iterable(runs):
        data = bytes(chunk.joined())
        assert chunk.object_id == object_id_of(data)
        assert chunk.size == len(data)
        assert chunk.seals == block_seals(data)
        found.append(data)
    return found


def cut_at_once(
    data: bytes | bytearray | memoryview,
    parameters: ChunkingParameters = SMALL,
    kernel: ModuleType | None = None,
) -> list[bytes]:
    return bytes_of(chunk_buffer(data, parameters, kernel=kernel))


def cut_stream(
    pieces: Iterable[Buffer],
    parameters: ChunkingParameters = SMALL,
    kernel: ModuleType | None = None,
) -> list[bytes]:
    return bytes_of(chunk_stream(pieces, parameters, kernel=kernel))


def test_rust_cuts_as_its_twin_does_in_10000_contents() -> None:
    source = random.Random(7)
    for _ in range(10_000):
        parameters = source.choice((SMALL, ODD))
        data = source.randbytes(source.randrange(3_000))
        step = source.choice((1, 17, 64, 65, 700, 3_000)) if len(data) < 500 else 700
        pieces = [data[start : start + step] for start in range(0, len(data), step)]
        whole = cut_at_once(data, parameters)
        assert cut_at_once(data, parameters, rust()) == whole
        assert cut_stream(pieces, parameters, rust()) == whole


def test_a_chunk_that_ends_before_the_last_byte_of_a_piece_is_cut_there(
    kernel: ModuleType | None,
) -> None:
    data = random.Random(8).randbytes(4_000)
    whole = cut_at_once(data)
    end = 0
    for chunk in whole[:-1]:
        end += len(chunk)
        for position in (end - 1, end, end + 1):
            assert cut_stream([data[:position], data[position:]], SMALL, kernel) == whole


def test_buffers_of_every_kind_are_cut_alike(kernel: ModuleType | None) -> None:
    data = random.Random(9).randbytes(3 << 20)
    whole = cut_at_once(data, DEFAULT_CHUNKING)
    for held in (data, bytearray(data), memoryview(data)):
        assert cut_at_once(held, DEFAULT_CHUNKING, kernel) == whole


def test_a_chunk_stays_what_it_is_when_the_next_ones_are_asked_for(
    kernel: ModuleType | None,
) -> None:
    data = random.Random(10).randbytes(20_000)
    pieces = [data[start : start + 300] for start in range(0, len(data), 300)]
    runs = list(chunk_stream(pieces, SMALL, kernel=kernel))
    assert b"".join(bytes_of(runs)) == data


@given(st.lists(st.integers(0, 5_000), max_size=12), st.integers(0, 3))
def test_the_cuts_of_a_stream_are_those_of_the_whole(
    kernel: ModuleType | None, sizes: list[int], seed: int
) -> None:
    source = random.Random(seed)
    # Every other seed gives zeros, of which each chunk has the largest size or the same one.
    pieces = [source.randbytes(size) if seed % 2 else bytes(size) for size in sizes]
    assert cut_stream(pieces, SMALL, kernel) == cut_at_once(b"".join(pieces), SMALL, kernel)


def test_the_default_cuts_of_a_stream_are_those_of_the_whole(kernel: ModuleType | None) -> None:
    data = random.Random(1).randbytes(6 << 20)
    pieces = [data[start : start + 300_001] for start in range(0, len(data), 300_001)]
    whole = cut_at_once(data, DEFAULT_CHUNKING)
    assert cut_stream(pieces, DEFAULT_CHUNKING, kernel) == whole
    assert all(
        DEFAULT_CHUNKING.min_bytes <= len(chunk) <= DEFAULT_CHUNKING.max_bytes
        for chunk in whole[:-1]
    )


@given(st.integers(0, 11_999), st.integers(0, 50))
def test_a_change_moves_no_cut_before_the_chunk_of_the_byte_before_it(
    kernel: ModuleType | None, position: int, seed: int
) -> None:
    data = bytearray(random.Random(seed).randbytes(12_000))
    before = cut_at_once(data, SMALL, kernel)
    data[position] ^= 0xFF
    after = cut_at_once(data, SMALL, kernel)
    end = 0
    for old, new in zip(before, after, strict=False):
        end += len(old)
        if end > max(0, position - 1):
            break
        assert old == new


def test_cuts_are_a_fixed_format(kernel: ModuleType | None) -> None:
    chunks = cut_at_once(random.Random(0).randbytes(2_500), SMALL, kernel)
    sizes = [len(chunk) for chunk in chunks]
    assert sizes == [122, 320, 257, 198, 227, 558, 367, 201, 250]


def test_a_stream_is_cut_in_bounded_memory(kernel: ModuleType | None) -> None:
    piece = random.Random(2).randbytes(256 << 10)
    for _ in chunk_stream([piece], kernel=kernel):  # imports what it needs before measuring
        pass
    tracemalloc.start()
    try:
        for _ in chunk_stream((piece for _ in range(64)), kernel=kernel):
            pass
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5 << 20  # two of the largest chunks, a chunk and a piece


def test_a_piece_is_asked_for_only_when_the_one_before_is_used_up(
    kernel: ModuleType | None,
) -> None:
    source = random.Random(3).randbytes(9_000)
    buffer = bytearray()

    def pieces() -> Iterator[bytearray]:
        for start in range(0, len(source), 700):
            buffer[:] = source[start : start + 700]
            yield buffer

    assert cut_stream(pieces(), SMALL, kernel) == cut_at_once(source)


def test_a_chunk_has_few_parts_however_small_the_pieces_are(kernel: ModuleType | None) -> None:
    data = random.Random(11).randbytes(20_000)
    pieces = (data[start : start + 1] for start in range(len(data)))
    runs = list(chunk_stream(pieces, SMALL, kernel=kernel))
    most = SMALL.max_bytes // SMALL.min_bytes + 2
    assert all(len(chunk.parts) <= most for run in runs for chunk in run)
    assert b"".join(bytes_of(runs)) == data


def test_pieces_of_bytes_that_nobody_can_write_to_are_not_copied() -> None:
    data = random.Random(12).randbytes(3 << 20)
    for piece in (data, memoryview(data)):
        for run in chunk_stream([piece], kernel=rust()):
            assert all(part.obj is data for chunk in run for part in chunk.parts)


def test_a_view_that_is_not_the_whole_of_its_bytes_is_cut_as_what_it_shows(
    kernel: ModuleType | None,
) -> None:
    data = random.Random(13).randbytes(5_000)
    for view in (memoryview(data)[1:], memoryview(data)[:-1]):
        assert cut_stream([view], SMALL, kernel) == cut_at_once(bytes(view))
    backwards = memoryview(data)[::-1]
    assert cut_stream([backwards], SMALL, rust()) == cut_at_once(data[::-1])


def test_an_exception_of_the_iterable_reaches_the_caller(kernel: ModuleType | None) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(5_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(chunk_stream(pieces(), SMALL, kernel=kernel))
