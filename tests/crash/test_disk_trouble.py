"""Full, failing and read-only disks: nothing is half done, reads go on, and it heals by itself."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.contracts.errors import (
    NexusError,
    NoSpaceError,
    ReadOnlyError,
    StorageError,
)
from nexus.factory.boot import Settings, boot
from nexus.sdk import NexusFilesystem, collect, connect, fsck
from nexus.testing.faults import FaultyDisk
from nexus.testing.small_disk import run_on_small_disk

NOBODY = 65534


def tree_of(nx: NexusFilesystem) -> dict[str, bytes | None]:
    entries = nx.list("/", recursive=True, details=True)
    return {e["path"]: None if e["is_directory"] else nx.read(e["path"]) for e in entries}


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def bytes_below(root: Path) -> int:
    """Return how much of the disk the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in root.rglob("*") if path.is_file())


# -- a full disk ----------------------------------------------------------------------------------


def fill(nx: NexusFilesystem, rng: random.Random, size_bytes: int) -> None:
    """Write files until one of this size does not fit any more."""
    for number in range(10_000):
        try:
            nx.write(f"/fill/{size_bytes}-{number}", rng.randbytes(size_bytes))
        except NoSpaceError as error:
            assert error.path is not None or error.hint  # noqa: PT017 - the point is to go on
            return
    raise AssertionError("the disk is not small")


def full_disk_body(mount_point: str) -> None:
    rng = random.Random(1)
    with connect({"data_dir": f"{mount_point}/data"}) as nx:
        nx.write("/kept/small", b"small")
        nx.write("/kept/large", rng.randbytes(1 << 21))
        for size_bytes in (700_000, 60_000, 3000):
            fill(nx, rng, size_bytes)
        before = tree_of(nx)
        refuse_every_write(nx, rng)
        assert tree_of(nx) == before
        report = fsck(nx)
        assert report.clean, report.problems
        nx.sys_unlink("/fill", recursive=True)
        assert nx.sys_stat("/fill") is None
        for _ in range(2):  # the second run deletes what the first one set aside
            collect(nx, retention_s=0, grace_s=0)
        nx.write("/after/large", b"x" * (1 << 21))
        nx.write("/kept/small", b"changed")
        after = tree_of(nx)
        assert after["/kept/large"] == before["/kept/large"]
        assert after["/kept/small"] == b"changed"
    with connect({"data_dir": f"{mount_point}/data"}) as nx:
        assert tree_of(nx) == after
        assert fsck(nx).clean


def refuse_every_write(nx: NexusFilesystem, rng: random.Random) -> None:
    big = rng.randbytes(1 << 21)
    with pytest.raises(NoSpaceError):
        nx.write("/kept/small", big)
    with pytest.raises(NoSpaceError):
        nx.write("/new/file", big)
    with pytest.raises(NoSpaceError):
        nx.append("/kept/large", big)
    with pytest.raises(NoSpaceError):
        nx.sys_write("/kept/large", big, offset=9)
    with pytest.raises(NoSpaceError):
        nx.write_batch({"/kept/small": b"batch", "/new/one": b"batch", "/new/two": big})


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_refuses_writes_whole_and_is_emptied_without_reopening(
    tmp_path: Path,
) -> None:
    run_on_small_disk(full_disk_body, str(tmp_path), size_bytes=20 << 20)


# -- failing syncs and writes ------------------------------------------


def strict(path: Path, disk: FaultyDisk, metastore: str) -> NexusFilesystem:
    settings = Settings(data_dir=str(path), durability="strict", metastore=metastore)
    return boot(settings, disk=disk)


def as_killed(path: Path, copy: Path) -> dict[str, bytes | None]:
    """Return what a start after SIGKILL at this moment would find; it is checked too."""
    shutil.copytree(path, copy)
    with connect({"data_dir": str(copy)}) as nx:
        report = fsck(nx)
        assert report.clean, report.problems
        return tree_of(nx)


def test_nothing_is_acknowledged_while_syncs_fail_and_writing_heals_by_itself(
    tmp_path: Path,
) -> None:
    disk = FaultyDisk()
    # Every sync of this store is the disk's; those of redb are its engine's.
    with strict(tmp_path / "data", disk, "sqlite") as nx:
        nx.write("/old", b"old")
        for operation in ("fsync", "fdatasync", "syncfs"):
            disk.fail_always(operation)
        for number in range(3):
            with pytest.raises(StorageError):
                nx.write("/old", b"new %d" % number)
            with pytest.raises(StorageError):
                nx.write_batch({"/one": b"1", "/two": b"2"})
            with pytest.raises(StorageError):
                nx.mkdir(f"/directory{number}")
            assert nx.read("/old") == b"old" or number == 0
            assert nx.sys_stat("/") is not None
        disk.heal()
        nx.write("/later", b"later")
        nx.write("/old", b"newest")
        expected = {"/later": b"later", "/old": b"newest"}
        found = tree_of(nx)
        assert found | expected == found
        assert fsck(nx).clean
        assert as_killed(tmp_path / "data", tmp_path / "copy") == found


