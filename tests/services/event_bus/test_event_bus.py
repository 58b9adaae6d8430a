"""EventBus: every change to all who subscribe, in order, once; what is missed is told."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    ClosedError,
    InvalidArgumentError,
    MessagesLost,
    NotSupportedError,
)
from nexus.contracts.file_events import OVERFLOW, FileEvent
from nexus.contracts.protocols.event_bus import BusEvent, EventSubscription
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.factory.maintenance import collect
from nexus.services.event_bus.event_bus import EventBus
from nexus.storage.cache_store.memory import InMemoryCacheStore

PATIENT_S = 60.0
EVE = OperationContext("eve")


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:", enable=("event_bus",))) as filesystem:
        yield filesystem


def settled(nx: NexusFS, subscription: EventSubscription) -> list[BusEvent]:
    """Return all that was published up to now."""
    assert nx.dispatch.observers.settle(PATIENT_S)
    found = []
    while (event := subscription.receive(0)) is not None:
        found.append(event)
    return found


def nested() -> list[Any]:
    """Return a list that holds itself."""
    data: list[Any] = []
    data.append(data)
    return data


def changes(events: list[BusEvent]) -> list[tuple[str, str]]:
    return [(event.data["kind"], event.data["path"]) for event in events]


def test_every_change_reaches_all_subscribers_in_commit_order(nx: NexusFS) -> None:
    bus = nx.service("event_bus")
    with bus.subscribe("files/*") as one, bus.subscribe("*") as two:
        nx.write("/d/a", b"1")
        nx.sys_rename("/d/a", "/d/b")
        nx.write_batch({"/d/c": b"", "/d/e": b""})
        nx.sys_unlink("/d/b")
        journal = [(row["kind"], row["path"]) for row in nx.history()]
        got = changes(settled(nx, one))
        assert len(got) == 6
        assert got == journal[-6:]
        assert changes(settled(nx, two)) == got


def test_a_pattern_chooses_by_kind_and_by_path_also_of_where_something_moves(nx: NexusFS) -> None:
    bus = nx.service("event_bus")
    with bus.subscribe("files/root/file_write/*") as writes, bus.subscribe("files/*/e/*") as moved:
        nx.write("/d/a", b"1")
        nx.mkdir("/e")
        nx.sys_rename("/d/a", "/e/b")
        assert [event.topic for event in settled(nx, writes)] == ["files/root/file_write/d/a"]
        (event,) = settled(nx, moved)
        assert (event.data["path"], event.data["new_path"]) == ("/d/a", "/e/b")


def test_an_event_says_where_a_watch_goes_on(nx: NexusFS) -> None:
    with nx.service("event_bus").subscribe("files/*") as subscription:
        nx.write("/a", b"1")
        nx.write("/b", b"2")
        cursor = settled(nx, subscription)[0].data["cursor"]
        assert [event.path for event in nx.watch("/", since=cursor, timeout=0)] == ["/b"]


def test_events_of_ones_own_carry_any_json(nx: NexusFS) -> None:
    bus = nx.service("event_bus")
    data = {"step": 1, "of": [None, True, "ü", 1.5]}
    assert bus.publish("build/done", data) == 0
    with bus.subscribe("build/*") as subscription:
        assert bus.publish("build/done", data) == 1
        assert subscription.receive(0) == ("build/done", data)


def test_nobody_can_pass_an_event_for_a_change(nx: NexusFS) -> None:
    with pytest.raises(InvalidArgumentError, match="those of changes"):
        nx.service("event_bus").publish("files/root/file_write/a", {})


@pytest.mark.parametrize("data", [object(), {"x": lambda: 0}, nested()])
def test_what_is_no_json_is_refused(nx: NexusFS, data: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="not JSON"):
        nx.service("event_bus").publish("t", data)


def test_a_subscriber_that_falls_behind_is_told_how_far(nx: NexusFS) -> None:
    bus = EventBus(nx, InMemoryCacheStore(queue_messages=2))
    with bus.subscribe("t") as subscription:
        for number in range(5):
            bus.publish("t", number)
        assert [subscription.receive(0), subscription.receive(0)] == [("t", 0), ("t", 1)]
        with pytest.raises(MessagesLost) as caught:
            subscription.receive(0)
        assert caught.value.missed == 3
        assert subscription.receive(0) is None


def test_waiting_holds_no_thread(nx: NexusFS) -> None:
    bus = nx.service("event_bus")

    async def scenario() -> list[BusEvent | None]:
        subscriptions = [bus.subscribe("t") for _ in range(1000)]
        tasks = [asyncio.create_task(s.receive_async(PATIENT_S)) for s in subscriptions]
        await asyncio.wait(tasks, timeout=0)
        assert bus.publish("t", 1) == 1000
        return await asyncio.gather(*tasks)

    assert asyncio.run(scenario()) == [("t", 1)] * 1000


# -- what the observer's queue has no room for ------------------------------------------------


class Gate:
    """Keeps the bus's first publication waiting, so that its queue fills up."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()


class SlowStore(InMemoryCacheStore):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def publish(self, topic: str, payload: bytes) -> int:
        self._gate.reached.set()
        assert self._gate.open.wait(PATIENT_S)
        return super().publish(topic, payload)


