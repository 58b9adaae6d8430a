"""What many threads may rely on when they meet at the same names.

Guaranteed, and checked here: a conditional write never loses an update; append and edit lose
nothing; a reader of a whole file sees one write's bytes, never a mix of two; an entry that is
renamed back and forth is at one of its two names in any one listing, and whoever finds it reads
what was last written to it. Not guaranteed, and not checked: that two calls made one after the
other, such as a read at the old name and then one at the new, see the same moment.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from nexus.contracts.errors import (
    ConflictError,
    DirectoryNotEmptyError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem, Precondition
from nexus.sdk import connect, fsck

THREADS = 8


@pytest.fixture(autouse=True)
def threads_that_change_places_often() -> Iterator[None]:
    """At the usual 5 ms most of these loops would be over before another thread has a turn."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(params=["memory", "disk"])
def nx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NexusFilesystem]:
    data_dir = ":memory:" if request.param == "memory" else str(tmp_path / "data")
    with connect({"data_dir": data_dir}) as filesystem:
        yield filesystem
        assert fsck(filesystem).clean


def together(*bodies: Callable[[], object]) -> None:
    """Run each body in a thread of its own, started at once; raise what one of them raised."""
    gate = threading.Barrier(len(bodies), timeout=60)

    def run(body: Callable[[], object]) -> object:
        gate.wait()
        return body()

    with ThreadPoolExecutor(len(bodies)) as pool:
        for future in [pool.submit(run, body) for body in bodies]:
            future.result(timeout=120)


def every_thread(body: Callable[[int], object]) -> None:
    """Run ``body(n)`` in :data:`THREADS` threads."""
    together(*(partial(body, n) for n in range(THREADS)))


# -- no lost update ---------------------------------------------------------------------------


def increment_by_write(nx: NexusFilesystem, path: str) -> bool:
    stat = nx.sys_stat(path)
    assert stat is not None
    number = int(nx.read(path))
    try:
        nx.write(path, str(number + 1), if_match=stat["etag"])
    except ConflictError:
        return False
    return True


def test_forty_conditional_increments_end_at_forty(nx: NexusFilesystem) -> None:
    nx.write("/counter", "0")

    def increment_five_times(_: int) -> None:
        done = 0
        for _attempt in range(10_000):
            done += increment_by_write(nx, "/counter")
            if done == 5:
                return
        raise AssertionError("starved")

    every_thread(increment_five_times)
    assert nx.read("/counter") == b"40"


def test_conditional_writes_at_an_offset_lose_no_update(nx: NexusFilesystem) -> None:
    nx.write("/counter", b"00")

    def increment_five_times(_: int) -> None:
        done = 0
        while done < 5:
            stat = nx.sys_stat("/counter")
            assert stat is not None
            number = int(nx.read("/counter"))
            condition = Precondition(if_match=stat["etag"])
            try:
                nx.sys_write("/counter", b"%02d" % (number + 1), precondition=condition)
            except ConflictError:
                continue
            done += 1

    every_thread(increment_five_times)
    assert nx.read("/counter") == b"40"


def test_edits_by_many_threads_lose_nothing(nx: NexusFilesystem) -> None:
    nx.write("/counter", "0")

    def increment_five_times(_: int) -> None:
        for _round in range(5):
            nx.edit("/counter", lambda content: b"%d" % (int(content) + 1))

    every_thread(increment_five_times)
    assert nx.read("/counter") == b"40"


@pytest.mark.parametrize("line_bytes", [20, 12_000], ids=["small", "across the chunk threshold"])
def test_each_appended_line_is_there_once(nx: NexusFilesystem, line_bytes: int) -> None:
    def line(n: int, k: int) -> bytes:
        return f"{n}-{k}".encode().ljust(line_bytes - 1, b".") + b"\n"

    def append_lines(n: int) -> None:
        for k in range(25):
            nx.append("/log", line(n, k))

    every_thread(append_lines)
    lines = nx.read("/log").splitlines(keepends=True)
    assert sorted(lines) == sorted(line(n, k) for n in range(THREADS) for k in range(25))
    for n in range(THREADS):
        mine = [each for each in lines if each.startswith(f"{n}-".encode())]
        assert mine == [line(n, k) for k in range(25)]


