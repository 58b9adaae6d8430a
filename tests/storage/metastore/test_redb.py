"""RedbMetastore holds what every ordered store holds, and what it promises beyond that."""

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from nexus.contracts.errors import (
    BusyError,
    ClosedError,
    CorruptionError,
    InvalidArgumentError,
    NexusError,
    NoSpaceError,
    PathNotFoundError,
    StorageError,
)
from nexus.contracts.metastore import Batch, Condition, MetastoreABC
from nexus.lib import native
from nexus.lib.disk import Disk
from nexus.storage.metastore.redb import RedbMetastore
from nexus.testing.faults import FaultyDisk
from nexus.testing.ordered_store import OrderedStoreSuite
from nexus.testing.small_disk import run_on_small_disk

pytestmark = pytest.mark.skipif(
    native.chosen().module is None, reason="the Rust kernel is not built, or not asked for"
)


def open_store(path, *, disk=None, create=True, **options) -> RedbMetastore:
    options.setdefault("reserve_bytes", 0)
    return RedbMetastore(str(path), disk=disk or Disk(), create=create, **options)


class TestRedbMetastore(OrderedStoreSuite):
    def make(self, directory: str) -> MetastoreABC:
        return open_store(directory + "/m.db")


class TestRedbMetastoreWithAShortLog(OrderedStoreSuite):
    """Checkpoints at almost every commit."""

    def make(self, directory: str) -> MetastoreABC:
        return open_store(directory + "/m.db", log_limit_bytes=100)


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "m.db")


def image(path: str, to: Path) -> str:
    """Copy what a kill would leave while no checkpoint runs; return the path of the copy."""
    to.mkdir()
    for file in Path(path).parent.glob("m.db*"):
        shutil.copy(file, to)
    return str(to / "m.db")


# Birth


@pytest.mark.parametrize("call", ["open", "fsync", "rename", "unlink"])
def test_a_creation_that_fails_anywhere_leaves_nothing_in_the_way(path, call):
    disk = FaultyDisk()
    Path(path + ".new").write_bytes(b"left by a kill")
    with disk.failing(call), pytest.raises(NexusError):
        open_store(path, disk=disk)
    with closing(open_store(path)) as store:
        assert store.commit(Batch([(b"k", b"v")])) == store.revision()


def test_a_log_without_its_store_is_not_replayed_into_a_new_one(path, tmp_path):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"k", b"v")]))
        copy = image(path, tmp_path / "copy")
    os.unlink(copy)
    with pytest.raises(CorruptionError, match=r"its log \(\.log\) is there"):
        open_store(copy)


# Locked, foreign, damaged


def test_a_second_opening_is_busy(path):
    with closing(open_store(path)), pytest.raises(BusyError, match="open already"):
        open_store(path)


def test_a_store_that_is_not_there_is_not_made_unasked(path):
    with pytest.raises(PathNotFoundError):
        open_store(path, create=False)


def test_another_programs_file_is_told_apart(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE t(x)")
    with pytest.raises(CorruptionError, match="not a redb database"):
        open_store(path)


@pytest.mark.parametrize("length", [0, 5, 100, 5000])
def test_a_file_cut_short_is_corruption(path, length):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"k%d" % n, bytes(1000)) for n in range(100)]))
    os.truncate(path, length)
    with pytest.raises(CorruptionError):
        open_store(path, create=False)


def test_any_flipped_bit_is_an_error_or_harmless_to_who_seals(path, tmp_path):
    with closing(open_store(path)) as store:
        for n in range(50):
            store.commit(Batch([(b"k%d" % n, bytes(100))]))
    whole = Path(path).read_bytes()
    rng = random.Random(1)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        Path(path).write_bytes(damaged)
        for beside in ("log", "head"):
            Path(f"{path}.{beside}").unlink(missing_ok=True)
        try:
            store = open_store(path, create=False)
        except NexusError:
            continue
        try:
            assert len(store.scan(b"")) <= 51
            store.commit(Batch([(b"new", b"")]))
            store.close()
        except NexusError:
            continue
        finally:
            release(store)


def release(store: RedbMetastore) -> None:
    try:
        store.close()
    except NexusError:
        return


# Building anew

ROWS = 3000


