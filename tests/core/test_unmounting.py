"""Unmounting while something works on the volume, and what a mount leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.contracts.errors import BusyError, StorageError
from nexus.contracts.metadata import DT_MOUNT
from nexus.core.inode_table import Transaction
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.sdk import collect, fsck


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


def test_a_volume_that_is_being_collected_or_checked_is_not_unmounted(
    nx: NexusFS, tmp_path: Path
) -> None:
    backend = {"driver": "cas_local", "root": str(tmp_path / "cas")}
    nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
    nx.write("/m/f", b"content")
    refused: list[str] = []

    def unmount(stage: str, _count: int) -> None:
        try:
            nx.sys_unlink("/m")
        except BusyError:
            refused.append(stage)

    collect(nx, retention_s=0, grace_s=0, progress=unmount)
    fsck(nx, progress=unmount)
    assert len(refused) >= 2
    assert nx.read("/m/f") == b"content"
    nx.sys_unlink("/m")
    assert not nx.exists("/m/f")


def test_mounting_and_unmounting_leaves_no_notice_behind(nx: NexusFS) -> None:
    before = len(nx.store._on_uncertain)
    for _ in range(3):
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})
        nx.sys_unlink("/m")
        nx.sys_setattr("/p", entry_type=DT_MOUNT, backend={"driver": "path_memory"})
        nx.sys_unlink("/p")
    assert len(nx.store._on_uncertain) == before


def test_a_write_whose_mount_changes_before_its_lock_is_refused(nx: NexusFS) -> None:
    nx.mkdir("/m")

    def pieces() -> Iterator[bytes]:
        yield b"first"
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})

    with pytest.raises(BusyError, match="the mount changed meanwhile"):
        nx.write("/m/f", pieces())
    assert nx.list("/m") == []
    nx.write("/m/f", b"again")
    nx.sys_unlink("/m")
    assert nx.list("/m") == []


def test_a_write_goes_on_when_something_else_is_mounted_meanwhile(nx: NexusFS) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"content"
        nx.sys_setattr("/elsewhere", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})

    nx.write("/m/f", pieces())
    assert nx.read("/m/f") == b"content"


def test_mounting_answers_with_the_stat_of_what_is_mounted(nx: NexusFS) -> None:
    stat = nx.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})
    assert stat == nx.sys_stat("/m")


def test_a_collection_syncs_after_it_forgets_and_before_it_sets_content_aside(nx: NexusFS) -> None:
    nx.write("/f", b"old")
    nx.write("/f", b"new")
    before = nx.barrier()
    seen: list[int] = []
    collect(nx, retention_s=0, grace_s=0, progress=lambda *_: seen.append(nx.barrier()))
    assert seen
    assert min(seen) > before


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b'{"driver": 1}', b"[]"])
def test_a_sealed_record_that_is_no_mount_is_a_mount_that_says_so(
    tmp_path: Path, payload: bytes
) -> None:
    data_dir = str(tmp_path / "data")
    (tmp_path / "folder").mkdir()
    with boot(Settings(data_dir=data_dir)) as nx:
        backend = {"driver": "path_local", "root": str(tmp_path / "folder")}
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
        nx.write("/kept", b"content")
        with Transaction(nx.store) as txn:
            key = b"Mroot\0/m"
            txn.put_record(key, payload, nx.store.get(key))
            txn.commit(durable=False)
    with boot(Settings(data_dir=data_dir)) as nx:
        assert nx.read("/kept") == b"content"
        with pytest.raises(StorageError, match="mount record is damaged"):
            nx.list("/m")