def test_appends_to_a_file_that_is_edited_lose_nothing(nx: NexusFilesystem) -> None:
    nx.write("/log", b"")

    def work(n: int) -> None:
        for k in range(10):
            if n % 2:
                nx.append("/log", f"{n}-{k}\n")
            else:
                nx.edit("/log", lambda content, k=k: f"{n}-{k}\n".encode() + content)  # type: ignore[misc]

    every_thread(work)
    lines = nx.read("/log").decode().splitlines()
    assert sorted(lines) == sorted(f"{n}-{k}" for n in range(THREADS) for k in range(10))


def test_only_one_of_many_creators_wins(nx: NexusFilesystem) -> None:
    winners: list[list[int]] = [[] for _ in range(20)]

    def create_all(n: int) -> None:
        for k in range(20):
            try:
                nx.write(f"/d/{k}", str(n), if_none_match="*")
            except ConflictError:
                continue
            winners[k].append(n)

    every_thread(create_all)
    assert [len(each) for each in winners] == [1] * 20
    assert [nx.read(f"/d/{k}") for k in range(20)] == [str(each[0]).encode() for each in winners]


def test_versions_count_every_write(nx: NexusFilesystem) -> None:
    seen: list[int] = []

    def write_ten(n: int) -> None:
        seen.extend(nx.write("/f", f"{n}-{k}")["version"] for k in range(10))

    every_thread(write_ten)
    assert sorted(seen) == list(range(1, 81))


# -- no torn read -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "large"), [(100, 5000), (70_000, 1_600_000)], ids=["small", "chunked"]
)
def test_a_reader_never_sees_a_mix_of_two_writes(
    nx: NexusFilesystem, small: int, large: int
) -> None:
    patterns = [b"a" * small, b"b" * large]
    nx.write("/f", patterns[0])

    def overwrite(n: int) -> Callable[[], None]:
        def body() -> None:
            for k in range(15):
                nx.write("/f", patterns[(n + k) % 2])

        return body

    def read() -> None:
        for _ in range(30):
            assert nx.read("/f") in patterns

    together(overwrite(0), overwrite(1), read, read, read, read)


def test_a_reader_never_sees_half_of_a_write_at_an_offset(nx: NexusFilesystem) -> None:
    size = 1_300_000
    nx.write("/f", b"\0" * size)

    def overwrite(n: int) -> None:
        for k in range(4):
            nx.sys_write("/f", bytes([n * 4 + k]) * size)

    def read() -> None:
        for _ in range(20):
            assert len(set(nx.read("/f"))) == 1

    together(lambda: overwrite(1), lambda: overwrite(2), read, read)


def test_a_reader_of_a_batch_sees_files_that_only_grow_newer(nx: NexusFilesystem) -> None:
    names = [f"/d/{n}" for n in range(5)]
    nx.write_batch(dict.fromkeys(names, "0"))

    def write() -> None:
        for k in range(1, 21):
            nx.write_batch({name: str(k) for name in names})

    def read() -> None:
        for _ in range(40):
            numbers = [int(nx.read(name)) for name in names]
            assert numbers == sorted(numbers)

    together(write, read, read, read)


# -- names ------------------------------------------------------------------------------------


def test_a_renamed_file_is_at_exactly_one_name_in_each_listing(nx: NexusFilesystem) -> None:
    nx.write("/d/a", b"content")

    def move() -> None:
        for _ in range(40):
            nx.sys_rename("/d/a", "/d/b")
            nx.sys_rename("/d/b", "/d/a")

    def look() -> None:
        for _ in range(60):
            assert nx.list("/d") in (["/d/a"], ["/d/b"])

    def read() -> None:
        for _ in range(60):
            for path in ("/d/a", "/d/b"):
                try:
                    assert nx.read(path) == b"content"
                except PathNotFoundError:
                    continue

    together(move, look, look, read, read)


