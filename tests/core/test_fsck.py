"""The checker over a store in memory, with records damaged and removed one by one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import ConflictError, PathNotFoundError
from nexus.contracts.metadata import DT_MOUNT
from nexus.contracts.metastore import Batch
from nexus.core.fsck import Checker, FsckReport
from nexus.core.inode_table import parse_key
from nexus.core.inode_volume import InodeVolume
from nexus.core.lock_manager import LOCK_VERSION
from nexus.core.nexus_fs import NexusFS
from nexus.core.path_volume import PathVolume
from nexus.core.sealed_store import Mutation, revision_of
from nexus.lib.content_id import object_id_of, parse_content_id
from nexus.storage.metastore.memory import MemoryMetastore
from nexus.storage.object_store.cas_store import CasStore
from nexus.storage.object_store.loose_objects import LooseObjects
from nexus.storage.object_store.memory_transport import MemoryTransport
from nexus.storage.object_store.path_store import PathStore

LARGE = bytes(range(256)) * 8192  # two mebibytes: a manifest and chunks
Break = Callable[[MemoryMetastore, bytes], None]


class Rig(NamedTuple):
    """A filesystem with what lies beneath it in hand."""

    nx: NexusFS
    metastore: MemoryMetastore
    content: CasStore
    objects: MemoryTransport
    folder: MemoryTransport

    def key(self, keyspace: str, path: str, revision: int | None = None) -> bytes:
        """Return the key of a path's record, the newest of its kind unless told."""
        found = [
            entry.key
            for entry in self.metastore.scan(keyspace.encode(), limit=10_000)
            if (parsed := parse_key(entry.key)) is not None
            and parsed.path == path
            and (revision is None or revision_of(entry.key) == revision)
        ]
        return found[-1]

    def journal_key(self, revision: int) -> bytes:
        (entry,) = self.metastore.scan(b"J" + revision.to_bytes(8, "big"))
        return entry.key

    def fsck(self, *, repair: bool = False) -> FsckReport:
        for volume in self.nx.volumes():
            if isinstance(volume, InodeVolume | PathVolume):
                volume.table.drop_cache()  # what was damaged is in no memory, as after a start
        return Checker(self.nx.store, self.nx.volumes()).run(repair=repair)


def remove_row(metastore: MemoryMetastore, key: bytes) -> None:
    metastore.commit(Batch([], [key]))


def flip_row(metastore: MemoryMetastore, key: bytes) -> None:
    found = metastore.get(key)
    assert found is not None
    value = bytearray(found[0])
    value[-1] ^= 4
    metastore.commit(Batch([(key, bytes(value))]))


either_way = pytest.mark.parametrize("damage", [remove_row, flip_row])


def path_store(folder: MemoryTransport) -> PathStore:
    return PathStore(folder, name="path_memory", volume_id="path-1")


@pytest.fixture
def rig() -> Rig:
    ticks = count(1_700_000_000 * 10**9, 10**9)
    metastore = MemoryMetastore()
    nx = NexusFS(
        metastore,
        context=OperationContext("ann", is_admin=True),
        open_driver=lambda description: pytest.fail(f"{description} is opened"),
        clock_ns=lambda: next(ticks),
    )
    objects, folder = MemoryTransport(), MemoryTransport()
    content = CasStore(
        LooseObjects(objects), name="cas_memory", volume_id="v1", clock_ns=lambda: next(ticks)
    )
    nx.sys_setattr("/", entry_type=DT_MOUNT, backend=content)
    nx.sys_setattr("/mnt", entry_type=DT_MOUNT, backend=path_store(folder))
    return Rig(nx, metastore, content, objects, folder)


def only(report: FsckReport, shown: str) -> str:
    """Return the problem of the one object that is not the metastore as a whole."""
    (problem,) = [p for p in report.problems if p.object != "metastore"]
    assert problem.object == shown
    return problem.problem


@either_way
def test_the_only_overlay_record_of_a_path_volume_comes_back_where_it_belongs(
    rig: Rig, damage: Break
) -> None:
    rig.nx.write("/mnt/a", b"data")
    rig.nx.sys_setattr("/mnt/a", attributes={"colour": "green"})
    before = rig.nx.sys_stat("/mnt/a")
    damage(rig.metastore, rig.key("O", "/a"))
    assert "current record" in only(rig.fsck(), "/mnt/a")
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    assert rig.nx.sys_stat("/mnt/a") == before


