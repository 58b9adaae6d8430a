"""SqliteMetastore holds what every ordered store holds, and what it promises beyond that."""

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import xxhash

from nexus.contracts.errors import (
    AccessDeniedError,
    ConflictError,
    CorruptionError,
    InvalidArgumentError,
    NexusError,
    NoSpaceError,
    PathNotFoundError,
    ReadOnlyError,
    StorageFailedError,
)
from nexus.contracts.metastore import Batch, Condition, MetastoreABC
from nexus.lib.disk import Disk
from nexus.storage.metastore.head_file import HeadFile
from nexus.storage.metastore.sqlite import SqliteMetastore
from nexus.testing.faults import FaultyDisk
from nexus.testing.ordered_store import OrderedStoreSuite
from nexus.testing.small_disk import run_on_small_disk

RESERVE_BYTES = 1 << 20


def open_store(path, *, disk=None, create=True, **options) -> SqliteMetastore:
    options.setdefault("reserve_bytes", 0)
    return SqliteMetastore(str(path), disk=disk or Disk(), create=create, **options)


class TestSqliteMetastore(OrderedStoreSuite):
    def make(self, directory: str) -> MetastoreABC:
        return open_store(directory + "/m.db")


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "m.db")


# Failing syncs


def test_after_a_failed_sync_nothing_is_acknowledged_until_it_recovers_by_itself(path):
    disk = FaultyDisk()
    with closing(open_store(path, disk=disk)) as store:
        first = store.commit(Batch([(b"a", b"1")]), durable=True)
        with disk.failing("fsync"):
            for durable in (True, False, True):
                with pytest.raises(StorageFailedError) as caught:
                    store.commit(Batch([(b"b%d" % durable, b"")]), durable=durable)
                assert caught.value.retryable
                assert store.get(b"a") == (b"1", first)
                assert store.revision() == first
            with pytest.raises(StorageFailedError):
                store.sync()
            assert store.get(b"b0") is None
        second = store.commit(Batch([(b"c", b"1")]), durable=True)
        assert second > first
    with closing(open_store(path)) as store:
        assert store.get_many([b"a", b"c"]) == [(b"1", first), (b"1", second)]
        assert store.revision() == second


def test_a_commit_without_sync_does_not_meet_the_failing_disk(path):
    disk = FaultyDisk()
    with closing(open_store(path, disk=disk)) as store, disk.failing("fsync"):
        store.commit(Batch([(b"a", b"1")]))
        assert store.get(b"a") == (b"1", 1)


def test_close_on_a_failing_disk_says_so_and_releases_everything(path):
    disk = FaultyDisk()
    store = open_store(path, disk=disk)
    store.commit(Batch([(b"a", b"1")]))
    with disk.failing("fsync"), pytest.raises(StorageFailedError):
        store.close()
    store.close()
    with closing(open_store(path)) as store:
        assert store.get(b"a") == (b"1", 1)


class SlowSyncDisk(Disk):
    """Syncs wait for the test once ``slow`` is set."""

    def __init__(self) -> None:
        self.slow = False
        self.syncs = 0
        self.started = threading.Event()
        self.go_on = threading.Event()

    def fdatasync(self, fd: int) -> None:
        if self.slow:
            self.syncs += 1
            self.started.set()
            self.go_on.wait()
        super().fdatasync(fd)


def test_readers_do_not_wait_for_a_sync(path):
    disk = SlowSyncDisk()
    with closing(open_store(path, disk=disk)) as store:
        first = store.commit(Batch([(b"a", b"1")]))
        disk.slow = True
        commit = threading.Thread(
            target=store.commit, args=(Batch([(b"k", b"")]),), kwargs={"durable": True}
        )
        commit.start()
        disk.started.wait()
        assert store.get(b"a") == (b"1", first)
        assert len(store.scan(b"k")) == 1
        assert store.revision() == first
        disk.go_on.set()
        commit.join()
        assert store.revision() == first + 1


def test_a_commit_waits_while_another_connection_has_the_log_locked_for_a_moment(path):
    with closing(open_store(path)) as store, closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = threading.Event()
        store._writer.set_trace_callback(lambda statement: begun.set())
        revisions: list[int] = []
        commit = threading.Thread(
            target=lambda: revisions.append(store.commit(Batch([(b"a", b"1")])))
        )
        commit.start()
        begun.wait()
        other.rollback()
        commit.join()
        store._writer.set_trace_callback(None)
        assert revisions == [1]


