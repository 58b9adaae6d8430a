"""A conversion carries everything over, and whatever ends it leaves the old store or the new."""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.errors import (
    ConfigError,
    CorruptionError,
    DataDirectoryLockedError,
    NexusError,
    NoSpaceError,
    PathNotFoundError,
)
from nexus.contracts.metastore import Batch, MetastoreABC, StoredEntry
from nexus.factory.data_directory import metastore_of
from nexus.factory.metastores import FILES, metastore_class
from nexus.lib import native
from nexus.lib.disk import Disk
from nexus.sdk import DT_MOUNT, NexusFilesystem, connect, convert, fsck
from nexus.testing.faults import FaultyDisk, KilledError, KillingDisk
from nexus.testing.small_disk import run_on_small_disk

pytestmark = pytest.mark.skipif(
    native.chosen().module is None, reason="the Rust kernel is not built, or not asked for"
)
OTHER = {"sqlite": "redb", "redb": "sqlite"}
State = tuple[int, list[StoredEntry]]


def fill(path: Path, metastore: str) -> None:
    rng = random.Random(3)
    with connect({"data_dir": str(path), "metastore": metastore}) as nx:
        for number in range(40):
            nx.write(f"/docs/{number % 4}/f{number}", rng.randbytes(200))
        nx.append("/docs/0/f0", b"more")
        nx.sys_unlink("/docs/1/f1")
        nx.sys_rename("/docs/3", "/moved")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, metastore: str) -> Path:
    path = tmp_path_factory.mktemp("filled") / "data"
    fill(path, metastore)
    return path


@contextmanager
def store_of(path: Path) -> Iterator[MetastoreABC]:
    name = metastore_of(str(path), "auto").name
    file = str(path / FILES[name])
    kind = metastore_class(name, str(path))
    with closing(kind(file, disk=Disk(), create=False, reserve_bytes=0)) as store:
        yield store


def state_of(path: Path) -> State:
    with store_of(path) as store:
        return store.revision(), store.scan(b"", limit=100_000)


def tree_of(nx: NexusFilesystem) -> dict[str, Any]:
    stats = nx.list("/", recursive=True, details=True)
    return {s["path"]: None if s["is_directory"] else nx.read(s["path"]) for s in stats}


def assert_only(path: Path, name: str) -> None:
    """Check that nothing of a conversion, or of the other store, is left."""
    left = os.listdir(path)
    assert "convert" not in left
    other = FILES[OTHER[name]]
    assert [f for f in left if f.startswith(other) and not f.startswith(other + ".kept")] == []


def assert_whole(path: Path, source: str, before: State) -> str:
    """Open what an ended conversion left; return which store it is."""
    with connect({"data_dir": str(path)}) as nx:
        assert fsck(nx).clean
        assert len(tree_of(nx)) > 40
    name = metastore_of(str(path), "auto").name
    assert name in (source, OTHER[source])
    assert_only(path, name)
    assert state_of(path) == before
    return name


