"""WatchTable by the number of its invariant, in Python and in Rust, against what concerns whom."""

import gc
import random
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.contracts.file_events import DIR_DELETE, FILE_RENAME, FILE_WRITE, MOUNT, FileEvent
from nexus.core import watch_table
from nexus.core.file_watcher import _OF_SUBTREES, _Interest, concerns

NAMES = ["a", "b", "ab", "a-", "é"]
KINDS = [FILE_WRITE, FILE_RENAME, DIR_DELETE, MOUNT]
ZONES = ["root", "other"]

paths = st.lists(st.sampled_from(NAMES), max_size=4).map(lambda names: "/" + "/".join(names))
interests = st.builds(_Interest, st.sampled_from(ZONES), paths, st.booleans())
events = st.builds(
    FileEvent,
    st.sampled_from(KINDS),
    paths,
    st.just("ann"),
    st.just(0),
    st.sampled_from(ZONES),
    new_path=st.none() | paths,
)


class Watch:
    """One watch; several may be for the same."""

    def __init__(self, interest: _Interest) -> None:
        self.interest = interest


@pytest.fixture(params=["python", "rust"], scope="module")
def make(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return watch_table.WatchTable
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built").WatchTable


def check_as_a_list(
    table: Any, steps: list[tuple[_Interest, bool]], happened: list[FileEvent]
) -> None:
    """Add watches, take some out again, and look who is found; the model asks each one of them."""
    model = list[Watch]()
    for interest, adds in steps:
        held = [watch for watch in model if watch.interest == interest]
        if adds:
            model.append(Watch(interest))
            table.insert(*interest, model[-1])
        elif held:
            model.remove(held[-1])
            assert table.remove(*interest, held[-1])
            assert not table.remove(*interest, held[-1])
        else:
            assert not table.remove(*interest, Watch(interest))
        assert bool(table) == bool(model)
    for event in happened:
        of_subtree = event.kind in _OF_SUBTREES
        found = table.concerned(event.zone_id, event.path, event.new_path, of_subtree)
        wanted = [
            watch
            for watch in model
            if watch.interest.zone_id == event.zone_id and concerns(event, watch.interest)
        ]
        assert len(found) == len(wanted)
        assert set(found) == set(wanted)


@given(
    steps=st.lists(st.tuples(interests, st.booleans()), max_size=30),
    happened=st.lists(events, max_size=5),
)
def test_2_who_is_found_is_who_is_concerned(
    make: Any, steps: list[tuple[_Interest, bool]], happened: list[FileEvent]
) -> None:
    check_as_a_list(make(), steps, happened)


def test_2_who_is_found_is_who_is_concerned_in_10000_runs(make: Any) -> None:
    rng = random.Random(1)

    def some_path() -> str:
        names = NAMES[: rng.randrange(1, 6)]
        return "/" + "/".join(rng.choice(names) for _ in range(rng.randrange(5)))

    def some_interest() -> _Interest:
        return _Interest(rng.choice(ZONES[: rng.randrange(1, 3)]), some_path(), rng.random() < 0.5)

    def some_event() -> FileEvent:
        new_path = some_path() if rng.random() < 0.4 else None
        zone_id = rng.choice(ZONES)
        return FileEvent(rng.choice(KINDS), some_path(), "ann", 0, zone_id, new_path=new_path)

    for _ in range(10_000):
        steps = [(some_interest(), rng.random() < 0.8) for _ in range(rng.randrange(12))]
        check_as_a_list(make(), steps, [some_event() for _ in range(3)])


def test_a_cycle_through_a_table_is_collected(make: Any) -> None:
    watch = Watch(_Interest("root", "/a", recursive=True))
    watch.table = make()  # type: ignore[attr-defined]
    watch.table.insert(*watch.interest, watch)  # type: ignore[attr-defined]
    gone = weakref.ref(watch)
    del watch
    gc.collect()
    assert gone() is None