def test_what_was_written_before_a_rename_is_read_after_it(nx: NexusFilesystem) -> None:
    nx.write("/a", "0")
    acknowledged = [0]

    def write_and_move() -> None:
        here, there = "/a", "/b"
        for k in range(1, 41):
            nx.write(here, str(k))
            acknowledged[0] = k
            nx.sys_rename(here, there)
            here, there = there, here

    def read() -> None:
        for _ in range(100):
            floor = acknowledged[0]
            for path in ("/a", "/b"):
                try:
                    assert int(nx.read(path)) >= floor
                except PathNotFoundError:
                    continue

    together(write_and_move, read, read, read)


def test_a_renamed_directory_takes_all_or_nothing_along(nx: NexusFilesystem) -> None:
    for n in range(10):
        nx.write(f"/top/x/{n}", str(n))

    def move() -> None:
        for _ in range(80):
            nx.sys_rename("/top/x", "/top/y")
            nx.sys_rename("/top/y", "/top/x")

    def look() -> None:
        for _ in range(160):
            for path in ("/top/x", "/top/y"):
                try:
                    assert len(nx.list(path)) == 10
                except PathNotFoundError:
                    continue

    together(move, look, look, look)
    assert [nx.read(f"/top/x/{n}") for n in range(10)] == [str(n).encode() for n in range(10)]


def test_renames_over_one_target_leave_one_whole_file(nx: NexusFilesystem) -> None:
    def publish(n: int) -> None:
        for k in range(10):
            nx.write(f"/tmp-{n}", f"{n}-{k}")
            nx.sys_rename(f"/tmp-{n}", "/target")

    every_thread(publish)
    assert nx.list("/") == ["/target"]
    assert nx.read("/target").endswith(b"-9")


def test_renames_in_opposite_directions_do_not_block_each_other(nx: NexusFilesystem) -> None:
    nx.write("/left/a/f", b"1")
    nx.write("/right/b/f", b"2")

    def move(source: str, target: str) -> Callable[[], None]:
        def body() -> None:
            for _ in range(25):
                for old, new in ((source, target), (target, source)):
                    try:
                        nx.sys_rename(old, new)
                    except (PathNotFoundError, DirectoryNotEmptyError):
                        continue

        return body

    together(
        move("/left/a", "/right/a"),
        move("/right/a", "/left/a"),
        move("/right/b", "/left/b"),
        move("/left/b", "/right/b"),
    )
    files = [path for path in nx.list("/", recursive=True) if path.endswith("/f")]
    assert sorted(nx.read(path) for path in files) == [b"1", b"2"]


def test_mkdir_of_the_same_deep_parents_succeeds_for_everyone(nx: NexusFilesystem) -> None:
    def work(n: int) -> None:
        for k in range(10):
            if n % 2:
                nx.mkdir(f"/{k}/a/b/c/d", exist_ok=True)
            nx.write(f"/{k}/a/b/c/d/{n}", b"x")

    every_thread(work)
    for k in range(10):
        expected = [f"/{k}/a/b/c/d/{n}" for n in range(THREADS)]
        assert nx.list(f"/{k}/a/b/c/d") == expected


def test_only_one_of_many_removers_succeeds(nx: NexusFilesystem) -> None:
    for k in range(20):
        nx.write(f"/d/{k}", b"x")
    removed: list[int] = []

    def remove_all(_: int) -> None:
        for k in range(20):
            try:
                nx.sys_unlink(f"/d/{k}")
            except PathNotFoundError:
                continue
            removed.append(k)

    every_thread(remove_all)
    assert sorted(removed) == list(range(20))
    assert nx.list("/d") == []


