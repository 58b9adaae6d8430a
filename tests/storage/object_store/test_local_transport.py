from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexus.contracts.errors import (
    AccessDeniedError,
    ClosedError,
    ContentNotFoundError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
    NameTooLongError,
    NoSpaceError,
    PathNotDirectoryError,
    StorageError,
    StorageFailedError,
)
from nexus.contracts.object_store import TransportABC
from nexus.storage.object_store import local_sync
from nexus.storage.object_store.local_transport import LocalTransport
from nexus.storage.object_store.staging import STAGING_PREFIX, is_leftover, staging_name
from nexus.testing.faults import FaultyDisk
from nexus.testing.transport import TransportSuite, keys_of


class TestOwned(TransportSuite):
    def make(self, folder: Path) -> TransportABC:
        return LocalTransport(str(folder))

    def mode_after_overwriting(self, mode: int) -> int:
        return 0o644  # keeping it would cost the hot path a stat, and nobody sets it there


class TestConfined(TransportSuite):
    def make(self, folder: Path) -> TransportABC:
        return LocalTransport(str(folder), confined=True)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def disk():
    return FaultyDisk()


@pytest.fixture(params=[False, True], ids=["owned", "confined"])
def local(request, root, disk):
    transport = LocalTransport(str(root), disk=disk, confined=request.param)
    yield transport
    transport.close()


@pytest.fixture
def confined(root):
    transport = LocalTransport(str(root), confined=True)
    yield transport
    transport.close()


def everything_in(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# -- the hot path -----------------------------------------------------------------------------


def test_storing_is_four_calls_and_fetching_a_range_three(root):
    disk = FaultyDisk()
    transport = LocalTransport(str(root), disk=disk)
    transport.store("d/warm", b"")
    disk.calls.clear()
    transport.store("d/key", b"value")
    assert disk.calls == {"open": 1, "write_all": 1, "close": 1, "rename": 1}
    disk.calls.clear()
    transport.fetch("d/key", 0, 5)
    assert disk.calls == {"open": 1, "pread": 1, "close": 1}
    transport.close()


# -- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["open", "write_all", "close", "rename"])
def test_a_failed_store_leaves_nothing_behind(local, root, disk, operation):
    local.store("d/old", b"old")
    for key in ("d/old", "d/new"):
        with disk.failing(operation, errno.ENOSPC), pytest.raises(NoSpaceError) as raised:
            local.store(key, b"new")
        assert raised.value.path == key
        with disk.failing(operation, errno.EIO), pytest.raises(StorageError):
            local.store_chunked(key, [b"n", b"ew"])
    assert everything_in(root) == ["d", "d/old"]
    assert local.fetch("d/old") == b"old"


def test_a_disk_that_fills_up_within_a_write_leaves_nothing_behind(local, root, disk):
    disk.cut_write(3)
    with pytest.raises(NoSpaceError):
        local.store("key", b"123456")
    disk.cut_write(1, nth=2)
    with pytest.raises(NoSpaceError):
        local.store_chunked("key", [b"123", b"456"])
    assert everything_in(root) == []


def test_no_descriptor_is_lost_by_failures(local, disk):
    local.store("key", b"value")
    before = len(os.listdir("/proc/self/fd"))
    for operation in ("open", "write_all", "close", "rename", "pread"):
        for call in (
            lambda: local.store("key", b"new"),
            lambda: local.store_chunked("key", [b"new"]),
            lambda: local.fetch("key"),
            lambda: list(local.stream("key")),
        ):
            with disk.failing(operation):
                try:
                    call()
                except StorageError:
                    continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_failed_read_is_a_storage_error(local, disk):
    local.store("key", b"value")
    with disk.failing("pread"), pytest.raises(StorageError, match="Input/output"):
        local.fetch("key")


def test_a_name_that_is_too_long_says_so(local):
    with pytest.raises(NameTooLongError):
        local.store("n" * 256, b"")
    with pytest.raises(NameTooLongError):
        local.fetch("n" * 256)


def test_the_root_is_not_removed_and_must_exist(local, root):
    with pytest.raises(InvalidArgumentError):
        local.remove("")
    with pytest.raises(ContentNotFoundError):
        LocalTransport(str(root / "absent"))
    (root / "file").touch()
    with pytest.raises(PathNotDirectoryError):
        LocalTransport(str(root / "file"))


# -- temporary files --------------------------------------------------------------------------

KILLED_WHILE_STORING = """
import os, signal, sys
from nexus.storage.object_store.local_transport import LocalTransport
def pieces():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
LocalTransport(sys.argv[1]).store_chunked("d/key", pieces())
"""


def test_what_a_killed_process_leaves_is_never_listed_and_holds_no_directory(local, root):
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_STORING, str(root)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = everything_in(root)
    assert len(left) == 2
    assert left[1].startswith(f"d/{STAGING_PREFIX}")
    assert keys_of(local.list_dir("")) == ["d"]
    assert local.list_dir("d") == local.list_keys() == []
    assert local.remove("d") is True


def test_a_temporary_file_in_use_keeps_its_directory(local):
    def pieces():
        yield b"one"
        with pytest.raises(DirectoryNotEmptyError):
            local.remove("d")
        assert local.list_dir("d") == []
        yield b"two"

    local.store_chunked("d/key", pieces())
    assert local.fetch("d/key") == b"onetwo"


def test_leftovers_are_told_by_their_process():
    assert not is_leftover(staging_name())
    assert is_leftover(f"{STAGING_PREFIX}{os.getpid()}-another-0")  # the same pid, reused
    assert not is_leftover(f"{STAGING_PREFIX}{os.getppid()}-alive-0")
    assert is_leftover(f"{STAGING_PREFIX}{2**40}-gone-0")
    assert is_leftover(f"{STAGING_PREFIX}no-pid")


# -- names and permission bits ----------------------------------------------------------------


def test_names_that_are_no_keys_are_left_out(local, root):
    local.store("good", b"")
    for name in (b"bad\xff", b"new\nline", b"del\x7f", "c1\x85".encode()):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).touch()
    assert keys_of(local.list_dir("")) == keys_of(local.list_keys()) == ["good"]