@either_way
def test_a_lost_record_of_a_removal_comes_back_from_the_journal(rig: Rig, damage: Break) -> None:
    rig.nx.write("/a", b"one")
    rig.nx.sys_unlink("/a")
    head = rig.nx.store.head()
    damage(rig.metastore, rig.key("V", "/a"))
    assert only(rig.fsck(), "/a") == "the record of its removal is missing or damaged"
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    assert rig.nx.sys_stat("/a") is None
    assert [stat["deleted"] for stat in rig.nx.history("/a")] == [False, True]
    assert rig.nx.store.head() == head


@either_way
@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_removal_of_a_directory_above_counts_as_a_removal(
    rig: Rig, damage: Break, how: str
) -> None:
    rig.nx.write("/top/middle/a", b"one")
    if how == "removed":
        rig.nx.sys_unlink("/top", recursive=True)
    else:
        rig.nx.sys_rename("/top", "/other")
    damage(rig.metastore, rig.key("V", "/top/middle/a"))
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    assert rig.nx.sys_stat("/top/middle/a") is None


def test_a_path_stays_absent_when_nobody_knows_whether_it_was_removed(rig: Rig) -> None:
    rig.nx.write("/a", b"one")
    revision = rig.nx.sys_unlink("/a")["revision"]
    flip_row(rig.metastore, rig.key("V", "/a"))
    remove_row(rig.metastore, rig.journal_key(revision))
    assert "whether it was removed is not known" in only(rig.fsck(), "/a")
    report = rig.fsck(repair=True)
    (problem,) = [p for p in report.problems if p.object == "/a"]
    assert not problem.repaired
    assert "nexus log /a" in problem.advice
    assert rig.nx.sys_stat("/a") is None
    assert rig.nx.read("/a", version=1) == b"one"
    assert rig.fsck(repair=True).clean
    assert rig.nx.sys_stat("/a") is None


@either_way
def test_a_path_that_was_written_again_after_a_removal_comes_back(rig: Rig, damage: Break) -> None:
    rig.nx.write("/a", b"one")
    rig.nx.sys_unlink("/a")
    rig.nx.write("/a", b"two")
    damage(rig.metastore, rig.key("C", "/a"))
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    assert rig.nx.read("/a") == b"two"


def test_with_both_newest_records_damaged_repair_returns_to_the_version_before_and_says_so(
    rig: Rig,
) -> None:
    rig.nx.write("/a", b"one")
    rig.nx.write("/a", b"two")
    flip_row(rig.metastore, rig.key("C", "/a"))
    flip_row(rig.metastore, rig.key("V", "/a"))
    assert "its current record and its newest version record" in only(rig.fsck(), "/a")
    report = rig.fsck(repair=True)
    assert not report.clean
    assert rig.fsck().problems == []
    assert rig.nx.read("/a") == b"one"


def test_a_record_without_any_copy_is_a_loss_that_repair_does_not_call_repaired(rig: Rig) -> None:
    rig.nx.write("/a", b"one")
    flip_row(rig.metastore, rig.key("C", "/a"))
    flip_row(rig.metastore, rig.key("V", "/a"))
    assert not rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    with pytest.raises(PathNotFoundError):
        rig.nx.read("/a")
    rig.nx.write("/a", b"again")
    assert rig.fsck().problems == []


def test_an_old_current_record_gives_way_to_the_newer_version_record(rig: Rig) -> None:
    rig.nx.write("/a", b"one")
    rig.nx.write("/b", b"one")
    old = {path: rig.metastore.get(rig.key("C", path)) for path in ("/a", "/b")}
    rig.nx.write("/a", b"two")
    removed = rig.key("C", "/b")
    rig.nx.sys_unlink("/b")
    for key, found in ((rig.key("C", "/a"), old["/a"]), (removed, old["/b"])):
        assert found is not None
        rig.metastore.commit(Batch([(key, found[0])]))
    assert not rig.fsck().clean
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    assert rig.nx.read("/a") == b"two"
    assert rig.nx.sys_stat("/b") is None


def test_what_cannot_be_decoded_is_reported_and_left_alone(rig: Rig) -> None:
    rig.nx.write("/a", b"one")
    key = rig.key("C", "/a")
    stored = rig.nx.store.get(key)
    assert stored is not None
    payload = b"\x02" + stored.payload[1:]
    with rig.nx.store.frozen() as head:
        rig.nx.store.repair_locked([(key, payload, stored.revision)], [], head)
    for _ in range(2):
        report = rig.fsck(repair=True)
        assert not report.clean
        assert "codec version 02" in only(report, "/a")
    kept = rig.nx.store.get(key)
    assert kept is not None
    assert kept.payload == payload


