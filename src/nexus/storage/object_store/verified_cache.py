"""A small cache of what was read and verified, bounded by bytes.

Layer: storage. It spares a sequential read in small pieces from hashing a chunk again and again.
Entries are immutable and named by their hash, so none can be stale. Unix counterpart: the buffer
cache.

1. The costs kept add up to at most the budget, or there is a single entry.

Locks: one, a leaf, around the dictionary; nothing is called while it is held.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class VerifiedCache(Generic[Value]):
    """Least recently used values by object id. Shared freely between threads."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._lock = Lock()
        self._entries: OrderedDict[str, tuple[Value, int]] = OrderedDict()  # guarded by _lock
        self._cost_bytes = 0  # guarded by _lock

    def get(self, object_id: str) -> Value | None:
        """Return the value and count it as used, or None."""
        if object_id not in self._entries:
            return None  # the common answer for small blobs needs no lock
        with self._lock:
            entry = self._entries.get(object_id)
            if entry is None:
                return None
            self._entries.move_to_end(object_id)
            return entry[0]

    def put(self, object_id: str, value: Value, cost_bytes: int) -> None:
        """Keep a value, at the expense of those used longest ago."""
        with self._lock:
            self._discard_locked(object_id)
            self._entries[object_id] = (value, cost_bytes)
            self._cost_bytes += cost_bytes
            while self._cost_bytes > self._budget_bytes and len(self._entries) > 1:
                _, (_, cost) = self._entries.popitem(last=False)
                self._cost_bytes -= cost

    def discard(self, object_id: str) -> None:
        """Forget a value, if it is kept."""
        with self._lock:
            self._discard_locked(object_id)

    def _discard_locked(self, object_id: str) -> None:
        entry = self._entries.pop(object_id, None)
        if entry is not None:
            self._cost_bytes -= entry[1]
