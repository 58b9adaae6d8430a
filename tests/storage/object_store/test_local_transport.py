from __future__ import annotations

from pathlib import Path

from nexus.contracts.object_store import TransportABC
from nexus.storage.object_store.local_transport import LocalTransport
from nexus.testing.transport import TransportSuite


class TestOwned(TransportSuite):
    def make(self, folder: Path) -> TransportABC:
        return LocalTransport(str(folder))

    def mode_after_overwriting(self, mode: int) -> int:
        return 0o644  # keeping it would cost the hot path a stat, and nobody sets it there


class TestConfined(TransportSuite):
    def make(self, folder: Path) -> TransportABC:
        return LocalTransport(str(folder), confined=True)
