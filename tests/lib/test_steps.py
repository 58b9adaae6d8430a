"""Steps: an algorithm that waits runs alike in a thread and in a task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nexus.lib.steps import Steps, off_loop, run, run_async, step
from nexus.lib.waiting import WaitQueue

Driver = Callable[[Steps[Any]], Any]


def as_task(steps: Steps[Any]) -> Any:
    return asyncio.run(run_async(steps))


def given(value: int) -> Steps[int]:
    async def wait() -> int:
        return value

    return step(lambda: value, wait)


def failing(error: BaseException) -> Steps[int]:
    def block() -> int:
        raise error

    async def wait() -> int:
        raise error

    return step(block, wait)


both = pytest.mark.parametrize("drive", [run, as_task])


@both
def test_what_each_wait_brings_is_sent_to_the_algorithm(drive: Driver) -> None:
    def total() -> Steps[int]:
        return (yield from given(1)) + (yield from given(2))

    assert drive(total()) == 3


@both
def test_what_a_wait_raises_is_raised_where_the_algorithm_waits(drive: Driver) -> None:
    def patient() -> Steps[str]:
        try:
            yield from failing(TimeoutError("late"))
        except TimeoutError as error:
            return f"{error}, then {(yield from given(2))}"
        return "in time"

    assert drive(patient()) == "late, then 2"


@both
def test_what_an_algorithm_raises_reaches_the_caller_after_its_cleaning_up(drive: Driver) -> None:
    left: list[str] = []

    def broken() -> Steps[int]:
        try:
            return (yield from failing(KeyboardInterrupt()))
        finally:
            left.append("queue")

    with pytest.raises(KeyboardInterrupt):
        drive(broken())
    assert left == ["queue"]


def test_a_cancelled_task_cleans_up_what_its_algorithm_holds() -> None:
    queue: WaitQueue[int] = WaitQueue(lambda value: None)
    left: list[str] = []

    def algorithm() -> Steps[int | None]:
        try:
            return (yield from queue.enter().steps())
        finally:
            left.append("queue")

    async def scenario() -> None:
        task = asyncio.ensure_future(run_async(algorithm()))
        while not len(queue):
            await asyncio.wait([task], timeout=0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert left == ["queue"]
    assert len(queue) == 0


@both
def test_work_that_cannot_be_awaited_leaves_the_thread_of_a_task_only(drive: Driver) -> None:
    worker = drive(off_loop(threading.current_thread))
    assert (worker is threading.current_thread()) == (drive is run)
