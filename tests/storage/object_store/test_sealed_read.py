"""Parts of objects, read where they are handed out: one suite for Rust and its twin."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from xxhash import xxh3_64_digest

from nexus.lib.block_seals import BLOCK_BYTES, SEAL_BYTES, block_seals
from nexus.lib.disk import Disk
from nexus.storage.object_store.segment_file import Wanted, read_sealed

Reader = Callable[[int, Sequence[Wanted]], bytes | None]

SIZES = (1, 1_000, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES + 1_000)
OFFSET = 64


def rust() -> Reader:
    module = pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")
    reader: Reader = module.read_sealed
    return reader


@pytest.fixture(params=["python", "rust"])
def read(request: pytest.FixtureRequest) -> Reader:
    return partial(read_sealed, Disk()) if request.param == "python" else rust()


class Object(NamedTuple):
    """An object in a file of its own, and what is known of it."""

    fd: int
    data: bytes
    seals: bytes

    def part(self, start: int, count: int) -> Wanted:
        return self.fd, OFFSET, len(self.data), start, count, self.seals


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[list[Object]]:
    found = []
    for number, size in enumerate(SIZES):
        data = random.Random(number).randbytes(size)
        path = tmp_path / str(number)
        path.write_bytes(bytes(OFFSET) + data + b"what comes after")
        found.append(Object(os.open(path, os.O_RDWR), data, block_seals(data)))
    yield found
    for stored in found:
        os.close(stored.fd)


def expected(count: int, wanted: Sequence[Wanted]) -> bytes | None:
    """Read every object whole, block by block: the rule as it is stated."""
    found = b""
    for fd, offset, size, start, length, seals in wanted:
        data = os.pread(fd, size, offset)
        stop = start + length
        if length == 0 or stop > size or len(seals) != len(block_seals(bytes(size))):
            return None
        for block in range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1):
            first = block * BLOCK_BYTES
            stored = data[first : first + BLOCK_BYTES]
            if len(stored) < min(BLOCK_BYTES, size - first):
                return None
            if xxh3_64_digest(stored) != seals[block * SEAL_BYTES :][:SEAL_BYTES]:
                return None
        found += data[start:stop]
    return found if len(found) == count else None


def any_part(source: random.Random, stored: Object) -> Wanted:
    size = len(stored.data)
    edges = (0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES, size - 1)
    start = source.choice([edge for edge in edges if edge < size] + [source.randrange(size)])
    left = size - start
    count = source.choice((1, left, min(left, BLOCK_BYTES), source.randrange(left) + 1))
    trouble = source.randrange(30)
    if trouble == 0:
        return stored.part(start, left + 1)
    if trouble == 1:
        return (*stored.part(start, count)[:5], stored.seals[:-SEAL_BYTES])
    if trouble == 2:
        other = bytearray(stored.seals)
        other[source.randrange(len(other))] ^= 1
        return (*stored.part(start, count)[:5], bytes(other))
    if trouble == 3:
        return (stored.fd, OFFSET + size, *stored.part(start, count)[2:])
    return stored.part(start, count)


def test_rust_reads_what_its_twin_and_the_rule_do_in_10000_reads(objects: list[Object]) -> None:
    source = random.Random(3)
    native, twin = rust(), partial(read_sealed, Disk())
    answers = 0
    for _ in range(10_000):
        wanted = [any_part(source, source.choice(objects)) for _ in range(source.randrange(1, 3))]
        count = sum(part[4] for part in wanted) + (source.randrange(40) == 0)
        found = native(count, wanted)
        assert found == expected(count, wanted)
        assert twin(count, wanted) == found
        answers += found is not None
    assert 7_000 < answers < 9_900


def test_a_damaged_block_gives_nothing_and_the_others_their_bytes(
    read: Reader, objects: list[Object]
) -> None:
    stored = objects[-1]
    os.pwrite(stored.fd, bytes([stored.data[BLOCK_BYTES + 5] ^ 1]), OFFSET + BLOCK_BYTES + 5)
    assert read(BLOCK_BYTES, [stored.part(100, BLOCK_BYTES)]) is None
    assert read(10, [stored.part(BLOCK_BYTES, 10)]) is None
    assert read(BLOCK_BYTES, [stored.part(0, BLOCK_BYTES)]) == stored.data[:BLOCK_BYTES]


def test_what_cannot_be_read_gives_nothing(read: Reader, objects: list[Object]) -> None:
    stored = objects[-1]
    assert read(10, [(-1, *stored.part(0, 10)[1:])]) is None
    os.ftruncate(stored.fd, OFFSET + len(stored.data) - 1)
    assert read(len(stored.data), [stored.part(0, len(stored.data))]) is None
    assert read(10, [stored.part(0, 10)]) == stored.data[:10]


def test_no_parts_make_up_no_bytes(read: Reader) -> None:
    assert read(0, []) == b""
    assert read(1, []) is None
