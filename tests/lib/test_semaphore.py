"""VFSSemaphore holds its conformance suite on both tables of holders, which answer alike."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nexus.lib.holders import Holders
from nexus.lib.semaphore import VFSSemaphore
from nexus.testing.semaphore import ManualClock, SemaphoreSuite, start_waiting


class TestPythonSemaphore(SemaphoreSuite):
    def make(self, clock_ns: Callable[[], int]) -> VFSSemaphore:
        return VFSSemaphore(clock_ns, Holders())


class TestRustSemaphore(SemaphoreSuite):
    def holders(self) -> Any:
        return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built").Holders()

    def make(self, clock_ns: Callable[[], int]) -> VFSSemaphore:
        return VFSSemaphore(clock_ns, self.holders())

    def test_both_answer_as_a_list_of_holds_in_10000_histories(self) -> None:
        rng = random.Random(1)
        for _ in range(10_000):
            naive = NaiveHolders()
            tables = self.holders(), Holders()
            now_ns = 0
            for number in range(rng.randrange(12)):
                now_ns += rng.randrange(3)
                method, arguments = some_call(rng, str(number), now_ns)
                answer = getattr(naive, method)(*arguments)
                for table in tables:
                    assert getattr(table, method)(*arguments) == answer
                    for name in "st":
                        assert table.of(name, now_ns) == naive.of(name, now_ns)


def test_a_hold_has_the_id_that_who_asks_has_named_also_one_that_waited():
    semaphore = VFSSemaphore(ManualClock())
    assert semaphore.acquire("s", holder_id="first") == "first"
    assert semaphore.acquire("s", holder_id="refused") is None
    with ThreadPoolExecutor(1) as pool:
        second = start_waiting(
            pool,
            lambda: waiting_for(semaphore, "s"),
            lambda: semaphore.acquire("s", timeout_ms=60_000, holder_id="second"),
        )
        assert semaphore.release("s", "first")
        assert second.result() == "second"
    assert semaphore.ends_at_ns("s", "first") is None
    assert semaphore.release("s", "second")


def test_a_hold_ends_when_it_was_granted_to_and_has_no_end_afterwards():
    clock = ManualClock()
    semaphore = VFSSemaphore(clock)
    holder = semaphore.acquire("s", ttl_ms=1000)
    assert holder
    assert semaphore.ends_at_ns("s", holder) == clock.now_ns + 10**9
    clock.advance(1)
    assert semaphore.ends_at_ns("s", holder) is None


def waiting_for(semaphore: VFSSemaphore, name: str) -> int:
    info = semaphore.info(name)
    return info.waiting if info else 0


class NaiveHolders:
    """A list of holds, each with its name."""

    def __init__(self) -> None:
        self.holds: list[tuple[str, str, int, int]] = []

    def of(self, name: str, now_ns: int) -> list[tuple[str, int, int]]:
        return [hold[1:] for hold in self.holds if hold[0] == name and hold[3] > now_ns]

    def try_put(self, name: str, holder_id: str, most: int, until_ns: int, now_ns: int) -> bool:
        admitted = self.admits(name, most, now_ns)
        if admitted:
            self.holds.append((name, holder_id, most, until_ns))
        return admitted

    def admits(self, name: str, most: int, now_ns: int) -> bool:
        live = self.of(name, now_ns)
        return all(len(live) < limit for limit in [most, *(limit for _, limit, _ in live)])

    def remove(self, name: str, holder_id: str, now_ns: int) -> bool:
        found = [hold for hold in self.of(name, now_ns) if hold[0] == holder_id]
        self.holds = [hold for hold in self.holds if (name, *found[:1]) != (hold[0], hold[1:])]
        return bool(found)

    def extend(self, name: str, holder_id: str, until_ns: int, now_ns: int) -> bool:
        for at, (held, other, most, expires_at_ns) in enumerate(self.holds):
            if (held, other) == (name, holder_id) and expires_at_ns > now_ns:
                self.holds[at] = (held, other, most, until_ns)
                return True
        return False

    def clear(self, name: str, now_ns: int) -> int:
        count = len(self.of(name, now_ns))
        self.holds = [hold for hold in self.holds if hold[0] != name]
        return count


def some_call(rng: random.Random, new_id: str, now_ns: int) -> tuple[str, list[Any]]:
    name, old_id = rng.choice("st"), str(rng.randrange(12))
    until_ns, most = now_ns + rng.randrange(1, 9), rng.randrange(1, 5)
    return rng.choice(
        [
            ("try_put", [name, new_id, most, until_ns, now_ns]),
            ("try_put", [name, new_id, most, until_ns, now_ns]),
            ("admits", [name, most, now_ns]),
            ("remove", [name, old_id, now_ns]),
            ("extend", [name, old_id, until_ns, now_ns]),
            ("clear", [name, now_ns]),
        ]
    )
