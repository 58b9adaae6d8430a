"""SharedRounds: who is covered by which round."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nexus.lib.shared_rounds import SharedRounds

PATIENT_S = 30.0


def test_callers_that_come_during_a_round_share_the_next_one() -> None:
    entered, opened = threading.Event(), threading.Event()
    arrived = threading.Semaphore(0)
    done: list[int] = []

    def work() -> None:
        entered.set()
        assert opened.wait(PATIENT_S)
        done.append(len(done))

    class Noted(SharedRounds):
        """Tells when a caller has come to the turn."""

        def __init__(self) -> None:
            super().__init__()
            self.turn = _Turn(arrived)  # type: ignore[assignment]

    rounds = Noted()
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(rounds.join, work)]
        assert entered.wait(PATIENT_S)
        calls += [pool.submit(rounds.join, work) for _ in range(5)]
        for _ in range(6):
            assert arrived.acquire(timeout=PATIENT_S)
        opened.set()
        for call in calls:
            call.result()
    assert done == [0, 1]


def test_a_round_that_raised_covers_nobody() -> None:
    rounds = SharedRounds()

    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        rounds.join(fail)
    done: list[str] = []
    rounds.join(lambda: done.append("second"))
    rounds.join(lambda: done.append("third"))
    assert done == ["second", "third"]


class _Turn:
    def __init__(self, arrived: threading.Semaphore) -> None:
        self._arrived = arrived
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._arrived.release()
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
