"""CacheStoreSuite: what every cache store must hold. Layer: testing.

A driver's own test is a subclass with :meth:`CacheStoreSuite.make`::

    class TestMyStore(CacheStoreSuite):
        def make(self, clock, queue_messages):
            return MyStore(clock=clock, queue_messages=queue_messages)

A driver whose time passes elsewhere overrides :meth:`CacheStoreSuite.pass_time`.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nexus.contracts.cache_store import MAX_NAME_BYTES, CacheStoreABC, Subscription
from nexus.contracts.errors import ClosedError, InvalidArgumentError, MessagesLost

PATIENT_S = 60.0
QUEUE_MESSAGES = 8
BAD_NAMES: tuple[Any, ...] = ("", None, 7, b"key", "x" * (MAX_NAME_BYTES + 1))


class CacheStoreSuite:
    """Conformance of a :class:`~nexus.contracts.cache_store.CacheStoreABC` that keeps things."""

    @abstractmethod
    def make(self, clock: Callable[[], float], queue_messages: int) -> CacheStoreABC:
        """Return an empty store that tells the time by ``clock`` and bounds queues like this."""

    def pass_time(self, seconds: float) -> None:
        """Let time go by for the store."""
        self.now += seconds

    @pytest.fixture
    def store(self) -> Iterator[CacheStoreABC]:
        self.now = 1_000.0
        store = self.make(lambda: self.now, QUEUE_MESSAGES)
        yield store
        store.close()

    # -- values -------------------------------------------------------------------------------

    def test_a_value_is_kept_until_it_is_replaced_or_deleted(self, store: CacheStoreABC) -> None:
        assert store.get("k") is None
        store.set("k", b"one")
        assert store.get("k") == b"one"
        store.set("k", b"")
        assert store.get("k") == b""
        assert store.delete("k")
        assert store.get("k") is None
        assert not store.delete("k")

    def test_any_text_is_a_key_and_any_bytes_a_value(self, store: CacheStoreABC) -> None:
        values = {key: bytes(range(256)) for key in ("/a/b", "ü\0*?[", "x" * MAX_NAME_BYTES, " ")}
        for key, value in values.items():
            store.set(key, value)
        assert {key: store.get(key) for key in values} == values

    def test_a_value_is_gone_when_its_time_is_over(self, store: CacheStoreABC) -> None:
        store.set("short", b"1", ttl_s=10)
        store.set("long", b"2", ttl_s=20.5)
        store.set("ever", b"3")
        self.pass_time(9.5)
        assert store.get("short") == b"1"
        self.pass_time(0.5)
        assert store.get("short") is None
        assert not store.delete("short")
        assert (store.get("long"), store.get("ever")) == (b"2", b"3")

    def test_a_new_value_brings_its_own_time(self, store: CacheStoreABC) -> None:
        store.set("k", b"1", ttl_s=10)
        store.set("k", b"2")
        store.set("l", b"1")
        store.set("l", b"2", ttl_s=10)
        self.pass_time(11)
        assert (store.get("k"), store.get("l")) == (b"2", None)

    # -- messages -----------------------------------------------------------------------------

    def test_a_message_reaches_all_who_subscribe_and_nobody_later(
        self, store: CacheStoreABC
    ) -> None:
        assert store.publish("t", b"before") == 0
        with store.subscribe("t") as one, store.subscribe("*") as two:
            assert store.publish("t", b"now") == 2
            assert store.publish("u", b"other") == 1
            assert _all(one) == [("t", b"now")]
            assert _all(two) == [("t", b"now"), ("u", b"other")]
        assert store.publish("t", b"after") == 0

    @pytest.mark.parametrize(
        ("pattern", "matching", "other"),
        [
            ("a/b", ["a/b"], ["a/bc", "za/b", "a"]),
            ("a/*", ["a/", "a/b/c", "a/\n"], ["a", "b/a/"]),
            ("*/c", ["a/b/c", "/c"], ["c", "a/c/d"]),
            ("a*b*c", ["abc", "aXbYbZc"], ["acb", "ab"]),
            ("*", ["x", "a/b"], []),
            ("a.[b]?", ["a.[b]?"], ["axbx", "a.b"]),
            ("ab*ba", ["abba", "ab-ba"], ["aba"]),
        ],
    )
    def test_a_star_stands_for_any_text_and_everything_else_for_itself(
        self, store: CacheStoreABC, pattern: str, matching: list[str], other: list[str]
    ) -> None:
        with store.subscribe(pattern) as subscription:
            for topic in matching + other:
                store.publish(topic, b"")
            assert [topic for topic, _ in _all(subscription)] == matching

    def test_messages_come_in_the_order_of_their_publisher(self, store: CacheStoreABC) -> None:
        with store.subscribe("n") as subscription:
            for number in range(QUEUE_MESSAGES):
                store.publish("n", b"%d" % number)
            assert [int(payload) for _, payload in _all(subscription)] == [*range(QUEUE_MESSAGES)]

    def test_a_subscriber_that_falls_behind_learns_how_many_it_missed_and_goes_on(
        self, store: CacheStoreABC
    ) -> None:
        with store.subscribe("n") as slow, store.subscribe("n") as quick:
            for number in range(QUEUE_MESSAGES + 3):
                assert store.publish("n", b"%d" % number) == 2
                assert quick.receive(0) is not None
            kept = [slow.receive(0) for _ in range(QUEUE_MESSAGES)]
            assert [int(m.payload) for m in kept if m] == [*range(QUEUE_MESSAGES)]
            store.publish("n", b"later")
            with pytest.raises(MessagesLost) as caught:
                slow.receive(0)
            assert caught.value.missed == 3
            assert pickle.loads(pickle.dumps(caught.value)).missed == 3  # noqa: S301 - our own
            assert _all(slow) == [("n", b"later")]

    def test_what_is_missed_in_two_places_is_told_in_both(self, store: CacheStoreABC) -> None:
        with store.subscribe("n") as slow:
            for _ in range(2):
                for _ in range(QUEUE_MESSAGES + 1):
                    store.publish("n", b"")
                for _ in range(QUEUE_MESSAGES):
                    assert slow.receive(0)
                with pytest.raises(MessagesLost, match="1 messages"):
                    slow.receive(0)
            assert slow.receive(0) is None

    def test_a_wait_ends_when_a_message_comes(self, store: CacheStoreABC) -> None:
        with store.subscribe("t") as subscription, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(subscription.receive, PATIENT_S)
            store.publish("t", b"x")
            assert waiting.result() == ("t", b"x")
            assert subscription.receive(0) is None

    def test_each_message_goes_to_one_of_those_who_wait(self, store: CacheStoreABC) -> None:
        with store.subscribe("t") as subscription, ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(subscription.receive, PATIENT_S) for _ in range(4)]
            for number in range(4):
                store.publish("t", b"%d" % number)
            got = [future.result() for future in waiting]
            assert sorted(m.payload for m in got if m) == [b"0", b"1", b"2", b"3"]

    def test_thousands_wait_without_a_thread_each(self, store: CacheStoreABC) -> None:
        async def wait() -> list[bytes]:
            subscriptions = [store.subscribe("t") for _ in range(1000)]
            tasks = [asyncio.create_task(s.receive_async(PATIENT_S)) for s in subscriptions]
            await asyncio.wait(tasks, timeout=0)
            before = threading.active_count()
            assert store.publish("t", b"x") == 1000
            assert threading.active_count() == before
            return [message.payload for message in await asyncio.gather(*tasks) if message]

        assert asyncio.run(wait()) == [b"x"] * 1000

    def test_a_cancelled_wait_loses_no_message(self, store: CacheStoreABC) -> None:
        async def scenario() -> object:
            subscription = store.subscribe("t")
            first = asyncio.create_task(subscription.receive_async(PATIENT_S))
            second = asyncio.create_task(subscription.receive_async(PATIENT_S))
            await asyncio.wait([first, second], timeout=0)
            store.publish("t", b"x")
            first.cancel()
            return await second

        assert asyncio.run(scenario()) == ("t", b"x")

    # -- ending -------------------------------------------------------------------------------

    def test_closing_a_subscription_ends_its_waits(self, store: CacheStoreABC) -> None:
        subscription = store.subscribe("t")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(subscription.receive, PATIENT_S)
            subscription.close()
            subscription.close()
            with pytest.raises(ClosedError):
                waiting.result()
        with pytest.raises(ClosedError):
            subscription.receive(0)
        assert store.publish("t", b"x") == 0

    def test_closing_the_store_ends_everything(self, store: CacheStoreABC) -> None:
        subscription = store.subscribe("t")
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: subscription.receive(0),
            lambda: store.get("k"),
            lambda: store.set("k", b""),
            lambda: store.delete("k"),
            lambda: store.publish("t", b""),
            lambda: store.subscribe("t"),
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_a_bad_key_topic_or_pattern_is_refused(self, store: CacheStoreABC, name: Any) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.get(name),
            lambda: store.set(name, b""),
            lambda: store.delete(name),
            lambda: store.publish(name, b""),
            lambda: store.subscribe(name),
        ]
        for call in calls:
            with pytest.raises(InvalidArgumentError):
                call()

    def test_a_bad_value_or_time_is_refused(self, store: CacheStoreABC) -> None:
        bad: Any
        for bad in ("text", None, 7):
            with pytest.raises(InvalidArgumentError):
                store.set("k", bad)
            with pytest.raises(InvalidArgumentError):
                store.publish("t", bad)
        for bad in (0, -1, "1", True, float("nan"), float("inf")):
            with pytest.raises(InvalidArgumentError):
                store.set("k", b"", ttl_s=bad)
        with store.subscribe("t") as subscription:
            for bad in (-1, "1", True, float("nan"), 1e300):
                with pytest.raises(InvalidArgumentError):
                    subscription.receive(bad)


def _all(subscription: Subscription) -> list[tuple[str, bytes]]:
    found = []
    while (message := subscription.receive(0)) is not None:
        found.append((message.topic, message.payload))
    return found
