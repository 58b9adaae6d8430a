"""SemaphoreSuite: what every named semaphore must hold, by the number of its invariant.

A test of an implementation subclasses it and overrides :meth:`SemaphoreSuite.make`.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.contracts.errors import ClosedError, InvalidArgumentError
from nexus.contracts.protocols.semaphore import SemaphoreInfo, VFSSemaphoreProtocol

_PATIENT_MS = 60_000
_MANY = 1000

_TWINS = [HealthCheck.differing_executors]
"""Several implementations hold one suite; no example is replayed on another one."""


class ManualClock:
    """A clock in nanoseconds that moves when told."""

    def __init__(self, now_ns: int = 10**18) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now_ns += round(seconds * 1e9)


def start_waiting(
    pool: ThreadPoolExecutor, info: Callable[[], int], wait: Callable[[], Any]
) -> Any:
    """Start a call that waits, and return its future once one more waiter is counted."""
    before = info()
    future = pool.submit(wait)
    while info() == before:
        assert not future.done()
    return future


class SemaphoreSuite:
    """Conformance of :class:`nexus.lib.semaphore.VFSSemaphore` and its twins."""

    @abstractmethod
    def make(self, clock_ns: Callable[[], int]) -> Any:
        """Return a new set of semaphores."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def semaphore(self, clock: ManualClock) -> Any:
        return self.make(clock)

    def _waiting(self, semaphore: Any, name: str = "s") -> Callable[[], int]:
        def count() -> int:
            info: SemaphoreInfo | None = semaphore.info(name)
            return info.waiting if info else 0

        return count

    def test_it_fits_the_protocol(self, semaphore: Any) -> None:
        assert isinstance(semaphore, VFSSemaphoreProtocol)

    def test_1_a_mutex_has_one_holder(self, semaphore: Any) -> None:
        holder = semaphore.acquire("s")
        assert holder
        assert semaphore.acquire("s") is None
        assert semaphore.acquire("other") is not None
        assert semaphore.release("s", holder)
        assert semaphore.acquire("s") not in (None, holder)

    def test_1_as_many_hold_as_every_holder_bears(self, semaphore: Any) -> None:
        assert semaphore.acquire("s", 3)
        assert semaphore.acquire("s", 5)
        assert semaphore.acquire("s", 2) is None
        assert semaphore.acquire("s", 3)
        assert semaphore.acquire("s", 5) is None
        assert semaphore.info("s").max_holders == 3

    def test_2_a_newcomer_queues_behind_who_waits(self, semaphore: Any) -> None:
        shared = semaphore.acquire("s", 100)
        with ThreadPoolExecutor(1) as pool:
            exclusive = start_waiting(
                pool,
                self._waiting(semaphore),
                lambda: semaphore.acquire("s", 1, _PATIENT_MS),
            )
            assert semaphore.acquire("s", 100) is None
            assert semaphore.release("s", shared)
            assert exclusive.result()
        assert semaphore.info("s").max_holders == 1

    def test_2_a_thousand_threads_are_served_in_order(self, semaphore: Any) -> None:
        first = semaphore.acquire("s")
        order: list[int] = []

        def hold(number: int) -> None:
            holder = semaphore.acquire("s", 1, _PATIENT_MS, _PATIENT_MS)
            order.append(number)
            assert semaphore.release("s", holder)

        with ThreadPoolExecutor(_MANY) as pool:
            waits = [
                start_waiting(pool, self._waiting(semaphore), partial(hold, number))
                for number in range(_MANY)
            ]
            assert semaphore.release("s", first)
            for wait in waits:
                wait.result()
        assert order == list(range(_MANY))

    def test_2_a_thousand_tasks_are_served_in_order_without_a_thread(self, semaphore: Any) -> None:
        first = semaphore.acquire("s")
        order: list[int] = []
        before = threading.active_count()

        async def hold(number: int) -> None:
            holder = await semaphore.acquire_async("s", 1, _PATIENT_MS, _PATIENT_MS)
            order.append(number)
            assert threading.active_count() == before
            assert semaphore.release("s", holder)

        async def scenario() -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(_MANY):
                    group.create_task(hold(number))
                group.create_task(_release(semaphore, first))

        asyncio.run(scenario())
        assert order == list(range(_MANY))

    def test_2_who_gives_up_lets_those_behind_go_on(self, semaphore: Any) -> None:
        assert semaphore.acquire("s", 100)

        async def scenario() -> Any:
            exclusive = asyncio.create_task(semaphore.acquire_async("s", 1, _PATIENT_MS))
            shared = asyncio.create_task(semaphore.acquire_async("s", 100, _PATIENT_MS))
            while self._waiting(semaphore)() < 2:
                await asyncio.wait([shared], timeout=0)
            exclusive.cancel()
            await asyncio.wait([exclusive])
            return await shared

        assert asyncio.run(scenario())

    def test_3_a_hold_expires(self, semaphore: Any, clock: ManualClock) -> None:
        holder = semaphore.acquire("s", 1, 0, 1000)
        clock.advance(0.999)
        assert semaphore.info("s").holders == {holder: 10**18 + 10**9}
        clock.advance(0.001)
        assert semaphore.info("s") is None
        assert not semaphore.release("s", holder)
        assert not semaphore.extend("s", holder, 1000)
        assert semaphore.acquire("s")

    def test_3_an_extended_hold_lives_on(self, semaphore: Any, clock: ManualClock) -> None:
        holder = semaphore.acquire("s", 1, 0, 1000)
        clock.advance(0.5)
        assert semaphore.extend("s", holder, 2000)
        clock.advance(1.5)
        assert semaphore.acquire("s") is None
        clock.advance(0.5)
        assert semaphore.acquire("s")

    def test_3_one_waiter_is_granted_when_a_hold_becomes_due(
        self, semaphore: Any, clock: ManualClock
    ) -> None:
        assert semaphore.acquire("s", 1, 0, 5000)

        async def scenario() -> Any:
            wait = asyncio.create_task(semaphore.acquire_async("s", 1, _PATIENT_MS))
            while not self._waiting(semaphore)():
                await asyncio.wait([wait], timeout=0)
            clock.advance(5)
            assert semaphore.info("s")
            return await wait

        assert asyncio.run(scenario())

    def test_3_a_waiter_looks_by_itself_when_a_hold_becomes_due(self) -> None:
        now_ns = [10**18]

        def clock_ns() -> int:
            now_ns[0] += 1_000_000  # every look takes a millisecond
            return now_ns[0]

        semaphore = self.make(clock_ns)
        assert semaphore.acquire("s", 1, 0, 20)
        assert semaphore.acquire("s", 1, _PATIENT_MS)

    def test_3_a_forced_name_is_free(self, semaphore: Any) -> None:
        holders = [semaphore.acquire("s", 2) for _ in range(2)]
        assert semaphore.force_release("s") == 2
        assert semaphore.force_release("s") == 0
        assert not semaphore.release("s", holders[0])
        assert semaphore.info("s") is None

    def test_4_a_grant_to_a_cancelled_task_is_released(self, semaphore: Any) -> None:
        first = semaphore.acquire("s")

        async def scenario() -> None:
            wait = asyncio.create_task(semaphore.acquire_async("s", 1, _PATIENT_MS))
            while not self._waiting(semaphore)():
                await asyncio.wait([wait], timeout=0)
            semaphore.release("s", first)
            wait.cancel()
            await asyncio.wait([wait])
            assert wait.cancelled()

        asyncio.run(scenario())
        assert semaphore.info("s") is None

    def test_4_a_wait_of_a_moment_leaves_nothing_behind(self, semaphore: Any) -> None:
        first = semaphore.acquire("s")
        assert semaphore.acquire("s", 1, 1) is None
        assert semaphore.info("s").waiting == 0
        assert semaphore.release("s", first)
        assert semaphore.info("s") is None

    def test_closing_ends_waits_and_refuses_more(self, semaphore: Any) -> None:
        assert semaphore.acquire("s")
        with ThreadPoolExecutor(1) as pool:
            wait = start_waiting(
                pool, self._waiting(semaphore), lambda: semaphore.acquire("s", 1, _PATIENT_MS)
            )
            semaphore.close()
            with pytest.raises(ClosedError):
                wait.result()
        with pytest.raises(ClosedError):
            semaphore.acquire("t")

    @pytest.mark.parametrize(
        "arguments",
        [(0, 0, 1), (1, -1, 1), (1, 0, 0), (1.5, 0, 1), (1, 0, 1 << 64), (1 << 64, 0, 1)],
    )
    def test_numbers_out_of_their_range_are_refused(
        self, semaphore: Any, arguments: tuple[int, int, int]
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            semaphore.acquire("s", *arguments)

    @settings(deadline=None, suppress_health_check=_TWINS)
    @given(st.lists(st.tuples(st.sampled_from("arxtf"), st.integers(1, 4)), max_size=60))
    def test_it_agrees_with_a_model(self, steps: list[tuple[str, int]]) -> None:
        clock = ManualClock(0)
        semaphore = self.make(clock)
        model: dict[str, tuple[int, int]] = {}  # holder: limit, expiry
        for action, number in steps:
            model = {h: (n, at) for h, (n, at) in model.items() if at > clock.now_ns}
            if action == "a":
                limits = [number, *(limit for limit, _ in model.values())]
                holder = semaphore.acquire("s", number, 0, number * 1000)
                assert (holder is not None) == (len(model) < min(limits))
                if holder is not None:
                    model[holder] = (number, clock.now_ns + number * 10**9)
            elif action == "t":
                clock.advance(number / 2)
            elif action == "f":
                assert semaphore.force_release("s") == len(model)
                model = {}
            else:
                holder = next(iter(model), "nobody")
                if action == "r":
                    assert semaphore.release("s", holder) == (holder in model)
                    model.pop(holder, None)
                else:
                    assert semaphore.extend("s", holder, 1000) == (holder in model)
                    if holder in model:
                        model[holder] = (model[holder][0], clock.now_ns + 10**9)
            live = {h: at for h, (_, at) in model.items() if at > clock.now_ns}
            info = semaphore.info("s")
            assert (info.holders if info else {}) == live

    def test_1_threads_never_hold_together(self, semaphore: Any) -> None:
        holding: list[int] = []
        most: list[int] = []

        def work(number: int) -> None:
            for _ in range(50):
                holder = semaphore.acquire("s", 1, _PATIENT_MS)
                holding.append(number)
                most.append(len(holding))
                holding.remove(number)
                assert semaphore.release("s", holder)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, number) for number in range(8)]:
                done.result()
        assert set(most) == {1}
        assert semaphore.info("s") is None


async def _release(semaphore: Any, holder: str) -> None:
    assert semaphore.release("s", holder)
