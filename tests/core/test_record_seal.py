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
