"""Watches, as a user of the filesystem sees them. Layer: testing."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nexus.contracts.errors import EventsLost, InvalidArgumentError, InvalidPathError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import NexusFilesystem
from nexus.testing.filesystem.base import SuiteBase

_PATIENT_S = 60.0


def newest(nx: NexusFilesystem) -> int:
    """Return the revision of the last commit."""
    stat = nx.sys_stat("/__sys__/journal")
    assert stat is not None
    return int(stat["revision"])


def seen(
    nx: NexusFilesystem, path: str, since: int | str | None, *, recursive: bool = True
) -> list[FileEvent]:
    """Return everything that a watch from a position on has to tell by now."""
    return list(nx.watch(path or "/", recursive, since, timeout=0))


def kinds(events: list[FileEvent]) -> list[tuple[str, str, str | None]]:
    """Return what a list of events says, in short."""
    return [(event.kind, event.path, event.new_path) for event in events]


class WatchTests(SuiteBase):
    """sys_watch and watch."""

    def test_nothing_happened_is_none(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/before", b"1")
        assert nx.sys_watch(base or "/", 0, True) is None
        assert nx.sys_watch(base or "/", 0.001, True) is None

    def test_an_event_says_what_was_done_by_whom(self, nx: NexusFilesystem, base: str) -> None:
        start = newest(nx)
        ann = nx.bind(self.someone("ann", agent_id="indexer", run_id="run-1"))
        written = ann.write(f"{base}/f", b"1234")
        event = nx.sys_watch(f"{base}/f", 0, since=start)
        assert event is not None
        assert (event.kind, event.path, event.size, event.version) == (
            "file_write",
            f"{base}/f",
            4,
            1,
        )
        assert (event.etag, event.revision) == (written["etag"], written["revision"])
        assert (event.user_id, event.agent_id, event.run_id) == ("ann", "indexer", "run-1")
        assert nx.sys_watch(f"{base}/f", 0, since=event.cursor) is None

    def test_a_waiting_watch_is_woken_by_a_change(self, nx: NexusFilesystem, base: str) -> None:
        start = newest(nx)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(nx.sys_watch, f"{base}/f", _PATIENT_S, False, start)
            nx.write(f"{base}/other", b"1")
            nx.write(f"{base}/f", b"1")
            event = waiting.result()
        assert event is not None
        assert event.path == f"{base}/f"

    def test_a_watch_of_a_directory_sees_its_entries_and_with_recursive_all_beneath(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.mkdir(f"{base}/d/deep")
        nx.mkdir(f"{base}/d-")
        start = newest(nx)
        for name in ("d/a", "d/deep/b", "d-/c", "e"):
            nx.write(f"{base}/{name}", b"1")
        nx.sys_setattr(f"{base}/d", attributes={"a": 1})
        flat = seen(nx, f"{base}/d", start, recursive=False)
        deep = seen(nx, f"{base}/d", start)
        assert kinds(flat) == [
            ("file_write", f"{base}/d/a", None),
            ("metadata_change", f"{base}/d", None),
        ]
        assert kinds(deep) == [
            ("file_write", f"{base}/d/a", None),
            ("file_write", f"{base}/d/deep/b", None),
            ("metadata_change", f"{base}/d", None),
        ]

    def test_renames_into_and_out_of_the_watched_tree_are_seen(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.mkdir(f"{base}/in")
        nx.write(f"{base}/f", b"1")
        start = newest(nx)
        nx.sys_rename(f"{base}/f", f"{base}/in/f")
        nx.sys_rename(f"{base}/in/f", f"{base}/in/g")
        nx.sys_rename(f"{base}/in/g", f"{base}/g")
        nx.sys_rename(f"{base}/g", f"{base}/h")
        expected = [
            ("file_rename", f"{base}/f", f"{base}/in/f"),
            ("file_rename", f"{base}/in/f", f"{base}/in/g"),
            ("file_rename", f"{base}/in/g", f"{base}/g"),
        ]
        assert kinds(seen(nx, f"{base}/in", start)) == expected
        assert kinds(seen(nx, f"{base}/in", start, recursive=False)) == expected

    def test_what_happens_to_a_directory_above_concerns_what_is_watched_beneath(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/a/b/f", b"1")
        start = newest(nx)
        nx.sys_rename(f"{base}/a", f"{base}/z")
        nx.sys_rename(f"{base}/z", f"{base}/a")
        nx.sys_unlink(f"{base}/a", recursive=True)
        assert [event.kind for event in seen(nx, f"{base}/a/b/f", start, recursive=False)] == [
            "file_rename",
            "file_rename",
            "dir_delete",
        ]

    @pytest.mark.parametrize("recursive", [False, True])
    def test_a_waiting_watch_is_woken_by_what_happens_above(
        self, nx: NexusFilesystem, base: str, recursive: bool
    ) -> None:
        nx.write(f"{base}/a/b/f", b"1")
        start = newest(nx)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(nx.sys_watch, f"{base}/a/b/f", _PATIENT_S, recursive, start)
            nx.write(f"{base}/other", b"1")
            nx.sys_rename(f"{base}/a", f"{base}/z")
            event = waiting.result()
        assert event is not None
        assert event.kind == "file_rename"

    def test_every_event_of_a_batch_is_delivered_in_order(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("atomic_batch")
        start = newest(nx)
        nx.write_batch({f"{base}/d/{number:02}": b"x" for number in range(50)})
        events = seen(nx, base, start)
        assert [event.path for event in events if event.kind == "file_write"] == [
            f"{base}/d/{number:02}" for number in range(50)
        ]
        assert len({event.revision for event in events}) == 1
        assert [event.sequence for event in events] == list(range(51))
        assert seen(nx, base, events[20].cursor) == events[21:]

    def test_a_watch_resumed_anywhere_sees_exactly_what_followed(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        start = newest(nx)
        self._change_at_random(nx, base, 60)
        events = [event for event in self._journal(nx) if event["revision"] > start]
        told = seen(nx, base, start)
        assert [event.as_dict() for event in told] == events
        for at in range(0, len(told), 7):
            assert seen(nx, base, told[at].cursor) == told[at + 1 :]
            revision = told[at].revision
            rest = [event for event in told if event.revision > revision]
            assert seen(nx, base, revision) == rest

    def test_watchers_under_concurrent_writers_miss_nothing(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        for number in range(4):
            nx.mkdir(f"{base}/{number}")
        start = newest(nx)

        def write(number: int) -> None:
            for count in range(25):
                nx.write(f"{base}/{number}/{count}", b"x")

        def follow(path: str, wanted: int) -> list[FileEvent]:
            events = nx.watch(path, True, start)
            return [next(events) for _ in range(wanted)]

        with ThreadPoolExecutor(9) as pool:
            whole = pool.submit(follow, base or "/", 100)
            parts = [pool.submit(follow, f"{base}/{number}", 25) for number in range(4)]
            writers = [pool.submit(write, number) for number in range(4)]
            for writer in writers:
                writer.result()
            told = whole.result()
            positions = [(event.revision, event.sequence) for event in told]
            assert positions == sorted(set(positions))
            for number, part in enumerate(parts):
                mine = [e for e in told if e.path.startswith(f"{base}/{number}/")]
                assert part.result() == mine
                assert [e.path for e in mine] == [f"{base}/{number}/{c}" for c in range(25)]

    def test_an_iterator_begins_where_it_was_made(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/before", b"1")
        events = nx.watch(base or "/", timeout=0)
        nx.write(f"{base}/after", b"1")
        assert [event.path for event in events] == [f"{base}/after"]

    def test_a_watched_event_can_be_read_at_once(self, nx: NexusFilesystem, base: str) -> None:
        events = nx.watch(f"{base}/f")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, events)
            nx.write(f"{base}/f", b"content")
            assert nx.read(first.result().path) == b"content"

    @pytest.mark.parametrize("since", [-1, 1.5, True, "x", "1", "1.", "1.2.3", "-1.0"])
    def test_a_position_that_is_none_is_refused(
        self, nx: NexusFilesystem, base: str, since: Any
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            nx.sys_watch(base or "/", 0, since=since)

    @pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", None])
    def test_a_timeout_without_meaning_is_refused(
        self, nx: NexusFilesystem, base: str, timeout: Any
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            nx.sys_watch(base or "/", timeout)

    def test_a_relative_path_is_refused(self, nx: NexusFilesystem) -> None:
        with pytest.raises(InvalidPathError):
            nx.sys_watch("relative", 0)

    def test_a_position_of_the_future_is_events_lost(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"1")
        current = newest(nx)
        with pytest.raises(EventsLost) as caught:
            nx.sys_watch(base or "/", 0, since=current + 1000)
        assert caught.value.revision == current

    def _journal(self, nx: NexusFilesystem) -> list[dict[str, Any]]:
        return list(nx.history())

    def _change_at_random(self, nx: NexusFilesystem, base: str, times: int) -> None:
        chance = random.Random(7)  # noqa: S311 - test data, not a secret
        actions: list[Callable[[str, str], Any]] = [
            lambda a, b: nx.write(a, b"x"),
            lambda a, b: nx.append(a, b"y"),
            lambda a, b: nx.exists(a) and nx.sys_setattr(a, attributes={"n": 1}),
            lambda a, b: nx.exists(a) and not nx.exists(b) and nx.sys_rename(a, b),
            lambda a, b: nx.exists(a) and not nx.exists(b) and nx.sys_copy(a, b),
            lambda a, b: nx.exists(a) and nx.sys_unlink(a),
        ]
        for _ in range(times):
            one, other = chance.sample([f"{base}/{name}" for name in "abcdef"], 2)
            chance.choice(actions)(one, other)
