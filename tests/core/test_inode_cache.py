"""InodeCache keeps what is stored, forgets what changes, and knows what cannot be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexus.core import inode_cache

UNKNOWN = object()
Make = Callable[..., Any]


def rust_one() -> Any:
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")


@pytest.fixture(params=["python", "rust"])
def make(request: pytest.FixtureRequest) -> Make:
    cache_class = (inode_cache if request.param == "python" else rust_one()).InodeCache

    def cache(records: int = 100, names: int = 100, largest: int = 10) -> Any:
        return cache_class(records, names, largest)

    return cache


def commit(
    cache: Any, written: dict[str, object], gone: tuple[str, ...] = (), **moves: Any
) -> None:
    key = object()
    appearing, empty = moves.get("appearing", ()), moves.get("empty", ())
    cache.begin(key, [*written, *gone], appearing, gone, empty)
    cache.end(key, list(written.items()))


def test_what_was_kept_is_found_the_same_object_and_the_rest_is_unknown(make: Make) -> None:
    cache, record = make(), object()
    cache.keep("/a", record, cache.epoch)
    cache.keep("/b", None, cache.epoch)
    assert cache.look("/a", UNKNOWN) is record
    assert cache.look("/b", UNKNOWN) is None
    assert cache.look("/c", UNKNOWN) is UNKNOWN
    cache.clear()
    assert cache.look("/a", UNKNOWN) is UNKNOWN


def test_nothing_that_was_read_before_or_during_a_commit_is_kept(make: Make) -> None:
    cache, key = make(), object()
    before = cache.epoch
    cache.begin(key, ["/a"], (), (), ())
    cache.keep("/b", 1, cache.epoch)
    cache.keep_listing("/", ["a"], None, cache.epoch)
    cache.end(key, [])
    cache.keep("/a", 1, before)
    cache.keep_listing("/", ["a"], None, before)
    assert [cache.look(path, UNKNOWN) for path in ("/a", "/b")] == [UNKNOWN, UNKNOWN]
    assert cache.names("/") is None
    cache.keep("/a", 2, cache.epoch)
    assert cache.look("/a", UNKNOWN) == 2


def test_a_commit_drops_what_it_changes_and_keeps_what_it_wrote(make: Make) -> None:
    cache, key = make(), object()
    cache.keep("/a", "old", cache.epoch)
    cache.begin(key, ["/a"], (), (), ())
    assert cache.look("/a", UNKNOWN) is UNKNOWN
    cache.end(key, [("/a", "new")])
    assert cache.look("/a", UNKNOWN) == "new"


def test_while_one_of_two_commits_runs_nothing_is_kept(make: Make) -> None:
    cache, one, other = make(), object(), object()
    cache.begin(one, ["/a"], (), (), ())
    cache.begin(other, ["/b"], (), (), ())
    cache.end(one, [("/a", 1)])
    cache.keep("/c", 3, cache.epoch)
    assert cache.look("/c", UNKNOWN) is UNKNOWN
    cache.end(other, [("/b", 2)])
    cache.keep("/c", 3, cache.epoch)
    assert [cache.look(path, UNKNOWN) for path in ("/a", "/b", "/c")] == [1, 2, 3]


def test_listings_go_with_what_appears_and_vanishes_in_them(make: Make) -> None:
    cache = make()
    lists = {directory: [directory[1:]] for directory in ("/a", "/b", "/c")}
    for directory, names in lists.items():
        cache.keep_listing(directory, names, names, cache.epoch)
    assert cache.names("/a") is lists["/a"]
    assert cache.directories("/a") is lists["/a"]
    commit(cache, {"/a/x": 1}, appearing=["/a/x"])
    commit(cache, {"/c/y": 1})
    commit(cache, {}, gone=("/b",))
    assert [cache.names(directory) for directory in lists] == [None, None, lists["/c"]]
    assert [cache.directories(directory) for directory in lists] == [None, None, lists["/c"]]


def test_a_listing_of_names_alone_says_nothing_of_directories(make: Make) -> None:
    cache = make()
    cache.keep_listing("/", ["a", "b"], ["a"], cache.epoch)
    cache.keep_listing("/", ["a", "b"], None, cache.epoch)
    assert cache.names("/") == ["a", "b"]
    assert cache.directories("/") is None


def test_a_name_that_never_came_into_a_directory_made_here_is_not_there(make: Make) -> None:
    cache = make()
    commit(cache, {"/d": 1}, appearing=["/d"], empty=["/d"])
    assert cache.look("/d/a", UNKNOWN) is None
    assert cache.look("/d/a/b", UNKNOWN) is UNKNOWN
    commit(cache, {}, appearing=["/d/a"])  # it may be there, although the commit failed
    assert cache.look("/d/a", UNKNOWN) is UNKNOWN
    assert cache.look("/d/b", UNKNOWN) is None
    commit(cache, {}, gone=("/d",))
    assert cache.look("/d/b", UNKNOWN) is UNKNOWN


def test_names_that_may_be_there_are_bounded(make: Make) -> None:
    cache = make(names=4, largest=3)
    commit(cache, {}, appearing=["/a", "/b"], empty=["/a", "/b"])
    commit(cache, {}, appearing=["/a/1", "/a/2", "/b/1", "/b/2"])
    commit(cache, {}, appearing=["/b/3"])
    assert cache.look("/a/x", UNKNOWN) is UNKNOWN  # the oldest directory was forgotten
    assert cache.look("/b/x", UNKNOWN) is None
    commit(cache, {}, appearing=["/b/4"])
    assert cache.look("/b/x", UNKNOWN) is UNKNOWN  # it is too large


def test_records_and_listings_are_bounded_and_the_oldest_go_first(make: Make) -> None:
    cache = make(records=2, names=3)
    for number, path in enumerate(("/a", "/b", "/c")):
        cache.keep(path, number, cache.epoch)
        cache.keep_listing(path, ["x"] * (number + 1), None, cache.epoch)
    assert [cache.look(path, UNKNOWN) for path in ("/a", "/b", "/c")] == [UNKNOWN, 1, 2]
    assert [cache.names(path) for path in ("/a", "/b")] == [None, None]
    assert cache.names("/c") == ["x"] * 3


paths = st.sampled_from(["/", "/a", "/b", "/a/x", "/a/y", "/b/x", "/a/x/1", "/a/x/2"])
some = st.lists(paths, max_size=3, unique=True)
steps = st.one_of(
    st.tuples(st.just("keep"), paths, st.one_of(st.none(), st.integers(0, 9)), st.booleans()),
    st.tuples(st.just("list"), paths, st.integers(0, 3), st.booleans()),
    st.tuples(st.just("begin"), st.integers(0, 1), some, some, some, some),
    st.tuples(st.just("end"), st.integers(0, 1), some),
    st.tuples(st.just("clear")),
)
COMMITS = (object(), object())


def apply(cache: Any, step: tuple[Any, ...], lists: dict[int, list[str]]) -> None:
    match step:
        case ("keep", path, record, fresh):
            cache.keep(path, record, cache.epoch if fresh else cache.epoch + 1)
        case ("list", path, count, both):
            names = lists.setdefault(count, [str(number) for number in range(count)])
            cache.keep_listing(path, names, names if both else None, cache.epoch)
        case ("begin", commit, *moves):
            cache.begin(COMMITS[commit], *moves)
        case ("end", commit, written):
            cache.end(COMMITS[commit], [(path, path) for path in written])
        case _:
            cache.clear()


@settings(max_examples=10_000)
@given(st.lists(steps, max_size=12))
def test_both_implementations_know_the_same(done: list[tuple[Any, ...]]) -> None:
    caches = [inode_cache.InodeCache(3, 5, 2), rust_one().InodeCache(3, 5, 2)]
    lists: dict[int, list[str]] = {}
    for step in done:
        for cache in caches:
            apply(cache, step, lists)
    every = ["/", "/a", "/b", "/a/x", "/a/y", "/b/x", "/a/x/1", "/a/x/2", "/c"]
    known = [[(c.look(p, UNKNOWN), c.names(p), c.directories(p)) for p in every] for c in caches]
    assert known[0] == known[1]
    assert caches[0].epoch == caches[1].epoch
