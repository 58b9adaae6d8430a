"""A call answers with what it made itself, and an edit replaces only what it read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nexus.contracts.errors import ConflictError
from nexus.contracts.filesystem import Precondition, WriteRequest
from nexus.core.nexus_fs import NexusFS
from nexus.core.sealed_store import SCAN_PAGE
from nexus.factory.boot import Settings, boot


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


def test_an_edit_is_computed_again_when_the_content_went_and_came_back(nx: NexusFS) -> None:
    nx.write("/f", b"a")
    seen: list[bytes] = []

    def change(content: bytes) -> bytes:
        seen.append(content)
        if len(seen) == 1:
            nx.write("/f", b"b")
            nx.write("/f", b"a")
        return content + b"!"

    nx.edit("/f", change)
    assert seen == [b"a", b"a"]
    assert nx.read("/f") == b"a!"


def test_a_conflict_that_the_change_itself_raises_passes_through(nx: NexusFS) -> None:
    nx.write("/f", b"a")

    def change(_content: bytes) -> bytes:
        raise ConflictError("mine", None, "no")

    with pytest.raises(ConflictError, match="mine"):
        nx.edit("/f", change)


def test_a_revision_as_precondition_holds_only_while_nothing_happened(nx: NexusFS) -> None:
    revision = nx.write("/f", b"a")["revision"]
    nx.sys_write("/f", b"b", precondition=Precondition(if_revision=revision))
    stale = WriteRequest("/f", b"c", precondition=Precondition(if_revision=revision))
    with pytest.raises(ConflictError, match=f"if_revision={revision}"):
        nx.write_batch([stale])
    with pytest.raises(ConflictError, match="nothing is there"):
        nx.write_batch([WriteRequest("/g", b"c", precondition=Precondition(if_revision=1))])
    assert nx.read("/f") == b"b"


def test_copy_and_setattr_answer_before_anyone_else_can_change_the_path(nx: NexusFS) -> None:
    nx.write("/f", b"a")
    held: list[dict[str, str]] = []
    volume = nx.volumes()[0]
    stat = volume.stat

    def watched(relative: str) -> object:
        held.append(nx.locks.held())
        return stat(relative)

    volume.stat = watched  # type: ignore[method-assign,assignment]
    nx.sys_copy("/f", "/g")
    nx.sys_setattr("/f", mode=0o600)
    nx.mkdir("/d")
    assert [
        locks.get(path) for locks, path in zip(held, ("/root/g", "/root/f", "/root/d"), strict=True)
    ] == ["write"] * 3


def test_a_listing_of_several_scans_shows_a_rename_whole(
    nx: NexusFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"/d/{number:04d}" for number in range(SCAN_PAGE + 100)]
    nx.write_batch([(name, b"") for name in names])
    scan = nx.store.scan
    mover = threading.Thread(target=lambda: nx.sys_rename("/d/0000", "/d/9999"))

    def scan_with_a_rename_between(prefix: bytes, after: bytes = b"", limit: int = 0) -> list[Any]:
        if after and not mover.ident:
            mover.start()
            while mover.is_alive() and not nx.locks.waiting():
                pass
        return scan(prefix, after, limit or SCAN_PAGE)

    monkeypatch.setattr(nx.store, "scan", scan_with_a_rename_between)
    listed = [stat["path"] for stat in nx.list("/d", details=True)]
    mover.join()
    assert listed in (names, [*names[1:], "/d/9999"])
    assert nx.list("/d") == [*names[1:], "/d/9999"]