def test_a_large_batch_keeps_the_last_put_of_a_key_and_all_of_the_others(path):
    puts = [(b"k%03d" % (n * 7 % 200), b"%d" % n) for n in range(457)]
    with closing(open_store(path)) as store:
        store.commit(Batch(puts))
        stored = [(entry.key, entry.value) for entry in store.scan(b"")]
    assert stored == sorted(dict(puts).items())


# The clock


def count(store: SqliteMetastore, times: int) -> int:
    """Commit as one does who keeps a counter under ``n``, conditional on its version."""
    revision = 0
    for _ in range(times):
        found = store.get(b"n")
        version = found[1] if found else 0
        puts = [(b"a%d" % version, b"x"), (b"n", b"%d" % version)]
        revision = store.commit(Batch(puts), [Condition(b"n", version)])
    return revision


def stored_revision(path: str) -> int:
    """Return the number that a commit without the clock writes."""
    with closing(sqlite3.connect(path)) as database:
        ((number,),) = database.execute("SELECT v FROM meta WHERE k = 'revision'").fetchall()
    return number


def test_invariant_4_commits_that_put_the_clock_write_no_revision_and_it_still_goes_on(path):
    with closing(open_store(path)) as store:
        assert count(store, 5) == 5
        store._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    assert stored_revision(path) == 1
    with closing(open_store(path)) as store:
        assert store.revision() == 5
        assert count(store, 2) == 7


@pytest.mark.parametrize(
    ("batch", "conditions"),
    [
        (Batch([], [b"n"]), []),
        (Batch([(b"n", b"moved"), (b"z", b"")]), []),
        (Batch([(b"m", b"1")]), [Condition(b"m", 0)]),
        (Batch([]), []),
    ],
    ids=["the clock is deleted", "it is not the last put", "another takes over", "nothing is put"],
)
def test_invariant_4_a_commit_beside_the_clock_counts_as_any(path, batch, conditions):
    with closing(open_store(path)) as store:
        count(store, 3)
        assert store.commit(batch, conditions) == 4
    with closing(open_store(path)) as store:
        assert store.revision() == 4
        assert count(store, 2) == 6
        assert store.commit(Batch([(b"b", b"")])) == 7
    with closing(open_store(path)) as store:
        assert store.revision() == 7


def test_a_condition_on_the_clock_is_compared_with_what_is_stored(path):
    with closing(open_store(path)) as store:
        count(store, 3)
        with pytest.raises(ConflictError):
            store.commit(Batch([(b"n", b"")]), [Condition(b"n", 2)])
        store.commit(Batch([], [b"n"]))
        with pytest.raises(ConflictError):
            store.commit(Batch([(b"n", b"")]), [Condition(b"n", 3)])
        store.commit(Batch([(b"n", b"")]), [Condition(b"n", 0)])
        with pytest.raises(InvalidArgumentError):
            store.commit(Batch([(b"o", object()), (b"n", b"")]), [Condition(b"n", 5)])
        assert store.commit(Batch([(b"n", b"")]), [Condition(b"n", 5)]) == 6


def test_a_lost_clock_is_missing_commits_and_no_revision_comes_back(path):
    with closing(open_store(path)) as store:
        count(store, 5)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DELETE FROM kv WHERE k = ?", (b"n",))
        database.commit()
    with pytest.raises(CorruptionError, match="the last 4 commits are missing"):
        open_store(path)
    with closing(open_store(path, accept_loss=True)) as store:
        assert store.commit(Batch([])) == 6


def test_more_readers_than_connections_all_get_their_answer(path):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"k%03d" % n, b"x" * 500) for n in range(200)]))
        seen: list[int] = []
        threads = [
            threading.Thread(target=lambda: seen.extend(len(store.scan(b"k")) for _ in range(10)))
            for _ in range(30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [200] * 300


# The log


def test_the_log_stays_within_a_few_times_its_limit(path):
    with closing(open_store(path, log_limit_bytes=256 << 10)) as store:
        for number in range(1500):
            store.commit(Batch([(b"k%d" % (number % 50), b"x" * 2000)]))
            store.get(b"k0")
        assert os.path.getsize(path + "-wal") < 6 * (256 << 10)


def test_steady_reading_does_not_keep_the_log_growing(path):
    with closing(open_store(path, log_limit_bytes=128 << 10)) as store:
        store.commit(Batch([(b"k%d" % n, b"x" * 2000) for n in range(50)]))
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                store.scan(b"k")

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for number in range(400):
                store.commit(Batch([(b"k%d" % (number % 50), b"y" * 2000)]))
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert os.path.getsize(path + "-wal") < 2 << 20


def test_a_failed_pass_over_the_log_fails_the_store_which_recovers_by_itself(path):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"a", b"1")]))
        failure = sqlite3.OperationalError("disk I/O error")
        failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        store._checkpointer.error = failure
        writer = store._writer
        assert store.commit(Batch([(b"b", b"1")])) == 2
        assert store._writer is not writer
        assert store._checkpointer.error is None


