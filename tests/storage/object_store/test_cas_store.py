from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import pytest

from nexus.contracts.errors import ContentNotFoundError, CorruptionError, StorageError
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import ContentStoreABC, KeyInfo, TransportABC
from nexus.lib.chunking import DEFAULT_CHUNKING, ChunkingParameters
from nexus.lib.disk import Disk
from nexus.storage.object_store.cas_store import CasStore
from nexus.storage.object_store.local_transport import LocalTransport
from nexus.storage.object_store.loose_objects import LooseObjects
from nexus.storage.object_store.memory_transport import MemoryTransport
from nexus.testing.content_store import ContentStoreSuite

TINY = ChunkingParameters(threshold_bytes=1024, min_bytes=64, average_bytes=256, max_bytes=1024)


def make_store(
    transport: TransportABC,
    chunking: ChunkingParameters = DEFAULT_CHUNKING,
    clock_ns: Callable[[], int] | None = None,
) -> CasStore:
    clock_ns = clock_ns or itertools.count(1).__next__
    return CasStore(
        LooseObjects(transport),
        name="cas",
        volume_id="volume",
        clock_ns=clock_ns,
        chunking=chunking,
    )


def key_of(object_id: str) -> str:
    return f"{object_id[:2]}/{object_id[2:]}"


def flip(transport: TransportABC, object_id: str, position: int) -> None:
    data = bytearray(transport.fetch(key_of(object_id)))
    data[position] ^= 1
    transport.store(key_of(object_id), data)


class CasSuite(ContentStoreSuite):
    def make_transport(self) -> TransportABC:
        raise NotImplementedError

    def make(self) -> ContentStoreABC:
        self.transport = self.make_transport()
        return make_store(self.transport, TINY)

    def damage(self, store: ContentStoreABC, object_id: str, position: int) -> None:
        flip(self.transport, object_id, position)


class TestCasOverMemory(CasSuite):
    def make_transport(self) -> TransportABC:
        return MemoryTransport()


class TestCasOverLocalDisk(CasSuite):
    @pytest.fixture(autouse=True)
    def _roots(self, tmp_path: Path) -> None:
        self.roots = (tmp_path / str(number) for number in itertools.count())

    def make_transport(self) -> TransportABC:
        root = next(self.roots)
        root.mkdir()
        return LocalTransport(str(root), disk=Disk(), confined=False)