def test_records_of_a_volume_that_is_not_mounted_wait_for_it(rig: Rig) -> None:
    rig.nx.write("/mnt/a", b"data")
    remove_row(rig.metastore, rig.key("O", "/a"))
    rig.nx.sys_unlink("/mnt")
    report = rig.fsck(repair=True)
    (problem,) = [p for p in report.problems if p.object == "/a (volume path-1)"]
    assert "mount its volume" in problem.advice
    rig.nx.sys_setattr("/elsewhere", entry_type=DT_MOUNT, backend=path_store(rig.folder))
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []


def test_a_damaged_overlay_of_a_volume_that_is_not_mounted_is_restored_in_place(rig: Rig) -> None:
    rig.nx.write("/mnt/a", b"data")
    rig.nx.sys_setattr("/mnt/a", attributes={"colour": "green"})
    flip_row(rig.metastore, rig.key("O", "/a"))
    rig.nx.sys_unlink("/mnt")
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    rig.nx.sys_setattr("/mnt", entry_type=DT_MOUNT, backend=path_store(rig.folder))
    assert rig.nx.sys_stat("/mnt/a")["attributes"] == {"colour": "green"}


def test_a_lost_journal_entry_ends_what_the_journal_vouches_for(rig: Rig) -> None:
    rig.nx.write("/a", b"one")
    revision = rig.nx.write("/b", b"two")["revision"]
    remove_row(rig.metastore, rig.journal_key(revision))
    (problem,) = rig.fsck(repair=True).problems
    assert not problem.repaired
    assert rig.fsck().problems == []
    head = rig.nx.store.head()
    assert head.journal_start == head.revision + 1


def test_a_revision_is_never_given_twice_though_its_records_are_gone(rig: Rig) -> None:
    revision = rig.nx.write("/a", b"one")["revision"]
    for key in (rig.key("C", "/a"), rig.key("V", "/a"), rig.journal_key(revision)):
        remove_row(rig.metastore, key)
    rig.fsck(repair=True)
    assert rig.nx.write("/b", b"two")["revision"] > revision


def set_aside(rig: Rig, *object_ids: str) -> None:
    rig.content.begin_collection()
    for object_id in object_ids:
        assert rig.content.quarantine_object(object_id)
    rig.content.end_collection()


def test_a_quarantined_manifest_comes_back_with_its_quarantined_chunks(rig: Rig) -> None:
    rig.nx.write("/large", LARGE)
    etag = rig.nx.sys_stat("/large")["etag"]
    set_aside(rig, *dict.fromkeys(reversed(list(rig.content.objects_of(etag)))))
    assert "its content is missing" in only(rig.fsck(), "/large")
    report = rig.fsck(repair=True)
    assert report.clean
    assert {problem.object for problem in report.problems} == {"/large"}
    assert len(report.problems) > 1
    assert rig.fsck().problems == []
    assert rig.nx.read("/large") == LARGE


def test_damaged_content_is_replaced_by_a_whole_copy_in_quarantine(rig: Rig) -> None:
    rig.nx.write("/a", b"hello")
    object_id = object_id_of(b"hello")
    set_aside(rig, object_id)
    rig.objects.store(f"{object_id[:2]}/{object_id[2:]}", b"hallo")
    assert "its content is damaged" in only(rig.fsck(), "/a")
    assert rig.fsck(repair=True).clean
    assert rig.nx.read("/a") == b"hello"


def test_every_file_that_needs_a_lost_object_is_named(rig: Rig) -> None:
    rig.nx.write("/a", b"hello")
    rig.nx.write("/a", b"other")
    rig.nx.write("/b", b"hello")
    rig.nx.write("/large", LARGE)
    rig.nx.sys_copy("/large", "/copy")
    _, manifest = parse_content_id("test", rig.nx.sys_stat("/large")["etag"])
    for object_id in (object_id_of(b"hello"), manifest):
        rig.objects.remove(f"{object_id[:2]}/{object_id[2:]}")
    problems = rig.fsck().problems
    assert sorted(problem.object for problem in problems) == ["/a", "/b", "/copy", "/large"]
    assert [p.problem.split(" is missing")[0] for p in problems if p.object == "/a"] == [
        "the content of its version 1"
    ]