def log_bytes(path: str) -> int:
    return os.path.getsize(path + "-wal")


def test_durable_commits_overwrite_a_log_that_is_filled_ahead(path):
    with closing(open_store(path, log_limit_bytes=1 << 20)) as store:
        store.commit(Batch([(b"a", b"1")]))
        grown = log_bytes(path)
        store.commit(Batch([(b"a", b"2")]), durable=True)
        filled = log_bytes(path)
        assert filled > grown + 50_000
        for number in range(5):
            store.commit(Batch([(b"a", b"%d" % number)]), durable=True)
        assert log_bytes(path) == filled


def test_what_fills_the_log_ahead_is_no_part_of_it_after_a_kill(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    with closing(open_store(path)) as store:
        for number in range(10):
            store.commit(Batch([(b"k%d" % number, b"v")]), durable=True)
        snapshot(store, path, copy)
    assert not any(Path(copy + "-wal").read_bytes()[-50_000:])
    with closing(open_store(copy)) as store:
        assert store.revision() == 10
        assert len(store.scan(b"k")) == 10
        assert store.commit(Batch([(b"more", b"")]), durable=True) == 11


def test_a_full_disk_takes_the_filling_back_and_not_the_commit(path):
    disk = FaultyDisk()
    with closing(open_store(path, disk=disk)) as store:
        store.commit(Batch([(b"a", b"1")]))
        grown = log_bytes(path)
        disk.cut_write(20_000, operation="pwrite_all")
        assert store.commit(Batch([(b"a", b"2")]), durable=True) == 2
        assert log_bytes(path) < grown + 20_000


def test_a_disk_that_fails_to_fill_the_log_fails_the_store(path):
    disk = FaultyDisk()
    with closing(open_store(path, disk=disk)) as store:
        disk.fail("pwrite_all")
        with pytest.raises(StorageFailedError):
            store.commit(Batch([(b"a", b"1")]), durable=True)
        assert store.revision() == 0
        assert store.commit(Batch([(b"a", b"2")]), durable=True) > 0
        assert store.get(b"a")[0] == b"2"


def snapshot(store: SqliteMetastore, path: str, target: str) -> None:
    """Copy what a kill of the process would leave behind."""
    for suffix in ("", "-wal", ".head"):
        # A child copies: closing the files here would drop the locks of SQLite.
        subprocess.run(["cp", path + suffix, target + suffix], check=True)


def test_a_lost_end_of_the_log_is_an_error_and_its_revisions_never_come_back(path, tmp_path):
    copy = str(tmp_path / "copy.db")
    with closing(open_store(path)) as store:
        for number in range(10):
            store.commit(Batch([(b"k%d" % number, b"v")]))
        snapshot(store, path, copy)
    os.truncate(copy + "-wal", os.path.getsize(copy + "-wal") - 100)
    for _ in range(2):
        with pytest.raises(CorruptionError, match="the last 1 commits are missing"):
            open_store(copy)
    with closing(open_store(copy, accept_loss=True)) as store:
        assert store.get(b"k8") is not None
        assert store.get(b"k9") is None
    with closing(open_store(copy)) as store:
        assert store.commit(Batch([])) == 11


def test_synced_commits_that_are_missing_are_noticed_after_another_boot(tmp_path):
    head = str(tmp_path / "head")
    with closing(HeadFile(head, identity=7, disk=Disk(), boot=1)) as first:
        first.record_synced(5)
        first.record(9)
        assert first.newest() == 9
    with closing(HeadFile(head, identity=7, disk=Disk(), boot=2)) as second:
        assert second.newest() == 5
    with closing(HeadFile(head, identity=8, disk=Disk(), boot=1)) as stranger:
        assert stranger.newest() == 0


def test_no_flipped_bit_raises_the_witness(tmp_path):
    head = tmp_path / "head"
    with closing(HeadFile(str(head), identity=7, disk=Disk(), boot=1)) as file:
        for revision in range(1, 6):
            file.record(revision)
            file.record_synced(revision)
    good = head.read_bytes()
    for slot in (0, 512, 1024, 1536):
        for bit in range(24 * 8):
            damaged = bytearray(good)
            damaged[slot + bit // 8] ^= 1 << bit % 8
            head.write_bytes(damaged)
            with closing(HeadFile(str(head), identity=7, disk=Disk(), boot=1)) as file:
                assert file.newest() == 5


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 4096, None])
def test_a_damaged_or_missing_witness_is_made_anew(path, damage):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"a", b"1")]))
    os.unlink(path + ".head")
    if damage is not None:
        with open(path + ".head", "wb") as file:
            file.write(damage)
    with closing(open_store(path)) as store:
        assert store.get(b"a") == (b"1", 1)


