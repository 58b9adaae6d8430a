from __future__ import annotations

import threading

import pytest

from nexus.contracts.errors import PathNotFoundError
from nexus.factory.boot import Settings, boot
from nexus.sdk import collect, fsck

DAY_NS = 86_400 * 10**9
WEEK_S = 7 * 86_400.0


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * DAY_NS

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def nx(clock):
    with boot(Settings(data_dir=":memory:"), clock_ns=clock) as filesystem:
        yield filesystem


def versions(nx, path):
    return [entry["version"] for entry in nx.history(path)]


def test_history_within_the_retention_is_kept_and_readable(nx, clock):
    nx.write("/f", b"one")
    nx.write("/f", b"two")
    clock.now_ns += 6 * DAY_NS
    collect(nx, retention_s=WEEK_S, grace_s=0)
    assert versions(nx, "/f") == [1, 2]
    assert nx.read("/f", version=1) == b"one"


def test_superseded_versions_and_old_events_go_and_current_files_stay(nx, clock):
    nx.write("/f", b"one")
    nx.write("/f", b"two")
    nx.write("/gone", b"x")
    nx.sys_unlink("/gone")
    clock.now_ns += 8 * DAY_NS
    nx.write("/f", b"three")
    report = collect(nx, retention_s=WEEK_S, grace_s=0)
    assert report.version_records == 3
    assert versions(nx, "/f") == [2, 3]
    assert nx.history("/gone") == []
    assert [event["path"] for event in nx.history()] == ["/f"]
    assert nx.read("/f") == b"three"
    with pytest.raises(PathNotFoundError):
        nx.read("/f", version=1)
    assert fsck(nx).clean


def test_a_version_that_was_current_within_the_retention_is_kept(nx, clock):
    nx.write("/f", b"one")
    clock.now_ns += 30 * DAY_NS
    nx.write("/f", b"two")
    collect(nx, retention_s=WEEK_S, grace_s=0)
    assert nx.read("/f", version=1) == b"one"


def test_content_is_set_aside_after_the_grace_and_deleted_after_another(nx, clock):
    nx.write("/f", b"one")
    nx.write("/f", b"two")
    clock.now_ns += 6 * DAY_NS
    assert collect(nx, retention_s=0, grace_s=WEEK_S).objects_quarantined == 0
    clock.now_ns += 2 * DAY_NS
    first = collect(nx, retention_s=0, grace_s=WEEK_S)
    assert (first.objects_quarantined, first.bytes_quarantined, first.bytes_freed) == (1, 3, 0)
    clock.now_ns += 8 * DAY_NS
    second = collect(nx, retention_s=0, grace_s=WEEK_S)
    assert (second.objects_quarantined, second.bytes_freed) == (0, 3)
    assert nx.read("/f") == b"two"


def test_what_was_set_aside_comes_back_when_it_is_written_again(nx, clock):
    etag = nx.write("/f", b"one")["etag"]
    nx.write("/f", b"two")
    clock.now_ns += DAY_NS
    assert collect(nx, retention_s=0, grace_s=0).objects_quarantined == 1
    assert nx.write("/again", b"one")["etag"] == etag
    assert nx.read("/again") == b"one"
    assert fsck(nx).clean


def test_a_dry_run_changes_nothing_and_says_the_same(nx, clock):
    nx.write("/f", b"one")
    nx.write("/f", b"two")
    clock.now_ns += 8 * DAY_NS
    nx.write("/g", b"today")
    foreseen = collect(nx, retention_s=WEEK_S, grace_s=0, dry_run=True)
    assert versions(nx, "/f") == [1, 2]
    done = collect(nx, retention_s=WEEK_S, grace_s=0)
    assert foreseen.version_records == done.version_records == 1
    assert foreseen.journal_entries == done.journal_entries == 2


def test_writers_and_renamers_lose_nothing_to_a_collector(nx):
    stop = threading.Event()
    failures: list[BaseException] = []

    def collecting() -> None:
        while not stop.is_set():
            collect(nx, retention_s=0, grace_s=0)

    def writing(n: int) -> None:
        for step in range(40):
            # Every thread writes the same few contents, so that objects come and go.
            nx.write(f"/{n}/f", b"content %d" % (step % 3))
            nx.sys_rename(f"/{n}/f", f"/{n}/g")
            assert nx.read(f"/{n}/g") == b"content %d" % (step % 3)

    def guarded(body, *args) -> None:
        try:
            body(*args)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            failures.append(error)

    collector = threading.Thread(target=guarded, args=(collecting,))
    writers = [threading.Thread(target=guarded, args=(writing, n)) for n in range(4)]
    collector.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    collector.join()
    assert failures == []
    assert fsck(nx).clean
