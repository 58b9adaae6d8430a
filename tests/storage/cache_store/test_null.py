"""Without a cache store every get misses and nobody is reached, which is said."""

from __future__ import annotations

from typing import Any

import pytest

from nexus.contracts.errors import InvalidArgumentError, NotSupportedError
from nexus.storage.cache_store.null import NullCacheStore
from nexus.testing.cache_store import BAD_NAMES


def test_it_keeps_and_delivers_nothing_and_says_so() -> None:
    store = NullCacheStore()
    store.set("k", b"v", ttl_s=10)
    assert store.get("k") is None
    assert not store.delete("k")
    assert store.publish("t", b"x") == 0
    assert not store.capabilities.keeps
    assert not store.capabilities.delivers


def test_a_subscription_that_would_be_silent_for_ever_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="reach nobody"):
        NullCacheStore().subscribe("*")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_wrong_arguments_are_refused_as_elsewhere(name: Any) -> None:
    store = NullCacheStore()
    with pytest.raises(InvalidArgumentError):
        store.get(name)
    with pytest.raises(InvalidArgumentError):
        store.publish(name, b"")
