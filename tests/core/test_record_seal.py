"""The seal of stored records: both implementations make and check the same one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core import record_seal


@pytest.fixture(params=["python", "rust"])
def seals(request: pytest.FixtureRequest) -> Any:
    return record_seal if request.param == "python" else rust_one()


def rust_one() -> Any:
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")


def test_what_was_sealed_comes_back_with_its_revision(seals: Any) -> None:
    value, seal = seals.seal_record(b"key", b"payload", (1 << 40).to_bytes(8, "big"))
    assert seals.unseal_record(b"key", value) == (b"payload", 1 << 40, seal)


def test_damage_anywhere_shows(seals: Any) -> None:
    value, _ = seals.seal_record(b"key", b"payload", bytes(8))
    for bit in range(len(value) * 8):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        assert seals.unseal_record(b"key", bytes(damaged)) is None
    for end in range(len(value)):
        assert seals.unseal_record(b"key", value[:end]) is None
    assert seals.unseal_record(b"other", value) is None


@settings(max_examples=10_000)
@given(st.binary(max_size=40), st.binary(max_size=300), st.binary(min_size=8, max_size=8))
def test_both_implementations_seal_alike(key: bytes, payload: bytes, at: bytes) -> None:
    value, seal = record_seal.seal_record(key, payload, at)
    assert rust_one().seal_record(key, payload, at) == (value, seal)
    assert rust_one().unseal_record(key, value) == record_seal.unseal_record(key, value)
    assert rust_one().unseal_record(payload, key) == record_seal.unseal_record(payload, key)


short = st.binary(max_size=12)
records = st.builds(record_seal.Sealed, short, short, st.integers(1, 9), st.integers(0, 2**64 - 1))


numbers = st.integers(0, 2**63)
heads = st.tuples(numbers, numbers, st.integers(0, 2**64 - 1), numbers, numbers)


commits = st.tuples(
    heads.filter(lambda head: head[1] >= 3),
    st.lists(st.tuples(short, short, st.one_of(st.none(), records)), max_size=4),
    st.lists(records, max_size=3),
    st.lists(st.tuples(short, short, short), max_size=4),
)


@settings(max_examples=10_000)
@given(short, commits)
def test_both_implementations_seal_a_commit_alike(key: bytes, commit: Any) -> None:
    assert rust_one().seal_commit(key, *commit) == record_seal.seal_commit(key, *commit)


def test_the_head_of_a_commit_counts_its_records_and_comes_last(seals: Any) -> None:
    old = record_seal.Sealed(b"old", b"", 1, 5)
    gone = record_seal.Sealed(b"gone", b"", 1, 7)
    rows, written, head = seals.seal_commit(
        b"K",
        (8, 10, 100, 3, 4),
        [(b"old", b"x", old), (b"new", b"y", None)],
        [gone],
        [(b"J", b"z", b"\0")],
    )
    keys = [b"old", b"new", b"J" + (9).to_bytes(8, "big") + b"\0", b"K"]
    assert [key for key, _ in rows] == keys
    found = [seals.unseal_record(key, value) for key, value in rows]
    assert [(payload, at) for payload, at, _ in found[:3]] == [(b"x", 9), (b"y", 9), (b"z", 9)]
    assert [(r.key, r.payload, r.revision, r.seal) for r in written] == [
        (key, *row) for (key, _), row in zip(rows[:2], found[:2], strict=True)
    ]
    total = (100 + sum(seal for _, _, seal in found[:3]) - 5 - 7) % 2**64
    assert head == (9, 11, total, 3, 4)
    assert found[3][:2] == (record_seal.HEAD.pack(*head), 9)
