"""RingBuffer by the number of its invariant."""

from hypothesis import given
from hypothesis import strategies as st

from nexus.core.ring_buffer import RingBuffer, charge

CAPACITY = 16

steps = st.lists(st.one_of(st.none(), st.binary(max_size=CAPACITY + 2)), max_size=60)


@given(steps)
def test_1_2_it_is_a_bounded_queue(taken: list[bytes | None]):
    ring, model = RingBuffer(CAPACITY), list[bytes]()
    for message in taken:
        if message is None:
            assert ring.get_nowait() == (model.pop(0) if model else None)
        else:
            fits = sum(map(charge, model)) + charge(message) <= CAPACITY
            assert ring.put_nowait(message) == fits
            model += [message] * fits
        assert len(ring) == len(model)
        assert ring.used_bytes == sum(map(charge, model)) <= CAPACITY


def test_2_what_is_put_back_comes_first_even_where_it_does_not_fit():
    ring = RingBuffer(4)
    ring.put_nowait(b"abcd")
    ring.put_back(b"ef")
    assert not ring.put_nowait(b"")
    assert [ring.get_nowait(), ring.get_nowait()] == [b"ef", b"abcd"]


def test_3_empty_messages_are_bounded_too():
    ring = RingBuffer(3)
    assert [ring.put_nowait(b"") for _ in range(5)] == [True] * 3 + [False] * 2


def test_a_cleared_buffer_has_room_again():
    ring = RingBuffer(3)
    ring.put_nowait(b"abc")
    ring.clear()
    assert ring.get_nowait() is None
    assert ring.put_nowait(b"abc")
