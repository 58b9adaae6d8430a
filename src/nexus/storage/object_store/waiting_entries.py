"""WaitingEntries: entries of an object index that are in none of its pages yet.

Layer: storage, of :mod:`nexus.storage.object_store.object_index`. Memory only. The entries are kept
in the order of the log, so that the oldest one says from where on the log has to be read after a
kill, and in groups by the leading bits of their hash, which share pages while those are few.

Locks: none. Its owner changes it from one thread at a time; :attr:`WaitingEntries.by_id` may be
looked into by others.
"""

from __future__ import annotations

from typing import Final

from nexus.storage.object_store.entry import Entry

_GROUP_SHIFT: Final = 56
"""A hash of 64 bits names its group by the eight leading ones."""


class WaitingEntries:
    """Entries by object id. Belongs to one index."""

    def __init__(self) -> None:
        self.by_id: dict[bytes, Entry] = {}
        self.size_bytes = 0
        """What the objects of the entries take in the log, all together."""
        self._groups: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self.by_id)

    def add(self, entry: Entry, hashed: int) -> None:
        """Put an entry last, in place of any other of its object."""
        object_id = entry.object_id
        replaced = self.by_id.pop(object_id, None)
        if replaced is not None:
            self.size_bytes -= replaced.size
        self.by_id[object_id] = entry
        self.size_bytes += entry.size
        self._groups.setdefault(hashed >> _GROUP_SHIFT, set()).add(object_id)

    def discard(self, object_id: bytes, hashed: int) -> None:
        """Forget an object's entry, if there is one."""
        entry = self.by_id.pop(object_id, None)
        if entry is not None:
            self.size_bytes -= entry.size
            self._groups[hashed >> _GROUP_SHIFT].discard(object_id)

    def oldest(self) -> Entry | None:
        """Return the entry whose record is the first in the log."""
        return next(iter(self.by_id.values()), None)

    def group(self, hashed: int) -> list[Entry]:
        """Return the entries of the group that a hash belongs to."""
        return [self.by_id[object_id] for object_id in self._groups[hashed >> _GROUP_SHIFT]]

    def discard_group(self, hashed: int) -> None:
        """Forget the entries of a group."""
        for object_id in self._groups.pop(hashed >> _GROUP_SHIFT):
            self.size_bytes -= self.by_id.pop(object_id).size
