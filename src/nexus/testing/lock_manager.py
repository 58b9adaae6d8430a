"""LockManagerSuite: what every advisory lock manager must hold.

A test of an implementation subclasses it and overrides :meth:`LockManagerSuite.make`, which opens
the manager anew on what an earlier one left.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nexus.contracts.context import ROOT_ZONE_ID, OperationContext
from nexus.contracts.errors import ClosedError, ConflictError, InvalidArgumentError
from nexus.contracts.lock_manager import (
    COUNTING,
    EXCLUSIVE,
    MAX_TTL_S,
    SHARED,
    LockHold,
    LockManagerABC,
    LockRequest,
)
from nexus.testing.semaphore import ManualClock

_PATIENT_S = 60.0
_MANY = 1000
ANN = OperationContext("ann", agent_id="indexer", run_id="run-1")


def wanted(
    path: str = "/a", mode: str = EXCLUSIVE, ttl_s: float = 30.0, **more: Any
) -> LockRequest:
    """Return a request of one identity."""
    return LockRequest(path, more.pop("context", ANN), mode, ttl_s, **more)


class LockManagerSuite:
    """Conformance of :class:`nexus.contracts.lock_manager.LockManagerABC`."""

    @abstractmethod
    def make(self, state: dict[str, Any], clock_ns: Callable[[], int]) -> LockManagerABC:
        """Return a manager on ``state``, a dict of the subclass's own that outlives managers."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def state(self) -> dict[str, Any]:
        return {}

    @pytest.fixture
    def locks(self, state: dict[str, Any], clock: ManualClock) -> LockManagerABC:
        return self.make(state, clock)

    def test_an_exclusive_lock_excludes_every_mode(self, locks: LockManagerABC) -> None:
        hold = locks.acquire(wanted())
        assert hold is not None
        assert locks.acquire(wanted()) is None
        assert locks.acquire(wanted(mode=SHARED)) is None
        assert locks.acquire(wanted(mode=COUNTING, max_holders=9)) is None
        assert locks.acquire(wanted("/b")) is not None
        assert locks.acquire(wanted("/a/b")) is not None

    def test_shared_locks_exclude_only_exclusive_ones(self, locks: LockManagerABC) -> None:
        holds = [locks.acquire(wanted(mode=SHARED)) for _ in range(20)]
        assert all(holds)
        assert locks.acquire(wanted()) is None

    def test_a_counting_lock_has_as_many_holders_as_it_bears(self, locks: LockManagerABC) -> None:
        holds = [locks.acquire(wanted(mode=COUNTING, max_holders=3)) for _ in range(4)]
        assert [hold is not None for hold in holds] == [True, True, True, False]

    def test_zones_have_locks_of_their_own(self, locks: LockManagerABC) -> None:
        assert locks.acquire(wanted()) is not None
        other = OperationContext("ann", zone_id="other")
        assert locks.acquire(wanted(context=other)) is not None
        assert len(locks.holds("other")) == len(locks.holds(ROOT_ZONE_ID)) == 1

    def test_a_hold_says_who_holds_what_until_when(
        self, locks: LockManagerABC, clock: ManualClock
    ) -> None:
        hold = locks.acquire(wanted(mode=COUNTING, max_holders=2, ttl_s=5))
        assert hold == LockHold(
            path="/a",
            lock_id=hold.lock_id if hold else "",
            mode=COUNTING,
            max_holders=2,
            token=hold.token if hold else 0,
            acquired_at=clock.now_ns / 1e9,
            expires_at=clock.now_ns / 1e9 + 5,
            user_id="ann",
            agent_id="indexer",
            run_id="run-1",
        )
        assert locks.holds(ROOT_ZONE_ID, "/a") == locks.holds(ROOT_ZONE_ID) == [hold]
        assert locks.holds(ROOT_ZONE_ID, "/b") == []

    def test_a_released_lock_is_free_and_cannot_be_released_again(
        self, locks: LockManagerABC
    ) -> None:
        hold = _granted(locks, wanted())
        assert not locks.release(ROOT_ZONE_ID, "/a", "somebody else's")
        assert not locks.release(ROOT_ZONE_ID, "/b", hold.lock_id)
        assert locks.release(ROOT_ZONE_ID, "/a", hold.lock_id)
        assert not locks.release(ROOT_ZONE_ID, "/a", hold.lock_id)
        assert locks.holds(ROOT_ZONE_ID) == []
        _granted(locks, wanted())

    def test_force_ends_every_hold(self, locks: LockManagerABC) -> None:
        holds = [_granted(locks, wanted(mode=SHARED)) for _ in range(3)]
        assert locks.force_release(ROOT_ZONE_ID, "/a") == 3
        assert locks.force_release(ROOT_ZONE_ID, "/a") == 0
        assert not locks.release(ROOT_ZONE_ID, "/a", holds[0].lock_id)
        assert locks.extend(wanted(), holds[0].lock_id) is None

    def test_a_lock_expires(self, locks: LockManagerABC, clock: ManualClock) -> None:
        hold = _granted(locks, wanted(ttl_s=5))
        clock.advance(4.999)
        assert locks.acquire(wanted()) is None
        clock.advance(0.001)
        assert locks.holds(ROOT_ZONE_ID) == []
        assert not locks.release(ROOT_ZONE_ID, "/a", hold.lock_id)
        assert locks.extend(wanted(), hold.lock_id) is None
        _granted(locks, wanted())

    def test_an_extended_lock_keeps_its_token(
        self, locks: LockManagerABC, clock: ManualClock
    ) -> None:
        hold = _granted(locks, wanted(ttl_s=5))
        clock.advance(3)
        extended = locks.extend(wanted(ttl_s=10), hold.lock_id)
        assert extended is not None
        assert (extended.token, extended.lock_id) == (hold.token, hold.lock_id)
        assert extended.expires_at == hold.expires_at + 8
        clock.advance(9)
        assert locks.holds(ROOT_ZONE_ID, "/a") == [extended]

    def test_tokens_increase_with_every_grant_whatever_ended_the_last(
        self, state: dict[str, Any], clock: ManualClock
    ) -> None:
        locks = self.make(state, clock)
        tokens = []
        for end in ("release", "force", "expire", "restart", "none"):
            hold = _granted(locks, wanted(ttl_s=5))
            tokens.append(hold.token)
            if end == "release":
                locks.release(ROOT_ZONE_ID, "/a", hold.lock_id)
            elif end == "force":
                locks.force_release(ROOT_ZONE_ID, "/a")
            elif end == "expire":
                clock.advance(5)
            else:
                locks.close()
                clock.advance(5)
                locks = self.make(state, clock)
        assert tokens == sorted(set(tokens))

    def test_every_shared_holder_has_a_token_of_its_own(self, locks: LockManagerABC) -> None:
        tokens = [_granted(locks, wanted(mode=SHARED)).token for _ in range(5)]
        assert tokens == sorted(set(tokens))
        assert [hold.token for hold in locks.holds(ROOT_ZONE_ID)] == tokens

    def test_only_the_token_of_a_live_hold_has_a_proof(
        self, locks: LockManagerABC, clock: ManualClock
    ) -> None:
        first = _granted(locks, wanted(ttl_s=5))
        assert locks.proof_of("write", ROOT_ZONE_ID, "/a", first.token)
        clock.advance(5)
        second = _granted(locks, wanted())
        assert locks.proof_of("write", ROOT_ZONE_ID, "/a", second.token)
        for path, token in (("/a", first.token), ("/b", second.token), ("/a", second.token + 1)):
            with pytest.raises(ConflictError) as caught:
                locks.proof_of("write", ROOT_ZONE_ID, path, token)
            assert caught.value.path == path

    def test_locks_survive_a_restart(self, state: dict[str, Any], clock: ManualClock) -> None:
        before = self.make(state, clock)
        hold = _granted(before, wanted(ttl_s=5))
        gone = _granted(before, wanted("/gone", ttl_s=1))
        shared = [_granted(before, wanted("/s", mode=SHARED)) for _ in range(2)]
        before.close()
        clock.advance(2)
        after = self.make(state, clock)
        assert after.holds(ROOT_ZONE_ID) == [hold, *shared]
        assert after.acquire(wanted()) is None
        assert after.acquire(wanted("/s", mode=SHARED)) is not None
        assert not after.release(ROOT_ZONE_ID, "/gone", gone.lock_id)
        assert after.release(ROOT_ZONE_ID, "/a", hold.lock_id)
        after.close()
        assert hold not in self.make(state, clock).holds(ROOT_ZONE_ID)

    def test_a_lock_of_an_earlier_process_expires(
        self, state: dict[str, Any], clock: ManualClock
    ) -> None:
        _granted(self.make(state, clock), wanted(ttl_s=5))
        after = self.make(state, clock)
        clock.advance(5)
        _granted(after, wanted())

    def test_a_clock_that_was_set_back_prolongs_no_lock_beyond_its_time(
        self, state: dict[str, Any], clock: ManualClock
    ) -> None:
        _granted(self.make(state, clock), wanted(ttl_s=5))
        clock.advance(-3600)
        after = self.make(state, clock)
        assert after.acquire(wanted()) is None
        clock.advance(5)
        _granted(after, wanted())

    def test_what_is_stored_of_expired_locks_can_be_removed(
        self, state: dict[str, Any], clock: ManualClock
    ) -> None:
        locks = self.make(state, clock)
        for number in range(5):
            _granted(locks, wanted(f"/dead/{number}", ttl_s=1))
        alive = _granted(locks, wanted())
        clock.advance(1)
        assert locks.forget_expired() == 5
        assert locks.forget_expired() == 0
        assert self.make(state, clock).holds(ROOT_ZONE_ID) == [alive]

    @pytest.mark.parametrize(
        "terms",
        [
            {"mode": "eager"},
            {"mode": COUNTING},
            {"mode": COUNTING, "max_holders": 0},
            {"mode": SHARED, "max_holders": 2},
            {"max_holders": 2},
            {"ttl_s": 0},
            {"ttl_s": -1},
            {"ttl_s": MAX_TTL_S + 1},
            {"ttl_s": float("nan")},
            {"ttl_s": "5"},
        ],
    )
    def test_terms_without_meaning_are_refused(
        self, locks: LockManagerABC, terms: dict[str, Any]
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            locks.acquire(wanted(**terms))
        assert locks.holds(ROOT_ZONE_ID) == []

    def test_an_identity_that_cannot_be_stored_leaves_nothing_held(
        self, locks: LockManagerABC
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            locks.acquire(wanted(context=OperationContext("\udc80")))
        _granted(locks, wanted())

    @pytest.mark.parametrize("timeout_s", [-1, float("inf"), float("nan"), "1"])
    def test_a_timeout_without_meaning_is_refused(
        self, locks: LockManagerABC, timeout_s: Any
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            locks.acquire(wanted(), timeout_s)

    def test_a_thousand_threads_hold_one_lock_in_turn(self, locks: LockManagerABC) -> None:
        tokens: list[int] = []
        inside: list[int] = []

        def hold() -> None:
            granted = locks.acquire(wanted(), _PATIENT_S)
            assert granted is not None
            inside.append(granted.token)
            tokens.append(granted.token)
            assert inside == [granted.token]
            inside.clear()
            assert locks.release(ROOT_ZONE_ID, "/a", granted.lock_id)

        with ThreadPoolExecutor(_MANY) as pool:
            for done in [pool.submit(hold) for _ in range(_MANY)]:
                done.result()
        assert tokens == sorted(set(tokens))
        assert len(tokens) == _MANY

    def test_a_thousand_tasks_wait_without_a_thread_each(self, locks: LockManagerABC) -> None:
        first = _granted(locks, wanted())
        tokens: list[int] = []

        async def hold() -> None:
            granted = await locks.acquire_async(wanted(), _PATIENT_S)
            assert granted is not None
            tokens.append(granted.token)
            assert locks.release(ROOT_ZONE_ID, "/a", granted.lock_id)

        async def scenario() -> None:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(hold()) for _ in range(_MANY)]
                await asyncio.wait(tasks, timeout=0)
                assert threading.active_count() < 100
                assert locks.release(ROOT_ZONE_ID, "/a", first.lock_id)

        asyncio.run(scenario())
        assert tokens == sorted(set(tokens))
        assert len(tokens) == _MANY

    def test_a_task_that_is_cancelled_holds_nothing(self, locks: LockManagerABC) -> None:
        async def scenario() -> None:
            for turns in range(6):
                first = await locks.acquire_async(wanted(), _PATIENT_S)
                assert first is not None
                wait = asyncio.create_task(locks.acquire_async(wanted(), _PATIENT_S))
                await asyncio.wait([wait], timeout=0)
                locks.release(ROOT_ZONE_ID, "/a", first.lock_id)
                for _ in range(turns):
                    await asyncio.wait([wait], timeout=0)
                wait.cancel()
                await asyncio.wait([wait])
                if not wait.cancelled() and (hold := wait.result()):
                    locks.release(ROOT_ZONE_ID, "/a", hold.lock_id)

        asyncio.run(scenario())
        assert locks.holds(ROOT_ZONE_ID) == []
        _granted(locks, wanted())

    def test_closing_ends_waits_and_keeps_holds(
        self, state: dict[str, Any], clock: ManualClock
    ) -> None:
        locks = self.make(state, clock)
        hold = _granted(locks, wanted())

        async def scenario() -> None:
            wait = asyncio.create_task(locks.acquire_async(wanted(), _PATIENT_S))
            await asyncio.wait([wait], timeout=0)
            locks.close()
            with pytest.raises(ClosedError):
                await wait

        asyncio.run(scenario())
        with pytest.raises(ClosedError):
            locks.acquire(wanted("/b"))
        assert self.make(state, clock).holds(ROOT_ZONE_ID) == [hold]

    def test_it_agrees_with_a_model(self) -> None:
        class Machine(LockMachine):
            open = staticmethod(self.make)

        case = Machine.TestCase
        case.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
        case().runTest()


class LockMachine(RuleBasedStateMachine):
    """Random calls against a model: who holds what, which tokens were ever given."""

    open: ClassVar[Callable[..., LockManagerABC]]
    paths = st.sampled_from(["/a", "/a/b", "/c"])

    def __init__(self) -> None:
        super().__init__()
        self.state: dict[str, Any] = {}
        self.clock = ManualClock(0)
        self.locks = self.open(self.state, self.clock)
        self.held: dict[str, LockHold] = {}  # by lock id
        self.last_token = 0

    def _on(self, path: str) -> list[LockHold]:
        now = self.clock.now_ns / 1e9
        self.held = {i: hold for i, hold in self.held.items() if hold.expires_at > now}
        return [hold for hold in self.held.values() if hold.path == path]

    @rule(path=paths, limit=st.sampled_from([1, 1, 2, 3, None]), ttl_s=st.integers(1, 9))
    def acquire(self, path: str, limit: int | None, ttl_s: int) -> None:
        mode = SHARED if limit is None else EXCLUSIVE if limit == 1 else COUNTING
        max_holders = limit if mode == COUNTING else None
        hold = self.locks.acquire(wanted(path, mode, ttl_s, max_holders=max_holders))
        there = self._on(path)
        limits = [limit, *(1 if h.mode == EXCLUSIVE else h.max_holders for h in there)]
        least = min((number for number in limits if number is not None), default=len(there) + 1)
        assert (hold is not None) == (len(there) < least)
        if hold is not None:
            assert hold.token > self.last_token
            self.last_token = hold.token
            self.held[hold.lock_id] = hold

    @rule(path=paths)
    def release(self, path: str) -> None:
        lock_id = next((hold.lock_id for hold in self._on(path)), "nobody's")
        assert self.locks.release(ROOT_ZONE_ID, path, lock_id) == (lock_id in self.held)
        self.held.pop(lock_id, None)

    @rule(path=paths, ttl_s=st.integers(1, 9))
    def extend(self, path: str, ttl_s: int) -> None:
        lock_id = next((hold.lock_id for hold in self._on(path)), "nobody's")
        extended = self.locks.extend(wanted(path, ttl_s=ttl_s), lock_id)
        assert (extended is not None) == (lock_id in self.held)
        if extended is not None:
            assert extended.token == self.held[lock_id].token
            self.held[lock_id] = extended

    @rule(path=paths)
    def force(self, path: str) -> None:
        there = self._on(path)
        assert self.locks.force_release(ROOT_ZONE_ID, path) == len(there)
        for hold in there:
            del self.held[hold.lock_id]

    @rule(seconds=st.integers(1, 5))
    def advance(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def collect(self) -> None:
        self.locks.forget_expired()

    @rule()
    def restart(self) -> None:
        self.locks.close()
        self.locks = self.open(self.state, self.clock)

    @invariant()
    def holds_are_those_of_the_model(self) -> None:
        self._on("")
        expected = sorted(self.held.values(), key=lambda hold: hold.token)
        assert self.locks.holds(ROOT_ZONE_ID) == expected


def _granted(locks: LockManagerABC, request: LockRequest) -> LockHold:
    hold = locks.acquire(request)
    assert hold is not None
    return hold
