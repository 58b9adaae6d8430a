"""MemoryMetastore: an ordered store in a sorted dictionary, gone with the process.

Layer: storage. For ``data_dir=":memory:"``, tests, and as the readable statement of what an
ordered store does. Unix counterpart: tmpfs. It holds no notion of durability: sync does nothing.

Invariants: those of :class:`nexus.contracts.metastore.MetastoreABC`, 1 to 4 for the life of the
object.

Keys are put in order by the scan that needs them: most commits come without one in between, and a
key that has gone again by then is never sorted at all.

Locks: one, held for the length of every call, so a reader sees all of a commit or none.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice

from sortedcontainers import SortedList

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
    capabilities = MetastoreCapabilities(
        persistent=False, exclusive_owner=True, loadable=True, shares_syncs=True
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All guarded by _lock. _keys has the keys of _entries as of the last scan, and the two sets
        # say what it lacks and what it has too much.
        self._entries: dict[bytes, tuple[bytes, int]] = {}
        self._keys: SortedList = SortedList()
        self._added: set[bytes] = set()
        self._removed: set[bytes] = set()
        self._revision = 0
        self._closed = False

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """Return ``(value, version)``, or None. Errors: ClosedError."""
        with self._lock:
            if self._closed:
                raise _closed("get")
            return self._entries.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[tuple[bytes, int] | None]:
        """Return one answer a key, all of one moment. Errors: ClosedError."""
        with self._lock:
            if self._closed:
                raise _closed("get_many")
            return [self._entries.get(key) for key in keys]

    def scan(
        self, prefix: bytes, after: bytes = b"", limit: int = 1000, before: bytes | None = None
    ) -> list[StoredEntry]:
        """Return up to ``limit`` entries in key order. Errors: ClosedError."""
        lower, includes_lower, upper = scan_range(prefix, after, before)
        with self._lock:
            if self._closed:
                raise _closed("scan")
            if limit <= 0 or (upper is not None and upper <= lower):
                return []
            self._sort_locked()
            keys = self._keys.irange(lower, upper, inclusive=(includes_lower, False))
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
            if self._closed:
                raise _closed("commit")
            for condition in conditions:
                found = self._entries.get(condition.key)
                version = found[1] if found is not None else 0
                if version != condition.version:
                    raise conflict_error(condition, version)
            self._revision = revision = self._revision + 1
            entries, added, removed = self._entries, self._added, self._removed
            for key in batch.deletes:
                if entries.pop(key, None) is None:
                    continue
                if key in added:
                    added.remove(key)  # came and went without a scan in between
                else:
                    removed.add(key)
            for key, value in batch.puts:
                if key not in entries:
                    if key in removed:
                        removed.remove(key)
                    else:
                        added.add(key)
                entries[key] = (value, revision)
            return revision

    def load(self, entries: Sequence[StoredEntry], revision: int) -> None:
        """Store entries with their versions. Errors: ClosedError."""
        with self._lock:
            if self._closed:
                raise _closed("load")
            self._added.update(entry.key for entry in entries if entry.key not in self._entries)
            self._removed.difference_update(entry.key for entry in entries)
            self._entries.update((key, (value, version)) for key, value, version in entries)
            self._revision = revision

    def sync(self) -> None:
        """Do nothing: nothing here survives the process. Errors: ClosedError."""
        with self._lock:
            if self._closed:
                raise _closed("sync")

    def revision(self) -> int:
        """Return the revision of the last commit. Errors: ClosedError."""
        with self._lock:
            if self._closed:
                raise _closed("revision")
            return self._revision

    def close(self) -> None:
        """Forget everything. Idempotent."""
        with self._lock:
            self._closed = True
            self._entries.clear()
            self._added.clear()
            self._removed.clear()
            self._keys.clear()

    def _sort_locked(self) -> None:
        for key in self._removed:
            self._keys.remove(key)
        self._removed.clear()
        if self._added:
            self._keys.update(self._added)
            self._added.clear()


def _closed(operation: str) -> ClosedError:
    return ClosedError(operation, None, "the metastore is closed")
