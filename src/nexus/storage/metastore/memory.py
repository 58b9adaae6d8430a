"""MemoryMetastore: an ordered store in a sorted dictionary, gone with the process.

Layer: storage. For ``data_dir=":memory:"``, tests, and as the readable statement of what an
ordered store does. Unix counterpart: tmpfs. It holds no notion of durability: sync does nothing.

Invariants: those of :class:`nexus.contracts.metastore.MetastoreABC`, 1 to 4 for the life of the
object.

Locks: one, held for the length of every call, so a reader sees all of a commit or none.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice

from sortedcontainers import SortedDict

from nexus.contracts.errors import ClosedError
from nexus.contracts.metastore import (
    Batch,
    Condition,
    MetastoreABC,
    MetastoreCapabilities,
    StoredEntry,
)
from nexus.storage.metastore.ordered import conflict_error, scan_range


class MemoryMetastore(MetastoreABC):
    """An ordered store in memory. Shared freely between threads."""

    name = "memory"
    capabilities = MetastoreCapabilities(persistent=False, exclusive_owner=True, loadable=True)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: SortedDict = SortedDict()  # key -> (value, version); guard: _lock
        self._revision = 0  # guard: _lock
        self._closed = False  # guard: _lock

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """Return ``(value, version)``, or None. Errors: ClosedError."""
        with self._lock:
            self._check_open_locked("get")
            found: tuple[bytes, int] | None = self._entries.get(key)
            return found

    def get_many(self, keys: Sequence[bytes]) -> list[tuple[bytes, int] | None]:
        """Return one answer a key, all of one moment. Errors: ClosedError."""
        with self._lock:
            self._check_open_locked("get_many")
            return [self._entries.get(key) for key in keys]

    def scan(
        self, prefix: bytes, after: bytes = b"", limit: int = 1000, before: bytes | None = None
    ) -> list[StoredEntry]:
        """Return up to ``limit`` entries in key order. Errors: ClosedError."""
        lower, includes_lower, upper = scan_range(prefix, after, before)
        with self._lock:
            self._check_open_locked("scan")
            if limit <= 0 or (upper is not None and upper <= lower):
                return []
            keys = self._entries.irange(lower, upper, inclusive=(includes_lower, False))
            return [StoredEntry(key, *self._entries[key]) for key in islice(keys, limit)]

    def commit(
        self,
        batch: Batch,
        conditions: Sequence[Condition] = (),
        *,
        durable: bool = False,
        reclaim: bool = False,
    ) -> int:
        """Apply the batch; return the new revision. Errors: ConflictError, ClosedError."""
        with self._lock:
            self._check_open_locked("commit")
            for condition in conditions:
                found = self._entries.get(condition.key)
                version = found[1] if found is not None else 0
                if version != condition.version:
                    raise conflict_error(condition, version)
            self._revision += 1
            for key in batch.deletes:
                self._entries.pop(key, None)
            for key, value in batch.puts:
                self._entries[key] = (value, self._revision)
            return self._revision

    def load(self, entries: Sequence[StoredEntry], revision: int) -> None:
        """Store entries with their versions. Errors: ClosedError."""
        with self._lock:
            self._check_open_locked("load")
            self._entries.update((key, (value, version)) for key, value, version in entries)
            self._revision = revision

    def sync(self) -> None:
        """Do nothing: nothing here survives the process. Errors: ClosedError."""
        with self._lock:
            self._check_open_locked("sync")

    def revision(self) -> int:
        """Return the revision of the last commit. Errors: ClosedError."""
        with self._lock:
            self._check_open_locked("revision")
            return self._revision

    def close(self) -> None:
        """Forget everything. Idempotent."""
        with self._lock:
            self._closed = True
            self._entries.clear()

    def _check_open_locked(self, operation: str) -> None:
        if self._closed:
            raise ClosedError(operation, None, "the metastore is closed")
