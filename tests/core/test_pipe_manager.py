"""Pipes by the number of their invariant, blocking and awaited."""

import asyncio
import errno
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from nexus.contracts.errors import (
    ClosedError,
    InvalidArgumentError,
    PathNotFoundError,
    WaitTimeoutError,
    WouldBlock,
)
from nexus.core.pipe_manager import Pipe, PipeManager
from nexus.lib.steps import run_async

PATIENT_S = 60.0
A_MOMENT_S = 0.001
PRODUCERS = CONSUMERS = 8
MESSAGES = 200_000
PATH = "/p"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as threads:
        yield threads


@pytest.fixture
def pipe() -> Pipe:
    return Pipe(8)


def waiting(pipe: Pipe) -> int:
    info = pipe.info()
    return info.waiting_readers + info.waiting_writers


def start(pool: ThreadPoolExecutor, pipe: Pipe, call: Callable[[], Any]) -> Future[Any]:
    """Start a call that waits; return once it does."""
    before = waiting(pipe)
    future = pool.submit(call)
    while waiting(pipe) == before:
        assert not future.done()
    return future


async def begin(pipe: Pipe, call: Any) -> asyncio.Task[Any]:
    """Start an awaited call that waits; return once it does."""
    before = waiting(pipe)
    task = asyncio.ensure_future(call)
    while waiting(pipe) == before:
        await asyncio.wait([task], timeout=0)
        assert not task.done()
    return task


def read_later(pool: ThreadPoolExecutor, pipe: Pipe) -> Future[Any]:
    return start(pool, pipe, lambda: pipe.read(PATH, PATIENT_S))


def write_later(pool: ThreadPoolExecutor, pipe: Pipe, message: bytes) -> Future[Any]:
    return start(pool, pipe, lambda: pipe.write(PATH, message, PATIENT_S))


def test_1_one_write_is_one_message(pipe: Pipe):
    pipe.write(PATH, b"ab")
    pipe.write(PATH, b"")
    pipe.write(PATH, b"cd")
    assert [pipe.read(PATH) for _ in range(3)] == [b"ab", b"", b"cd"]