def test_a_page_looks_only_at_its_own_entries(local, root, monkeypatch):
    for number in range(50):
        (root / f"{number:02}").touch()
    looked_at = []
    listing = local._listing()
    info = listing._info
    monkeypatch.setattr(listing, "_info", lambda key: (looked_at.append(key), info(key))[1])
    assert keys_of(local.list_dir("", "09", 3)) == ["10", "11", "12"]
    assert looked_at == ["10", "11", "12"]


def test_new_files_and_directories_have_the_usual_bits_less_the_umask(local):
    before = os.umask(0o027)
    try:
        local.store("d/file", b"")
        local.create_dir("e")
    finally:
        os.umask(before)
    assert [local.info(key).mode for key in ("d/file", "d", "e")] == [0o640, 0o750, 0o750]


@pytest.mark.parametrize("mode", [0o600, 0o755, 0o664])
def test_overwriting_keeps_the_permission_bits(confined, root, mode):
    (root / "file").write_bytes(b"old")
    (root / "file").chmod(mode)
    confined.store("file", b"new")
    assert confined.info("file").mode == mode
    confined.store_chunked("file", [b"newer"])
    assert confined.info("file").mode == mode


# -- links and special files ------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


def test_links_are_followed_inside_the_root(confined, root):
    confined.store("d/file", b"bytes")
    (root / "relative").symlink_to("d/file")
    (root / "absolute").symlink_to(root / "d" / "file")
    (root / "dir").symlink_to("d")
    for key in ("relative", "absolute", "dir/file"):
        assert confined.fetch(key) == b"bytes"
        assert confined.info(key).size == 5
    assert keys_of(confined.list_dir("dir")) == ["dir/file"]
    assert keys_of(confined.list_dir("")) == ["absolute", "d", "dir", "relative"]
    assert keys_of(confined.list_keys()) == ["absolute", "d/file", "dir/file", "relative"]
    confined.store("relative", b"through the link")
    assert confined.fetch("d/file") == b"through the link"
    assert (root / "relative").is_symlink()


