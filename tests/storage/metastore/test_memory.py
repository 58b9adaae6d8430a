"""MemoryMetastore holds what every ordered store holds."""

from nexus.contracts.metastore import Batch, MetastoreABC
from nexus.storage.metastore.memory import MemoryMetastore
from nexus.testing.ordered_store import OrderedStoreSuite


class TestMemoryMetastore(OrderedStoreSuite):
    def make(self, directory: str) -> MetastoreABC:
        return MemoryMetastore()


def test_it_persists_nothing_and_has_no_other_owner() -> None:
    assert not MemoryMetastore.capabilities.persistent
    assert MemoryMetastore.capabilities.exclusive_owner


def test_a_scan_shows_what_came_and_went_since_the_one_before_in_order():
    store = MemoryMetastore()
    store.commit(Batch([(b"b", b"1"), (b"d", b"1"), (b"a", b"1")]))
    assert [entry.key for entry in store.scan(b"")] == [b"a", b"b", b"d"]
    store.commit(Batch([(b"c", b"2"), (b"e", b"2")], [b"b", b"d"]))
    store.commit(Batch([(b"d", b"3"), (b"0", b"3")], [b"e", b"missing"]))
    store.commit(Batch([(b"d", b"4")], [b"0"]))
    assert [(entry.key, entry.value) for entry in store.scan(b"")] == [
        (b"a", b"1"),
        (b"c", b"2"),
        (b"d", b"4"),
    ]
    assert store.get(b"0") is None