# Damage


def sealed(key: bytes, value: bytes) -> bytes:
    return value + xxhash.xxh3_64_digest(key + value)


def is_sealed(key: bytes, stored: bytes) -> bool:
    return xxhash.xxh3_64_digest(key + stored[:-8]) == stored[-8:]


@pytest.fixture(scope="module")
def resting_store(tmp_path_factory):
    """A store killed with half of its records in the file and half in the log."""
    directory = tmp_path_factory.mktemp("resting")
    path, copy = str(directory / "m.db"), str(directory / "copy.db")
    keys = [b"k%05d" % n for n in range(200)]
    with closing(open_store(path)) as store:
        for half in (keys[::2], keys[1::2]):
            for key in half:
                store.commit(Batch([(key, sealed(key, key * 20))]))
            if half[0] == keys[0]:
                store.close()
                store.__init__(path, disk=Disk(), create=False, reserve_bytes=0)
        snapshot(store, path, copy)
    return copy, keys


@pytest.mark.parametrize("suffix", ["", "-wal"])
@pytest.mark.parametrize("accept_loss", [False, True])
def test_a_flipped_bit_never_yields_a_wrong_value(resting_store, tmp_path, suffix, accept_loss):
    source, keys = resting_store
    path = str(tmp_path / "m.db")
    chance = random.Random(suffix)
    outcomes = {"error": 0, "absent": 0, "right": 0, "unsealed": 0}
    for _ in range(60):
        for name in ("", "-wal", ".head"):
            shutil.copyfile(source + name, path + name)
        bit = chance.randrange(os.path.getsize(path + suffix) * 8)
        with open(path + suffix, "r+b") as file:
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))
        try:
            store = open_store(path, create=False, accept_loss=accept_loss)
        except CorruptionError:
            outcomes["error"] += 1
            continue
        finally:
            assert not os.path.exists(path + ".new")
        with closing(store):
            for key in keys:
                outcomes[outcome_of(store, key)] += 1
            scan_to_the_end(store)
    if suffix == "-wal" and not accept_loss:
        # Each of its frames holds acknowledged commits, so none can be lost unseen.
        assert outcomes == {"error": 60, "absent": 0, "right": 0, "unsealed": 0}
    else:
        assert outcomes["right"] > 0


def outcome_of(store: SqliteMetastore, key: bytes) -> str:
    try:
        found = store.get(key)
    except CorruptionError:
        return "error"
    if found is None:
        return "absent"
    if not is_sealed(key, found[0]):
        return "unsealed"
    assert found[0] == sealed(key, key * 20)
    return "right"


def scan_to_the_end(store: SqliteMetastore) -> None:
    last = b""
    while True:
        try:
            page = store.scan(b"", last, 50)
        except CorruptionError:
            return
        if not page:
            return
        assert page[0].key > last
        last = page[-1].key


def test_what_is_not_a_store_of_ours_is_a_clear_error(path):
    def expect(reason: str) -> None:
        with pytest.raises(CorruptionError, match=reason) as caught:
            open_store(path)
        assert caught.value.path == path

    for content in (b"", b"SQLite format 3\0"):
        with open(path, "wb") as file:
            file.write(content)
        expect("cut short")
    with open(path, "wb") as file:
        file.write(random.Random(1).randbytes(8192))
    expect("not a SQLite database")
    os.unlink(path)
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("CREATE TABLE t(x)")
    expect("another program's SQLite database")
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute(f"PRAGMA application_id={0x4E584D53}")
        foreign.execute("PRAGMA journal_mode=WAL").fetchall()
    expect("the tables are not a metastore's")


