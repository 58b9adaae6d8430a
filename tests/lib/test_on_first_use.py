"""OnFirstUse: made once, when asked for, whoever asks."""

from __future__ import annotations

import threading

import pytest

from nexus.lib.on_first_use import OnFirstUse


def test_a_part_is_made_when_it_is_asked_for_and_once():
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    part = OnFirstUse(make)
    assert part.made is None
    assert part.existing() is None
    assert part() is part() is part.made is part.existing() is made[0]
    assert len(made) == 1


def test_threads_that_ask_at_the_same_time_get_the_same_part():
    begun, go_on = threading.Event(), threading.Event()
    made: list[object] = []

    def make() -> object:
        begun.set()
        assert go_on.wait(30)
        made.append(object())
        return made[-1]

    part = OnFirstUse(make)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(part())) for _ in range(4)]
    threads.append(threading.Thread(target=lambda: found.append(part.existing())))
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == made * 5


def test_what_making_it_raises_reaches_who_asked_and_the_next_one_tries_again():
    answers = iter([ValueError("not yet"), "made"])

    def make() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    part = OnFirstUse(make)
    with pytest.raises(ValueError, match="not yet"):
        part()
    assert part.existing() is None
    assert part() == "made"