@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize(
    "operation",
    ["fsync", "fdatasync", "fsync_directory", "write_all", "pwrite_all", "rename", "open"],
)
def test_one_failing_call_in_a_strict_write_leaves_old_or_new_and_the_next_write_succeeds(
    tmp_path: Path, metastore: str, operation: str, nth: int
) -> None:
    disk = FaultyDisk()
    acknowledged: dict[str, bytes | None] = {"/a": b"a0", "/b": b"b0"}
    with strict(tmp_path / "data", disk, metastore) as nx:
        nx.write_batch({"/a": b"a0", "/b": b"b0"})
        disk.fail(operation, errno.EIO, nth=nth)
        try:
            nx.write_batch({"/a": b"a1", "/b": b"b1"})
            acknowledged = {"/a": b"a1", "/b": b"b1"}
        except StorageError:
            pass
        # Never acknowledged and yet there is allowed after a failed sync, half of it is not.
        assert tree_of(nx) in (acknowledged, {"/a": b"a1", "/b": b"b1"})
        disk.heal()
        nx.write("/c", b"c")
        found = tree_of(nx)
        assert found.pop("/c") == b"c"
        assert found in (acknowledged, {"/a": b"a1", "/b": b"b1"})
        assert fsck(nx).clean
        assert as_killed(tmp_path / "data", tmp_path / "copy") == found | {"/c": b"c"}


@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize("error_number", [errno.EIO, errno.ENOSPC])
def test_a_failed_content_write_names_nothing_and_leaves_nothing_behind(
    tmp_path: Path, nth: int, error_number: int
) -> None:
    disk = FaultyDisk()
    data = random.Random(2).randbytes(3 << 20)  # several chunks, so that some are stored before
    with boot(Settings(data_dir=str(tmp_path / "data")), disk=disk) as nx:
        nx.write("/old", b"old")
        before = bytes_below(tmp_path / "data" / "content")
        disk.cut_write(1000, error_number, nth=nth, operation="pwrite_all")
        with pytest.raises(StorageError) as caught:
            nx.write("/new", data)
        assert isinstance(caught.value, NoSpaceError) == (error_number == errno.ENOSPC)
        assert nx.list("/") == ["/old"]
        assert nx.read("/old") == b"old"
        assert fsck(nx).clean
        for _ in range(2):
            collect(nx, retention_s=0, grace_s=0)
        assert (
            bytes_below(tmp_path / "data" / "content") <= before + 4096
        )  # one more segment header
        nx.write("/new", data)
        assert nx.read("/new") == data


def test_a_failing_disk_at_creation_leaves_what_the_next_start_finishes(
    tmp_path: Path, metastore: str
) -> None:
    calls = FaultyDisk()
    strict(tmp_path / "counted", calls, metastore).close()
    for operation in sorted(calls.calls):
        for nth in range(1, calls.calls[operation] + 1):
            disk = FaultyDisk()
            disk.fail(operation, nth=nth)
            path = tmp_path / f"{operation}{nth}"
            try:
                strict(path, disk, metastore).close()
            except (NexusError, OSError) as error:
                assert isinstance(error, NexusError), (operation, nth, error)  # noqa: PT017
            with connect({"data_dir": str(path)}) as nx:
                nx.write("/works", b"yes")
                assert fsck(nx).clean


# -- disks and folders that take no writes ------------------------------------------


def read_only_body(mount_point: str) -> None:
    with connect({"data_dir": f"{mount_point}/data"}) as nx:
        nx.write("/file", b"there")
    subprocess.run(["mount", "-o", "remount,ro", mount_point], check=True)
    before = files_below(Path(mount_point))
    for name in ("data", "new"):
        with pytest.raises(ReadOnlyError) as caught:
            connect({"data_dir": f"{mount_point}/{name}"})
        assert mount_point in str(caught.value)
    assert files_below(Path(mount_point)) == before
    subprocess.run(["mount", "-o", "remount,rw", mount_point], check=True)
    with connect({"data_dir": f"{mount_point}/data"}) as nx:
        assert nx.read("/file") == b"there"


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_read_only_disk_is_a_read_only_error_and_nothing_is_created(tmp_path: Path) -> None:
    run_on_small_disk(read_only_body, str(tmp_path), size_bytes=16 << 20)


OPEN_AS_NOBODY = f"""
import os, sys
from nexus.contracts.errors import NexusError
from nexus.sdk import connect
import nexus.storage.metastore.redb, nexus.storage.metastore.sqlite
if os.geteuid() == 0:
    os.setuid({NOBODY})
try:
    connect({{"data_dir": sys.argv[1], "user": "nobody"}})
except NexusError as error:
    print(type(error).__name__, error.path)
"""


def test_a_folder_of_someone_else_is_access_denied_and_nothing_is_created(
    tmp_path: Path,
) -> None:
    # A child without rights has to be able to reach the folder, but not to write in it.
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == Path.home().owner() and folder.name.startswith("pytest-"):
            folder.chmod(0o755)
    tmp_path.chmod(0o555)
    command = [sys.executable, "-c", OPEN_AS_NOBODY, str(tmp_path / "data")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert answer.split() == ["AccessDeniedError", str(tmp_path / "data")]
    assert os.listdir(tmp_path) == []
    tmp_path.chmod(0o755)
