"""Moves and copies across mounts of folders that others change: nothing is lost or torn."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from nexus.contracts.errors import (
    AccessDeniedError,
    BusyError,
    ConflictError,
    CorruptionError,
    InvalidPathError,
    NotSupportedError,
    StorageError,
)
from nexus.contracts.metadata import DT_MOUNT, Buffer
from nexus.contracts.object_store import PIECE_BYTES, NamespaceStoreABC
from nexus.core.nexus_fs import NexusFS
from nexus.sdk import NexusFilesystem, connect
from nexus.storage.object_store.local_transport import LocalTransport
from nexus.storage.object_store.memory_transport import MemoryTransport
from nexus.storage.object_store.path_store import PathStore
from nexus.testing.filesystem.base import tree

KEPT = ("owner_id", "mode", "mime_type", "created_at", "modified_at", "attributes", "version")
"""What a move leaves as it was."""


@pytest.fixture
def nx(tmp_path: Path) -> Iterator[NexusFilesystem]:
    with connect({"data_dir": ":memory:"}) as nx:
        nx.mkdir("/cas")
        yield nx


def mount(nx: NexusFilesystem, backend: object, point: str = "/m") -> None:
    nx.sys_setattr(point, entry_type=DT_MOUNT, backend=backend)


def folder(nx: NexusFilesystem, root: Path, point: str = "/m") -> Path:
    root.mkdir(exist_ok=True)
    mount(nx, {"driver": "path_local", "root": str(root)}, point)
    return root


def everything_in(root: Path) -> list[str]:
    return sorted(os.fsencode(path.relative_to(root)).decode("latin-1") for path in root.rglob("*"))


class Disturbed(MemoryTransport):
    """Calls back once, in the middle of streaming a key."""

    def __init__(self, key: str, disturb: Callable[["Disturbed"], None]) -> None:
        super().__init__()
        self._key = key
        self._disturb: Callable[[Disturbed], None] | None = disturb

    def stream(
        self, key: str, offset: int = 0, count: int | None = None, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        pieces = super().stream(key, offset, count, piece_bytes)
        yield next(pieces)
        if key == self._key and self._disturb is not None:
            disturb, self._disturb = self._disturb, None
            disturb(self)
        yield from pieces


def path_store(transport: MemoryTransport) -> NamespaceStoreABC:
    return PathStore(transport, name="disturbed", volume_id="disturbed")


# -- what listings leave out ----------------------------------------------------------------


def plant(hidden: str, place: Path) -> None:
    if hidden == "fifo":
        os.mkfifo(place / "fifo")
    elif hidden == "odd-name":
        (place / os.fsdecode(b"caf\xe9")).write_bytes(b"theirs")
    elif hidden == "leaving-link":
        (place / "link").symlink_to("/etc")
    else:
        (place / "elsewhere").mkdir()
        (place / "link").symlink_to("elsewhere")


@pytest.mark.parametrize("hidden", ["fifo", "odd-name", "leaving-link", "linked-directory"])
@pytest.mark.parametrize("target", ["/cas/d", "/other/d"])
def test_a_folder_with_what_cannot_be_copied_is_not_moved(
    nx: NexusFilesystem, tmp_path: Path, hidden: str, target: str
) -> None:
    root = folder(nx, tmp_path / "root")
    other = folder(nx, tmp_path / "other", "/other")
    nx.write("/m/d/e/f", b"1")
    plant(hidden, root / "d" / "e")
    before = everything_in(root)
    with pytest.raises(NotSupportedError):
        nx.sys_rename("/m/d", target)
    assert everything_in(root) == before
    assert everything_in(other) == []
    assert not nx.exists(target)


def test_a_folder_with_leftovers_of_a_dead_process_is_moved(
    nx: NexusFilesystem, tmp_path: Path
) -> None:
    root = folder(nx, tmp_path / "root")
    nx.write("/m/d/f", b"1")
    (root / "d" / f".nexus-tmp-{2**40}-00000000-0").write_bytes(b"half")
    nx.sys_rename("/m/d", "/cas/d")
    assert tree(nx, "/cas") == {"/cas/d": None, "/cas/d/f": b"1"}
    assert everything_in(root) == []


# -- what others change meanwhile ----------------------------------------------------------


@pytest.mark.parametrize("call", ["sys_rename", "sys_copy"])
@pytest.mark.parametrize("target", ["/cas/f", "/other/f"])
def test_a_file_that_others_rewrite_meanwhile_is_not_torn(
    nx: NexusFilesystem, tmp_path: Path, call: str, target: str
) -> None:
    other = folder(nx, tmp_path / "other", "/other")
    transport = Disturbed("f", lambda it: it.store("f", b"theirs"))
    mount(nx, path_store(transport))
    nx.write("/m/f", bytes(2 * PIECE_BYTES))
    with pytest.raises(ConflictError) as raised:
        getattr(nx, call)("/m/f", target)
    assert raised.value.path == "/m/f"
    assert nx.read("/m/f") == b"theirs"
    assert not nx.exists(target)
    assert everything_in(other) == []
    getattr(nx, call)("/m/f", target)
    assert nx.read(target) == b"theirs"


@pytest.mark.parametrize("target", ["/cas/d", "/other/d"])
def test_what_others_add_to_a_folder_on_the_move_is_not_lost(
    nx: NexusFilesystem, tmp_path: Path, target: str
) -> None:
    other = folder(nx, tmp_path / "other", "/other")
    transport = Disturbed("d/f", lambda it: it.store("d/added", b"theirs"))
    mount(nx, path_store(transport))
    nx.write("/m/d/f", b"1")
    with pytest.raises(ConflictError):
        nx.sys_rename("/m/d", target)
    assert tree(nx, "/m") == {"/m/d": None, "/m/d/added": b"theirs", "/m/d/f": b"1"}
    assert not nx.exists(target)
    assert everything_in(other) == []


class ChangedAtTheEnd(PathStore):
    """Others change the file once it has been copied, right before it would go."""

    def remove_unchanged(self, path, inventory):  # type: ignore[no-untyped-def]
        self.write(path, b"theirs")
        super().remove_unchanged(path, inventory)


def test_a_source_that_others_change_after_the_copy_stays_and_the_error_names_both(
    nx: NexusFilesystem,
) -> None:
    mount(nx, ChangedAtTheEnd(MemoryTransport(), name="changed", volume_id="v"))
    nx.write("/m/f", b"ours")
    with pytest.raises(ConflictError, match="/cas/f") as raised:
        nx.sys_rename("/m/f", "/cas/f")
    assert raised.value.path == "/m/f"
    assert (nx.read("/m/f"), nx.read("/cas/f")) == (b"theirs", b"ours")


def test_a_source_that_cannot_be_deleted_is_seen_again(
    nx: NexusFilesystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(nx, tmp_path / "m")
    nx.write("/m/d/f", b"1")

    def refuse(path: str) -> None:
        raise PermissionError(errno.EPERM, "not yours", path)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        with pytest.raises(AccessDeniedError, match="/cas/d"):
            nx.sys_rename("/m/d", "/cas/d")
    assert everything_in(root) == ["d", "d/f"]
    assert nx.read("/cas/d/f") == b"1"


class Damaging(MemoryTransport):
    """Stores something else than it was given."""

    def store(self, key: str, data: Buffer) -> None:
        super().store(key, bytes(data).replace(b"o", b"0"))


@pytest.mark.parametrize("call", ["sys_rename", "sys_copy"])
def test_bytes_that_arrive_damaged_are_an_error_and_the_source_stays(
    nx: NexusFilesystem, call: str
) -> None:
    mount(nx, path_store(Damaging()))
    nx.write("/cas/d/f", b"ours")
    with pytest.raises(CorruptionError):
        getattr(nx, call)("/cas/d", "/m/d")
    assert nx.read("/cas/d/f") == b"ours"
    assert nx.list("/m") == []


@pytest.mark.parametrize("call", ["sys_rename", "sys_copy"])
def test_a_copy_that_fails_leaves_nothing_in_the_target_folder(
    nx: NexusFilesystem, tmp_path: Path, call: str
) -> None:
    root = folder(nx, tmp_path / "root")
    transport = Disturbed("d/z", lambda it: it.store("d/z", b"theirs"))
    mount(nx, path_store(transport), "/disturbed")
    nx.write("/disturbed/d/a/f", b"1")
    nx.write("/disturbed/d/z", b"ours")
    with pytest.raises(ConflictError):
        getattr(nx, call)("/disturbed/d", "/m/d")
    assert everything_in(root) == []


class Logged(MemoryTransport):
    """Notes what makes bytes durable and what takes them away."""

    def __init__(self, log: list[str], who: str) -> None:
        super().__init__()
        self._log = log
        self._who = who

    def sync(self) -> None:
        self._log.append(f"{self._who} synced")

    def remove_tree(self, key: str) -> bool:
        self._log.append(f"{self._who} deleted")
        return super().remove_tree(key)


def test_what_moves_is_durable_at_its_target_before_its_source_goes(nx: NexusFilesystem) -> None:
    log: list[str] = []
    for who in ("source", "target"):
        store = PathStore(Logged(log, who), name=who, volume_id=who)
        mount(nx, store, f"/{who}")
    nx.write("/source/f", b"1")
    nx.sys_rename("/source/f", "/target/f")
    assert log == ["target synced", "source deleted"]


# -- what a move keeps ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", [("/cas/", "/m/"), ("/m/", "/cas/"), ("/m/", "/n/"), ("/cas/", "/c/")]
)
@pytest.mark.parametrize("what", ["f", "d/f", "d"])
def test_a_move_keeps_owner_times_mode_and_attributes(
    nx: NexusFilesystem, tmp_path: Path, way: tuple[str, str], what: str
) -> None:
    folder(nx, tmp_path / "m")
    folder(nx, tmp_path / "n", "/n")
    mount(nx, {"driver": "cas_memory"}, "/c")
    here, there = way
    nx.write(f"{here}f", b"1")
    nx.write(f"{here}d/f", b"22")
    for path in (f"{here}f", f"{here}d/f", f"{here}d"):
        nx.sys_setattr(
            path,
            mode=0o500,
            owner_id="somebody",
            mime_type="x/y",
            modified_at=1e9 + 0.25,
            attributes={"colour": "red"},
        )
    before = nx.sys_stat(here + what)
    assert before is not None
    top = what.partition("/")[0]
    nx.sys_rename(here + top, there + top)
    after = nx.sys_stat(there + what)
    assert after is not None
    assert {key: after[key] for key in KEPT} == {key: before[key] for key in KEPT}


def test_a_copy_has_an_owner_and_times_of_its_own(nx: NexusFilesystem, tmp_path: Path) -> None:
    root = folder(nx, tmp_path / "m")
    nx.write("/cas/d/f", b"1")
    for path in ("/cas/d", "/cas/d/f"):
        nx.sys_setattr(path, owner_id="somebody", modified_at=1e9, mode=0o500)
    for target in ("/m/d", "/cas/e"):
        nx.sys_copy("/cas/d", target)
        for path in (target, f"{target}/f"):
            stat = nx.sys_stat(path)
            assert stat is not None
            assert (stat["owner_id"] == "somebody", stat["mode"]) == (False, 0o500)
            assert stat["modified_at"] > 1e9
    (root / "d").chmod(0o700)


# -- names and overlays --------------------------------------------------------------------


def test_a_name_of_unfinished_files_cannot_be_created(nx: NexusFilesystem, tmp_path: Path) -> None:
    root = folder(nx, tmp_path / "m")
    nx.write("/m/f", b"1")
    nx.write("/cas/f", b"1")
    hidden = f".nexus-tmp-{2**40}-00000000-0"
    for call in (
        lambda: nx.write(f"/m/{hidden}", b"x"),
        lambda: nx.write(f"/m/{hidden}/f", b"x"),
        lambda: nx.append(f"/m/{hidden}", b"x"),
        lambda: nx.mkdir(f"/m/{hidden}"),
        lambda: nx.mkdir(f"/m/{hidden}/d"),
        lambda: nx.sys_rename("/m/f", f"/m/{hidden}"),
        lambda: nx.sys_rename("/cas/f", f"/m/{hidden}"),
        lambda: nx.sys_copy("/m/f", f"/m/{hidden}"),
        lambda: nx.sys_copy("/cas/f", f"/m/{hidden}"),
    ):
        with pytest.raises(InvalidPathError):
            call()
    assert everything_in(root) == ["f"]
    nx.write("/m/.nexus-tmp-notes", b"a name like any other")
    assert nx.list("/m") == ["/m/.nexus-tmp-notes", "/m/f"]


def test_what_others_removed_leaves_no_attributes_to_what_takes_its_name(
    nx: NexusFilesystem, tmp_path: Path
) -> None:
    root = folder(nx, tmp_path / "m")
    for way in ("rename", "mkdir", "across"):
        nx.write(f"/m/{way}/f", b"1")
        nx.sys_setattr(f"/m/{way}/f", attributes={"colour": "red"})
        (root / way / "f").unlink()
        (root / way).rmdir()
    (root / "old").mkdir()
    (root / "old" / "f").write_bytes(b"theirs")
    nx.sys_rename("/m/old", "/m/rename")
    nx.mkdir("/m/mkdir")
    (root / "mkdir" / "f").write_bytes(b"theirs")
    nx.write("/cas/d/f", b"plain")
    nx.sys_copy("/cas/d", "/m/across")
    for way in ("rename", "mkdir", "across"):
        stat = nx.sys_stat(f"/m/{way}/f")
        assert stat is not None
        assert stat["attributes"] == {}


@pytest.mark.parametrize("driver", ["cas_memory", "path_memory"])
def test_a_copy_onto_a_mount_point_is_busy(nx: NexusFilesystem, driver: str) -> None:
    mount(nx, {"driver": driver})
    nx.write("/cas/d/f", b"1")
    with pytest.raises(BusyError):
        nx.sys_copy("/cas/d", "/m")
    assert nx.list("/m") == []


def test_a_folder_that_has_gone_is_told_by_every_call(nx: NexusFilesystem, tmp_path: Path) -> None:
    root = folder(nx, tmp_path / "m")
    root.rmdir()
    nx.write("/cas/f", b"1")
    for call in (
        lambda: nx.read("/m/f"),
        lambda: nx.write("/m/f", b"x"),
        lambda: nx.mkdir("/m/d"),
        lambda: nx.list("/m"),
        lambda: nx.sys_unlink("/m/f"),
        lambda: nx.sys_copy("/cas/f", "/m/f"),
        lambda: nx.sys_rename("/cas/f", "/m/f"),
        lambda: nx.sys_rename("/m/f", "/cas/g"),
    ):
        with pytest.raises(StorageError, match="gone"):
            call()
    assert not root.exists()
    assert nx.read("/cas/f") == b"1"


def test_a_link_swapped_in_does_not_lead_a_move_out_of_the_folder(
    nx: NexusFilesystem, tmp_path: Path
) -> None:
    root = folder(nx, tmp_path / "m")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"secret")
    nx.write("/m/d/f", b"1")
    (root / "d").rename(root / "away")
    (root / "d").symlink_to(outside)
    for source in ("/m/d", "/m/d/f"):
        with pytest.raises(AccessDeniedError):
            nx.sys_rename(source, "/cas/x")
        with pytest.raises(AccessDeniedError):
            nx.sys_copy(source, "/cas/x")
    assert everything_in(outside) == ["f"]
    assert not nx.exists("/cas/x")


@pytest.mark.parametrize("source", ["file-link", "directory-link"])
def test_moving_a_link_out_moves_its_content_and_leaves_what_it_leads_to(
    nx: NexusFilesystem, tmp_path: Path, source: str
) -> None:
    root = folder(nx, tmp_path / "m")
    nx.write("/m/d/f", b"1")
    (root / "directory-link").symlink_to("d")
    (root / "file-link").symlink_to("d/f")
    nx.sys_rename(f"/m/{source}", "/cas/x")
    assert nx.read("/cas/x" if source == "file-link" else "/cas/x/f") == b"1"
    assert nx.read("/m/d/f") == b"1"
    assert not (root / source).is_symlink()


def test_the_answer_of_a_copy_is_of_the_copy(
    nx: NexusFilesystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(nx, NexusFS)
    nx.write("/f", b"copied")
    hold = nx.locks.copy_pair

    @contextmanager
    def hold_then_meddle(source: str, target: str) -> Iterator[None]:
        with hold(source, target):
            yield
        nx.write("/g", b"by somebody else, as soon as it is unlocked")

    locks = SimpleNamespace(write=nx.locks.write, copy_pair=hold_then_meddle)
    monkeypatch.setattr(nx._kernel, "locks", locks)
    assert nx.sys_copy("/f", "/g")["size"] == len(b"copied")


# -- folders within folders ----------------------------------------------------------------


@pytest.mark.parametrize("driver", ["path_local", "cas_local"])
@pytest.mark.parametrize("root", ["root", "root/inner", "", "alias", "alias/inner"])
def test_a_folder_that_overlaps_one_that_is_mounted_is_refused(
    nx: NexusFilesystem, tmp_path: Path, driver: str, root: str
) -> None:
    mounted = folder(nx, tmp_path / "root")
    (mounted / "inner").mkdir()
    (tmp_path / "alias").symlink_to(mounted)
    nx.write("/m/inner/f", b"1")
    before = everything_in(mounted)
    with pytest.raises(BusyError, match="mounted at /m"):
        mount(nx, {"driver": driver, "root": str(tmp_path / root)}, "/again")
    assert not nx.exists("/again")
    assert nx.read("/m/inner/f") == b"1"
    assert everything_in(mounted) == before


def test_a_driver_object_that_overlaps_what_is_mounted_is_refused(
    nx: NexusFilesystem, tmp_path: Path
) -> None:
    folder(nx, tmp_path / "root")
    transport = LocalTransport(str(tmp_path), confined=True)
    with pytest.raises(BusyError):
        mount(nx, PathStore(transport, name="mine", volume_id="mine"), "/again")
    transport.close()


def test_folders_side_by_side_are_mounted_together(nx: NexusFilesystem, tmp_path: Path) -> None:
    folder(nx, tmp_path / "root")
    folder(nx, tmp_path / "root-2", "/again")
    nx.write("/m/f", b"1")
    nx.sys_rename("/m/f", "/again/f")
    assert nx.read("/again/f") == b"1"


@pytest.mark.parametrize("driver", ["path_local", "cas_local"])
@pytest.mark.parametrize("root", ["", "data", "data/content", "data/of-ours", "alias"])
def test_a_folder_that_overlaps_the_data_directory_is_refused(
    tmp_path: Path, driver: str, root: str
) -> None:
    data = tmp_path / "data"
    with connect({"data_dir": str(data)}) as nx:
        (data / "of-ours").mkdir()
        (tmp_path / "alias").symlink_to(data)
        with pytest.raises(BusyError):
            mount(nx, {"driver": driver, "root": str(tmp_path / root)})
        assert not nx.exists("/m")


def test_a_remembered_mount_that_has_come_to_overlap_another_is_unavailable(
    tmp_path: Path,
) -> None:
    with connect({"data_dir": str(tmp_path / "data")}) as nx:
        mounted = folder(nx, tmp_path / "folder", "/a")
        mount(nx, {"driver": "cas_local", "root": str(tmp_path / "cas")}, "/b")
        nx.write("/b/f", b"1")
    (tmp_path / "cas").rename(mounted / "cas")
    (tmp_path / "cas").symlink_to(mounted / "cas")
    with connect({"data_dir": str(tmp_path / "data")}) as nx:
        rows = nx.sys_readdir("/__sys__/mounts", details=True)
        assert [(row["path"], row["state"]) for row in rows] == [
            ("/", "mounted"),
            ("/a", "mounted"),
            ("/b", "unavailable"),
        ]
        with pytest.raises(StorageError, match="in one another"):
            nx.read("/b/f")
