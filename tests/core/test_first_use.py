"""Parts of the kernel that are made on the first use, wherever in its life that falls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nexus.contracts.errors import ClosedError
from nexus.contracts.metadata import DT_PIPE
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


def test_a_watch_that_begins_while_the_filesystem_closes_is_refused(nx: NexusFS) -> None:
    refused = []

    def watch() -> None:
        with pytest.raises(ClosedError):
            nx.sys_watch("/", timeout=0.0)
        refused.append("watch")

    nx.on_closing(watch)
    nx.close()
    assert refused == ["watch"]


def test_a_service_that_is_enlisted_while_the_filesystem_closes_is_refused(nx: NexusFS) -> None:
    refused = []

    def enlist() -> None:
        with pytest.raises(ClosedError):
            nx.services.enlist("late", object())
        refused.append("late")

    nx.on_closing(enlist)
    nx.close()
    assert refused == ["late"]


def test_a_channel_is_not_opened_once_its_mount_is_closed(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"))
    with boot(settings) as nx:
        nx.sys_setattr("/pipe", entry_type=DT_PIPE)
    with boot(settings) as nx:
        [volume] = [volume for volume in nx.volumes() if volume.point == "/"]
        record = volume.channel_record("/pipe")
        assert record is not None
        assert volume.channel_rows() == []
    with pytest.raises(ClosedError):
        volume.channels.open("/pipe", record)


def test_locks_of_an_earlier_process_stand_before_anybody_asks_for_one(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"))
    with boot(settings) as nx:
        nx.write("/a", b"x")
        held = nx.sys_lock("/a")
        assert held
    with boot(settings) as nx:
        assert [hold.lock_id for hold in nx.waiting.locks.holds("root", "/a")] == [str(held)]
        assert nx.sys_lock("/a") is None