def test_there_and_back_every_record_its_version_and_the_revision_are_the_same(
    filled: Path, metastore: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    shutil.copytree(filled, path)
    before = state_of(path)
    there = convert(str(path), OTHER[metastore])
    assert (there.source, there.target) == (metastore, OTHER[metastore])
    assert (there.revision, there.records) == (before[0], len(before[1]))
    assert state_of(path) == before
    assert_only(path, OTHER[metastore])
    back = convert(str(path), metastore)
    assert back.checksum == there.checksum
    assert state_of(path) == before
    assert_only(path, metastore)


def test_history_locks_mounts_and_watches_go_on_after_it(tmp_path: Path, metastore: str) -> None:
    path, folder = tmp_path / "data", tmp_path / "mounted"
    with connect({"data_dir": str(path), "metastore": metastore}) as nx:
        nx.sys_setattr(
            "/m", entry_type=DT_MOUNT, backend={"driver": "cas_local", "root": str(folder)}
        )
        nx.write("/m/there", b"mounted")
        nx.write("/f", b"one")
        nx.write("/f", b"two")
        held = nx.sys_lock("/f", ttl=3600)
        assert held
        since = nx.write("/g", b"last")["revision"]
        history = list(nx.history("/f"))
    convert(str(path), OTHER[metastore])
    with connect({"data_dir": str(path)}) as nx:
        assert list(nx.history("/f")) == history
        assert nx.read("/f", version=1) == b"one"
        assert nx.read("/m/there") == b"mounted"
        assert nx.sys_lock("/f") is None
        nx.write("/f", b"three", lock_token=held.token)
        event = nx.sys_watch("/", 0, since=since)
        assert event
        assert event.revision > since
        assert nx.sys_unlock("/f", held)
        assert fsck(nx).clean


def test_the_old_store_can_be_kept_and_opens_by_itself(
    filled: Path, metastore: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    shutil.copytree(filled, path)
    before = state_of(path)
    report = convert(str(path), OTHER[metastore], keep=True)
    assert report.kept == FILES[metastore] + ".kept"
    kept = metastore_class(metastore, str(path))(
        str(path / report.kept), disk=Disk(), create=False, reserve_bytes=0
    )
    with closing(kept):
        assert (kept.revision(), kept.scan(b"", limit=100_000)) == before
    assert_only(path, OTHER[metastore])
    convert(str(path), metastore)
    with pytest.raises(ConfigError, match="is in the way"):
        convert(str(path), OTHER[metastore], keep=True)


@pytest.mark.parametrize("keep", [False, True])
def test_an_end_at_any_system_call_leaves_the_old_store_or_the_new_one(
    filled: Path, metastore: str, tmp_path: Path, keep: bool
) -> None:
    before = state_of(filled)
    found = []
    for nth in range(1, 1000):
        path = tmp_path / str(nth)
        shutil.copytree(filled, path)
        try:
            convert(str(path), OTHER[metastore], keep=keep, disk=KillingDisk(nth))
            break
        except KilledError:
            found.append(assert_whole(path, metastore, before))
            kept = (path / (FILES[metastore] + ".kept")).exists()
            assert kept == (keep and found[-1] != metastore)
        shutil.rmtree(path)
    assert found == sorted(found, key=lambda name: name != metastore)
    assert set(found) == {"sqlite", "redb"}


@pytest.mark.parametrize("operation", ["fsync", "rename", "unlink", "rmdir"])
def test_a_failing_call_leaves_the_old_store_or_the_new_one(
    filled: Path, metastore: str, tmp_path: Path, operation: str
) -> None:
    before = state_of(filled)
    for nth in range(1, 1000):
        path = tmp_path / str(nth)
        shutil.copytree(filled, path)
        disk = FaultyDisk()
        disk.fail(operation, nth=nth)
        try:
            convert(str(path), OTHER[metastore], disk=disk)
        except (NexusError, OSError) as error:
            assert isinstance(error, NexusError), error  # noqa: PT017
        assert_whole(path, metastore, before)
        shutil.rmtree(path)
        if disk.calls[operation] < nth:
            break


CONVERT = """
import sys
from nexus.sdk import convert
print("ready", flush=True)
sys.stdin.readline()
convert(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("seed", range(8))
def test_a_kill_at_any_moment_leaves_the_old_store_or_the_new_one(
    filled: Path, metastore: str, tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "data"
    shutil.copytree(filled, path)
    before = state_of(path)
    command = [sys.executable, "-c", CONVERT, str(path), OTHER[metastore]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == b"ready\n"
        child.stdin.write(b"\n")
        child.stdin.flush()
        for _ in range(random.Random(seed).randrange(2_000_000)):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert_whole(path, metastore, before)
    if metastore_of(str(path), "auto").name == metastore:
        convert(str(path), OTHER[metastore])
    assert state_of(path) == before


def test_a_damaged_record_is_refused_by_its_key_and_nothing_is_changed(
    filled: Path, metastore: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    shutil.copytree(filled, path)
    with store_of(path) as store:
        key, value, _ = store.scan(b"V")[3]
        store.commit(Batch([(key, value[:-1] + bytes([value[-1] ^ 1]))]))
    before = state_of(path)
    with pytest.raises(CorruptionError) as caught:
        convert(str(path), OTHER[metastore])
    assert repr(key) in caught.value.reason
    assert "nexus fsck" in str(caught.value.hint)
    assert_only(path, metastore)
    assert state_of(path) == before


def full_disk_body(mount_point: str) -> None:
    for source, to in OTHER.items():
        path = Path(mount_point) / source
        with connect({"data_dir": str(path), "metastore": source}) as nx:
            for number in range(20):
                nx.write_batch({f"/d{number}/f{n}": b"x" for n in range(100)})
        before = state_of(path)
        filler = Path(mount_point) / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        for _ in range(2):  # not even the owner's pid has room; and that locks nobody out
            with pytest.raises(NoSpaceError):
                convert(str(path), to)
        os.truncate(filler, filler.stat().st_size - (256 << 10))
        with pytest.raises(NoSpaceError):
            convert(str(path), to)
        assert_only(path, source)
        filler.unlink()
        assert state_of(path) == before
        convert(str(path), to)
        assert state_of(path) == before
        shutil.rmtree(path)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_leaves_the_old_store(tmp_path: Path) -> None:
    run_on_small_disk(full_disk_body, str(tmp_path), size_bytes=48 << 20)


def test_a_directory_in_use_or_not_there_or_converted_already_is_refused(
    filled: Path, metastore: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    nx = connect({"data_dir": str(path), "metastore": metastore})
    with nx, pytest.raises(DataDirectoryLockedError):
        convert(str(path), OTHER[metastore])
    with pytest.raises(ConfigError, match=f"its metastore is {metastore} already"):
        convert(str(path), metastore)
    with pytest.raises(ConfigError, match="no metastore 'lmdb'"):
        convert(str(path), "lmdb")
    with pytest.raises(PathNotFoundError):
        convert(str(tmp_path / "nowhere"), metastore)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_of_unknown_origin_is_not_touched(
    filled: Path, metastore: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    shutil.copytree(filled, path)
    stranger = path / FILES[OTHER[metastore]]
    stranger.write_bytes(b"somebody's")
    with pytest.raises(ConfigError, match="is in the way"):
        convert(str(path), OTHER[metastore])
    connect({"data_dir": str(path)}).close()
    assert stranger.read_bytes() == b"somebody's"