@pytest.mark.parametrize("recursive", [False, True])
def test_a_create_below_a_directory_that_goes_fails_or_stays(
    nx: NexusFilesystem, recursive: bool
) -> None:
    def create() -> None:
        for k in range(40):
            try:
                nx.mkdir("/d", exist_ok=True)
                nx.mkdir(f"/d/{k}", parents=False, exist_ok=True)
            except PathNotFoundError:
                continue

    def remove() -> None:
        for _ in range(40):
            try:
                nx.sys_unlink("/d", recursive)
            except (PathNotFoundError, DirectoryNotEmptyError):
                continue

    together(create, create, remove, remove)
    for path in nx.list("/", recursive=True):
        assert nx.is_directory(path)


def test_an_acknowledged_write_below_a_removed_directory_is_there_or_was_removed(
    nx: NexusFilesystem,
) -> None:
    written: list[tuple[str, int]] = []
    removals: list[int] = []

    def create(n: int) -> None:
        for k in range(25):
            path = f"/d/e/{n}-{k}"
            written.append((path, nx.write(path, path)["revision"]))

    def remove() -> None:
        for _ in range(25):
            try:
                removals.append(nx.sys_unlink("/d", recursive=True)["revision"])
            except PathNotFoundError:
                continue

    together(lambda: create(0), lambda: create(1), lambda: create(2), remove, remove)
    last = max(removals, default=0)
    for path, revision in written:
        assert nx.exists(path) == (revision > last)


def test_a_file_and_a_directory_never_share_a_name(nx: NexusFilesystem) -> None:
    def work(n: int) -> None:
        for _ in range(20):
            try:
                if n % 2:
                    nx.write("/name", b"file", if_none_match="*")
                    nx.sys_unlink("/name")
                else:
                    nx.mkdir("/name")
                    nx.write("/name/f", b"below")
                    nx.sys_unlink("/name", recursive=True)
            except OSError:
                continue  # another was there first; what is left is checked by fsck

    every_thread(work)
    stat = nx.sys_stat("/name")
    assert stat is None or stat["is_directory"] == (nx.sys_stat("/name/f") is not None)


# -- the journal ------------------------------------------------------------------------------


def test_the_journal_has_every_acknowledged_write_in_revision_order(nx: NexusFilesystem) -> None:
    answers: list[tuple[str, int]] = []

    def write(n: int) -> None:
        for k in range(15):
            path = f"/d{k % 3}/{n}-{k}"
            answers.append((path, nx.write(path, b"x")["revision"]))

    every_thread(write)
    events = [(e["path"], e["revision"]) for e in nx.history() if e["kind"] == "file_write"]
    assert events == sorted(events, key=lambda event: event[1])
    assert sorted(events) == sorted(answers)


def test_a_page_by_page_listing_during_writes_has_every_entry_that_stayed(
    nx: NexusFilesystem,
) -> None:
    stayed = [f"/d/{n:03}-stays" for n in range(40)]
    nx.write_batch(dict.fromkeys(stayed, b"x"))

    def churn() -> None:
        for n in range(40):
            nx.write(f"/d/{n:03}-comes", b"x")
            nx.sys_unlink(f"/d/{n:03}-comes")

    def page() -> None:
        for recursive in (False, True) * 3:
            found: list[str] = []
            cursor = None
            while True:
                listed = nx.sys_readdir("/d", recursive, limit=7, cursor=cursor)
                found += listed
                cursor = listed.next_cursor
                if cursor is None:
                    break
            assert found == sorted(set(found))
            assert [path for path in found if path.endswith("-stays")] == stayed

    together(churn, churn_backwards(nx), page, page, page)


def churn_backwards(nx: NexusFilesystem) -> Callable[[], None]:
    def body() -> None:
        for n in reversed(range(40)):
            nx.write(f"/d/{n:03}-goes", b"x")
            nx.sys_unlink(f"/d/{n:03}-goes")

    return body
