"""Streams in memory hold what every stream holds."""

from pathlib import Path

from nexus.contracts.stream_backend import StreamStore
from nexus.storage.stream.memory import MemoryStreams
from nexus.testing.stream_backend import StreamBackendSuite


class TestMemoryStreams(StreamBackendSuite):
    def make(self, folder: Path) -> StreamStore:
        return MemoryStreams()