@pytest.mark.parametrize("key", ["file", "dir", "dir/secret", "dir/absent", "up/outside/secret"])
def test_a_link_that_leaves_is_denied(confined, root, outside, key):
    (root / "file").symlink_to(outside / "secret")
    (root / "dir").symlink_to("../outside")
    (root / "up").symlink_to("..")
    confined.store("mine", b"mine")
    for call in (
        lambda: confined.info(key),
        lambda: confined.fetch(key),
        lambda: list(confined.stream(key)),
        lambda: confined.store(key, b"x"),
        lambda: confined.store_chunked(key, [b"x"]),
        lambda: confined.remove(key),
        lambda: confined.list_dir(key),
        lambda: confined.create_dir(key),
        lambda: confined.set_mode(key, 0o777),
        lambda: confined.rename_key(key, "stolen"),
        lambda: confined.rename_key("mine", key),
        lambda: confined.copy_key(key, "stolen"),
        lambda: confined.copy_key("mine", key),
    ):
        with pytest.raises(AccessDeniedError):
            call()
    assert everything_in(outside) == ["secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert keys_of(confined.list_dir("")) == keys_of(confined.list_keys()) == ["mine"]


def test_a_root_whose_name_is_a_prefix_of_another_does_not_open_it(confined, root):
    twin = root.parent / "root-twin"
    twin.mkdir()
    (twin / "secret").touch()
    (root / "link").symlink_to("../root-twin")
    with pytest.raises(AccessDeniedError):
        confined.fetch("link/secret")


def test_a_root_reached_through_a_link_is_a_root(root, tmp_path):
    (tmp_path / "alias").symlink_to(root)
    transport = LocalTransport(str(tmp_path / "alias"), confined=True)
    transport.store("key", b"value")
    assert transport.fetch("key") == b"value"
    transport.close()


def test_broken_and_looping_links_are_not_there(confined, root):
    (root / "broken").symlink_to("absent")
    (root / "loop").symlink_to("loop")
    assert confined.list_dir("") == confined.list_keys() == []
    for key in ("broken", "loop"):
        assert confined.info(key) is None
        assert confined.remove(key) is False


def test_a_linked_cycle_of_directories_ends(confined, root):
    confined.store("a/file", b"")
    (root / "a" / "self").symlink_to(".")
    (root / "a" / "top").symlink_to("..")
    (root / "b").mkdir()
    (root / "b" / "to-a").symlink_to("../a")
    assert keys_of(confined.list_keys()) == ["a/file", "b/to-a/file"]


def test_removing_or_moving_a_link_leaves_what_it_leads_to(confined, root):
    confined.store("d/file", b"kept")
    (root / "one").symlink_to("d")
    (root / "two").symlink_to("d/file")
    assert confined.remove("one") is True
    confined.rename_key("two", "three")
    assert (root / "three").is_symlink()
    assert confined.remove("three") is True
    assert confined.fetch("d/file") == b"kept"


def test_special_files_are_not_there_and_never_block(confined, root, monkeypatch):
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to("fifo")
    monkeypatch.chdir(root)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    assert confined.list_dir("") == confined.list_keys() == []
    for key in ("fifo", "link", "socket"):
        assert confined.info(key) is None
        for call in (confined.fetch, lambda key: confined.store(key, b""), confined.remove):
            with pytest.raises(AccessDeniedError):
                call(key)
    assert everything_in(root) == ["fifo", "link", "socket"]


def test_a_file_whose_name_looks_deleted_is_a_file(confined):
    confined.store("file (deleted)", b"here")
    assert confined.fetch("file (deleted)") == b"here"
    confined.store("file (deleted)", b"again")
    assert keys_of(confined.list_keys()) == ["file (deleted)"]


# -- durability -------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["syncfs", "fsync"])
def can_syncfs(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(local_sync, "can_syncfs", lambda: False)
    elif not local_sync.can_syncfs():
        pytest.skip("no syncfs that reports errors here")
    return request.param


def test_few_files_are_synced_one_by_one_with_their_directories(local, disk):
    local.store("d/one", b"1")
    local.store("d/two", b"2")
    disk.calls.clear()
    local.sync()
    # Two files, their directory, and the root in which the directory was made.
    assert (disk.calls["fsync"], disk.calls["fsync_directory"]) == (4, 2)
    assert disk.calls["syncfs"] == 0
    disk.calls.clear()
    local.sync()
    assert not disk.calls


def test_many_files_are_synced_together(local, disk, can_syncfs):
    for number in range(20):
        local.store(f"{number}", b"")
    disk.calls.clear()
    local.sync()
    if can_syncfs:
        assert (disk.calls["syncfs"], disk.calls["fsync"]) == (1, 0)
    else:
        assert (disk.calls["syncfs"], disk.calls["fsync"]) == (0, 21)


def test_what_is_remembered_is_bounded(local, disk, can_syncfs, monkeypatch):
    monkeypatch.setattr(local_sync, "TRACKED_LIMIT", 10)
    for number in range(25):
        local.store(f"d/{number}", b"")
        assert len(local._rounds._noted) <= 10
    disk.calls.clear()
    local.sync()
    if can_syncfs:
        assert disk.calls["syncfs"] == 1
    else:
        assert disk.calls["fsync"] == 25 + 2


def test_removals_and_moves_sync_their_directories(local, disk):
    for key in ("a/one", "a/two", "b/three"):
        local.store(key, b"")
    local.sync()
    local.remove("a/one")
    local.rename_key("a/two", "b/four")
    disk.calls.clear()
    local.sync()
    assert disk.calls["fsync_directory"] == 2
    assert disk.calls["fsync"] == 3  # the moved file, too
    assert disk.calls["syncfs"] == 0


def test_files_in_a_moved_directory_are_still_synced(local, disk, can_syncfs):
    local.store("d/one", b"")
    local.rename_key("d", "e")
    disk.calls.clear()
    local.sync()
    assert disk.calls["syncfs"] == 1 if can_syncfs else disk.calls["fsync"] == 3


def test_a_file_that_someone_else_moved_is_still_synced(local, root, disk, can_syncfs):
    local.store("one", b"")
    (root / "one").rename(root / "two")
    disk.calls.clear()
    local.sync()
    assert disk.calls["syncfs"] == 1 if can_syncfs else disk.calls["fsync"] >= 2


@pytest.mark.parametrize("count", [2, 20])
def test_after_a_failed_sync_files_are_written_to_new_inodes(local, root, disk, can_syncfs, count):
    local.store("clean", b"clean")
    local.sync()
    keys = sorted(f"d/{number}" for number in range(count))
    for key in keys:
        local.store(key, key.encode())
    inodes = {key: (root / key).stat().st_ino for key in [*keys, "clean"]}
    with disk.failing("fsync"), disk.failing("syncfs"):
        for _ in range(2):
            with pytest.raises(StorageFailedError):
                local.sync()
            assert local.suspect_keys() == keys
    local.sync()
    assert local.suspect_keys() == []
    changed = [key for key, inode in inodes.items() if (root / key).stat().st_ino != inode]
    assert sorted(changed) == keys
    assert all(local.fetch(key) == key.encode() for key in keys)
    assert everything_in(root) == sorted(["clean", "d", *keys])


@pytest.mark.parametrize("operation", ["open", "pread", "write_all", "fsync", "rename"])
def test_suspect_files_stay_suspect_while_writing_them_afresh_fails(local, root, disk, operation):
    local.store("key", b"value")
    with disk.failing("fsync"), pytest.raises(StorageFailedError):
        local.sync()
    with disk.failing(operation), pytest.raises(StorageFailedError):
        local.sync()
    assert local.suspect_keys() == ["key"]
    assert everything_in(root) == ["key"]
    local.sync()
    assert local.suspect_keys() == []
    assert local.fetch("key") == b"value"


def test_a_suspect_that_was_moved_is_written_afresh_where_it_is(local, root, disk):
    for key in ("moved", "d/inside", "stolen", "removed"):
        local.store(key, b"")
    with disk.failing("fsync"), disk.failing("syncfs"), pytest.raises(StorageFailedError):
        local.sync()
    local.rename_key("moved", "m")
    local.rename_key("d", "e")
    (root / "stolen").rename(root / "s")
    local.remove("removed")
    before = {key: (root / key).stat().st_ino for key in ("m", "e/inside", "s")}
    local.sync()
    assert all((root / key).stat().st_ino != inode for key, inode in before.items())
    assert local.suspect_keys() == []


def test_after_too_many_to_remember_everything_recent_is_suspect(
    local, root, disk, can_syncfs, monkeypatch
):
    monkeypatch.setattr(local_sync, "TRACKED_LIMIT", 10)
    keys = sorted(f"d/{number}" for number in range(25))
    for key in keys:
        local.store(key, b"")
    with disk.failing("fsync"), disk.failing("syncfs"), pytest.raises(StorageFailedError):
        local.sync()
    assert local.suspect_keys() == keys
    before = {key: (root / key).stat().st_ino for key in keys}
    local.sync()
    assert all((root / key).stat().st_ino != inode for key, inode in before.items())


def test_writing_afresh_does_not_undo_a_newer_store(root):
    class OvertakenDisk(FaultyDisk):
        def pread(self, fd, count, offset):
            piece = super().pread(fd, count, offset)
            if overtake:
                overtake.pop()
                transport.store("key", b"newer")
            return piece

    overtake = []
    disk = OvertakenDisk()
    transport = LocalTransport(str(root), disk=disk)
    transport.store("key", b"older")
    with disk.failing("fsync"), pytest.raises(StorageFailedError):
        transport.sync()
    overtake.append(True)
    transport.sync()
    assert not overtake
    assert transport.fetch("key") == b"newer"
    assert everything_in(root) == ["key"]
    disk.calls.clear()
    transport.sync()  # the newer one was noted by itself
    assert disk.calls["fsync"] == 2
    transport.close()


def test_writing_afresh_keeps_the_permission_bits(local, root, disk):
    local.store("key", b"")
    local.set_mode("key", 0o600)
    with disk.failing("fsync"), pytest.raises(StorageFailedError):
        local.sync()
    local.sync()
    assert local.info("key").mode == 0o600


def test_a_store_during_a_round_belongs_to_the_next(root):
    class SlowDisk(FaultyDisk):
        def fsync_directory(self, path):
            super().fsync_directory(path)
            if late:
                transport.store(late.pop(), b"")

    late = []
    disk = SlowDisk()
    transport = LocalTransport(str(root), disk=disk)
    transport.store("early", b"")
    late.append("late")
    transport.sync()
    disk.calls.clear()
    transport.sync()
    assert disk.calls["fsync"] == 2
    transport.close()


def test_syncing_a_closed_transport_says_so(local):
    local.close()
    local.close()
    with pytest.raises(ClosedError):
        local.sync()


def dead_name(serial: int = 0) -> str:
    return f"{STAGING_PREFIX}{2**40}-00000000-{serial:x}"


def test_a_leftover_directory_does_not_keep_its_parent(root):
    transport = LocalTransport(str(root))
    (root / "d" / dead_name() / "deep").mkdir(parents=True)
    (root / "d" / dead_name() / "deep" / "file").touch()
    assert transport.remove("d") is True
    assert everything_in(root) == []


@pytest.mark.parametrize("confined", [False, True])
def test_leftovers_go_once_nobody_touched_them_for_a_while(root, tmp_path, confined):
    transport = LocalTransport(str(root), confined=confined)
    (root / "d" / dead_name(1)).mkdir(parents=True)
    (root / "d" / dead_name(1) / "half").write_bytes(b"123")
    (root / dead_name(2)).write_bytes(b"45")
    (root / "d" / staging_name()).write_bytes(b"being written")
    (root / f"{STAGING_PREFIX}theirs").write_bytes(b"a name of others")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / dead_name(3)).touch()
    (root / "link").symlink_to(tmp_path / "outside")
    before = everything_in(root)
    written_ns = (root / "d" / dead_name(1) / "half").stat().st_mtime_ns
    assert transport.remove_leftovers(written_ns) == (0, 0)
    later_ns = written_ns + 3600 * 10**9
    assert transport.remove_leftovers(later_ns, dry_run=True) == (2, 5)
    assert everything_in(root) == before
    assert transport.remove_leftovers(later_ns) == (2, 5)
    assert len(everything_in(root)) == len(before) - 3
    assert os.listdir(tmp_path / "outside") == [dead_name(3)]
    assert transport.remove_leftovers(later_ns) == (0, 0)


def test_a_folder_is_known_by_itself_and_those_above_whatever_their_names(root, tmp_path):
    (root / "inner").mkdir()
    (tmp_path / "alias").symlink_to(root / "inner")
    outer = LocalTransport(str(root))
    inner = LocalTransport(str(tmp_path / "alias"))
    assert outer.place[-1] in inner.place
    assert inner.place[-1] not in outer.place


def test_a_link_does_not_replace_what_it_leads_to(confined, root):
    (root / "file").write_bytes(b"kept")
    (root / "link").symlink_to("file")
    with pytest.raises(InvalidArgumentError):
        confined.rename_key("link", "file")
    assert (root / "file").read_bytes() == b"kept"


def test_a_relative_link_is_not_moved_to_where_it_leads_elsewhere(confined, root):
    (root / "file").write_bytes(b"kept")
    (root / "d").mkdir()
    (root / "link").symlink_to("file")
    with pytest.raises(InvalidArgumentError):
        confined.rename_key("link", "d/link")
    confined.rename_key("link", "renamed")
    assert confined.fetch("renamed") == b"kept"


def test_of_two_hard_links_one_is_left_after_a_rename(confined, root):
    (root / "one").write_bytes(b"kept")
    os.link(root / "one", root / "two")
    confined.rename_key("one", "two")
    assert everything_in(root) == ["two"]
    assert confined.fetch("two") == b"kept"


@contextmanager
def unprivileged():
    """A folder, and for the block a user whom permission bits bind."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_a_tree_goes_whatever_the_modes_of_its_folders():
    with unprivileged() as folder:
        transport = LocalTransport(str(folder), confined=True)
        transport.store("d/closed/deep/file", b"x")
        for key, mode in (("d/closed/deep", 0o500), ("d/closed", 0o000), ("d", 0o500)):
            transport.set_mode(key, mode)
        assert transport.remove_tree("d") is True
        assert os.listdir(folder) == []


def test_a_tree_that_cannot_be_deleted_is_shown_again(root, monkeypatch):
    transport = LocalTransport(str(root), confined=True)
    transport.store("d/file", b"x")

    def refuse(path):
        raise PermissionError(errno.EPERM, "not yours", path)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(AccessDeniedError):
        transport.remove_tree("d")
    assert everything_in(root) == ["d", "d/file"]
