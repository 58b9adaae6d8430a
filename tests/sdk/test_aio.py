"""The asyncio view: the same locks, watches, pipes and streams, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from nexus.contracts.errors import ConflictError, LockTimeoutError, NotSupportedError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.sdk import DT_PIPE, DT_STREAM, OperationContext, connect
from nexus.sdk.aio import AsyncView

PATIENT_S = 60.0
MANY = 2000


@pytest.fixture
def nx() -> Iterator[NexusFilesystem]:
    with connect({"data_dir": ":memory:"}) as nx:
        yield nx


def test_tasks_count_under_a_lock_without_losing_an_update(nx: NexusFilesystem):
    view = AsyncView(nx)
    nx.write("/n", b"0")

    async def count() -> None:
        async with view.locked("/n", timeout=PATIENT_S) as lock:
            number = int(await asyncio.to_thread(nx.read, "/n")) + 1
            await asyncio.to_thread(nx.write, "/n", str(number), lock_token=lock.token)

    async def scenario() -> None:
        await asyncio.gather(*(count() for _ in range(50)))

    asyncio.run(scenario())
    assert nx.read("/n") == b"50"


def test_a_lock_that_is_held_times_out(nx: NexusFilesystem):
    nx.lock("/f")
    with pytest.raises(LockTimeoutError):
        asyncio.run(AsyncView(nx).lock("/f", timeout=0.001))


def test_a_block_that_outlived_its_lock_is_told(nx: NexusFilesystem):
    async def scenario() -> None:
        async with AsyncView(nx).locked("/f"):
            nx.sys_unlock("/f", force=True)

    with pytest.raises(ConflictError):
        asyncio.run(scenario())


def test_a_cancelled_block_unlocks(nx: NexusFilesystem):
    async def hold(entered: asyncio.Event) -> None:
        async with AsyncView(nx).locked("/f"):
            entered.set()
            await asyncio.Event().wait()

    async def scenario() -> None:
        entered = asyncio.Event()
        task = asyncio.create_task(hold(entered))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(scenario())
    assert nx.sys_lock("/f")


def test_the_identity_of_a_bound_view_is_kept(nx: NexusFilesystem):
    bound = AsyncView(nx.bind(OperationContext("ann", agent_id="indexer")))
    asyncio.run(bound.lock("/f"))
    (row,) = nx.sys_readdir("/__sys__/locks", details=True)
    assert (row["user_id"], row["agent_id"]) == ("ann", "indexer")


def test_an_iterator_sees_every_event_from_its_making_on(nx: NexusFilesystem):
    async def scenario() -> list[str]:
        nx.write("/before", b"")
        events = AsyncView(nx).watch("/")
        names = [f"/{number}" for number in range(20)]
        writing = asyncio.gather(*(asyncio.to_thread(nx.write, name, b"") for name in names))
        seen = [(await anext(events)).path for _ in names]
        await writing
        return sorted(seen) if sorted(seen) == sorted(names) else seen

    assert len(set(asyncio.run(scenario()))) == 20


def test_an_iterator_ends_when_nothing_comes_for_its_timeout(nx: NexusFilesystem):
    async def scenario() -> list[str]:
        events = AsyncView(nx).watch("/", timeout=0)
        nx.write("/a", b"")
        return [event.path async for event in events]

    assert asyncio.run(scenario()) == ["/a"]


def test_thousands_of_idle_watches_and_lock_waits_hold_no_thread(nx: NexusFilesystem):
    view = AsyncView(nx)
    held = nx.lock("/f", ttl=600)

    async def scenario() -> None:
        before = threading.active_count()
        watches = [asyncio.create_task(view.sys_watch("/d", PATIENT_S, True)) for _ in range(MANY)]
        waits = [
            asyncio.create_task(view.lock("/f", "shared", timeout=PATIENT_S)) for _ in range(MANY)
        ]
        await asyncio.wait([*watches, *waits], timeout=0)
        assert threading.active_count() == before
        await asyncio.to_thread(nx.write, "/d", b"")
        assert all(await asyncio.gather(*watches))
        for wait in waits[1:]:
            wait.cancel()
        await asyncio.to_thread(nx.sys_unlock, "/f", held)
        assert await waits[0]
        await asyncio.wait(waits)

    asyncio.run(scenario())


def test_thousands_of_tasks_wait_for_messages_without_a_thread(nx: NexusFilesystem):
    view = AsyncView(nx)
    nx.sys_setattr("/p", entry_type=DT_PIPE)

    async def scenario() -> list[bytes]:
        before = threading.active_count()
        readers = [asyncio.ensure_future(view.sys_read("/p")) for _ in range(MANY)]
        await asyncio.wait(readers, timeout=0)
        assert threading.active_count() == before
        for number in range(MANY):
            await view.sys_write("/p", b"%d" % number)
        return await asyncio.gather(*readers)

    assert asyncio.run(scenario()) == [b"%d" % number for number in range(MANY)]


def test_the_tail_of_a_stream_goes_on_as_messages_come(nx: NexusFilesystem):
    view = AsyncView(nx)
    nx.sys_setattr("/s", entry_type=DT_STREAM)
    nx.sys_write("/s", b"before")

    async def scenario() -> list[bytes]:
        found: list[bytes] = []
        async for message in view.tail("/s", timeout=PATIENT_S):
            found.append(message)
            if message == b"last":
                break
            await view.sys_write("/s", b"next" if len(found) == 1 else b"last")
        return found

    assert asyncio.run(scenario()) == [b"before", b"next", b"last"]


def test_a_tail_ends_when_nothing_comes_and_takes_nothing_from_a_pipe(nx: NexusFilesystem):
    view = AsyncView(nx)
    nx.sys_setattr("/s", entry_type=DT_STREAM)
    nx.sys_setattr("/p", entry_type=DT_PIPE)
    nx.sys_write("/p", b"for another")

    async def collected(path: str) -> list[bytes]:
        return [message async for message in view.tail(path, timeout=0.001)]

    assert asyncio.run(collected("/s")) == []
    with pytest.raises(NotSupportedError, match="is a pipe"):
        asyncio.run(collected("/p"))
    assert nx.sys_read("/p", timeout=0) == b"for another"
