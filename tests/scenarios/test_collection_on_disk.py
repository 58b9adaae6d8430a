"""Collection on a real folder: what may be forgotten goes in steps, what is in use never."""

import random
import threading
import time
from pathlib import Path

import pytest

from nexus.contracts.errors import PathNotFoundError
from nexus.contracts.metadata import DT_MOUNT
from nexus.factory.boot import Settings, boot
from nexus.sdk import NexusFilesystem, collect, connect, fsck
from nexus.storage.object_store.cas_store import CasStore
from nexus.storage.object_store.segment_objects import SegmentObjects

DAY_S = 86_400.0
HOUR_S = 3600.0


class Clock:
    """A clock that a test moves. Starts now: the age of content is that of its file."""

    def __init__(self) -> None:
        self.now_ns = time.time_ns()

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def opened(path: Path, clock: Clock) -> NexusFilesystem:
    return boot(Settings(data_dir=str(path / "data")), clock_ns=clock)


def object_count(nx: NexusFilesystem) -> tuple[int, int]:
    """Return how many objects are in place, and how many in quarantine."""
    store = nx._content_store("/", None)
    assert isinstance(store, CasStore)
    packed = store._objects
    assert isinstance(packed, SegmentObjects)
    return len(list(store.list_objects())), sum(entry.aside for entry in packed._segments.entries())


def write_over_days(nx: NexusFilesystem, clock: Clock) -> None:
    """Give /file one version a day, five in all; the last is of today."""
    for day in range(5):
        if day:
            clock.advance(DAY_S)
        nx.write("/file", b"day %d" % day)


