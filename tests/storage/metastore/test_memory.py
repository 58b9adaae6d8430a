"""MemoryMetastore holds what every ordered store holds."""

from nexus.contracts.metastore import MetastoreABC
from nexus.storage.metastore.memory import MemoryMetastore
from nexus.testing.ordered_store import OrderedStoreSuite


class TestMemoryMetastore(OrderedStoreSuite):
    def make(self, directory: str) -> MetastoreABC:
        return MemoryMetastore()


def test_it_persists_nothing_and_has_no_other_owner() -> None:
    assert not MemoryMetastore.capabilities.persistent
    assert MemoryMetastore.capabilities.exclusive_owner