def test_1_many_producers_and_consumers_lose_and_duplicate_nothing_and_keep_the_order():
    pipe = Pipe(65_536)
    taken: list[list[bytes]] = [[] for _ in range(CONSUMERS)]

    def produce(number: int) -> None:
        for index in range(MESSAGES // PRODUCERS):
            pipe.write(PATH, b"%d %d" % (number, index), PATIENT_S)

    def consume(number: int) -> None:
        while message := pipe.read(PATH, PATIENT_S):
            taken[number].append(message)

    with ThreadPoolExecutor(PRODUCERS + CONSUMERS) as pool:
        consumers = [pool.submit(consume, number) for number in range(CONSUMERS)]
        for producer in [pool.submit(produce, number) for number in range(PRODUCERS)]:
            producer.result()
        for _ in consumers:
            pipe.write(PATH, b"")
        for consumer in consumers:
            consumer.result()
    everything = [message for messages in taken for message in messages]
    assert len(everything) == len(set(everything)) == MESSAGES
    for messages in taken:
        for number in range(PRODUCERS):
            mine = [int(m.split()[1]) for m in messages if m.startswith(b"%d " % number)]
            assert mine == sorted(mine)


def test_2_waiting_readers_are_served_in_order(pool: ThreadPoolExecutor, pipe: Pipe):
    first, second = read_later(pool, pipe), read_later(pool, pipe)
    pipe.write(PATH, b"1")
    pipe.write(PATH, b"2")
    assert (first.result(), second.result()) == (b"1", b"2")


def test_2_waiting_writers_enter_in_order_and_a_large_one_is_not_overtaken(
    pool: ThreadPoolExecutor, pipe: Pipe
):
    pipe.write(PATH, b"aaaa")
    pipe.write(PATH, b"bb")
    large, small = write_later(pool, pipe, b"cccccc"), write_later(pool, pipe, b"d")
    with pytest.raises(WouldBlock):
        pipe.write(PATH, b"e", 0)
    assert [pipe.read(PATH) for _ in range(4)] == [b"aaaa", b"bb", b"cccccc", b"d"]
    large.result()
    small.result()


def test_2_who_stood_behind_a_writer_that_gave_up_goes_on(pool: ThreadPoolExecutor, pipe: Pipe):
    pipe.write(PATH, b"aaaaaa")

    async def scenario() -> None:
        large = await begin(pipe, run_async(pipe.writing(PATH, b"bbbb", PATIENT_S)))
        small = await begin(pipe, run_async(pipe.writing(PATH, b"c", PATIENT_S)))
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        await small

    asyncio.run(scenario())
    assert [pipe.read(PATH) for _ in range(2)] == [b"aaaaaa", b"c"]


def test_3_an_empty_pipe_makes_the_reader_wait(pool: ThreadPoolExecutor, pipe: Pipe):
    reader = read_later(pool, pipe)
    pipe.write(PATH, b"news")
    assert reader.result() == b"news"


def test_3_a_full_pipe_makes_the_writer_wait(pool: ThreadPoolExecutor, pipe: Pipe):
    pipe.write(PATH, b"12345678")
    writer = write_later(pool, pipe, b"9")
    assert pipe.info().queued_bytes == 8
    assert pipe.read(PATH) == b"12345678"
    writer.result()
    assert pipe.read(PATH) == b"9"


def test_3_a_timeout_of_zero_does_not_wait(pipe: Pipe):
    with pytest.raises(WouldBlock) as empty:
        pipe.read(PATH, 0)
    assert isinstance(empty.value, BlockingIOError)
    assert (empty.value.errno, empty.value.filename) == (errno.EAGAIN, PATH)
    pipe.write(PATH, b"12345678")
    with pytest.raises(WouldBlock):
        pipe.write(PATH, b"9", 0)
    with pytest.raises(WouldBlock):
        asyncio.run(run_async(pipe.writing(PATH, b"9", 0)))
    assert pipe.info().queued_messages == 1


def test_3_a_wait_ends_at_its_timeout_with_nothing_taken_or_written(pipe: Pipe):
    with pytest.raises(WaitTimeoutError) as empty:
        pipe.read(PATH, A_MOMENT_S)
    assert isinstance(empty.value, TimeoutError)
    assert empty.value.errno == errno.ETIMEDOUT
    pipe.write(PATH, b"12345678")
    with pytest.raises(WaitTimeoutError):
        pipe.write(PATH, b"9", A_MOMENT_S)
    assert pipe.info() == (8, 8, 1, 0, 0)
    with pytest.raises(WaitTimeoutError):
        asyncio.run(run_async(pipe.writing(PATH, b"9", A_MOMENT_S)))
    assert pipe.read(PATH) == b"12345678"
    with pytest.raises(WaitTimeoutError):
        asyncio.run(run_async(pipe.reading(PATH, A_MOMENT_S)))


def test_3_a_message_larger_than_the_pipe_is_refused(pipe: Pipe):
    with pytest.raises(InvalidArgumentError, match="9 bytes, and the pipe holds 8"):
        pipe.write(PATH, b"123456789")


def test_4_a_message_whose_awaited_read_was_cancelled_is_the_first_again(pipe: Pipe):
    async def scenario() -> None:
        task = await begin(pipe, run_async(pipe.reading(PATH)))
        pipe.write(PATH, b"first")
        pipe.write(PATH, b"2nd")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(scenario())
    assert [pipe.read(PATH) for _ in range(2)] == [b"first", b"2nd"]


def test_4_a_message_whose_awaited_read_was_cancelled_goes_to_the_next_reader(pipe: Pipe):
    async def scenario() -> bytes:
        first = await begin(pipe, run_async(pipe.reading(PATH)))
        second = await begin(pipe, run_async(pipe.reading(PATH)))
        pipe.write(PATH, b"news")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return await second  # type: ignore[no-any-return]

    assert asyncio.run(scenario()) == b"news"


def test_4_a_write_that_timed_out_is_not_done(pool: ThreadPoolExecutor, pipe: Pipe):
    pipe.write(PATH, b"12345678")
    with pytest.raises(WaitTimeoutError):
        pipe.write(PATH, b"late", A_MOMENT_S)
    pipe.read(PATH)
    assert pipe.info().queued_messages == 0


def test_5_removing_wakes_everyone_with_the_path(pool: ThreadPoolExecutor):
    manager = PipeManager()
    pipe = manager.open("id", 8)
    readers = [read_later(pool, pipe) for _ in range(3)]
    manager.remove("id", "/gone")
    for reader in readers:
        with pytest.raises(PathNotFoundError, match="/gone: the pipe was removed"):
            reader.result()
    with pytest.raises(PathNotFoundError):
        pipe.write(PATH, b"too late")


def test_5_closing_wakes_everyone(pool: ThreadPoolExecutor):
    manager = PipeManager()
    pipe = manager.open("id", 8)
    pipe.write(PATH, b"12345678")
    writer = write_later(pool, pipe, b"9")

    async def scenario() -> None:
        task = await begin(pipe, run_async(pipe.writing(PATH, b"10")))
        manager.close("the filesystem is closed")
        with pytest.raises(ClosedError):
            await task

    asyncio.run(scenario())
    with pytest.raises(ClosedError):
        writer.result()
    with pytest.raises(ClosedError):
        pipe.read(PATH)
    with pytest.raises(ClosedError):
        manager.open("other", 8)


def test_a_pipe_opened_again_is_the_same_one_until_it_is_removed():
    manager = PipeManager()
    pipe = manager.open("id", 8)
    assert manager.open("id", 99) is pipe
    manager.remove("id", PATH)
    assert manager.open("id", 99) is not pipe
    manager.remove("never opened", PATH)


def test_a_thousand_awaited_readers_hold_no_thread(pipe: Pipe):
    async def scenario() -> list[bytes]:
        before = threading.active_count()
        tasks = [asyncio.ensure_future(run_async(pipe.reading(PATH))) for _ in range(1000)]
        await asyncio.wait(tasks, timeout=0)
        assert pipe.info().waiting_readers == 1000
        assert threading.active_count() == before
        for number in range(1000):
            pipe.write(PATH, b"%d" % number)
        return await asyncio.gather(*tasks)

    assert asyncio.run(scenario()) == [b"%d" % number for number in range(1000)]


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(WouldBlock("read", PATH, "the pipe is empty")))
    assert (error.path, error.retryable) == (PATH, True)
