"""LocalLockManager holds its conformance suite; what is its own is here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.context import ROOT_ZONE_ID
from nexus.contracts.errors import ConflictError, CorruptionError, StorageFailedError
from nexus.contracts.lock_manager import LockManagerABC
from nexus.contracts.metastore import Batch
from nexus.core.fsck import Checker
from nexus.core.lock_manager import PREFIX, LocalLockManager
from nexus.core.nexus_fs import NexusFS
from nexus.core.sealed_store import Mutation, SealedStore
from nexus.factory.boot import Settings, boot
from nexus.sdk import Precondition, collect, connect, fsck
from nexus.storage.metastore.memory import MemoryMetastore
from nexus.testing.lock_manager import LockManagerSuite, wanted
from nexus.testing.semaphore import ManualClock


class TestLocalLockManager(LockManagerSuite):
    def make(self, state: dict[str, Any], clock_ns: Callable[[], int]) -> LockManagerABC:
        metastore = state.setdefault("metastore", MemoryMetastore())
        return LocalLockManager(SealedStore(metastore), clock_ns)


def test_a_commit_that_requires_a_lost_lock_commits_nothing():
    clock = ManualClock()
    store = SealedStore(MemoryMetastore())
    locks = LocalLockManager(store, clock)
    lost = locks.acquire(wanted(ttl_s=1))
    assert lost
    proof = locks.proof_of("write", ROOT_ZONE_ID, "/a", lost.token)
    clock.advance(1)
    assert locks.acquire(wanted())  # between the check and the commit
    before = store.head()
    mutation = Mutation()
    mutation.put(b"X", b"late", None)
    mutation.require(proof, ConflictError("write", "/a", "lost"))
    with pytest.raises(ConflictError):
        store.commit(mutation, durable=False)
    assert store.get(b"X") is None
    assert store.head() == before


def test_expired_but_not_granted_again_does_not_stop_a_commit_on_its_way():
    clock = ManualClock()
    store = SealedStore(MemoryMetastore())
    locks = LocalLockManager(store, clock)
    hold = locks.acquire(wanted(ttl_s=1))
    assert hold
    proof = locks.proof_of("write", ROOT_ZONE_ID, "/a", hold.token)
    clock.advance(1)
    mutation = Mutation()
    mutation.put(b"X", b"nobody else came", None)
    mutation.require(proof, ConflictError("write", "/a", "lost"))
    store.commit(mutation, durable=False)
    assert store.get(b"X")


def test_totals_stay_right_through_grants_and_releases():
    clock = ManualClock()
    store = SealedStore(MemoryMetastore())
    locks = LocalLockManager(store, clock)
    for number in range(20):
        hold = locks.acquire(wanted(f"/{number % 3}", ttl_s=1 + number % 4))
        if hold and number % 2:
            locks.extend(wanted(hold.path, ttl_s=2), hold.lock_id)
        if hold and number % 5 == 0:
            locks.release(ROOT_ZONE_ID, hold.path, hold.lock_id)
        clock.advance(1)
    assert_totals_are_right(store)


def assert_totals_are_right(store: SealedStore) -> None:
    records = [record for _, record in store.iterate_unverified() if record]
    head = store.head()
    assert head.records == len(records)
    assert head.seal_sum == sum(record.seal for record in records) % 2**64


class AnswersNobody(MemoryMetastore):
    """Commits, and where it is told to fails afterwards."""

    fails = False

    def commit(self, *arguments: Any, **options: Any) -> int:
        revision = super().commit(*arguments, **options)
        if self.fails:
            raise StorageFailedError("commit", None, "nobody knows what became of it")
        return revision


@pytest.mark.parametrize("doubtful", ["release", "extend", "another's"])
def test_a_lock_is_released_as_it_is_stored_after_a_commit_that_nobody_knows_of(doubtful: str):
    metastore = AnswersNobody()
    store = SealedStore(metastore)
    locks = LocalLockManager(store, ManualClock())
    hold, other = locks.acquire(wanted("/a")), locks.acquire(wanted("/b"))
    assert hold
    assert other
    calls: dict[str, Callable[[], object]] = {
        "release": lambda: locks.release(ROOT_ZONE_ID, "/a", hold.lock_id),
        "extend": lambda: locks.extend(wanted("/a", ttl_s=60), hold.lock_id),
        "another's": lambda: locks.acquire(wanted("/c")),
    }
    metastore.fails = True
    with pytest.raises(StorageFailedError):
        calls[doubtful]()
    metastore.fails = False
    assert locks.release(ROOT_ZONE_ID, "/b", other.lock_id)
    assert locks.release(ROOT_ZONE_ID, "/a", hold.lock_id)
    assert_totals_are_right(store)
    assert locks.acquire(wanted("/a"))
    assert_totals_are_right(store)


class TakenOverAfterTheCheck(LocalLockManager):
    """Loses every lock to the next holder between the check of a token and the commit."""

    def proof_of(self, operation: str, zone_id: str, path: str, token: int) -> bytes:
        proof = super().proof_of(operation, zone_id, path, token)
        self.force_release(zone_id, path)
        assert self.acquire(wanted(path))
        return proof


def test_a_write_whose_lock_goes_to_the_next_before_the_commit_is_refused():
    with connect({"data_dir": ":memory:"}) as nx:
        assert isinstance(nx, NexusFS)
        nx.write("/f", b"old")
        nx.waiting.locks = TakenOverAfterTheCheck(nx.store, ManualClock())
        calls = (
            lambda token: nx.write("/f", b"late", lock_token=token),
            lambda token: nx.append("/f", b"late", lock_token=token),
            lambda token: nx.sys_write("/f", b"late", precondition=Precondition(lock_token=token)),
        )
        for call in calls:
            nx.sys_unlock("/f", force=True)
            with pytest.raises(ConflictError):
                call(nx.lock("/f").token)
        assert nx.read("/f") == b"old"
        assert len(nx.history("/f")) == 1


def test_locks_of_a_data_directory_survive_a_restart(tmp_path: Path):
    with connect({"data_dir": str(tmp_path)}) as nx:
        lock = nx.lock("/f", ttl=3600)
        nx.write("/f", b"1", lock_token=lock.token)
    with connect({"data_dir": str(tmp_path)}) as nx:
        assert nx.sys_lock("/f") is None
        nx.write("/f", b"2", lock_token=lock.token)
        assert fsck(nx).clean
        assert nx.sys_unlock("/f", lock)
        assert nx.lock("/f").token > lock.token


def test_collection_removes_what_is_stored_of_expired_locks():
    clock = ManualClock()
    with boot(Settings(data_dir=":memory:"), clock_ns=clock) as nx:
        lock = nx.lock("/f", ttl=1)
        clock.advance(1)
        collect(nx, retention_s=0, grace_s=0, dry_run=True)
        assert any(True for _ in nx.store.iterate(PREFIX))
        collect(nx, retention_s=0, grace_s=0)
        assert not any(True for _ in nx.store.iterate(PREFIX))
        assert not nx.sys_unlock("/f", lock)


def test_a_damaged_lock_record_is_found_and_the_filesystem_opens():
    metastore = MemoryMetastore()
    clock = ManualClock()
    assert LocalLockManager(SealedStore(metastore), clock).acquire(wanted())
    (entry,) = metastore.scan(PREFIX)
    metastore.commit(Batch([(entry.key, entry.value[:-1] + b"?")]))
    store = SealedStore(metastore)
    locks = LocalLockManager(store, clock)
    assert locks.holds(ROOT_ZONE_ID) == []
    with pytest.raises(CorruptionError):
        locks.acquire(wanted())
    problems = [problem.object for problem in Checker(store, []).run(repair=True).problems]
    assert "/a" in problems
    assert locks.acquire(wanted())
