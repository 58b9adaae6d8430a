"""A call answers with what it made itself, and an edit replaces only what it read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nexus.contracts.errors import ConflictError
from nexus.contracts.filesystem import Precondition, WriteRequest
from nexus.core.nexus_fs import NexusFS
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
