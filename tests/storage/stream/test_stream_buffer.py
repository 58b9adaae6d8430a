"""StreamBuffer by the number of its invariant, in Python and in Rust."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.contracts.stream_backend import RECORD_BYTES
from nexus.storage.stream import stream_buffer

CAPACITY = 3 * RECORD_BYTES + 16
LARGEST = CAPACITY - RECORD_BYTES

steps = st.lists(st.one_of(st.none(), st.binary(max_size=LARGEST + 2)), max_size=60)


@pytest.fixture(params=["python", "rust"], scope="module")
def make(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return stream_buffer.StreamBuffer
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built").StreamBuffer


def charged(messages: list[bytes]) -> int:
    return sum(len(message) + RECORD_BYTES for message in messages)


def check_as_the_end_of_a_list(buffer: Any, steps: list[bytes | None]) -> None:
    """Append messages, and let go of all at None; the model is all that ever came."""
    came = list[bytes]()
    begin = 0
    for message in steps:
        if message is None:
            buffer.clear()
            begin = len(came)
        elif len(message) > LARGEST:
            assert buffer.append(message) is None
        else:
            assert buffer.append(message) == len(came)
            came.append(message)
            while charged(came[begin:]) > CAPACITY:
                begin += 1
        assert (buffer.begin, buffer.end) == (begin, len(came))
        assert buffer.used_bytes == charged(came[begin:]) <= CAPACITY
        for offset in range(-1, len(came) + 2):
            held = begin <= offset < len(came)
            assert buffer.read(offset) == (came[offset] if held else None)


@given(steps=steps)
def test_1_2_3_it_is_the_end_of_a_list(make: Any, steps: list[bytes | None]) -> None:
    check_as_the_end_of_a_list(make(CAPACITY), steps)


def test_1_2_3_it_is_the_end_of_a_list_in_10000_runs(make: Any) -> None:
    rng = random.Random(1)
    sizes = [0, 1, 16, 17, RECORD_BYTES + 16, LARGEST, LARGEST + 1]
    for _ in range(10_000):
        count = rng.randrange(12)
        steps = [
            rng.randbytes(rng.choice(sizes)) if rng.random() < 0.9 else None for _ in range(count)
        ]
        check_as_the_end_of_a_list(make(CAPACITY), steps)


@pytest.mark.parametrize("offset", [-1, -(2**64), 2**63, 2**64, 2**200])
def test_1_nothing_is_at_a_number_that_no_offset_can_be(make: Any, offset: int) -> None:
    buffer = make(CAPACITY)
    buffer.append(b"a")
    assert buffer.read(offset) is None


def test_2_what_is_read_stays_whole_when_it_is_let_go_of(make: Any) -> None:
    buffer = make(RECORD_BYTES + 4)
    buffer.append(b"abcd")
    held = buffer.read(0)
    buffer.append(b"efgh")
    assert (held, buffer.read(0)) == (b"abcd", None)
    assert buffer.capacity_bytes == RECORD_BYTES + 4
