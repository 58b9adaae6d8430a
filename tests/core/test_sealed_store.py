"""SealedStore groups commits, and keeps its head where a driver can count by it."""

import os
import threading
from collections.abc import Callable, Sequence

import msgspec
import pytest

from nexus.contracts.errors import (
    ConflictError,
    CorruptionError,
    NexusError,
    NoSpaceError,
    StorageFailedError,
)
from nexus.contracts.metastore import Batch, Condition
from nexus.core.record_seal import seal_record
from nexus.core.sealed_store import CHAIN, Head, Mutation, SealedStore, revision_key
from nexus.storage.metastore.memory import MemoryMetastore


class GatedStore(MemoryMetastore):
    """Records its commits; the first waits for the test; ``refuse`` names errors to raise."""

    capabilities = msgspec.structs.replace(MemoryMetastore.capabilities, shares_syncs=False)

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[tuple[Batch, Sequence[Condition], bool]] = []
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.refuse: Callable[[Batch], NexusError | None] = lambda batch: None

    def commit(
        self,
        batch: Batch,
        conditions: Sequence[Condition] = (),
        *,
        durable: bool = False,
        reclaim: bool = False,
    ) -> int:
        self.commits.append((batch, conditions, durable))
        self.started.set()
        self.go_on.wait()
        error = self.refuse(batch)
        if error is not None:
            raise error
        return super().commit(batch, conditions, durable=durable, reclaim=reclaim)


def put(key: bytes) -> Mutation:
    mutation = Mutation()
    mutation.put(key, b"value of " + key, None)
    return mutation


def commit_while_one_is_under_way(
    driver: GatedStore, store: SealedStore, keys: Sequence[bytes], durable: Sequence[bytes] = ()
) -> dict[bytes, object]:
    """Commit the first key, and the others while it is under way; return revisions or errors."""
    answers: dict[bytes, object] = {}

    def commit(key: bytes) -> None:
        try:
            answers[key] = store.commit(put(key), durable=key in durable)[0]
        except NexusError as error:
            answers[key] = type(error)

    threads = [threading.Thread(target=commit, args=(key,)) for key in keys]
    threads[0].start()
    driver.started.wait()
    for number, thread in enumerate(threads[1:]):
        thread.start()
        while len(store._queue) <= number:
            os.sched_yield()
    driver.go_on.set()
    for thread in threads:
        thread.join()
    return answers


def test_commits_that_wait_share_one_batch_and_its_sync():
    driver = GatedStore()
    store = SealedStore(driver)
    keys = [b"a", b"b", b"c", b"d"]
    answers = commit_while_one_is_under_way(driver, store, keys, durable=[b"c"])
    assert answers == {b"a": 1, b"b": 2, b"c": 3, b"d": 4}
    assert [durable for _, _, durable in driver.commits] == [False, True]
    assert [len({batch.puts[-1][0] for batch, _, _ in driver.commits})] == [1]  # the head's
    assert store.head().records == 4


@pytest.mark.parametrize("error", [NoSpaceError, NexusError])
def test_a_group_refused_for_one_commits_sake_is_repeated_one_by_one(error: type[NexusError]):
    driver = GatedStore()
    store = SealedStore(driver)
    driver.refuse = lambda batch: (
        error("commit", None, "this one not") if any(key == b"c" for key, _ in batch.puts) else None
    )
    answers = commit_while_one_is_under_way(driver, store, [b"a", b"b", b"c", b"d"])
    assert answers == {b"a": 1, b"b": 2, b"c": error, b"d": 3}
    assert store.get(b"c") is None
    assert store.head().records == 3


def test_after_a_failed_sync_the_whole_group_is_refused_and_not_repeated():
    driver = GatedStore()
    store = SealedStore(driver)
    driver.refuse = lambda batch: (
        StorageFailedError("commit", None, "the disk failed") if len(driver.commits) == 2 else None
    )
    answers = commit_while_one_is_under_way(driver, store, [b"a", b"b", b"c"])
    assert answers == {b"a": 1, b"b": StorageFailedError, b"c": StorageFailedError}
    assert len(driver.commits) == 2


def test_the_head_is_the_last_put_of_each_commit_and_its_only_condition():
    driver = GatedStore()
    driver.go_on.set()
    store = SealedStore(driver)
    for key in (b"A", b"Z"):
        store.commit(put(key), durable=False)
    heads = {batch.puts[-1][0] for batch, _, _ in driver.commits}
    assert len(heads) == 1
    conditions = [conditions for _, conditions, _ in driver.commits]
    assert [[tuple(condition) for condition in some] for some in conditions] == [
        [(*heads, 0)],
        [(*heads, 1)],
    ]


def test_who_lacks_what_it_requires_fails_alone_and_takes_no_revision():
    driver = GatedStore()
    store = SealedStore(driver)
    answers: dict[bytes, object] = {}
    fenced, free = put(b"fenced"), put(b"free")
    fenced.require(b"lock", ConflictError("write", "/f", "no lock"))

    def commit(mutation: Mutation) -> None:
        key = mutation.puts[0][0]
        try:
            answers[key] = store.commit(mutation, durable=False)[0]
        except ConflictError as error:
            answers[key] = error.reason

    threads = [threading.Thread(target=commit, args=(m,)) for m in (put(b"first"), fenced, free)]
    threads[0].start()
    driver.started.wait()
    for waiting, thread in enumerate(threads[1:], 1):
        thread.start()
        while len(store._queue) < waiting:
            threading.Event().wait(0.001)
    driver.go_on.set()
    for thread in threads:
        thread.join()
    assert answers == {b"first": 1, b"fenced": "no lock", b"free": 2}
    assert len(driver.commits) == 2
    assert store.commits == 2
    assert store.head().records == 2
    assert store.get(b"fenced") is None