@pytest.fixture
def damaged(path) -> tuple[str, list[bytes]]:
    """A store with a zeroed leaf amid its tree and commits in its log; the keys it had."""
    keys = [b"row%06d" % n for n in range(ROWS)]
    with closing(open_store(path)) as store:
        store.commit(Batch([(key, bytes(100)) for key in keys]))
    whole = Path(path).read_bytes()
    leaves = [
        at for at in range(4096, len(whole), 4096) if whole[at] == 1 and b"row" in whole[at:][:4096]
    ]
    with open(path, "r+b") as file:
        file.seek(leaves[len(leaves) // 2])
        file.write(bytes(4096))
    return path, keys


def test_a_damaged_leaf_is_told_and_building_anew_loses_its_rows_and_no_others(damaged):
    path, keys = damaged
    with closing(open_store(path)) as store:
        assert store.check() != []
        with pytest.raises(CorruptionError, match="builds the file anew"):
            store.scan(b"", limit=ROWS)
        assert store.commit(Batch([(b"a", b"in the log")])) == 2
    with closing(open_store(path, accept_loss=True)) as store:
        found = [entry.key for entry in store.scan(b"row", limit=ROWS)]
        assert set(found) < set(keys)
        assert len(found) > ROWS - 50
        assert store.check() == []
        assert store.get(b"a") == (b"in the log", 2)
        assert store.commit(Batch([(b"new", b"row")])) == 3
    assert os.path.exists(path + ".damaged")
    with closing(open_store(path)) as store:
        assert store.check() == []


def test_commits_in_the_logs_go_on_from_the_file_built_anew(damaged, tmp_path):
    path, _ = damaged
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"row%06d" % 7, b"newer")]))
        copy = image(path, tmp_path / "copy")
    with closing(open_store(copy, accept_loss=True)) as store:
        assert store.revision() == 2
        assert store.get(b"row%06d" % 7) == (b"newer", 2)


def test_a_store_that_is_whole_is_not_built_anew(path):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"k", b"v")]))
    with closing(open_store(path, accept_loss=True)) as store:
        assert store.get(b"k") == (b"v", 1)
    assert not os.path.exists(path + ".damaged")


@pytest.mark.parametrize("call", ["unlink", "fsync", "rename"])
def test_a_rebuilding_that_fails_anywhere_leaves_the_damaged_store_in_place(damaged, call):
    path, _ = damaged
    disk = FaultyDisk()
    Path(path + ".rebuilt").write_bytes(b"left by a kill")
    with disk.failing(call), pytest.raises(NexusError):
        open_store(path, disk=disk, accept_loss=True)
    with closing(open_store(path)) as store:
        assert store.check() != []
    with closing(open_store(path, accept_loss=True)) as store:
        assert store.check() == []


def test_a_damaged_header_is_an_error_that_names_the_backup(path):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"k", b"v")]))
    with open(path, "r+b") as file:
        file.seek(64)
        file.write(bytes(256))
    with pytest.raises(CorruptionError, match="restore the file from a backup"):
        open_store(path, accept_loss=True)


# Kills and power cuts