def overrun(nx: NexusFS, during: Any = lambda: None) -> list[tuple[str, str, int]]:
    """Return what a subscriber gets when the queue of the bus holds 3 events and 10 come."""
    gate = Gate()
    nx.dispatch.observers._queue_limit = 3
    bus = EventBus(nx, SlowStore(gate))
    nx.sys_setattr("/__sys__/services/slow_bus", service=bus)
    with bus.subscribe("files/*") as subscription:
        nx.write("/0", b"")
        assert gate.reached.wait(PATIENT_S)
        for number in range(1, 10):
            nx.write(f"/{number}", b"")
        during()
        gate.open.set()
        events = settled(nx, subscription)
    return [(event.data["kind"], event.data["path"], event.data["size"]) for event in events]


@pytest.fixture
def plain() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


def test_what_the_queue_had_no_room_for_comes_from_the_journal(plain: NexusFS) -> None:
    assert overrun(plain) == [("file_write", f"/{number}", 0) for number in range(10)]


def test_what_the_journal_has_no_longer_is_counted(plain: NexusFS) -> None:
    def forget() -> None:
        collect(plain, retention_s=0, grace_s=0)

    found = overrun(plain, forget)
    assert found[:4] == [("file_write", f"/{number}", 0) for number in range(4)]
    assert found[4:] == [(OVERFLOW, "/", 6)]


# -- permissions ------------------------------------------------------------------------------


def test_an_identity_gets_only_the_changes_that_it_may_read() -> None:
    settings = Settings(data_dir=":memory:", enable=("event_bus", "permission"))
    with boot(settings) as nx:
        bus = nx.service("event_bus")
        with bus.subscribe("files/*", context=EVE) as hers, bus.subscribe("files/*") as all_of_it:
            nx.write("/secret", b"")
            nx.mkdir("/hers")
            nx.sys_setattr("/hers", owner_id="eve")
            nx.bind(EVE).write("/hers/f", b"")
            assert {"/secret", "/hers/f"} <= {e.data["path"] for e in settled(nx, all_of_it)}
            assert {event.data["path"] for event in settled(nx, hers)} == {"/hers", "/hers/f"}


def test_without_the_permission_service_everybody_gets_everything(nx: NexusFS) -> None:
    with nx.service("event_bus").subscribe("files/*", context=EVE) as subscription:
        nx.write("/f", b"")
        assert changes(settled(nx, subscription)) == [("file_write", "/f")]


# -- life -------------------------------------------------------------------------------------


def test_without_a_cache_store_the_bus_is_disabled_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = Settings(data_dir=":memory:", enable=("event_bus",), cache_store="null")
    with caplog.at_level(logging.WARNING), boot(settings) as nx:
        assert "the event bus is disabled" in caplog.text
        bus = nx.service("event_bus")
        assert not bus.is_enabled
        assert bus.publish("t", 1) == 0
        with pytest.raises(NotSupportedError, match="reach nobody"):
            bus.subscribe("*")
        nx.write("/f", b"works")
        assert not nx.dispatch.live


def test_taking_the_bus_away_ends_its_subscriptions(nx: NexusFS) -> None:
    bus = nx.service("event_bus")
    assert bus.is_enabled
    subscription = bus.subscribe("*")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(subscription.receive, PATIENT_S)
        nx.sys_unlink("/__sys__/services/event_bus")
        with pytest.raises(ClosedError):
            waiting.result()
    nx.write("/f", b"goes on")
    assert not nx.dispatch.live


def test_exchanging_the_bus_under_load_ends_subscriptions_and_new_ones_miss_nothing(
    nx: NexusFS,
) -> None:
    old = nx.service("event_bus").subscribe("files/*")
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            nx.write(f"/{number}", b"")
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        bus = EventBus(nx, InMemoryCacheStore())
        nx.sys_setattr("/__sys__/services/event_bus", service=bus)
        new = nx.service("event_bus").subscribe("files/*")
        first = new.receive(PATIENT_S)
    finally:
        stop.set()
        writer.join()
    with pytest.raises(ClosedError):
        old.receive(0)
    assert first is not None
    rest = [first.data["revision"], *(e.data["revision"] for e in settled(nx, new))]
    assert rest == [row["revision"] for row in nx.history() if row["revision"] >= rest[0]]


def test_a_store_that_raises_is_logged_and_the_kernel_goes_on(
    plain: NexusFS, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(InMemoryCacheStore):
        def publish(self, topic: str, payload: bytes) -> int:
            raise OSError("gone")

    plain.sys_setattr("/__sys__/services/bus", service=EventBus(plain, Broken()))
    plain.write("/f", b"1")
    plain.write("/f", b"2")
    assert plain.dispatch.observers.settle(PATIENT_S)
    assert plain.read("/f") == b"2"
    assert caplog.text.count("observer of bus failed") == 2


def test_a_store_that_hangs_keeps_no_call_waiting(plain: NexusFS) -> None:
    gate = Gate()
    bus = EventBus(plain, SlowStore(gate))
    plain.sys_setattr("/__sys__/services/bus", service=bus)
    plain.write("/f", b"1")
    assert gate.reached.wait(PATIENT_S)
    plain.write("/f", b"2")
    assert plain.read("/f") == b"2"
    gate.open.set()


def test_an_event_published_twice_by_the_kernel_reaches_a_subscriber_once(plain: NexusFS) -> None:
    bus = EventBus(plain, InMemoryCacheStore())
    event = FileEvent("file_write", "/f", "ann", 0, "root", revision=7)
    with bus.subscribe("*") as subscription:
        bus.on_mutation(event)
        bus.on_mutation(event)
        assert len(settled(plain, subscription)) == 1