def test_older_versions_and_journal_entries_go_and_the_current_file_stays(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as nx:
        nx.write("/untouched", b"for ever")
        write_over_days(nx, clock)
        journal = len(nx.history())
        report = collect(nx, retention_s=1.5 * DAY_S, grace_s=HOUR_S)
        # Versions 4 and 5 were written within a day and a half; 3 was current at its start.
        assert [entry["version"] for entry in nx.history("/file")] == [3, 4, 5]
        assert report.version_records == 2
        assert len(nx.history()) == journal - report.journal_entries == 2
        with pytest.raises(PathNotFoundError):
            nx.read("/file", version=2)
        assert nx.read("/file", version=3) == b"day 2"
        clock.advance(1000 * DAY_S)
        collect(nx, retention_s=0, grace_s=0)
        collect(nx, retention_s=0, grace_s=0)
        assert nx.read("/untouched") == b"for ever"
        assert nx.read("/file") == b"day 4"
        assert nx.history() == []
        assert fsck(nx).clean


def test_a_removed_file_can_be_read_until_its_retention_ends(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as nx:
        nx.write("/file", b"precious")
        nx.sys_unlink("/file")
        clock.advance(DAY_S)
        collect(nx, retention_s=2 * DAY_S, grace_s=0)
        assert nx.read("/file", version=1) == b"precious"
        clock.advance(2 * DAY_S)
        collect(nx, retention_s=2 * DAY_S, grace_s=0)
        assert nx.history("/file") == []
        assert fsck(nx).clean


def test_content_is_quarantined_after_one_grace_period_and_deleted_after_another(
    tmp_path: Path,
) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as nx:
        nx.write("/file", b"kept")
        nx.write("/gone", b"unnamed")
        nx.sys_unlink("/gone")
        clock.advance(HOUR_S / 2)
        assert collect(nx, retention_s=0, grace_s=HOUR_S).objects_quarantined == 0
        assert object_count(nx) == (2, 0)
        clock.advance(HOUR_S)
        report = collect(nx, retention_s=0, grace_s=HOUR_S)
        assert (report.objects_quarantined, report.bytes_quarantined) == (1, len(b"unnamed"))
        assert report.bytes_freed == 0
        assert object_count(nx) == (1, 1)
        clock.advance(HOUR_S / 2)
        assert collect(nx, retention_s=0, grace_s=HOUR_S).bytes_freed == 0
        assert object_count(nx) == (1, 1)
        clock.advance(HOUR_S)
        assert collect(nx, retention_s=0, grace_s=HOUR_S).bytes_freed == len(b"unnamed")
        assert object_count(nx) == (1, 0)
        assert nx.read("/file") == b"kept"
        assert fsck(nx).clean


def test_a_dry_run_changes_nothing_and_reports_what_a_run_would_do(tmp_path: Path) -> None:
    clock = Clock()
    with opened(tmp_path, clock) as nx:
        write_over_days(nx, clock)
        nx.write("/large", random.Random(1).randbytes(2 << 20))
        nx.sys_unlink("/large")
        clock.advance(2 * DAY_S)
        before = object_count(nx), nx.history(), nx.history("/file"), nx.history("/large")
        planned = collect(nx, retention_s=DAY_S, grace_s=HOUR_S, dry_run=True)
        after = object_count(nx), nx.history(), nx.history("/file"), nx.history("/large")
        assert after == before
        done = collect(nx, retention_s=DAY_S, grace_s=HOUR_S)
        done.dry_run = True
        done.bytes_compacted = 0  # a plan does not tell
        assert planned == done
        assert done.version_records > 0
        assert done.journal_entries > 0
        assert done.objects_quarantined > 3


def test_quarantined_content_comes_back_when_it_is_written_again(tmp_path: Path) -> None:
    clock = Clock()
    large = random.Random(2).randbytes(2 << 20)
    with opened(tmp_path, clock) as nx:
        for data in (b"small", large):
            nx.write("/file", data)
            nx.sys_unlink("/file")
            clock.advance(HOUR_S)
            collect(nx, retention_s=0, grace_s=0)
            assert object_count(nx)[1] > 0
            nx.write("/again", data)
            for _ in range(3):
                clock.advance(HOUR_S)
                collect(nx, retention_s=0, grace_s=0)
            assert nx.read("/again") == data
            assert fsck(nx).clean
            nx.sys_unlink("/again")


def test_writers_and_renamers_lose_nothing_to_collections_beside_them(tmp_path: Path) -> None:
    with connect({"data_dir": str(tmp_path / "data")}) as nx:
        workers = [Worker(nx, number) for number in range(3)]
        ended = threading.Event()
        collections = 0
        threads = [threading.Thread(target=worker.run) for worker in workers]
        waiter = threading.Thread(target=lambda: ([t.join() for t in threads], ended.set()))
        for thread in [*threads, waiter]:
            thread.start()
        while not ended.is_set():
            collect(nx, retention_s=0, grace_s=0)
            collections += 1
        waiter.join()
        assert [worker.error for worker in workers] == [None] * 3
        assert collections > 3
        for _ in range(2):
            collect(nx, retention_s=0, grace_s=0)
        for worker in workers:
            worker.check()
        report = fsck(nx)
        assert report.clean, report.problems


class Worker:
    """Writes, overwrites, renames and removes in a folder of its own, with content that recurs."""

    def __init__(self, nx: NexusFilesystem, number: int) -> None:
        self.nx = nx
        self.rng = random.Random(number)
        self.home = f"/worker{number}"
        self.expected: dict[str, bytes] = {}
        self.error: BaseException | None = None
        # The same for all workers: what one drops another may be writing again.
        self.contents = [b"%d" % n * 50 for n in range(6)]
        self.contents.append(random.Random(99).randbytes((1 << 20) + 9))

    def run(self) -> None:
        try:
            for turn in range(150):
                self.step(turn)
        except BaseException as error:  # noqa: BLE001 - shown by the test itself
            self.error = error

    def step(self, turn: int) -> None:
        name = f"{self.home}/{self.rng.randrange(5)}"
        kind = self.rng.choice(["write", "write", "rename", "remove", "append"])
        if kind == "write" or name not in self.expected:
            data = self.rng.choice(self.contents)
            self.nx.write(name, data)
            self.expected[name] = data
        elif kind == "rename":
            target = f"{self.home}/renamed{turn}"
            self.nx.sys_rename(name, target)
            self.expected[target] = self.expected.pop(name)
        elif kind == "append":
            self.nx.append(name, b"more")
            self.expected[name] += b"more"
        else:
            self.nx.sys_unlink(name)
            del self.expected[name]
        if turn % 10 == 0:
            self.check()

    def check(self) -> None:
        for name, data in self.expected.items():
            assert self.nx.read(name) == data, name


def test_what_dead_writers_left_goes_after_the_grace(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "folder").mkdir()
    with opened(tmp_path, clock) as nx:
        backend = {"driver": "path_local", "root": str(tmp_path / "folder")}
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
        nx.write("/m/d/kept", b"kept")
        left = [
            tmp_path / "data" / "content" / f".nexus-tmp-{2**40}-00000000-0",
            tmp_path / "folder" / "d" / f".nexus-tmp-{2**40}-00000000-1",
        ]
        for path in left:
            path.write_bytes(b"half")
        assert collect(nx, retention_s=0, grace_s=HOUR_S).leftovers_removed == 0
        clock.advance(2 * HOUR_S)
        dry = collect(nx, retention_s=0, grace_s=HOUR_S, dry_run=True)
        assert (dry.leftovers_removed, dry.leftover_bytes) == (2, 8)
        assert all(path.exists() for path in left)
        assert collect(nx, retention_s=0, grace_s=HOUR_S).leftovers_removed == 2
        assert not any(path.exists() for path in left)
        assert nx.read("/m/d/kept") == b"kept"
