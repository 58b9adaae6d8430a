"""RingBuffer by the number of its invariant, in Python and in Rust."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core import ring_buffer
from nexus.core.ring_buffer import charge

CAPACITY = 16

steps = st.lists(st.one_of(st.none(), st.binary(max_size=CAPACITY + 2)), max_size=60)


@pytest.fixture(params=["python", "rust"], scope="module")
def make(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return ring_buffer.RingBuffer
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built").RingBuffer


def check_as_a_bounded_queue(ring: Any, taken: list[bytes | None]) -> None:
    model = list[bytes]()
    for message in taken:
        if message is None:
            assert ring.get_nowait() == (model.pop(0) if model else None)
        else:
            fits = sum(map(charge, model)) + charge(message) <= CAPACITY
            assert ring.put_nowait(message) == fits
            model += [message] * fits
        assert len(ring) == len(model)
        assert ring.used_bytes == sum(map(charge, model)) <= CAPACITY


@given(taken=steps)
def test_1_2_it_is_a_bounded_queue(make: Any, taken: list[bytes | None]):
    check_as_a_bounded_queue(make(CAPACITY), taken)


def test_1_2_it_is_a_bounded_queue_in_10000_runs(make: Any):
    rng = random.Random(1)
    for _ in range(10_000):
        steps = range(rng.randrange(30))
        taken = [rng.randbytes(rng.randrange(8)) if rng.random() < 0.6 else None for _ in steps]
        check_as_a_bounded_queue(make(CAPACITY), taken)


def test_2_what_is_put_back_comes_first_even_where_it_does_not_fit(make: Any):
    ring = make(4)
    ring.put_nowait(b"abcd")
    ring.put_back(b"ef")
    assert ring.used_bytes == 6
    assert not ring.put_nowait(b"")
    assert [ring.get_nowait(), ring.get_nowait()] == [b"ef", b"abcd"]


def test_3_empty_messages_are_bounded_too(make: Any):
    ring = make(3)
    assert [ring.put_nowait(b"") for _ in range(5)] == [True] * 3 + [False] * 2


def test_a_cleared_buffer_has_room_again(make: Any):
    ring = make(3)
    ring.put_nowait(b"abc")
    ring.clear()
    assert ring.get_nowait() is None
    assert ring.put_nowait(b"abc")
    assert ring.capacity_bytes == 3
