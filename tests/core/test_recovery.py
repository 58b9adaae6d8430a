from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nexus.lib.content_id import object_id_of
from nexus.sdk import connect, fsck
from nexus.testing.damage import lose_object


def power_cut(live: Path, left: Path) -> None:
    """Leave at ``left`` what a machine finds after it went down while ``live`` was open."""
    shutil.copytree(live, left)
    pid, _ = (left / "LOCK").read_text().split()
    (left / "LOCK").write_text(f"{pid}\nanother-uptime\n")


def lose(data_dir: Path, content: bytes) -> None:
    """Undo the writing of a content, whose record reached the disk before it."""
    lose_object(data_dir / "content", object_id_of(content))


@pytest.fixture
def live(tmp_path):
    with connect({"data_dir": str(tmp_path / "live")}) as nx:
        nx.write("/kept", b"before the barrier")
        nx.write("/moved/file", b"moves later")
        nx.sync()
        yield nx, tmp_path / "live"


def test_commits_from_the_first_with_lost_content_are_undone_whole(live, tmp_path):
    nx, data_dir = live
    nx.write("/early", b"content that reached the disk")
    nx.write_batch({"/kept": b"second version", "/new/a": b"aa", "/new/b": b"bb"})
    nx.sys_rename("/moved", "/elsewhere")
    nx.write("/late", b"too late")
    left = tmp_path / "left"
    power_cut(data_dir, left)
    lose(left, b"bb")
    with connect({"data_dir": str(left)}) as again:
        tree = again.list("/", recursive=True)
        assert tree == ["/early", "/kept", "/moved", "/moved/file"]
        assert again.read("/kept") == b"before the barrier"
        assert again.read("/early") == b"content that reached the disk"
        assert again.read("/moved/file") == b"moves later"
        assert fsck(again).clean


def test_a_cut_that_lost_no_content_undoes_nothing(live, tmp_path):
    nx, data_dir = live
    nx.write("/late", b"but it reached the disk")
    revision = nx.sys_stat("/late")["revision"]
    left = tmp_path / "left"
    power_cut(data_dir, left)
    with connect({"data_dir": str(left)}) as again:
        assert again.read("/late") == b"but it reached the disk"
        assert again.sys_stat("/late")["revision"] == revision


def test_what_was_synced_is_never_undone(live, tmp_path):
    nx, data_dir = live
    nx.write("/kept", b"lost")
    left = tmp_path / "left"
    power_cut(data_dir, left)
    lose(left, b"lost")
    with connect({"data_dir": str(left)}) as again:
        assert again.read("/kept") == b"before the barrier"
        assert again.history("/kept")[-1]["etag"] == again.sys_stat("/kept")["etag"]
        again.write("/kept", b"and on it goes")
    with connect({"data_dir": str(left)}) as again:
        assert again.read("/kept") == b"and on it goes"


def test_after_a_kill_nothing_is_undone(live, tmp_path):
    nx, data_dir = live
    nx.write("/late", b"acknowledged")
    left = tmp_path / "left"
    shutil.copytree(data_dir, left)
    with connect({"data_dir": str(left)}) as again:
        assert again.read("/late") == b"acknowledged"


def test_a_second_cut_does_not_undo_what_came_after_the_first_recovery(live, tmp_path):
    nx, data_dir = live
    nx.write("/kept", b"lost")
    first = tmp_path / "first"
    power_cut(data_dir, first)
    lose(first, b"lost")
    second = tmp_path / "second"
    with connect({"data_dir": str(first), "durability": "strict"}) as again:
        again.write("/precious", b"synced before it was acknowledged")
        power_cut(first, second)
    with connect({"data_dir": str(second)}) as once_more:
        assert once_more.read("/precious") == b"synced before it was acknowledged"
        assert once_more.read("/kept") == b"before the barrier"
        assert fsck(once_more).clean
