"""WaitQueueSuite: what every wait queue must hold, by the number of its invariant.

A test of an implementation subclasses it and overrides :meth:`WaitQueueSuite.make`.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator
from types import coroutine
from typing import Any

import pytest

from nexus.contracts.errors import ClosedError

_PATIENT_S = 60.0
_MANY = 1000


class WaitQueueSuite:
    """Conformance of :class:`nexus.lib.waiting.WaitQueue` and its twins."""

    @abstractmethod
    def make(self, give_back: Callable[[Any], object]) -> Any:
        """Return a new queue."""

    def _queue(self) -> Any:
        return self.make(pytest.fail)

    def test_1_a_waiter_ends_once(self) -> None:
        queue = self._queue()
        waiter = queue.enter()
        assert waiter.wake("first")
        assert not waiter.wake("second")
        assert not waiter.cancel()
        assert waiter.wait(0) == "first"

    def test_1_a_cancelled_waiter_is_not_woken(self) -> None:
        queue = self._queue()
        gone, next_one = queue.enter(), queue.enter()
        assert gone.cancel()
        assert not gone.cancel()
        assert not gone.wake("late")
        assert queue.wake_one("value")
        assert next_one.wait(0) == "value"

    def test_1_a_wait_on_a_cancelled_waiter_returns_none(self) -> None:
        waiter = self._queue().enter()
        waiter.cancel()
        assert waiter.wait() is None

    def test_2_waiters_are_woken_in_the_order_in_which_they_came(self) -> None:
        queue = self._queue()
        waiters = [queue.enter() for _ in range(5)]
        assert queue.first() is waiters[0]
        for number in range(5):
            assert queue.wake_one(number)
        assert [waiter.wait(0) for waiter in waiters] == [0, 1, 2, 3, 4]
        assert not queue.wake_one(5)

    def test_2_all_are_woken_with_one_value(self) -> None:
        queue = self._queue()
        waiters = [queue.enter() for _ in range(3)]
        assert queue.wake_all("news") == 3
        assert [waiter.wait(0) for waiter in waiters] == ["news"] * 3
        assert queue.wake_all("none") == 0

    def test_2_any_waiter_can_be_woken_out_of_turn(self) -> None:
        queue = self._queue()
        first, second = queue.enter(), queue.enter()
        assert second.wake("taken")
        assert second.wait(0) == "taken"
        assert queue.first() is first

    def test_3_a_value_of_an_interrupted_wait_is_given_back(self) -> None:
        given: list[str] = []
        queue = self.make(given.append)
        waiter = queue.enter()

        def interrupt() -> float:
            waiter.wake("grant")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            waiter.wait(_PATIENT_S, interrupt)
        assert given == ["grant"]

    def test_3_an_interrupted_wait_without_a_value_leaves_the_queue(self) -> None:
        queue = self._queue()
        waiter = queue.enter()

        def interrupt() -> float:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            waiter.wait(_PATIENT_S, interrupt)
        assert len(queue) == 0

    def test_3_a_value_of_a_cancelled_task_is_given_back(self) -> None:
        given: list[str] = []
        queue = self.make(given.append)

        async def scenario() -> None:
            waiter = queue.enter()
            task = asyncio.create_task(waiter.wait_async())
            await _one_turn()
            assert waiter.wake("grant")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()

        asyncio.run(scenario())
        assert given == ["grant"]

    def test_3_a_cancelled_task_leaves_the_queue(self) -> None:
        queue = self._queue()

        async def scenario() -> None:
            task = asyncio.create_task(queue.enter().wait_async())
            await _one_turn()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(scenario())
        assert len(queue) == 0

    def test_3_a_waiter_whose_loop_is_closed_is_passed_over(self) -> None:
        queue = self._queue()
        loop = asyncio.new_event_loop()
        wait = queue.enter().wait_async()
        task = loop.create_task(wait)
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        behind = queue.enter()
        assert queue.wake_one("value")
        assert behind.wait(0) == "value"
        assert not task.done()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        wait.close()

    def test_3_racing_timeouts_and_wake_ups_lose_no_value(self) -> None:
        queue = self._queue()
        got: list[int] = []
        kept: list[int] = []
        stopped = threading.Event()

        def wait() -> None:
            while not stopped.is_set():
                value = queue.enter().wait(0.00001)
                if value is not None:
                    got.append(value)

        def wake() -> None:
            kept.extend(number for number in range(2000) if not queue.wake_one(number))
            stopped.set()

        _run(*[wait] * 4, wake)
        assert sorted(got + kept) == list(range(2000))

    def test_4_a_wait_of_no_time_only_looks(self) -> None:
        queue = self._queue()
        assert queue.enter().wait(0) is None
        assert len(queue) == 0

    def test_4_an_awaited_wait_of_no_time_only_looks(self) -> None:
        queue = self._queue()
        assert asyncio.run(queue.enter().wait_async(0)) is None
        assert len(queue) == 0

    def test_4_a_value_at_the_last_moment_is_returned(self) -> None:
        queue = self._queue()
        waiter = queue.enter()
        assert waiter.wait(0, lambda: waiter.wake("just in time") and None) == "just in time"

    def test_4_an_alarm_is_called_until_nothing_becomes_due(self) -> None:
        queue = self._queue()
        waiter = queue.enter()
        due = [0.0, 0.0]

        def alarm() -> float | None:
            if due:
                return due.pop()
            waiter.wake("expired")
            return None

        assert waiter.wait(_PATIENT_S, alarm) == "expired"

    def test_4_an_awaited_alarm_is_called_until_nothing_becomes_due(self) -> None:
        queue = self._queue()
        waiter = queue.enter()
        due = [0.0, 0.0]

        def alarm() -> float | None:
            if due:
                return due.pop()
            waiter.wake("expired")
            return None

        assert asyncio.run(waiter.wait_async(_PATIENT_S, alarm)) == "expired"

    def test_4_a_nudged_waiter_calls_its_alarm_again(self) -> None:
        queue = self._queue()
        first, second = queue.enter("first"), queue.enter("second")
        called = threading.Semaphore(0)
        due: list[float] = [_PATIENT_S, 0.0]

        def alarm() -> float | None:
            called.release()
            if not due:
                first.wake("expired")
                return None
            return due.pop(0)

        def nudge() -> None:
            called.acquire()
            queue.nudge()

        def wait() -> None:
            assert first.wait(None, alarm) == "expired"

        _run(wait, nudge)
        assert queue.first() is second
        assert second.request == "second"

    def test_4_a_nudged_task_calls_its_alarm_again(self) -> None:
        queue = self._queue()
        waiter = queue.enter()
        due: list[float] = [_PATIENT_S]

        def alarm() -> float | None:
            if not due:
                waiter.wake("expired")
                return None
            return due.pop(0)

        async def scenario() -> Any:
            task = asyncio.create_task(waiter.wait_async(None, alarm))
            await _one_turn()
            queue.nudge()
            return await task

        assert asyncio.run(scenario()) == "expired"

    def test_5_a_thousand_awaited_waiters_hold_no_thread(self) -> None:
        queue = self._queue()

        async def scenario() -> list[int]:
            before = threading.active_count()
            tasks = [asyncio.create_task(queue.enter().wait_async()) for _ in range(_MANY)]
            await _one_turn()
            assert len(queue) == _MANY
            assert threading.active_count() == before
            waker = threading.Thread(target=lambda: [queue.wake_one(n) for n in range(_MANY)])
            waker.start()
            answers = await asyncio.wait_for(asyncio.gather(*tasks), _PATIENT_S)
            waker.join()
            return answers

        assert asyncio.run(scenario()) == list(range(_MANY))

    def test_a_thousand_threads_each_get_one_value(self) -> None:
        queue = self._queue()
        got: list[int] = []
        waiters = [queue.enter() for _ in range(_MANY)]

        def wait() -> None:
            got.append(waiters.pop().wait(_PATIENT_S))

        def wake() -> None:
            for number in range(_MANY):
                assert queue.wake_one(number)

        _run(*[wait] * _MANY, wake)
        assert sorted(got) == list(range(_MANY))

    def test_both_forms_share_one_queue_in_order(self) -> None:
        queue = self._queue()

        async def scenario() -> tuple[Any, Any]:
            first, second = queue.enter(), queue.enter()
            task = asyncio.create_task(second.wait_async(_PATIENT_S))
            await _one_turn()
            assert queue.wake_one("thread")
            assert queue.wake_one("task")
            return first.wait(0), await task

        assert asyncio.run(scenario()) == ("thread", "task")

    def test_closing_ends_every_wait_and_every_later_one(self) -> None:
        queue = self._queue()
        error = ClosedError("wait", None, "it is closed")

        async def scenario() -> None:
            blocked, awaited = queue.enter(), queue.enter()
            task = asyncio.create_task(awaited.wait_async())
            await _one_turn()
            queue.close(error)
            queue.close(RuntimeError("not this one"))
            with pytest.raises(ClosedError):
                blocked.wait(0)
            with pytest.raises(ClosedError):
                await task

        asyncio.run(scenario())
        with pytest.raises(ClosedError):
            queue.enter()


@coroutine
def _one_turn() -> Generator[None]:
    """Let every task that can run do so once."""
    yield


def _run(*bodies: Callable[[], None]) -> None:
    """Run each body in a thread of its own to its end, and fail with what one of them raised."""
    failures: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - it is raised again below
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENT_S)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
