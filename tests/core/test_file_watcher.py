"""What watches hold beyond what a user sees; see also nexus.testing.filesystem.watches."""

import asyncio
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import ClosedError, EventsLost
from nexus.contracts.file_events import FILE_RENAME, FILE_WRITE, FileEvent
from nexus.core.file_watcher import FileWatcher
from nexus.core.inode_table import Transaction
from nexus.core.nexus_fs import NexusFS
from nexus.core.sealed_store import SealedStore
from nexus.factory.boot import Settings, boot
from nexus.lib.steps import run_async
from nexus.sdk import collect, connect
from nexus.storage.metastore.memory import MemoryMetastore
from nexus.testing.semaphore import ManualClock

PATIENT_S = 60.0
MANY = 1000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def nx(clock: ManualClock) -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:"), clock_ns=clock) as nx:
        yield nx


def test_a_position_before_the_journal_is_events_lost(nx: NexusFS, clock: ManualClock):
    first = nx.write("/a", b"1")["revision"]
    last = nx.write("/b", b"1")["revision"]
    clock.advance(10)
    kept = nx.write("/c", b"1")["revision"]
    collect(nx, retention_s=5, grace_s=0)
    for lost in (0, first, f"{first}.0", f"{last}.0"):
        with pytest.raises(EventsLost) as caught:
            nx.sys_watch("/", 0, True, lost)
        assert caught.value.revision == nx.store.head().revision
    event = nx.sys_watch("/", 0, True, last)
    assert event is not None
    assert event.revision == kept
    assert nx.sys_watch("/", 0, True, caught.value.revision) is None


@pytest.mark.parametrize("count", [499, 500, 501, 1000])
def test_no_pruned_event_is_passed_over_in_silence(nx: NexusFS, clock: ManualClock, count: int):
    start = nx.store.head().revision
    nx.write_batch({f"/{number}": b"" for number in range(count)})
    batch = nx.store.head().revision
    clock.advance(10)
    collect(nx, retention_s=5, grace_s=0)
    for lost in (start, f"{batch}.0"):
        with pytest.raises(EventsLost):
            nx.sys_watch("/", 0, True, lost)
    assert nx.sys_watch("/", 0, True, batch) is None


def test_what_is_pruned_while_a_watch_waits_loses_it_nothing(nx: NexusFS, clock: ManualClock):
    async def scenario() -> FileEvent | None:
        wait = asyncio.create_task(nx._watch_async("/f", PATIENT_S, False, None, None))
        await asyncio.wait([wait], timeout=0)
        for number in range(10):
            nx.write(f"/other-{number}", b"")
        clock.advance(10)
        collect(nx, retention_s=5, grace_s=0)
        nx.write("/f", b"")
        return await wait

    with pytest.raises(EventsLost):  # what was pruned could have concerned it: it had not looked
        asyncio.run(scenario())


def test_events_lost_keeps_its_revision_when_sent_elsewhere():
    error = EventsLost("watch", "/a", "too old", revision=7)
    again = pickle.loads(pickle.dumps(error))
    assert (again.revision, again.path, str(again)) == (7, "/a", str(error))


def test_a_watch_goes_on_after_a_restart(tmp_path: Path):
    with connect({"data_dir": str(tmp_path)}) as nx:
        seen = nx.write("/a", b"1")["revision"]
        nx.write_batch({"/b": b"1", "/c": b"1"})
        first = nx.sys_watch("/", 0, True, seen)
        assert first is not None
        nx.write("/d", b"1")
    with connect({"data_dir": str(tmp_path)}) as nx:
        nx.write("/e", b"1")
        paths = [event.path for event in nx.watch("/", True, first.cursor, timeout=0)]
    assert [first.path, *paths] == ["/b", "/c", "/d", "/e"]


def test_nobody_is_woken_while_the_lock_of_the_change_is_held(nx: NexusFS):
    held: list[dict[str, str]] = []
    emit = nx.waiting.watcher.emit

    def watched_emit() -> None:
        if nx.waiting.watcher._pending.events:
            held.append(nx.locks.held())
        emit()

    nx.locks.after_release = watched_emit

    changes: list[Callable[[], object]] = [
        lambda: nx.write("/a", b"1"),
        lambda: nx.sys_rename("/a", "/b"),
        lambda: nx.sys_copy("/b", "/c"),
        lambda: nx.write_batch({"/d/e": b"", "/f/g": b""}),
        lambda: nx.sys_unlink("/d", recursive=True),
    ]

    async def scenario() -> None:
        for change in changes:
            wait = asyncio.create_task(nx._watch_async("/", PATIENT_S, True, None, None))
            await asyncio.wait([wait], timeout=0)
            change()
            assert await wait

    asyncio.run(scenario())
    assert held == [{}] * 5