def test_a_truncated_file_is_corruption(path):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"k%d" % n, b"x" * 1000) for n in range(100)]))
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(CorruptionError):
        open_store(path)


# Opening and creating


def test_without_create_an_absent_store_is_not_found(path):
    with pytest.raises(PathNotFoundError):
        open_store(path, create=False)
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EACCES, AccessDeniedError), (errno.EROFS, ReadOnlyError), (errno.ENOSPC, NoSpaceError)],
)
def test_a_directory_that_takes_no_files_is_named_as_the_cause(path, number, expected):
    disk = FaultyDisk()
    with disk.failing("open", number), pytest.raises(expected):
        open_store(path, disk=disk)
    with closing(open_store(path)) as store:
        store.commit(Batch([]))
    with disk.failing("open", number), pytest.raises(expected):
        open_store(path, disk=disk)


@pytest.mark.parametrize("operation", ["fsync", "rename", "fsync_directory", "close", "open"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_creation_that_fails_leaves_nothing_in_the_way_of_the_next(path, operation, nth):
    disk = FaultyDisk()
    disk.fail(operation, nth=nth)
    try:
        open_store(path, disk=disk).close()
    except NexusError:
        disk.heal()
    with closing(open_store(path)) as store:
        assert store.commit(Batch([(b"a", b"")]), durable=True) == 1
    assert not os.path.exists(path + ".new")


def test_a_log_without_its_store_is_not_replayed_into_a_new_one(path):
    with open(path + "-wal", "wb") as file:
        file.write(b"commits")
    with pytest.raises(CorruptionError, match="the store is gone"):
        open_store(path)


CREATE_AND_DIE = """
import os, random, signal, sys
from nexus.contracts.metastore import Batch
from nexus.lib.disk import Disk
from nexus.storage.metastore.sqlite import SqliteMetastore

directory = sys.argv[1]
chance = random.Random(7)
died = 0
for number in range(25):
    path = f"{directory}/m{number}.db"
    child = os.fork()
    if child == 0:
        # The default action of SIGALRM ends the process at once, wherever it is.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0, 0.008) + 1e-6)
        SqliteMetastore(path, disk=Disk(), create=True, reserve_bytes=0).close()
        os._exit(0)
    chance.random()
    died += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    store = SqliteMetastore(path, disk=Disk(), create=True, reserve_bytes=0)
    assert store.commit(Batch([(b"a", b"1")])) == 1
    store.close()
    assert not os.path.exists(path + ".new")
print(died)
"""


def test_a_creation_killed_at_any_moment_can_be_repeated(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CREATE_AND_DIE, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1


WRITE_FOREVER = """
import itertools, os, sys, threading
from nexus.contracts.metastore import Batch
from nexus.lib.disk import Disk
from nexus.storage.metastore.sqlite import SqliteMetastore

store = SqliteMetastore(sys.argv[1], disk=Disk(), create=True, reserve_bytes=0,
                        log_limit_bytes=256 << 10)

def write(name):
    for number in itertools.count():
        puts = [(b"%d/%06d/%d" % (name, number, part), b"x" * 700) for part in range(3)]
        store.commit(Batch(puts), durable=number % 20 == 0)
        os.write(1, b"%d/%06d\\n" % (name, number))

for name in range(3):
    threading.Thread(target=write, args=(name,)).start()
"""


@pytest.mark.parametrize("answers_until_kill", [1, 20, 150, 600])
def test_what_was_acknowledged_survives_a_kill_and_nothing_is_half_there(path, answers_until_kill):
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, path], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        answers = [child.stdout.readline() for _ in range(answers_until_kill)]
        child.send_signal(signal.SIGKILL)
        answers += child.stdout.readlines()
    with closing(open_store(path)) as store:
        stored = all_keys(store)
        assert store.revision() >= len(answers)
    whole = {key[:-2] for key in stored}
    assert len(stored) == 3 * len(whole)
    assert {answer.strip() for answer in answers if answer.endswith(b"\n")} <= whole


def all_keys(store: SqliteMetastore) -> set[bytes]:
    keys: list[bytes] = []
    while page := store.scan(b"", keys[-1] if keys else b""):
        keys += [entry.key for entry in page]
    return set(keys)


# A full disk


def fill(directory: str) -> str:
    """Take all free space with one file; return its path."""
    filler = directory + "/filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while os.statvfs(directory).f_bavail:
            os.write(fd, bytes(4096))
    finally:
        os.close(fd)
    return filler


def commit_until_full(store: SqliteMetastore) -> int:
    number = 0
    try:
        while True:
            store.commit(Batch([(b"k%05d" % number, os.urandom(8000))]))
            number += 1
    except NoSpaceError:
        return number


def a_full_store_can_be_emptied(directory: str) -> None:
    path = directory + "/m.db"
    with open(directory + "/other", "wb") as other:
        other.write(bytes(2 << 20))
    with closing(open_store(path, reserve_bytes=RESERVE_BYTES)) as store:
        stored = commit_until_full(store)
        fill(directory)
        assert stored > 50
        with pytest.raises(NoSpaceError):
            store.commit(Batch([(b"more", bytes(60000))]))
        assert store.get(b"more") is None
        assert len(all_keys(store)) == stored
    # A restart on the full disk.
    with closing(open_store(path, reserve_bytes=RESERVE_BYTES)) as store:
        for number in range(40):
            store.commit(Batch([], [b"k%05d" % number]), reclaim=True)
        assert len(all_keys(store)) == stored - 40
        assert os.path.getsize(path + ".reserve") == 0
        with pytest.raises(NoSpaceError):
            store.commit(Batch([(b"more", bytes(60000))]))
        os.unlink(directory + "/other")
        store.commit(Batch([(b"more", bytes(60000))]), durable=True)
        assert os.path.getsize(path + ".reserve") == RESERVE_BYTES


def test_a_full_disk_can_be_emptied_and_the_reserve_comes_back(tmp_path):
    run_on_small_disk(a_full_store_can_be_emptied, str(tmp_path), size_bytes=8 << 20)


def a_store_that_never_fitted_leaves_no_trace(directory: str) -> None:
    filler = fill(directory)
    with pytest.raises(NoSpaceError):
        open_store(directory + "/m.db")
    os.unlink(filler)
    with closing(open_store(directory + "/m.db")) as store:
        assert store.revision() == 0


def test_creation_on_a_full_disk_fails_whole(tmp_path):
    run_on_small_disk(a_store_that_never_fitted_leaves_no_trace, str(tmp_path), size_bytes=1 << 20)


def test_the_stores_own_check_finds_a_damaged_tree(tmp_path):
    path = tmp_path / "meta.db"
    with closing(SqliteMetastore(str(path), disk=Disk(), create=True)) as store:
        store.commit(Batch([(b"key-%05d" % n, bytes(200)) for n in range(500)]))
        assert store.check() == []
    data = bytearray(path.read_bytes())
    leaf = data.rindex(b"key-00499") // 4096 * 4096
    data[leaf + 8] ^= 0x10  # a pointer to a cell, in the page's header
    path.write_bytes(data)
    with closing(SqliteMetastore(str(path), disk=Disk(), create=False)) as store:
        assert store.check()


@pytest.mark.parametrize("name", ["a b?c#d%20e.db", "%3f.db", "é.db"])
def test_a_path_may_have_any_characters(tmp_path, name):
    path = str(tmp_path / name)
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"a", b"1")]))
    assert os.path.getsize(path)
    with closing(open_store(path, create=False)) as store:
        assert store.get(b"a") is not None


def test_no_other_process_gets_at_a_store_that_is_open(path):
    read = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT v FROM meta')"
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"a", b"1")]))
        other = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True)
    assert "database is locked" in other.stderr


@pytest.mark.parametrize("column", ["ver", "v"])
def test_a_damaged_row_that_was_met_keeps_nothing_open(path, column):
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"a%d" % n, b"1") for n in range(20)]))
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE kv SET {column} = 'text' WHERE k = ?", (b"a5",))
        database.commit()
    with closing(open_store(path)) as store:
        store.commit(Batch([(b"b", b"1")]))
        with pytest.raises(CorruptionError) as met:
            store.scan(b"")
        with pytest.raises(CorruptionError) as met_too:
            store.get(b"a5")
    open_files = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    assert path not in open_files
    # To here, with all the frames that they went through.
    del met, met_too