def test_a_commit_of_which_nothing_is_left_writes_nothing():
    driver = GatedStore()
    driver.go_on.set()
    store = SealedStore(driver)
    mutation = put(b"fenced")
    mutation.require(b"lock", ConflictError("write", "/f", "no lock"))
    with pytest.raises(ConflictError):
        store.commit(mutation, durable=True)
    assert not driver.commits
    assert store.commit(put(b"other"), durable=False)[0] == 1


def test_a_commit_that_lacks_what_it_requires_is_neither_recorded_nor_reported():
    store = SealedStore(MemoryMetastore())
    told: list[tuple[str, int]] = []

    def followed(key: bytes) -> Mutation:
        def chain(revision: int, previous: bytes) -> bytes:
            told.append((f"chain of {key.decode()} after {previous.decode()}", revision))
            return key

        mutation = put(key)
        mutation.chain = chain
        mutation.on_committed = lambda revision: told.append((key.decode(), revision))
        return mutation

    store.commit(followed(b"first"), durable=False)
    fenced = followed(b"fenced")
    fenced.require(b"lock", ConflictError("write", "/f", "no lock"))
    with pytest.raises(ConflictError):
        store.commit(fenced, durable=False)
    store.commit(followed(b"last"), durable=False)
    assert told == [
        ("chain of first after ", 1),
        ("first", 1),
        ("chain of last after first", 2),
        ("last", 2),
    ]
    sealed = [record for _, record in store.iterate_unverified() if record is not None]
    assert store.head().records == len(sealed)


def chained(link: str) -> Mutation:
    mutation = put(link.encode())
    mutation.chain = lambda revision, previous: b"%s<%s" % (link.encode(), previous)
    return mutation


def test_the_chain_goes_on_from_what_is_stored_across_failures_and_openings():
    driver = GatedStore()
    driver.go_on.set()
    store = SealedStore(driver)
    store.commit(chained("a"), durable=False)
    store.commit(put(b"between"), durable=False)
    driver.refuse = lambda batch: StorageFailedError("commit", None, "the disk failed")
    with pytest.raises(StorageFailedError):
        store.commit(chained("lost"), durable=False)
    driver.refuse = lambda batch: None
    store.commit(chained("b"), durable=False)
    again = SealedStore(driver)
    again.commit(chained("c"), durable=False)
    assert again.head().chain_end == 4
    links = [record.payload for record in again.iterate(CHAIN)]
    assert links == [b"a<", b"b<a<", b"c<b<a<"]


def test_counting_anew_finds_the_end_of_the_chain():
    store = SealedStore(MemoryMetastore())
    store.commit(chained("a"), durable=False)
    store.commit(chained("b"), durable=False)
    with store.frozen():
        assert store.repair_locked([], [], None).chain_end == 2
    store.commit(chained("c"), durable=False)
    assert [record.payload for record in store.iterate(CHAIN)][-1] == b"c<b<a<"


def test_a_head_of_fewer_numbers_is_read():
    driver = MemoryMetastore()
    store = SealedStore(driver)
    store.commit(put(b"Z"), durable=False)
    (entry,) = driver.scan(b"K", limit=1)
    early, _ = seal_record(b"K", entry.value[16:48], revision_key(1))
    driver.commit(Batch([(b"K", early)]))
    assert SealedStore(driver).head() == store.head()


@pytest.mark.parametrize("extra", [1, 8])
def test_a_sealed_head_with_fields_that_nobody_knows_is_refused(extra: int):
    driver = MemoryMetastore()
    value, _ = seal_record(b"K", Head().packed() + bytes(extra), revision_key(1))
    driver.commit(Batch([(b"K", value)]), durable=False)
    with pytest.raises(CorruptionError, match="the head record has") as caught:
        SealedStore(driver).head()
    assert "newer release" in str(caught.value.hint)


class SyncingStore(MemoryMetastore):
    """Shares syncs; each waits for the test, then fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.syncing = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.error: NexusError | None = None

    def sync(self) -> None:
        self.syncing.release()
        self.go_on.wait()
        if self.error is not None:
            raise self.error


def test_where_syncs_are_shared_others_commit_while_one_waits_for_the_disk():
    driver = SyncingStore()
    store = SealedStore(driver)
    answers: list[int] = []
    waiting = [
        threading.Thread(target=lambda k=key: answers.append(store.commit(put(k), durable=True)[0]))
        for key in (b"a", b"b")
    ]
    for thread in waiting:
        thread.start()
        driver.syncing.acquire()
    assert store.commit(put(b"c"), durable=False)[0] == 3
    assert answers == []
    driver.go_on.set()
    for thread in waiting:
        thread.join()
    assert sorted(answers) == [1, 2]
    assert store.head().records == 3


def test_after_a_failed_sync_of_its_own_what_is_cached_is_dropped_and_the_head_read_again():
    driver = SyncingStore()
    driver.go_on.set()
    store = SealedStore(driver)
    dropped: list[int] = []
    store.on_uncertain(lambda: dropped.append(1))
    driver.error = StorageFailedError("sync", None, "the disk failed")
    with pytest.raises(StorageFailedError):
        store.commit(put(b"a"), durable=True)
    assert dropped == [1]
    driver.error = None
    assert store.commit(put(b"b"), durable=True)[0] == 2
    assert store.head().records == 2
