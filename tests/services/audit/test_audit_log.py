"""AuditLog: a record in every commit, and no way to change one unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.metadata import DT_MOUNT
from nexus.contracts.vfs_hooks import HookSpec
from nexus.core.inode_table import Transaction
from nexus.core.nexus_fs import NexusFS
from nexus.core.sealed_store import revision_key
from nexus.factory.boot import Settings, boot
from nexus.factory.maintenance import fsck

ADA = OperationContext("ada", agent_id="a1", run_id="r1")


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:", enable=("audit",))) as filesystem:
        yield filesystem


def forge(nx: NexusFS, revision: int, payload: bytes | None) -> None:
    """Change or remove a record with everything the kernel has, totals included."""
    key = b"A" + revision_key(revision)
    with Transaction(nx.store) as txn:
        old = nx.store.get(key)
        assert old is not None
        if payload is None:
            txn.delete_record(old)
        else:
            txn.put_record(key, payload, old)
        txn.commit(durable=False)


def work(nx: NexusFS) -> None:
    ada = nx.bind(ADA)
    ada.write("/d/f", b"1")
    ada.sys_rename("/d/f", "/d/g")
    nx.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})
    nx.write_batch({"/d/a": b"", "/d/b": b""})
    nx.sys_unlink("/d/a")


def test_every_change_has_its_record_with_who_and_which_run(nx: NexusFS) -> None:
    work(nx)
    journal = [
        (row["revision"], row["kind"], row["path"], row["run_id"])
        for row in nx.list("/__sys__/journal", details=True)
        if row["kind"] != "dir_create" or row["path"] != "/"
    ]
    rows = list(nx.service("audit").query())
    assert [(r["revision"], r["kind"], r["path"], r["run_id"]) for r in rows] == journal
    assert {r["user_id"] for r in rows if r["run_id"] == "r1"} == {"ada"}


def test_queries_filter_by_path_user_run_and_revision(nx: NexusFS) -> None:
    work(nx)
    audit = nx.service("audit")
    assert [r["kind"] for r in audit.query(path="/d/g")] == ["file_rename"]
    assert {r["path"] for r in audit.query(path="/d", user_id="ada")} >= {"/d/f"}
    mine = list(audit.query(run_id="r1"))
    assert [r["kind"] for r in mine][-2:] == ["file_write", "file_rename"]
    later = list(audit.query(after_revision=mine[-1]["revision"]))
    assert {r["run_id"] for r in later} == {None}


def test_a_call_that_fails_leaves_no_record(nx: NexusFS) -> None:
    with pytest.raises(FileNotFoundError):
        nx.sys_unlink("/nothing")
    assert nx.service("audit").verify().records == 0


def test_an_untouched_chain_is_whole_also_under_concurrency(nx: NexusFS) -> None:
    def write(number: int) -> None:
        for count in range(20):
            nx.write(f"/{number}/{count}", b"x")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = nx.service("audit").verify()
    assert report.records == 80
    assert not report.problems
    assert not nx.service("audit").verify(report.tip).problems


@pytest.mark.parametrize("payload", [None, b"rubbish", "reworded"])
def test_a_record_that_was_changed_or_removed_shows(nx: NexusFS, payload: Any) -> None:
    work(nx)
    audit = nx.service("audit")
    revision = next(r["revision"] for r in audit.query(user_id="ada"))
    if payload == "reworded":
        record = nx.store.get(b"A" + revision_key(revision))
        assert record is not None
        payload = record.payload.replace(b'"ada"', b'"eve"')
    forge(nx, revision, payload)
    assert audit.verify().problems


def test_records_cut_off_at_the_end_show_against_a_tip_kept_elsewhere(nx: NexusFS) -> None:
    work(nx)
    audit = nx.service("audit")
    tip = audit.verify().tip
    forge(nx, list(audit.query())[-1]["revision"], None)
    assert not audit.verify().problems
    assert "the newest record has the digest" in audit.verify(tip).problems[0]


def test_the_chain_goes_on_after_a_restart_and_the_checker_knows_its_records(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=str(tmp_path / "data"), enable=("audit",))
    with boot(settings) as nx:
        work(nx)
        before = nx.service("audit").verify().records
    with boot(settings) as nx:
        nx.write("/later", b"")
        report = nx.service("audit").verify()
        assert report.records == before + 1
        assert not report.problems
        assert not fsck(nx).problems


def test_without_the_service_nothing_is_recorded(nx: NexusFS) -> None:
    nx.write("/a", b"")
    audit = nx.service("audit")
    before = audit.verify().records
    nx.sys_unlink("/__sys__/services/audit")
    nx.write("/b", b"")
    assert len(nx.list("/__sys__/records", details=True)) == before


def test_there_is_one_recorder(nx: NexusFS) -> None:
    class Second:
        def hook_spec(self) -> HookSpec:
            return HookSpec(recorder=self)

        def record(self, events: Sequence[FileEvent], revision: int, previous: bytes, /) -> bytes:
            return b""

    with pytest.raises(InvalidArgumentError, match="is the second one"):
        nx.services.enlist("second", Second())


def test_a_recorder_that_raises_refuses_the_change(nx: NexusFS) -> None:
    class Failing:
        def record(self, events: Sequence[FileEvent], revision: int, previous: bytes, /) -> bytes:
            raise RuntimeError("out of ink")

    nx.sys_unlink("/__sys__/services/audit")
    spec = HookSpec(recorder=Failing())
    nx.dispatch.register("failing", spec)
    with pytest.raises(RuntimeError, match="out of ink"):
        nx.write("/a", b"")
    nx.dispatch.unregister("failing", spec)
    assert nx.sys_stat("/a") is None
    nx.write("/a", b"works again")