class SpyTransport(MemoryTransport):
    """Counts calls, and calls ``before[name]`` once before the next call of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Callable[[], None]] = {}
        self.unreadable: set[str] = set()

    def _note(self, name: str) -> None:
        self.calls[name] += 1
        hook = self.before.pop(name, None)
        if hook is not None:
            hook()

    def fetch(self, key: str, offset: int = 0, count: int | None = None) -> bytes:
        self._note("fetch")
        if key in self.unreadable:
            raise StorageError("fetch", key, "medium error")
        return super().fetch(key, offset, count)

    def store(self, key: str, data: Buffer) -> None:
        self._note("store")
        self.unreadable.discard(key)
        super().store(key, data)

    def info(self, key: str) -> KeyInfo | None:
        self._note("info")
        return super().info(key)

    def rename_key(self, source: str, target: str) -> None:
        self._note("rename_key")
        super().rename_key(source, target)


@pytest.fixture
def transport() -> SpyTransport:
    return SpyTransport()


@pytest.fixture
def store(transport: SpyTransport) -> Iterator[CasStore]:
    with closing(make_store(transport)) as store:
        yield store


# Cost


def test_a_new_blob_costs_one_look_and_one_store(store: CasStore, transport: SpyTransport) -> None:
    store.write_content(b"abc")
    assert transport.calls == {"info": 1, "store": 1}


def test_an_insertion_in_the_middle_of_8_mib_stores_few_chunks(
    store: CasStore, transport: SpyTransport
) -> None:
    data = random.Random(1).randbytes(8 << 20)
    store.write_content(data)
    transport.calls.clear()
    content = store.write_content(data[: 4 << 20] + b"!" + data[4 << 20 :])
    assert transport.calls["store"] <= 4
    assert store.read_content(content.etag, 4 << 20, 1) == b"!"


def test_a_splice_in_the_middle_of_8_mib_touches_its_neighbourhood(
    store: CasStore, transport: SpyTransport
) -> None:
    etag = store.write_content(random.Random(1).randbytes(8 << 20)).etag
    transport.calls.clear()
    store.splice(etag, 4 << 20, b"!")
    assert transport.calls["store"] <= 4
    # It reads ahead by two chunks of the largest size, and looks at what it would store.
    assert transport.calls["fetch"] <= 16


def test_an_append_to_8_mib_costs_the_last_chunk(store: CasStore, transport: SpyTransport) -> None:
    etag = store.write_content(random.Random(1).randbytes(8 << 20)).etag
    transport.calls.clear()
    store.splice(etag, 8 << 20, b"!")
    assert transport.calls["fetch"] == 1
    assert transport.calls["store"] <= 3


def test_a_sequential_read_in_small_pieces_fetches_each_chunk_once(
    store: CasStore, transport: SpyTransport
) -> None:
    data = random.Random(1).randbytes(8 << 20)
    etag = store.write_content(data).etag
    objects = list(store.objects_of(etag))
    with closing(make_store(transport)) as cold:
        transport.calls.clear()
        read = [cold.read_content(etag, at, 64 << 10) for at in range(0, len(data), 64 << 10)]
    assert b"".join(read) == data
    assert transport.calls["fetch"] == len(objects)


def test_a_sequential_read_of_a_large_blob_fetches_it_once(
    store: CasStore, transport: SpyTransport
) -> None:
    etag = store.write_content(bytes(1 << 20)).etag
    transport.calls.clear()
    for at in range(0, 1 << 20, 64 << 10):
        assert store.read_content(etag, at, 64 << 10, size=1 << 20) == bytes(64 << 10)
    assert transport.calls["fetch"] == 1


def test_a_range_fetches_only_the_chunks_that_cover_it(
    store: CasStore, transport: SpyTransport
) -> None:
    etag = store.write_content(random.Random(1).randbytes(8 << 20)).etag
    transport.calls.clear()
    store.read_content(etag, 5 << 20, 10)
    assert transport.calls["fetch"] == 1


def test_a_run_of_zeros_is_stored_and_looked_at_once(
    store: CasStore, transport: SpyTransport
) -> None:
    content = store.splice("", 64 << 20, b"!")
    assert content.size == (64 << 20) + 1
    assert transport.calls["store"] <= 4
    assert transport.calls["fetch"] == 0
    assert store.read_content(content.etag, (64 << 20) - 2) == b"\0\0!"


# Healing


def test_writing_again_what_is_there_writes_nothing(
    store: CasStore, transport: SpyTransport
) -> None:
    data = random.Random(1).randbytes(2 << 20)
    for content in (b"abc", data):
        store.write_content(content)
    transport.calls.clear()
    for content in (b"abc", data):
        store.write_content(content)
    assert transport.calls["store"] == 0


def test_writing_again_heals_every_damaged_object(store: CasStore, transport: SpyTransport) -> None:
    data = random.Random(1).randbytes(4 << 20)
    etag = store.write_content(data).etag
    for object_id in store.objects_of(etag):
        flip(transport, object_id, 0)
    assert store.write_content(data).etag == etag
    with closing(make_store(transport)) as cold:
        assert cold.read_content(etag) == data


def test_writing_again_heals_an_object_that_cannot_be_read(
    store: CasStore, transport: SpyTransport
) -> None:
    etag = store.write_content(b"abc").etag
    transport.unreadable.add(key_of(etag[3:]))
    with pytest.raises(StorageError):
        store.read_content(etag)
    store.write_content(b"abc")
    assert store.read_content(etag) == b"abc"


def test_a_missing_chunk_is_not_found_and_a_truncated_one_is_damage(
    store: CasStore, transport: SpyTransport
) -> None:
    etag = store.write_content(random.Random(1).randbytes(4 << 20)).etag
    _, first, *_, last = store.objects_of(etag)
    transport.remove(key_of(first))
    transport.store(key_of(last), b"")
    with pytest.raises(ContentNotFoundError, match=first):
        store.read_content(etag)
    with pytest.raises(CorruptionError, match=last):
        store.read_content(etag, (4 << 20) - 1)


# Collection


def test_a_quarantined_object_keeps_its_time_in_its_name(transport: SpyTransport) -> None:
    times = iter((100, 200))
    with closing(make_store(transport, clock_ns=times.__next__)) as store:
        for data in (b"one", b"three"):
            store.unpin(store.write_content(data).etag)
            store.begin_collection()
            for found in list(store.list_objects()):
                assert store.quarantine_object(found.object_id)
            store.end_collection()
        assert store.purge_quarantine(100) == 0
        assert store.purge_quarantine(101) == 3
        assert store.purge_quarantine(201) == 5


def test_a_foreign_file_is_no_object(store: CasStore, transport: SpyTransport) -> None:
    for key in ("ab/notes.txt", "README", "quarantine/notes.txt"):
        transport.store(key, b"x")
    assert list(store.list_objects()) == []
    assert store.purge_quarantine(1 << 62) == 0
    assert transport.exists("quarantine/notes.txt")


@pytest.mark.parametrize("step", ["info", "fetch"])
def test_an_object_that_a_writer_is_looking_at_is_not_taken(
    store: CasStore, transport: SpyTransport, step: str
) -> None:
    etag = store.write_content(b"abc").etag
    store.unpin(etag)
    taken: list[bool] = []

    def collect() -> None:
        store.begin_collection()
        taken.append(store.quarantine_object(etag[3:]))
        store.end_collection()

    transport.before[step] = collect
    store.write_content(b"abc")
    assert taken == [False]
    assert store.read_content(etag) == b"abc"


def test_a_writer_that_meets_the_collector_moving_its_object_stores_it_again(
    store: CasStore, transport: SpyTransport
) -> None:
    etag = store.write_content(b"abc").etag
    store.unpin(etag)
    writer = threading.Thread(target=store.write_content, args=(b"abc",))
    transport.before["rename_key"] = writer.start
    store.begin_collection()
    store.quarantine_object(etag[3:])
    writer.join()
    store.end_collection()
    assert store.read_content(etag) == b"abc"


def test_what_a_splice_builds_on_is_not_taken_while_it_runs(
    store: CasStore, transport: SpyTransport
) -> None:
    data = random.Random(1).randbytes(4 << 20)
    etag = store.write_content(data).etag
    store.unpin(etag)
    taken: list[bool] = []

    def collect() -> None:
        store.begin_collection()
        taken.extend(store.quarantine_object(object_id) for object_id in store.objects_of(etag))
        store.end_collection()

    transport.before["store"] = collect
    content = store.splice(etag, 4 << 20, b"!")
    assert taken
    assert not any(taken)
    assert store.read_content(content.etag) == data + b"!"


def test_a_failed_write_leaves_no_pin(store: CasStore, transport: SpyTransport) -> None:
    def fail() -> None:
        raise StorageError("store", None, "disk on fire")

    transport.before["store"] = fail
    with pytest.raises(StorageError):
        store.write_content(b"abc")
    etag = store.write_content(b"abc").etag
    store.unpin(etag)
    store.begin_collection()
    assert store.quarantine_object(etag[3:])


def test_writers_that_reuse_objects_under_collection_never_lose_one() -> None:
    """Three writers reuse a few contents while a collector takes all that it can get."""
    contents = [b"small", *(random.Random(seed).randbytes(3_000) for seed in range(3))]
    done = threading.Event()
    with closing(make_store(MemoryTransport(), TINY)) as store:

        def write(seed: int) -> None:
            for data in random.Random(seed).choices(contents, k=150):
                etag = store.write_content(data).etag
                for _ in range(3):
                    assert b"".join(store.stream_content(etag)) == data
                store.unpin(etag)

        def collect() -> None:
            while not done.is_set():
                store.begin_collection()
                for found in list(store.list_objects()):
                    store.quarantine_object(found.object_id)
                store.end_collection()
                store.purge_quarantine(1 << 62)

        with ThreadPoolExecutor(4) as pool:
            collector = pool.submit(collect)
            writers = [pool.submit(write, seed) for seed in range(3)]
            wait(writers)
            done.set()
        for future in (*writers, collector):
            future.result()
