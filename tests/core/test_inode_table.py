"""InodeTable: what is kept in memory answers as the store would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nexus.contracts.metastore import Batch
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.storage.metastore.memory import MemoryMetastore


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The keys that the metastore is asked for."""
    keys: list[bytes] = []
    get = MemoryMetastore.get

    def noted(self: MemoryMetastore, key: bytes) -> tuple[bytes, int] | None:
        keys.append(key)
        return get(self, key)

    monkeypatch.setattr(MemoryMetastore, "get", noted)
    return keys


def test_a_new_name_in_a_directory_made_here_costs_no_query(
    nx: NexusFS, asked: list[bytes]
) -> None:
    nx.mkdir("/d")
    nx.write("/d/a", b"a")
    asked.clear()
    nx.write("/d/b", b"b")
    assert nx.sys_stat("/d/c") is None
    assert [key for key in asked if b"/d/" in key] == []
    assert nx.list("/d") == ["/d/a", "/d/b"]


def test_names_come_and_go_as_the_store_has_them(nx: NexusFS) -> None:
    nx.mkdir("/d")
    nx.write("/d/a", b"1")
    nx.sys_rename("/d/a", "/d/b")
    assert nx.sys_stat("/d/a") is None
    assert nx.read("/d/b") == b"1"
    nx.write("/d/a", b"2")
    nx.sys_rename("/d", "/e")
    assert nx.sys_stat("/d/a") is None
    assert nx.read("/e/a") == b"2"
    nx.mkdir("/d")
    nx.sys_copy("/e", "/d")
    assert nx.read("/d/b") == b"1"
    nx.sys_unlink("/d", recursive=True)
    nx.mkdir("/d")
    assert nx.sys_stat("/d/b") is None
    nx.write("/d/b", b"3")
    assert nx.read("/d/b") == b"3"


def test_what_lies_in_a_directory_whose_record_was_lost_stays_when_it_is_made_again(
    nx: NexusFS,
) -> None:
    nx.write("/d/a", b"kept")
    table = next(volume.table for volume in nx.volumes())  # type: ignore[attr-defined]
    nx.store._store.commit(Batch([], [table.key("/d")]))
    table.drop_cache()
    nx.mkdir("/d")
    assert nx.read("/d/a") == b"kept"


def test_a_walk_that_asks_no_store_lists_what_is_there_now(nx: NexusFS) -> None:
    def check() -> None:
        stats = nx.list("/", recursive=True, details=True)  # from the store
        assert nx.list("/", recursive=True) == [stat["path"] for stat in stats]

    nx.write_batch((path, b"") for path in ("/d/a", "/d/k/b", "/d-/c", "/d/k-/d", "/e"))
    for change in (
        lambda: nx.write("/d/k/new/one", b""),
        lambda: nx.sys_rename("/d/k", "/d/z"),
        lambda: nx.sys_unlink("/d", recursive=True),
        lambda: nx.mkdir("/e2"),
        lambda: nx.sys_unlink("/e"),
        lambda: nx.mkdir("/e/below"),
        lambda: nx.sys_copy("/d-", "/e2"),
    ):
        check()
        check()
        change()
    check()
