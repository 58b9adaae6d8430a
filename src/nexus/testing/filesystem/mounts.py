"""Mounting, moving between mounts, and coming back after a restart. Layer: testing.

Both suites need a whole filesystem, not a directory of one: :class:`MountSuite` mounts in its
root, :class:`PersistenceSuite` closes and opens a data directory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.errors import (
    BusyError,
    ConfigError,
    DataDirectoryLockedError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
    NotSupportedError,
    PathExistsError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.file_events import MOUNT, UNMOUNT
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_MOUNT
from nexus.testing.filesystem.base import STAT_KEYS, all_events, noise, tree

DRIVERS = ["cas_memory", "path_memory", "cas_local", "path_local"]
PERSISTENT_DRIVERS = ["cas_local", "path_local"]

every_driver = pytest.mark.parametrize("driver", DRIVERS)


def description(driver: str, tmp_path: Path) -> dict[str, Any]:
    """Return the plain description of a driver; a local one gets a folder of its own."""
    if not driver.endswith("_local"):
        return {"driver": driver}
    root = tmp_path / driver
    root.mkdir(exist_ok=True)
    return {"driver": driver, "root": str(root)}


class MountSuite(ABC):
    """What mounting does to the tree it happens in."""

    @abstractmethod
    def make(self, tmp_path: Path) -> NexusFilesystem:
        """Return a new, empty filesystem."""

    @pytest.fixture
    def nx(self, tmp_path: Path) -> Iterator[NexusFilesystem]:
        with self.make(tmp_path) as nx:
            yield nx

    def mount(self, nx: NexusFilesystem, tmp_path: Path, driver: str, path: str = "/m") -> None:
        nx.sys_setattr(path, entry_type=DT_MOUNT, backend=description(driver, tmp_path))

    # -- mounting -----------------------------------------------------------------------------

    @every_driver
    def test_a_mount_point_may_be_missing_when_its_parent_exists(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str
    ) -> None:
        stat = nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=description(driver, tmp_path))
        assert set(stat) >= STAT_KEYS
        assert (stat["path"], stat["entry_type"], stat["type"]) == ("/m", DT_MOUNT, "mount")
        assert stat["is_directory"] is True
        assert stat == nx.sys_stat("/m")
        assert nx.list("/") == ["/m"]
        assert nx.list("/m") == []

    @every_driver
    def test_a_mount_shadows_what_was_there_and_unmounting_brings_it_back(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str
    ) -> None:
        nx.write("/m/d/f", b"beneath")
        self.mount(nx, tmp_path, driver)
        assert nx.list("/m") == []
        assert nx.sys_stat("/m/d/f") is None
        nx.write("/m/d/f", b"above")
        assert nx.read("/m/d/f") == b"above"
        nx.rmdir("/m")
        assert nx.read("/m/d/f") == b"beneath"
        assert nx.list("/", recursive=True) == ["/m", "/m/d", "/m/d/f"]

    @pytest.mark.parametrize("driver", PERSISTENT_DRIVERS)
    def test_what_lies_behind_a_mount_stays_when_it_is_unmounted(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str
    ) -> None:
        self.mount(nx, tmp_path, driver)
        nx.write("/m/f", b"kept")
        nx.sys_unlink("/m")
        self.mount(nx, tmp_path, driver)
        assert nx.read("/m/f") == b"kept"

    def test_a_mount_needs_an_existing_parent(self, nx: NexusFilesystem, tmp_path: Path) -> None:
        with pytest.raises(PathNotFoundError):
            self.mount(nx, tmp_path, "path_memory", "/none/m")
        assert nx.list("/") == []

    def test_a_mount_over_a_file_is_refused(self, nx: NexusFilesystem, tmp_path: Path) -> None:
        nx.write("/f", b"x")
        with pytest.raises((PathNotDirectoryError, PathExistsError)):
            self.mount(nx, tmp_path, "path_memory", "/f")
        with pytest.raises(PathNotDirectoryError):
            self.mount(nx, tmp_path, "path_memory", "/f/m")
        assert nx.read("/f") == b"x"

    def test_a_second_mount_at_a_mount_point_is_refused(
        self, nx: NexusFilesystem, tmp_path: Path
    ) -> None:
        self.mount(nx, tmp_path, "path_memory")
        nx.write("/m/f", b"x")
        with pytest.raises((PathExistsError, BusyError)):
            self.mount(nx, tmp_path, "cas_memory")
        assert nx.read("/m/f") == b"x"

    @pytest.mark.parametrize(
        "backend",
        [
            {"driver": "no_such_driver"},
            {},
            {"driver": "path_local"},
            {"driver": "path_memory", "unknown": 1},
            "path_memory",
            5,
        ],
        ids=repr,
    )
    def test_a_backend_that_means_nothing_is_refused(
        self, nx: NexusFilesystem, backend: Any
    ) -> None:
        with pytest.raises((InvalidArgumentError, ConfigError)):
            nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
        assert nx.sys_stat("/m") is None

    def test_a_mount_and_an_unmount_are_events(self, nx: NexusFilesystem, tmp_path: Path) -> None:
        nx.mkdir("/m")
        self.mount(nx, tmp_path, "path_memory")
        nx.rmdir("/m")
        kinds = [(event["kind"], event["path"]) for event in all_events(nx)]
        assert kinds[-2:] == [(MOUNT, "/m"), (UNMOUNT, "/m")]

    def test_a_mount_below_a_mount_works(self, nx: NexusFilesystem, tmp_path: Path) -> None:
        self.mount(nx, tmp_path, "cas_memory")
        self.mount(nx, tmp_path, "path_memory", "/m/inner")
        nx.write("/m/inner/f", b"inner")
        nx.write("/m/f", b"outer")
        assert tree(nx, "/m") == {"/m/f": b"outer", "/m/inner": None, "/m/inner/f": b"inner"}
        with pytest.raises(BusyError):
            nx.rmdir("/m")
        nx.rmdir("/m/inner")
        assert nx.sys_stat("/m/inner/f") is None
        nx.rmdir("/m")

    # -- what a mount point refuses -----------------------------------------------------------

    def test_a_mount_point_is_not_a_file(self, nx: NexusFilesystem, tmp_path: Path) -> None:
        self.mount(nx, tmp_path, "cas_memory")
        with pytest.raises(PathIsDirectoryError):
            nx.write("/m", b"x")
        with pytest.raises(PathIsDirectoryError):
            nx.read("/m")
        with pytest.raises(PathExistsError):
            nx.mkdir("/m")

    @every_driver
    def test_a_mount_point_is_busy_for_a_recursive_unlink(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str
    ) -> None:
        self.mount(nx, tmp_path, driver)
        nx.write("/m/f", b"x")
        for call in (nx.sys_unlink, nx.rmdir):
            with pytest.raises(BusyError):
                call("/m", recursive=True)
        assert nx.read("/m/f") == b"x"

    @pytest.mark.parametrize("recursive", [False, True])
    def test_a_directory_above_a_mount_point_is_busy(
        self, nx: NexusFilesystem, tmp_path: Path, recursive: bool
    ) -> None:
        nx.write("/d/f", b"x")
        self.mount(nx, tmp_path, "path_memory", "/d/m")
        nx.write("/d/m/g", b"y")
        expected = (BusyError,) if recursive else (BusyError, DirectoryNotEmptyError)
        with pytest.raises(expected):
            nx.sys_unlink("/d", recursive)
        with pytest.raises(BusyError):
            nx.sys_rename("/d", "/e")
        assert tree(nx, "/d") == {"/d/f": b"x", "/d/m": None, "/d/m/g": b"y"}

    def test_a_mount_point_is_not_renamed_or_replaced(
        self, nx: NexusFilesystem, tmp_path: Path
    ) -> None:
        self.mount(nx, tmp_path, "path_memory")
        nx.mkdir("/d")
        with pytest.raises(BusyError):
            nx.sys_rename("/m", "/elsewhere")
        with pytest.raises(BusyError):
            nx.sys_rename("/d", "/m")
        assert nx.list("/") == ["/d", "/m"]

    def test_the_root_is_not_unmounted(self, nx: NexusFilesystem) -> None:
        nx.write("/f", b"x")
        for recursive in (False, True):
            with pytest.raises((BusyError, InvalidArgumentError, DirectoryNotEmptyError)):
                nx.sys_unlink("/", recursive)
        assert nx.read("/f") == b"x"

    # -- across mounts ------------------------------------------------------------------------

    @every_driver
    @pytest.mark.parametrize("call", ["sys_rename", "sys_copy"])
    @pytest.mark.parametrize("way", [("/", "/m/"), ("/m/", "/")], ids=["in", "out"])
    def test_a_subtree_crosses_mounts_whole(
        self,
        nx: NexusFilesystem,
        tmp_path: Path,
        driver: str,
        call: str,
        way: tuple[str, str],
    ) -> None:
        self.mount(nx, tmp_path, driver)
        here, there = way
        nx.write(f"{here}src/f", b"1")
        nx.write(f"{here}src/d/g", noise(1_200_000))
        nx.mkdir(f"{here}src/empty")
        result = getattr(nx, call)(f"{here}src", f"{there}dst")
        assert result["path"] == f"{there}dst"
        assert tree(nx, f"{there}dst") == {
            f"{there}dst/d": None,
            f"{there}dst/d/g": noise(1_200_000),
            f"{there}dst/empty": None,
            f"{there}dst/f": b"1",
        }
        assert nx.exists(f"{here}src/f") == (call == "sys_copy")
        assert nx.exists(f"{here}src") == (call == "sys_copy")

    @every_driver
    @pytest.mark.parametrize("call", ["sys_rename", "sys_copy"])
    def test_a_file_that_crosses_mounts_replaces_a_file(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str, call: str
    ) -> None:
        self.mount(nx, tmp_path, driver)
        nx.write("/f", b"from")
        nx.write("/m/f", b"over")
        getattr(nx, call)("/f", "/m/f")
        assert nx.read("/m/f") == b"from"
        assert nx.exists("/f") == (call == "sys_copy")

    @every_driver
    @pytest.mark.parametrize("call", ["sys_rename", "sys_copy"])
    def test_what_is_refused_within_a_mount_is_refused_across(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str, call: str
    ) -> None:
        self.mount(nx, tmp_path, driver)
        nx.write("/f", b"1")
        nx.write("/d/x", b"2")
        nx.write("/m/f", b"3")
        nx.write("/m/d/y", b"4")
        before = tree(nx, "")
        for source, target, expected in (
            ("/none", "/m/new", PathNotFoundError),
            ("/f", "/m/none/new", PathNotFoundError),
            ("/f", "/m/f/new", PathNotDirectoryError),
            ("/f", "/m/d", PathIsDirectoryError),
            ("/d", "/m/f", PathNotDirectoryError),
            ("/d", "/m/d", DirectoryNotEmptyError),
        ):
            with pytest.raises(expected):
                getattr(nx, call)(source, target)
        assert tree(nx, "") == before

    @every_driver
    def test_a_copy_does_not_cross_mount_points_beneath_its_source(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str
    ) -> None:
        nx.write("/d/f", b"1")
        self.mount(nx, tmp_path, driver, "/d/m")
        nx.write("/d/m/g", b"2")
        nx.sys_copy("/d", "/copy")
        assert nx.read("/copy/f") == b"1"
        assert nx.sys_stat("/copy/m/g") is None

    def test_listing_and_walking_go_through_mounts(
        self, nx: NexusFilesystem, tmp_path: Path
    ) -> None:
        nx.write("/a", b"1")
        nx.write("/z", b"3")
        self.mount(nx, tmp_path, "path_memory")
        nx.write("/m/d/g", b"2")
        everything = ["/a", "/m", "/m/d", "/m/d/g", "/z"]
        assert nx.list("/", recursive=True) == everything
        assert [stat["path"] for stat in nx.walk("/")] == everything
        assert nx.glob("g") == ["/m/d/g"]
        assert [match.path for match in nx.grep("[123]")] == ["/a", "/m/d/g", "/z"]
        page = nx.sys_readdir("/", recursive=True, limit=2)
        assert page == everything[:2]
        assert nx.sys_readdir("/", recursive=True, cursor=page.next_cursor) == everything[2:]

    @pytest.mark.parametrize("driver", ["path_memory", "path_local"])
    def test_a_batch_that_reaches_a_path_mount_is_not_supported(
        self, nx: NexusFilesystem, tmp_path: Path, driver: str
    ) -> None:
        self.mount(nx, tmp_path, driver)
        with pytest.raises(NotSupportedError):
            nx.write_batch({"/a": b"1", "/m/b": b"2", "/c": b"3"})
        assert nx.list("/", recursive=True) == ["/m"]

    # -- a folder that others change ----------------------------------------------------------

    def test_a_folder_that_others_change_is_shown_as_it_is(
        self, nx: NexusFilesystem, tmp_path: Path
    ) -> None:
        self.mount(nx, tmp_path, "path_local")
        folder = tmp_path / "path_local"
        (folder / "d").mkdir()
        (folder / "d" / "theirs").write_bytes(b"theirs")
        assert nx.list("/m", recursive=True) == ["/m/d", "/m/d/theirs"]
        assert nx.read("/m/d/theirs") == b"theirs"
        etag = nx.list("/m/d", details=True)[0]["etag"]
        (folder / "d" / "theirs").write_bytes(b"changed by them")
        stat = nx.sys_stat("/m/d/theirs")
        assert stat is not None
        assert (stat["size"], stat["etag"] != etag) == (15, True)
        assert nx.read("/m/d/theirs") == b"changed by them"
        (folder / "d" / "theirs").unlink()
        assert nx.sys_stat("/m/d/theirs") is None
        nx.write("/m/d/ours", b"ours")
        assert (folder / "d" / "ours").read_bytes() == b"ours"

    def test_a_link_out_of_the_folder_is_refused(self, nx: NexusFilesystem, tmp_path: Path) -> None:
        self.mount(nx, tmp_path, "path_local")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"secret")
        (tmp_path / "path_local" / "link").symlink_to(outside)
        (tmp_path / "path_local" / "file-link").symlink_to(outside / "secret")
        assert nx.list("/m") == []
        with pytest.raises(PermissionError):
            nx.read("/m/link/secret")
        with pytest.raises(PermissionError):
            nx.read("/m/file-link")
        with pytest.raises(PermissionError):
            nx.write("/m/link/new", b"x")
        assert sorted(entry.name for entry in outside.iterdir()) == ["secret"]


class PersistenceSuite(ABC):
    """What a data directory holds when it is opened again."""

    @abstractmethod
    def open(self, data_dir: Path) -> NexusFilesystem:
        """Open the data directory, creating it when missing."""

    def test_everything_is_there_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path / "data") as nx:
            nx.write("/a/f", b"1")
            nx.write("/a/f", noise(2_000_000))
            nx.mkdir("/empty")
            nx.sys_setattr("/a/f", attributes={"k": 1, "v": "two"}, mode=0o600)
            nx.write("/gone", b"x")
            nx.sys_unlink("/gone")
            stats = nx.list("/", recursive=True, details=True)
            events = nx.history()
        with self.open(tmp_path / "data") as nx:
            assert nx.list("/", recursive=True, details=True) == stats
            assert nx.history() == events
            assert nx.read("/a/f") == noise(2_000_000)
            assert nx.read("/a/f", version=1) == b"1"
            assert nx.history("/gone")[-1]["deleted"] is True

    def test_revisions_and_versions_go_on_after_reopening(self, tmp_path: Path) -> None:
        with self.open(tmp_path / "data") as nx:
            before = nx.write("/f", b"1")
        with self.open(tmp_path / "data") as nx:
            after = nx.write("/f", b"2", if_match=before["etag"])
        assert after["version"] == 2
        assert after["revision"] > before["revision"]

    def test_a_cursor_outlives_a_restart(self, tmp_path: Path) -> None:
        with self.open(tmp_path / "data") as nx:
            nx.write_batch({f"/{n}": b"x" for n in range(6)})
            cursor = nx.sys_readdir("/", limit=3).next_cursor
        with self.open(tmp_path / "data") as nx:
            assert nx.sys_readdir("/", cursor=cursor) == ["/3", "/4", "/5"]

    @pytest.mark.parametrize("driver", PERSISTENT_DRIVERS)
    def test_mounts_come_back_after_reopening(self, tmp_path: Path, driver: str) -> None:
        with self.open(tmp_path / "data") as nx:
            nx.mkdir("/d")
            nx.sys_setattr("/d/m", entry_type=DT_MOUNT, backend=description(driver, tmp_path))
            nx.write("/d/m/f", b"behind")
        with self.open(tmp_path / "data") as nx:
            assert nx.read("/d/m/f") == b"behind"
            stat = nx.sys_stat("/d/m")
            assert stat is not None
            assert stat["type"] == "mount"
            nx.rmdir("/d/m")
        with self.open(tmp_path / "data") as nx:
            assert nx.sys_stat("/d/m/f") is None

    def test_a_second_owner_is_refused_with_the_first_ones_pid(self, tmp_path: Path) -> None:
        with self.open(tmp_path / "data") as nx:
            nx.write("/f", b"x")
            with pytest.raises(DataDirectoryLockedError) as caught:
                self.open(tmp_path / "data")
            assert caught.value.hint
            assert nx.read("/f") == b"x"
        with self.open(tmp_path / "data") as nx:
            assert nx.read("/f") == b"x"

    def test_sync_returns_and_loses_nothing(self, tmp_path: Path) -> None:
        with self.open(tmp_path / "data") as nx:
            nx.write("/f", b"x")
            nx.sync()
            assert nx.read("/f") == b"x"