def test_only_watches_that_a_change_concerns_are_woken():
    store = SealedStore(MemoryMetastore())
    watcher = FileWatcher(store)
    woken: list[str] = []

    async def follow(path: str, recursive: bool) -> None:
        assert await run_async(watcher.watching("root", path, PATIENT_S, recursive, None))
        woken.append(f"{path}{'/**' if recursive else ''}")

    async def scenario() -> None:
        wanted = [("/a", False), ("/a", True), ("/a/b", False), ("/a/b/c", False), ("/", True)]
        tasks = [asyncio.create_task(follow(*item)) for item in [*wanted, ("/", False)]]
        await asyncio.wait(tasks, timeout=0)
        before = dict(watcher._queues)
        txn = Transaction(store)
        txn.event(FileEvent(FILE_WRITE, "/a/b", "ann", 0, "root"))
        txn.event(FileEvent(FILE_WRITE, "/", "ann", 0, "another zone"))
        txn.commit(durable=False)
        assert not woken
        watcher.emit()
        assert {interest: len(queue) for interest, queue in before.items() if len(queue)} == {
            interest: 1
            for interest in before
            if interest.path in ("/a/b/c", "/") and not interest.recursive
        }
        done, pending = await asyncio.wait(tasks, timeout=0.01)
        while len(done) < 4:
            done, pending = await asyncio.wait(tasks, timeout=0.01)
        for task in pending:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(scenario())
    assert sorted(woken) == ["//**", "/a", "/a/**", "/a/b"]
    assert watcher.watched() == []


class Counting(str):
    """A path that counts how often it is compared."""

    compared = 0

    def startswith(self, *arguments: Any) -> bool:
        Counting.compared += 1
        return super().startswith(*arguments)

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def test_4_a_change_of_a_whole_directory_looks_at_no_watch_elsewhere():
    store = SealedStore(MemoryMetastore())
    watcher = FileWatcher(store)

    async def scenario() -> None:
        paths = [Counting(f"/idle/{number}") for number in range(MANY)]
        watches = [watcher.watching("root", path, PATIENT_S, True, None) for path in paths]
        tasks = [asyncio.create_task(run_async(watch)) for watch in watches]
        await asyncio.wait(tasks, timeout=0)
        txn = Transaction(store)
        txn.event(FileEvent(FILE_RENAME, "/from", "ann", 0, "root", new_path="/to"))
        txn.commit(durable=False)
        Counting.compared = 0
        watcher.emit()
        assert Counting.compared == 0
        assert len(watcher.watched()) == MANY
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(scenario())
    assert watcher.watched() == []
    assert not watcher._table


def test_a_thousand_idle_tasks_hold_no_thread_and_all_are_woken(nx: NexusFS):
    async def scenario() -> list[Any]:
        before = threading.active_count()
        tasks = [
            asyncio.create_task(nx._watch_async("/d", PATIENT_S, True, None, None))
            for _ in range(MANY)
        ]
        await asyncio.wait(tasks, timeout=0)
        assert threading.active_count() == before
        await asyncio.to_thread(nx.write, "/d/f", b"")
        return await asyncio.gather(*tasks)

    events = asyncio.run(scenario())
    assert {event.path for event in events} == {"/d"}
    assert nx.waiting.watcher.watched() == []


def test_many_waiting_threads_are_all_woken(nx: NexusFS):
    start = nx.store.head().revision
    with ThreadPoolExecutor(100) as pool:
        waits = [pool.submit(nx.sys_watch, "/f", PATIENT_S, False, start) for _ in range(100)]
        nx.write("/f", b"")
        assert {getattr(wait.result(), "path", None) for wait in waits} == {"/f"}


def test_closing_ends_watches(nx: NexusFS):
    async def scenario() -> None:
        wait = asyncio.create_task(nx._watch_async("/", PATIENT_S, True, None, None))
        await asyncio.wait([wait], timeout=0)
        await asyncio.to_thread(nx.close)
        with pytest.raises(ClosedError):
            await wait

    asyncio.run(scenario())
    with pytest.raises(ClosedError):
        nx.sys_watch("/", 0)


def test_a_cancelled_watch_leaves_nothing_behind(nx: NexusFS):
    async def scenario() -> None:
        wait = asyncio.create_task(nx._watch_async("/", PATIENT_S, True, None, None))
        await asyncio.wait([wait], timeout=0)
        assert nx.waiting.watcher.watched() == ["/"]
        wait.cancel()
        await asyncio.wait([wait])

    asyncio.run(scenario())
    assert nx.waiting.watcher.watched() == []


def test_a_zone_does_not_see_the_events_of_another(nx: NexusFS):
    start = nx.store.head().revision
    nx.write("/f", b"")
    elsewhere = OperationContext("ann", zone_id="other")
    assert nx.sys_watch("/", 0, True, start, context=elsewhere) is None
