"""VFSLockSuite: what every per-path lock manager must hold, by the number of its invariant.

A test of an implementation subclasses it and overrides :meth:`VFSLockSuite.make`.
"""

from __future__ import annotations

import gc
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.contracts.errors import LockTimeoutError
from nexus.lib.paths import is_same_or_below
from nexus.testing.interrupts import interruptible

_NOW = 0.0
_PATIENT_S = 30.0
_PATHS = ("/", "/z", "/z/a", "/z/a/b", "/z/a/b/c", "/z/a-", "/z/a-/m", "/z/b")

_TWINS = [HealthCheck.differing_executors]
"""Several implementations hold one suite; no example is replayed on another one."""


class VFSLockSuite:
    """Conformance of :class:`nexus.core.vfs_lock.VFSLockManager` and its twins."""

    @abstractmethod
    def make(self) -> Any:
        """Return a new lock manager."""

    def _is_free(self, locks: Any, path: str, exclusive: bool) -> bool:
        acquire: Callable[..., Any] = locks.write if exclusive else locks.read
        try:
            acquire(path, _NOW).release()
        except LockTimeoutError:
            return False
        return True

    @pytest.mark.parametrize("other", ["/", "/z", "/z/a", "/z/a/b", "/z/a/b/c"])
    def test_1_an_exclusive_hold_excludes_all_on_its_path_above_and_beneath(
        self, other: str
    ) -> None:
        locks = self.make()
        with locks.write("/z/a/b" if other != "/z/a/b" else other):
            assert not self._is_free(locks, other, exclusive=False)
            assert not self._is_free(locks, other, exclusive=True)
        assert self._is_free(locks, other, exclusive=True)

    @pytest.mark.parametrize("other", ["/z/a-", "/z/ab", "/z/b", "/y/a"])
    def test_1_siblings_and_similar_names_do_not_conflict(self, other: str) -> None:
        locks = self.make()
        with locks.write("/z/a"):
            assert self._is_free(locks, other, exclusive=True)

    @pytest.mark.parametrize("other", ["/z", "/z/a", "/z/a/b"])
    def test_1_shared_holds_share_but_exclude_exclusive_ones(self, other: str) -> None:
        locks = self.make()
        with locks.read("/z/a"):
            assert self._is_free(locks, other, exclusive=False)
            assert not self._is_free(locks, other, exclusive=True)

    @settings(max_examples=200, deadline=None, suppress_health_check=_TWINS)
    @given(st.lists(st.tuples(st.sampled_from(_PATHS), st.booleans(), st.booleans()), max_size=30))
    def test_1_grants_agree_with_a_list_of_holds(self, steps: list[tuple[str, bool, bool]]) -> None:
        locks = self.make()
        held: list[tuple[str, bool, Any]] = []
        for path, exclusive, release in steps:
            if release and held:
                held.pop(0)[2].release()
                continue
            related = [
                (other, mode)
                for other, mode, _ in held
                if is_same_or_below(path, other) or is_same_or_below(other, path)
            ]
            free = not any(exclusive or mode for _, mode in related)
            try:
                hold = locks.write(path, _NOW) if exclusive else locks.read(path, _NOW)
            except LockTimeoutError:
                assert not free
            else:
                assert free
                held.append((path, exclusive, hold))
        for _, _, hold in held:
            hold.release()
        assert locks.held() == {}
        assert self._is_free(locks, "/", exclusive=True)

    def test_2_a_reader_is_not_granted_past_a_writer_that_waits(self) -> None:
        locks = self.make()
        order: list[str] = []
        first = locks.read("/z/a")
        writer = threading.Thread(
            target=lambda: self._note(locks.write("/z/a", _PATIENT_S), order, "writer")
        )
        writer.start()
        self._until(lambda: not self._is_free(locks, "/z/a", exclusive=False))
        reader = threading.Thread(
            target=lambda: self._note(locks.read("/z/a", _PATIENT_S), order, "reader")
        )
        reader.start()
        first.release()
        writer.join()
        reader.join()
        assert order == ["writer", "reader"]

    def test_3_a_wait_ends_in_a_timeout_that_names_the_path(self) -> None:
        locks = self.make()
        with locks.write("/z/a"), pytest.raises(LockTimeoutError) as caught:
            locks.read("/z/a/b", _NOW)
        assert caught.value.path == "/z/a/b"
        assert caught.value.retryable
        assert isinstance(caught.value, TimeoutError)

    def test_3_giving_up_lets_those_behind_go_on(self) -> None:
        locks = self.make()
        reader = locks.read("/z/a")
        with pytest.raises(LockTimeoutError):
            locks.write("/z/a", _NOW)
        assert self._is_free(locks, "/z/a", exclusive=False)
        reader.release()

    def test_3_a_hold_that_is_dropped_releases_itself_and_tells_nobody(self) -> None:
        locks = self.make()
        told = self._told_by(locks)
        locks.write("/z/a")
        locks.write_many(["/z/a", "/z/b"])
        gc.collect()
        assert locks.held() == {}
        assert told == []

    def test_3_a_hold_that_is_dropped_in_a_cycle_with_who_is_told_releases_itself(self) -> None:
        locks = self.make()
        kept = [locks.write("/z/a")]
        locks.after_release = partial(len, kept)
        told = weakref.ref(locks.after_release)
        del locks, kept
        gc.collect()
        assert told() is None

    def test_3_a_hold_is_released_once(self) -> None:
        locks = self.make()
        first, second = locks.read("/z/a"), locks.read("/z/a")
        first.release()
        first.release()
        assert not self._is_free(locks, "/z/a", exclusive=True)
        second.release()
        assert self._is_free(locks, "/z/a", exclusive=True)

    @pytest.mark.parametrize("several", [False, True])
    def test_3_an_interrupt_ends_a_wait_with_nothing_held(self, several: bool) -> None:
        locks = self.make()
        blocker = locks.write("/z/b")
        with interruptible() as interrupt:

            def interrupt_a_wait() -> None:
                self._until(locks.waiting)
                interrupt()

            interrupter = threading.Thread(target=interrupt_a_wait)
            try:
                interrupter.start()
                with pytest.raises(KeyboardInterrupt):
                    locks.write_many(["/z/a", "/z/b"] if several else ["/z/b"], _PATIENT_S)
            finally:
                interrupter.join()
        assert locks.held() == {"/z/b": "write"}
        assert locks.waiting() == 0
        blocker.release()
        assert self._is_free(locks, "/z", exclusive=True)

    def test_3_an_endless_wait_ends_with_the_hold_it_waits_for(self) -> None:
        locks = self.make()
        first = locks.write("/z/a")
        done: list[str] = []
        waiter = threading.Thread(
            target=lambda: self._note(locks.read("/z/a", float("inf")), done, "granted")
        )
        waiter.start()
        self._until(locks.waiting)
        first.release()
        waiter.join()
        assert done == ["granted"]

    def test_who_let_go_of_an_exclusive_hold_is_told_once_a_call_with_nothing_held(self) -> None:
        locks = self.make()
        told = self._told_by(locks)
        with locks.write("/z/a"):
            assert told == []
        with locks.read("/z/a"):
            pass
        with locks.write_many(["/z/a", "/z/b", "/z/c/d"]), pytest.raises(LockTimeoutError):
            locks.write("/z/a", _NOW)
        with locks.copy_pair("/z/a", "/z/b"):
            pass
        locks.write("/z").release()
        assert told == [{}] * 4

    def test_what_is_raised_by_who_is_told_leaves_nothing_held(self) -> None:
        locks = self.make()

        def interrupted() -> None:
            raise KeyboardInterrupt

        locks.after_release = interrupted
        with pytest.raises(KeyboardInterrupt), locks.write("/z/a"):
            pass
        assert locks.held() == {}

    def test_a_copy_shares_its_source_unless_its_target_covers_it(self) -> None:
        locks = self.make()
        with locks.copy_pair("/z/b", "/z/a"):
            assert locks.held() == {"/z/b": "read", "/z/a": "write"}
        with locks.copy_pair("/z/a/b", "/z/a"):
            assert locks.held() == {"/z/a": "write"}
        with locks.write("/z/a"), pytest.raises(LockTimeoutError):
            locks.copy_pair("/z/b", "/z/a/b", _NOW)
        assert locks.held() == {}

    def test_4_crossing_pairs_taken_together_never_deadlock(self) -> None:
        locks = self.make()
        pairs = [("/z/a", "/z/a-/m"), ("/z/a-", "/z/a/k"), ("/z/a/k", "/z/b"), ("/z/b", "/z/a")]

        def work(pair: tuple[str, str]) -> None:
            for _ in range(300):
                with locks.write_many(pair, _PATIENT_S):
                    pass

        threads = [threading.Thread(target=work, args=(pair,)) for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert locks.held() == {}

    def test_4_who_holds_a_path_of_a_set_is_not_kept_from_the_next_by_one_who_waits_for_it(
        self,
    ) -> None:
        locks = self.make()
        failures: list[LockTimeoutError] = []

        def work(body: Callable[[], Any]) -> None:
            try:
                for _ in range(300):
                    with body():
                        pass
            except LockTimeoutError as error:
                failures.append(error)

        bodies = [
            lambda: locks.write_many(("/t/a", "/t/b"), 5.0),
            lambda: locks.read("/t", 5.0),
            lambda: locks.read("/t", 5.0),
        ]
        threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert locks.held() == {}

    def test_a_set_in_which_one_path_covers_another_does_not_wait_for_itself(self) -> None:
        locks = self.make()
        with locks.write_many(["/z/a/b", "/z/a", "/z/a"], _NOW):
            assert locks.held() == {"/z/a": "write"}
        assert locks.held() == {}

    def test_a_set_that_times_out_holds_nothing(self) -> None:
        locks = self.make()
        blocker = locks.read("/z/b")
        with pytest.raises(LockTimeoutError):
            locks.write_many(["/z/a", "/z/b"], _NOW)
        blocker.release()
        assert locks.held() == {}

    def test_concurrent_holders_exclude_each_other_and_lose_no_wake_up(self) -> None:
        locks = self.make()
        counts = dict.fromkeys(_PATHS, 0)
        inside: list[tuple[str, bool]] = []
        overlaps: list[tuple[str, str]] = []

        def work(seed: int) -> None:
            for step in range(200):
                path = _PATHS[(seed * 7 + step * 3) % len(_PATHS)]
                exclusive = (seed + step) % 3 == 0
                hold = (locks.write if exclusive else locks.read)(path, _PATIENT_S)
                with hold:
                    for other, mode in inside:
                        related = is_same_or_below(path, other) or is_same_or_below(other, path)
                        if related and (exclusive or mode):
                            overlaps.append((path, other))
                    inside.append((path, exclusive))
                    counts[path] += 1
                    inside.remove((path, exclusive))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert overlaps == []
        assert sum(counts.values()) <= 8 * 200
        assert locks.held() == {}

    def _told_by(self, locks: Any) -> list[dict[str, str]]:
        told: list[dict[str, str]] = []
        locks.after_release = lambda: told.append(locks.held())
        return told

    def _note(self, hold: Any, order: list[str], name: str) -> None:
        order.append(name)
        hold.release()

    def _until(self, reached: Callable[[], bool]) -> None:
        for _ in range(1_000_000):
            if reached():
                return
        raise AssertionError("the other thread never got there")
