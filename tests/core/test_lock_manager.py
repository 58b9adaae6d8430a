"""LocalLockManager holds its conformance suite; what is its own is here."""

from collections.abc import Callable
from typing import Any

import pytest

from nexus.contracts.context import ROOT_ZONE_ID
from nexus.contracts.errors import ConflictError
from nexus.contracts.lock_manager import LockManagerABC
from nexus.core.lock_manager import LocalLockManager
from nexus.core.sealed_store import Mutation, SealedStore
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
    records = [record for _, record in store.iterate_unverified() if record]
    head = store.head()
    assert head.records == len(records)
    assert head.seal_sum == sum(record.seal for record in records) % 2**64
