from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from nexus.lib.block_seals import (
    BLOCK_BYTES,
    SEAL_BYTES,
    block_count,
    block_seals,
    blocks_around,
)

DATA = random.Random(1).randbytes(3 * BLOCK_BYTES + 5_000)
EDGES = st.sampled_from([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES])
POSITIONS = EDGES | st.integers(0, len(DATA))


def test_each_block_has_the_seal_of_its_own_bytes() -> None:
    seals = block_seals(DATA)
    assert len(seals) == block_count(len(DATA)) * SEAL_BYTES == 32
    last = xxh3_64_intdigest(DATA[3 * BLOCK_BYTES :])
    assert seals[24:] == last.to_bytes(8, "big")
    assert block_seals(b"") == b""


@given(POSITIONS, POSITIONS)
def test_a_part_has_the_seals_of_the_blocks_around_it(one: int, other: int) -> None:
    start, stop = sorted((one, other))
    first, last = blocks_around(start, stop, len(DATA))
    if start == stop:
        return
    found = block_seals(DATA[first:last])
    at = first // BLOCK_BYTES * SEAL_BYTES
    assert found == block_seals(DATA)[at : at + len(found)]
    assert len(found) == block_count(last - first) * SEAL_BYTES
