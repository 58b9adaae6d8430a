from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.lib.chunking import DEFAULT_CHUNKING, ChunkingParameters, chunk_buffer, chunk_stream

SMALL = ChunkingParameters(threshold_bytes=1024, min_bytes=64, average_bytes=256, max_bytes=1024)


def cut_at_once(data: bytes, parameters: ChunkingParameters = SMALL) -> list[bytes]:
    return [bytes(chunk) for chunk in chunk_buffer(data, parameters)]


def cut_stream(pieces: list[bytes], parameters: ChunkingParameters = SMALL) -> list[bytes]:
    return [bytes(chunk) for chunk in chunk_stream(pieces, parameters)]


@given(st.lists(st.integers(0, 5_000), max_size=12), st.integers(0, 3))
def test_the_cuts_of_a_stream_are_those_of_the_whole(sizes: list[int], seed: int) -> None:
    source = random.Random(seed)
    # Every other seed gives zeros, of which each chunk has the largest size or the same one.
    pieces = [source.randbytes(size) if seed % 2 else bytes(size) for size in sizes]
    assert cut_stream(pieces) == cut_at_once(b"".join(pieces))


def test_the_default_cuts_of_a_stream_are_those_of_the_whole() -> None:
    data = random.Random(1).randbytes(6 << 20)
    pieces = [data[start : start + 300_001] for start in range(0, len(data), 300_001)]
    whole = cut_at_once(data, DEFAULT_CHUNKING)
    assert cut_stream(pieces, DEFAULT_CHUNKING) == whole
    assert all(
        DEFAULT_CHUNKING.min_bytes <= len(chunk) <= DEFAULT_CHUNKING.max_bytes
        for chunk in whole[:-1]
    )


@given(st.integers(0, 11_999), st.integers(0, 50))
def test_a_change_moves_no_cut_before_the_chunk_of_the_byte_before_it(
    position: int, seed: int
) -> None:
    data = bytearray(random.Random(seed).randbytes(12_000))
    before = cut_at_once(bytes(data))
    data[position] ^= 0xFF
    after = cut_at_once(bytes(data))
    end = 0
    for old, new in zip(before, after, strict=False):
        end += len(old)
        if end > max(0, position - 1):
            break
        assert old == new


def test_cuts_are_a_fixed_format() -> None:
    sizes = [len(chunk) for chunk in cut_at_once(random.Random(0).randbytes(2_500))]
    assert sizes == [122, 320, 257, 198, 227, 558, 367, 201, 250]


def test_a_stream_is_cut_in_bounded_memory() -> None:
    piece = random.Random(2).randbytes(256 << 10)
    for _ in chunk_stream([piece]):  # imports what it needs before measuring
        pass
    tracemalloc.start()
    try:
        for _ in chunk_stream(piece for _ in range(64)):
            pass
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_a_piece_is_asked_for_only_when_the_one_before_is_used_up() -> None:
    source = random.Random(3).randbytes(9_000)
    buffer = bytearray()

    def pieces() -> Iterator[bytearray]:
        for start in range(0, len(source), 700):
            buffer[:] = source[start : start + 700]
            yield buffer

    assert [bytes(chunk) for chunk in chunk_stream(pieces(), SMALL)] == cut_at_once(source)


def test_an_exception_of_the_iterable_reaches_the_caller() -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(5_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(chunk_stream(pieces(), SMALL))