def test_a_kill_at_any_commit_loses_none(path, tmp_path):
    with closing(open_store(path)) as store:
        for n in range(60):
            batch = Batch([(b"k%03d" % n, bytes(n))], [b"k%03d" % (n // 2)] if n else [])
            store.commit(batch, durable=n % 3 == 0)
            if n % 4 == 0:
                with closing(open_store(image(path, tmp_path / str(n)))) as again:
                    assert again.scan(b"") == store.scan(b"")
                    assert again.revision() == store.revision()


def test_a_lost_end_of_the_log_is_told_and_can_be_accepted(path, tmp_path):
    with closing(open_store(path)) as store:
        for n in range(5):
            store.commit(Batch([(b"k%d" % n, b"v")]))
        copy = image(path, tmp_path / "copy")
    header, record = 16, 20 + 9 + 3
    os.truncate(copy + ".log", header + record * 3)
    with pytest.raises(CorruptionError, match="the last 2 commits are missing"):
        open_store(copy)
    with closing(open_store(copy, accept_loss=True)) as store:
        assert len(store.scan(b"")) == 3
        assert store.commit(Batch([])) == 6
    with closing(open_store(copy)) as store:
        assert store.revision() == 6


COMMITTER = """
import sys
from nexus.contracts.metastore import Batch, Condition
from nexus.lib.disk import Disk
from nexus.storage.metastore.redb import RedbMetastore

path, durable = sys.argv[1], sys.argv[2] == "strict"
store = RedbMetastore(path, disk=Disk(), create=True, reserve_bytes=0, log_limit_bytes=20_000)
number = int((store.get(b"n") or (b"0", 0))[0])
while True:
    number += 1
    rows = [(b"row%d" % (number % 50), b"%d" % number * 20), (b"n", b"%d" % number)]
    store.commit(Batch(rows), durable=durable)
    print(number, flush=True)
"""


@pytest.mark.parametrize("durability", ["ordered", "strict"])
def test_sigkill_at_any_moment_loses_no_acknowledged_commit(path, durability):
    rng, acknowledged = random.Random(1), 0
    for _ in range(12):
        command = [sys.executable, "-c", COMMITTER, path, durability]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout
            for _ in range(rng.randrange(1, 150)):
                acknowledged = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            rest = child.stdout.read().split(b"\n")[:-1]
            acknowledged = int(rest[-1]) if rest else acknowledged
        with closing(open_store(path)) as store:
            found = store.get(b"n")
            assert found
            number = int(found[0])
            assert number in (acknowledged, acknowledged + 1)
            assert store.get(b"row%d" % (number % 50)) == (b"%d" % number * 20, found[1])


ENDS = """
import os, signal, sys
from nexus.contracts.metastore import Batch
from nexus.lib.disk import Disk
from nexus.storage.metastore.redb import RedbMetastore

path, end = sys.argv[1:]
store = RedbMetastore(path, disk=Disk(), create=True, reserve_bytes=0, log_limit_bytes=20_000)
children = []
for number in range(600):
    # A checkpoint is under way most of the time.
    store.commit(Batch([(b"k%04d" % number, bytes(200))]))
    if end == "fork" and number % 20 == 19:
        child = os.fork()
        if child == 0:
            store.in_forked_child()
            del store
            sys.exit(7)
        children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
if end == "raise":
    raise RuntimeError("not closed")
if end == "drop":
    del store
    store = RedbMetastore(path, disk=Disk(), create=False, reserve_bytes=0)
print("done")
"""


@pytest.mark.parametrize("end", ["exit", "raise", "drop", "fork"])
def test_a_process_ends_and_forks_amid_checkpoints_with_nothing_lost(path, end):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ENDS, path, end]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if end == "raise":
        assert "not closed" in ended.stderr
    else:
        assert (ended.stdout, ended.stderr) == ("done\n", "")
    with closing(open_store(path)) as store:
        assert store.revision() == len(store.scan(b"k")) == 600


# Concurrency and arguments


def test_durable_commits_of_many_threads_all_arrive(path):
    def write(name: int) -> None:
        for n in range(25):
            store.commit(Batch([(b"%d-%d" % (name, n), b"")]), durable=True)

    with closing(open_store(path, log_limit_bytes=3000)) as store:
        threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.scan(b"")) == store.revision() == 200


@pytest.mark.parametrize(
    ("batch", "conditions"),
    [
        (Batch([("text", b"")]), []),  # type: ignore[list-item]
        (Batch([(b"k", "text")]), []),  # type: ignore[list-item]
        (Batch([], [7]), []),  # type: ignore[list-item]
        (Batch([(b"k", b"")]), [Condition(b"k", -1)]),
        (Batch([(b"k", b"")]), [Condition(b"k", 1 << 64)]),
    ],
)
def test_what_is_no_bytes_is_refused_with_nothing_applied(path, batch, conditions):
    with closing(open_store(path)) as store:
        with pytest.raises(InvalidArgumentError):
            store.commit(batch, conditions)
        assert store.revision() == 0


def test_closing_while_others_work_ends_their_calls_with_closed(path):
    store = open_store(path)
    started = threading.Barrier(5)
    ends: list[type] = []

    def work() -> None:
        started.wait()
        try:
            while True:
                store.commit(Batch([(b"k", b"v")]))
                assert store.get(b"k")
        except ClosedError as error:
            ends.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    store.close()
    for thread in threads:
        thread.join()
    assert ends == [ClosedError] * 4


# Failing writes


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """Have the system refuse to write past a size, as a failing disk would at any write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_that_the_log_could_not_take_whole_was_never_there(path):
    with closing(open_store(path)) as store:
        first = store.commit(Batch([(b"a", bytes(1000))]))
        with no_file_longer_than(1500):
            for _ in range(2):
                with pytest.raises(StorageError):
                    store.commit(Batch([(b"b", bytes(1000))]))
        assert store.commit(Batch([(b"c", b"")])) == first + 1
        expected = store.scan(b"")
    with closing(open_store(path)) as store:
        assert store.scan(b"") == expected
        assert [entry.key for entry in expected] == [b"a", b"c"]


def test_what_a_failed_write_acknowledged_is_there_once_it_has_recovered_by_itself(path):
    acknowledged: list[bytes] = []
    with closing(open_store(path, log_limit_bytes=200_000)) as store:

        def commit() -> None:
            key = b"k%05d" % len(acknowledged)
            store.commit(Batch([(key, random.Random(key).randbytes(60_000))]))
            acknowledged.append(key)

        def commit_many(count: int) -> None:
            for _ in range(count):
                commit()

        commit()
        with no_file_longer_than(max(os.path.getsize(path), 1 << 20)):
            for _ in range(3):
                with pytest.raises(StorageError):
                    commit_many(500)
            assert len(acknowledged) < 500
        commit()
        assert [entry.key for entry in store.scan(b"")] == acknowledged
    with closing(open_store(path)) as store:
        assert [entry.key for entry in store.scan(b"")] == acknowledged


# A full disk


def a_full_store_can_be_emptied(directory: str) -> None:
    with closing(open_store(directory + "/m.db", reserve_bytes=2 << 20)) as store:
        keys = fill(store)
        assert len(keys) > 10
        assert [entry.key for entry in store.scan(b"")] == keys
        for key in keys:
            store.commit(Batch([], [key]), reclaim=True)
        assert store.scan(b"") == []
    with closing(open_store(directory + "/m.db", reserve_bytes=2 << 20)) as store:
        assert store.commit(Batch([(b"k", b"v")])) == store.revision()


def fill(store: RedbMetastore, prefix: bytes = b"k") -> list[bytes]:
    keys: list[bytes] = []
    while True:
        key = prefix + b"%06d" % len(keys)
        try:
            store.commit(Batch([(key, random.Random(len(keys)).randbytes(20_000))]))
        except NoSpaceError:
            return keys
        keys.append(key)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_full_disk_refuses_writes_and_lets_deletes_through(tmp_path):
    run_on_small_disk(a_full_store_can_be_emptied, str(tmp_path), size_bytes=16 << 20)


def a_store_on_a_disk_that_others_fill_can_be_emptied(directory: str) -> None:
    keys = [b"k%06d" % number for number in range(30_000)]
    random.Random(1).shuffle(keys)
    with closing(open_store(directory + "/m.db", reserve_bytes=2 << 20)) as store:
        for start in range(0, len(keys), 500):
            store.commit(Batch([(key, bytes(150)) for key in keys[start : start + 500]]))
        with open(directory + "/others", "wb") as others, suppress(OSError):
            while True:
                others.write(bytes(1 << 16))
        for key in keys + fill(store, b"more"):
            store.commit(Batch([], [key]), reclaim=True)
        os.unlink(directory + "/others")
        store.commit(Batch([(b"more", b"")]))
        assert [entry.key for entry in store.scan(b"")] == [b"more"]
    with closing(open_store(directory + "/m.db", reserve_bytes=2 << 20)) as store:
        assert [entry.key for entry in store.scan(b"")] == [b"more"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_deletes_get_through_on_a_disk_that_others_have_filled(tmp_path):
    body = a_store_on_a_disk_that_others_fill_can_be_emptied
    run_on_small_disk(body, str(tmp_path), size_bytes=48 << 20)


def a_full_store_opens_after_a_kill(directory: str) -> None:
    script = FILLER.format(path=directory + "/m.db")
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    count = int(child.stdout)
    with closing(open_store(directory + "/m.db", reserve_bytes=2 << 20)) as store:
        assert len(store.scan(b"", limit=count + 1)) == count
        for number in range(count):
            store.commit(Batch([], [b"k%06d" % number]), reclaim=True)
        assert store.scan(b"") == []


FILLER = """
import os, signal
from nexus.contracts.errors import NoSpaceError
from nexus.contracts.metastore import Batch
from nexus.lib.disk import Disk
from nexus.storage.metastore.redb import RedbMetastore

store = RedbMetastore({path!r}, disk=Disk(), create=True, reserve_bytes=2 << 20)
count = 0
try:
    while True:
        store.commit(Batch([(b"k%06d" % count, os.urandom(3000))]))
        count += 1
except NoSpaceError:
    print(count, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_full_disk_does_not_keep_a_killed_store_from_opening(tmp_path):
    run_on_small_disk(a_full_store_opens_after_a_kill, str(tmp_path), size_bytes=16 << 20)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_closed_store_keeps_no_file_of_its_folder_open(path):
    store = open_store(path)
    store.commit(Batch([(b"key", b"value")]), durable=True)
    store.close()
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    held = [os.readlink(link) for link in links if os.path.exists(link)]
    assert [name for name in held if name.startswith(os.path.dirname(path))] == []
