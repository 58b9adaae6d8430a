"""PathTrie by the number of its invariant, in Python and in Rust, against a plain list."""

import gc
import random
import sys
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.core import path_trie
from nexus.lib.paths import depth, is_below, is_same_or_below, tree_order

NAMES = ["a", "b", "ab", "a-", "é", "\U0001f600", "\uffff"]

paths = st.lists(st.sampled_from(NAMES), max_size=4).map(lambda names: "/" + "/".join(names))
steps = st.lists(st.tuples(paths, st.booleans()), max_size=40)


class Item:
    """What is registered; equal to every other, so that only the object itself is found."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


@pytest.fixture(params=["python", "rust"], scope="module")
def make(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return path_trie.PathTrie
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built").PathTrie


def ids(items: list[Item]) -> list[int]:
    return [id(item) for item in items]


def check_as_a_list(trie: Any, steps: list[tuple[str, bool]], asked: list[str]) -> None:
    """Add at a path, or take out the first that is there, and ask for paths after each step."""
    model = list[tuple[str, Item]]()
    for path, adds in steps:
        held = [entry for entry in model if entry[0] == path]
        if adds:
            model.append((path, Item()))
            trie.insert(*model[-1])
        elif held:
            model.remove(held[0])
            assert trie.remove(*held[0])
            assert not trie.remove(*held[0])
        else:
            assert not trie.remove(path, Item())
        assert bool(trie) == bool(model)
    for path in asked:
        at = [item for point, item in model if point == path]
        covering = [entry for entry in model if is_same_or_below(path, entry[0])]
        covering.sort(key=lambda entry: -depth(entry[0]))
        below = [entry for entry in model if is_below(entry[0], path)]
        below.sort(key=lambda entry: tree_order(entry[0]))
        assert ids(trie.at(path)) == ids(at)
        assert ids(trie.covering(path)) == ids([item for _, item in covering])
        assert ids(trie.below(path)) == ids([item for _, item in below])


@given(steps=steps, asked=st.lists(paths, max_size=5))
def test_2_it_answers_as_a_list_does(
    make: Any, steps: list[tuple[str, bool]], asked: list[str]
) -> None:
    check_as_a_list(make(), steps, asked)


def test_2_it_answers_as_a_list_does_in_10000_runs(make: Any) -> None:
    rng = random.Random(1)

    def some_path() -> str:
        return "/" + "/".join(
            rng.choice(NAMES[: rng.randrange(1, 8)]) for _ in range(rng.randrange(5))
        )

    for _ in range(10_000):
        steps = [(some_path(), rng.random() < 0.7) for _ in range(rng.randrange(12))]
        check_as_a_list(make(), steps, [some_path() for _ in range(3)] + [p for p, _ in steps[:3]])


def test_3_a_trie_that_was_emptied_holds_nothing(make: Any) -> None:
    trie = make()
    item = Item()
    deep = "/a" * 2000
    for path in ("/", "/a/b", deep):
        trie.insert(path, item)
    for path in ("/", "/a/b", deep):
        assert trie.remove(path, item)
    assert not trie
    assert trie.below("/") == []


def test_a_cycle_through_a_trie_is_collected(make: Any) -> None:
    class Holder:
        pass

    holder = Holder()
    holder.trie = make()  # type: ignore[attr-defined]
    holder.trie.insert("/a", holder)  # type: ignore[attr-defined]
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None


def test_answers_are_the_callers_own(make: Any) -> None:
    trie = make()
    item = Item()
    trie.insert("/a", item)
    for answer in (trie.at("/a"), trie.covering("/a/b"), trie.below("/")):
        answer.clear()
    assert ids(trie.at("/a")) == [id(item)]


def lines_run(call: Any) -> int:
    """Return how many lines of the Python twin a call runs."""
    count = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line" and frame.f_code.co_filename == path_trie.__file__
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_1_what_is_registered_elsewhere_costs_nothing() -> None:
    trie = path_trie.PathTrie[str]()
    for path in ("/", "/work", "/work/a", "/work/a/b"):
        trie.insert(path, path)

    def cost() -> list[int]:
        return [
            lines_run(lambda ask=ask: ask("/work/a"))  # type: ignore[misc]
            for ask in (trie.at, trie.covering, trie.below)
        ]

    before = cost()
    for number in range(1000):
        trie.insert(f"/idle/{number}", "idle")
        trie.insert(f"/work/b/{number}", "idle")
    assert cost() == before
    assert all(before)
