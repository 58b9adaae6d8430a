"""A version number means the latest life of a path that had it, and never another one's data."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nexus.contracts.errors import CorruptionError, PathNotFoundError
from nexus.core.inode_table import Transaction
from nexus.core.inode_volume import InodeVolume
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.sdk import collect


class Clock:
    now_ns = 10**18

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:"), clock_ns=Clock()) as filesystem:
        yield filesystem


def lose_version_record(nx: NexusFS, path: str, revision: int) -> None:
    volume = nx.volumes()[0]
    assert isinstance(volume, InodeVolume)
    with Transaction(nx.store) as txn:
        for version in volume.table.versions(path):
            if version.revision == revision:
                txn.delete_record(version.record)
        txn.commit(durable=False)


def write_thrice(nx: NexusFS, path: str, word: bytes) -> list[int]:
    return [nx.write(path, word + number)["revision"] for number in (b"1", b"2", b"3")]


@pytest.mark.parametrize("lost", [1, 2])
def test_an_older_life_does_not_answer_for_a_missing_version(nx: NexusFS, lost: int) -> None:
    write_thrice(nx, "/f", b"old")
    nx.sys_unlink("/f")
    revisions = write_thrice(nx, "/f", b"new")
    assert nx.read("/f", version=lost) == b"new%d" % lost
    lose_version_record(nx, "/f", revisions[lost - 1])
    with pytest.raises(CorruptionError, match=f"version {lost} is missing"):
        nx.read("/f", version=lost)
    assert nx.read("/f", version=3) == b"new3"


def test_the_current_version_is_read_although_its_version_record_is_missing(nx: NexusFS) -> None:
    nx.write("/f", b"old")
    nx.sys_unlink("/f")
    lose_version_record(nx, "/f", nx.write("/f", b"new")["revision"])
    assert nx.read("/f", version=1) == b"new"


def test_versions_from_before_a_file_was_moved_over_another_stay_readable(nx: NexusFS) -> None:
    write_thrice(nx, "/f", b"old")
    write_thrice(nx, "/other", b"moved")
    nx.sys_rename("/other", "/f")
    nx.sys_setattr("/f", mode=0o600)
    nx.write("/f", b"after")
    assert nx.read("/f", version=1) == b"old1"
    assert nx.read("/f", version=2) == b"old2"
    assert nx.read("/f", version=3) == b"moved3"
    assert nx.read("/f", version=4) == b"after"


def test_what_history_forgot_is_not_kept_rather_than_damaged(nx: NexusFS) -> None:
    write_thrice(nx, "/f", b"x")
    collect(nx, retention_s=0, grace_s=0)
    nx.write("/f", b"later")
    for version in (1, 2):
        with pytest.raises(PathNotFoundError, match="not kept"):
            nx.read("/f", version=version)
