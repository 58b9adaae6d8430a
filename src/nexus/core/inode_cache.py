"""InodeCache: what one volume keeps in memory of its records, and of what is not there.

Layer: core, beneath :mod:`nexus.core.inode_table`. Records by path, the names in directories, and
of directories that were made here the names that may be in them. What a record is, it does not
know, and it asks no store. Unix counterparts: the dentry cache with its negative entries.

Invariants:

1. What is kept equals what is stored. A commit drops what it changes before it begins
   (:meth:`InodeCache.begin`) and what it wrote is kept when it has ended (:meth:`InodeCache.end`).
   What a reader found is kept only if no commit began, ran or ended since it asked for
   :attr:`InodeCache.epoch`: one that is in the store but not here yet must not be mixed with it.
2. Of a directory that is noted as empty when it is made, every name that comes into it later is
   noted before its commit. So a name that was never noted is not there.
3. Memory is bounded: of records, of names in listings, and of names that may be there; the oldest
   are forgotten first.

Locks: its own mutex, a leaf. Looking goes without.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from nexus.lib.paths import parent

T = TypeVar("T")
D = TypeVar("D")


class InodeCache(Generic[T]):
    """The cache of one volume. Shared by all threads."""

    def __init__(self, max_records: int, max_names: int, largest_listing: int, /) -> None:
        """Limit how many records, names in all listings, and names in one are kept."""
        self._max_records = max_records
        self._max_names = max_names
        self._largest_listing = largest_listing
        self._mutex = threading.Lock()  # guards all below
        self._records: dict[str, T | None] = {}
        self._listings: dict[str, list[str]] = {}
        self._directories: dict[str, list[str]] = {}  # in some of the directories in _listings
        self._listed_names = 0
        self._possible: dict[str, set[str]] = {}
        self._possible_names = 0
        self._epoch = 0
        self._committing: set[object] = set()

    @property
    def epoch(self) -> int:
        """What who keeps something has to have asked for before the store was read."""
        return self._epoch

    # -- looking ------------------------------------------------------------------------------

    def look(self, path: str, unknown: D, /) -> T | D | None:
        """Return the record of a path, None where nothing is there, or ``unknown``."""
        found = self._records.get(path, unknown)
        if found is unknown:
            slash = path.rfind("/")
            names = self._possible.get(path[:slash] or "/")
            if names is not None and path[slash + 1 :] not in names:
                return None
        return found

    def names(self, directory: str, /) -> list[str] | None:
        """Return the list that was kept of a directory, the same object, or None."""
        return self._listings.get(directory)

    def directories(self, directory: str, /) -> list[str] | None:
        """Return the list that was kept of the directories in a directory, or None."""
        return self._directories.get(directory)

    # -- what readers found -------------------------------------------------------------------

    def keep(self, path: str, record: T | None, epoch: int, /) -> None:
        """Keep what the store has at a path."""
        with self._mutex:
            if epoch == self._epoch and not self._committing:
                self._keep_locked(path, record)

    def keep_listing(
        self, directory: str, names: list[str], directories: list[str] | None, epoch: int, /
    ) -> None:
        """Keep the names in a directory and, where they are known, which are directories."""
        with self._mutex:
            if epoch != self._epoch or self._committing:
                return
            self._forget_listing_locked(directory)
            self._listed_names += len(names)
            while self._listings and self._listed_names > self._max_names:
                self._forget_listing_locked(next(iter(self._listings)))
            self._listings[directory] = names
            if directories is not None:
                self._directories[directory] = directories

    # -- commits ------------------------------------------------------------------------------

    def begin(
        self,
        commit: object,
        changed: Iterable[str],
        appearing: Sequence[str],
        vanishing: Sequence[str],
        empty: Sequence[str],
        /,
    ) -> None:
        """Drop what a commit is about to change, and keep nothing new until :meth:`end`.

        ``changed`` are all its paths; ``appearing`` those at which something appears or becomes
        another kind of entry, ``vanishing`` those at which nothing is any more, and ``empty``
        new directories in which nothing is.
        """
        with self._mutex:
            self._committing.add(commit)
            self._epoch += 1
            for path in changed:
                self._records.pop(path, None)
            if self._listings:
                for path in (*appearing, *vanishing):
                    self._forget_listing_locked(parent(path))
                    self._forget_listing_locked(path)
            for path in vanishing:
                self._forget_possible_locked(path)
            for path in empty:
                self._forget_possible_locked(path)
                self._possible[path] = set()
            for path in appearing:
                self._note_possible_locked(path)
            while self._possible and self._possible_names > self._max_names:
                self._forget_possible_locked(next(iter(self._possible)))

    def end(self, commit: object, written: Sequence[tuple[str, T]], /) -> None:
        """Keep what the commit has written; nothing after one that failed."""
        with self._mutex:
            self._epoch += 1
            for path, record in written:
                self._keep_locked(path, record)
            self._committing.discard(commit)

    def clear(self) -> None:
        """Forget everything."""
        with self._mutex:
            self._epoch += 1
            self._records.clear()
            self._listings.clear()
            self._directories.clear()
            self._listed_names = 0
            self._possible.clear()
            self._possible_names = 0

    # -- helpers ------------------------------------------------------------------------------

    def _keep_locked(self, path: str, record: T | None) -> None:
        records = self._records
        if len(records) >= self._max_records and path not in records:
            del records[next(iter(records))]
        records[path] = record

    def _forget_listing_locked(self, directory: str) -> None:
        names = self._listings.pop(directory, None)
        if names is not None:
            self._listed_names -= len(names)
            self._directories.pop(directory, None)

    def _note_possible_locked(self, path: str) -> None:
        slash = path.rfind("/")
        directory = path[:slash] or "/"
        names = self._possible.get(directory)
        if names is not None:
            before = len(names)
            names.add(path[slash + 1 :])
            self._possible_names += len(names) - before
            if len(names) > self._largest_listing:
                self._forget_possible_locked(directory)

    def _forget_possible_locked(self, directory: str) -> None:
        self._possible_names -= len(self._possible.pop(directory, ()))