def test_an_entry_without_its_directory_names_the_directory_once(rig: Rig) -> None:
    rig.nx.write_batch({"/top/a": b"a", "/top/b": b"b"})
    for keyspace in "CV":
        flip_row(rig.metastore, rig.key(keyspace, "/top"))
    rig.fsck(repair=True)
    (problem,) = rig.fsck().problems
    assert (problem.object, problem.advice.rpartition("; then ")[2]) == (
        "/top",
        "`nexus mkdir /top`",
    )
    rig.nx.mkdir("/top")
    assert rig.fsck().problems == []
    assert rig.nx.read("/top/a") == b"a"


def test_memory_grows_by_less_than_300_bytes_an_entry(rig: Rig) -> None:
    files = 2500
    names = [f"/project/documents/part/report-{number:06d}.txt" for number in range(files)]
    for start in range(0, files, 500):
        rig.nx.write_batch({name: name.encode() for name in names[start : start + 500]})
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        assert rig.fsck().clean
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    fixed_bytes = 1 << 20  # a page of records
    assert peak - before < files * 300 + fixed_bytes


def move_row(metastore: MemoryMetastore, key: bytes, damaged: bytes) -> None:
    found = metastore.get(key)
    assert found is not None
    metastore.commit(Batch([(damaged, found[0])], [key]))


@pytest.mark.parametrize("depth", [b"\x00\x03", b"\x10\x01"])
def test_a_record_with_a_damaged_depth_in_its_key_comes_back_under_its_own(
    rig: Rig, depth: bytes
) -> None:
    rig.nx.write("/abc", b"one")
    current = rig.key("C", "/abc")
    move_row(rig.metastore, current, current[:-6] + depth + current[-4:])
    assert rig.fsck(repair=True).clean
    assert rig.fsck().problems == []
    assert rig.nx.read("/abc") == b"one"


def test_a_damaged_key_is_a_loss_only_if_its_record_has_no_copy(rig: Rig) -> None:
    rig.nx.write("/abc", b"one")
    current = rig.key("C", "/abc")
    move_row(rig.metastore, current, current[:-1] + b"\xe3")
    report = rig.fsck(repair=True)
    assert any("damaged key" in problem.problem for problem in report.problems)
    assert report.clean
    assert rig.nx.read("/abc") == b"one"
    entry = rig.journal_key(rig.nx.sys_stat("/abc")["revision"])
    move_row(rig.metastore, entry, b"N" + entry[1:])
    assert not rig.fsck(repair=True).clean
    assert rig.fsck().problems == []


def test_reads_go_on_in_every_stage_and_the_progress_names_those_in_which_changes_wait(
    rig: Rig,
) -> None:
    rig.nx.write("/a", b"one")
    stages = []

    def progress(stage: str, count: int) -> None:
        stages.append(stage)
        assert rig.nx.read("/a") == b"one"
        if stage == "content":
            rig.nx.write("/b", b"changes no longer wait")

    Checker(rig.nx.store, rig.nx.volumes(), progress).run()
    assert list(dict.fromkeys(stages)) == ["structure", "content"]
    assert rig.nx.read("/b")


def test_the_record_of_a_lock_that_is_damaged_is_named_and_ends_the_lock(rig: Rig) -> None:
    rig.nx.write("/f", b"x")
    lock = rig.nx.sys_lock("/f")
    assert lock is not None
    flip_row(rig.metastore, rig.key("L", "/f"))
    (problem,) = rig.fsck().problems
    assert (problem.object, problem.problem) == ("/f", "its lock record is damaged")
    assert not rig.fsck(repair=True).clean
    assert rig.fsck().clean
    with pytest.raises(ConflictError):
        rig.nx.write("/f", b"y", lock_token=lock.token)
    assert rig.nx.sys_unlock("/f", lock)
    assert rig.nx.sys_lock("/f")


def test_a_lock_that_does_not_decode_is_named_and_left(rig: Rig) -> None:
    mutation = Mutation()
    mutation.put_at_revision(b"Lroot\0/f\0", LOCK_VERSION + b"\x91\x05")
    rig.nx.store.commit(mutation, durable=False)
    (problem,) = rig.fsck().problems
    assert problem.object == "/f"
    assert "lock record" in problem.problem
