from __future__ import annotations

from pathlib import Path

from nexus.contracts.object_store import TransportABC
from nexus.storage.object_store.memory_transport import MemoryTransport
from nexus.testing.transport import TransportSuite


class TestMemoryTransport(TransportSuite):
    def make(self, folder: Path) -> TransportABC:
        return MemoryTransport()


def test_the_time_is_the_one_handed_in() -> None:
    transport = MemoryTransport(clock_ns=lambda: 1234)
    transport.store("key", b"")
    info = transport.info("key")
    assert info is not None
    assert info.modified_at_ns == 1234
