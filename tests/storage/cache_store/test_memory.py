"""The cache store in memory holds what every one holds, and stays within its bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nexus.contracts.cache_store import CacheStoreABC
from nexus.contracts.errors import InvalidArgumentError, MessagesLost
from nexus.storage.cache_store.memory import InMemoryCacheStore
from nexus.testing.cache_store import CacheStoreSuite


class TestInMemoryCacheStore(CacheStoreSuite):
    def make(self, clock: Callable[[], float], queue_messages: int) -> CacheStoreABC:
        return InMemoryCacheStore(clock=clock, queue_messages=queue_messages)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def kept(store: InMemoryCacheStore, keys: str) -> str:
    return "".join(key for key in keys if store.get(key) is not None)


def test_what_was_used_longest_ago_makes_room_for_a_new_entry() -> None:
    store = InMemoryCacheStore(max_entries=3)
    for key in "abc":
        store.set(key, b"")
    store.get("a")
    store.set("d", b"")
    assert kept(store, "abcd") == "acd"


def test_bytes_are_bounded_by_what_was_used_longest_ago() -> None:
    store = InMemoryCacheStore(max_bytes=100)
    for key in "abcd":
        store.set(key, b"x" * 29)
    assert kept(store, "abcd") == "bcd"
    store.set("e", b"x" * 99)
    assert kept(store, "abcde") == "e"


def test_a_value_over_the_bound_is_refused_and_removes_nothing() -> None:
    store = InMemoryCacheStore(max_bytes=100)
    store.set("a", b"x")
    with pytest.raises(InvalidArgumentError, match="holds 100"):
        store.set("b", b"x" * 100)
    assert kept(store, "ab") == "a"


def test_what_has_expired_goes_before_what_is_alive() -> None:
    clock = Clock()
    store = InMemoryCacheStore(clock=clock, max_entries=3)
    store.set("a", b"")
    store.set("b", b"", ttl_s=5)
    store.set("c", b"")
    clock.now = 5.0
    store.set("d", b"")
    assert kept(store, "abcd") == "acd"


def test_replacing_a_value_with_a_time_over_and_over_takes_no_more_room() -> None:
    store = InMemoryCacheStore(clock=Clock())
    for _ in range(10_000):
        store.set("k", b"", ttl_s=60)
    assert len(store._expiries) < 100


def test_a_queue_is_bounded_in_bytes_too() -> None:
    store = InMemoryCacheStore(queue_bytes=100)
    with store.subscribe("t") as subscription:
        store.publish("t", b"x" * 60)
        store.publish("t", b"x" * 60)
        assert subscription.receive(0)
        with pytest.raises(MessagesLost):
            subscription.receive(0)


def test_a_pattern_of_many_stars_is_matched_in_reasonable_time() -> None:
    store = InMemoryCacheStore()
    with store.subscribe("*a" * 200 + "*b"):
        assert store.publish("a" * 4000, b"") == 0
