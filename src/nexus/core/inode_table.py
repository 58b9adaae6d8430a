"""InodeTable: the typed records of one volume, and the transactions that change them.

Layer: core, above :class:`~nexus.core.sealed_store.SealedStore`. One mutation is one commit: the
current record, a version record and a journal entry together. It decides nothing about
permissions, preconditions or content. Unix counterpart: an inode cache over a journal.

Keyspaces (docs/formats.md has the bytes): ``C`` current records by zone, volume, depth and path,
so that the children of a directory lie side by side and a subtree is one range a level; ``V``
version records by path and revision; ``J`` journal entries by revision. Those of other modules
are known to :func:`parse_key` alone.

Invariants:

1. Every current record but a volume's root has a current record of a directory as its parent.
2. A cached record equals the stored one. It is dropped before its commit and set after it, and a
   reader keeps what it read only if no commit began, ran or ended meanwhile (``_epoch``,
   ``_committing``): one that is in the store but not in the cache yet must not be mixed with it.
3. ``_possible`` has, of a directory that was made here, at least every name that is in it: a name
   is noted before its commit. So a name that it lacks is not there, without asking the store.

Lock order: the VFS lock of the paths concerned, SealedStore's turn, ``_cache_lock`` (a leaf).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import msgspec

from nexus.contracts.errors import ConflictError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.metadata import DIRECTORY_TYPES, DT_DIR, FileMetadata, Stat
from nexus.contracts.object_store import Extent
from nexus.core.metadata_codec import decode_metadata, encode_event, encode_metadata
from nexus.core.primitives import decode_event
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import (
    CHAIN,
    Mutation,
    SealedStore,
    revision_key,
    revision_of,
)
from nexus.lib.lock_order import Level, ordered_lock
from nexus.lib.paths import depth, name, parent

CACHED_RECORDS = 1 << 16
CACHED_LISTING_NAMES = 1 << 18
_LARGEST_CACHED_LISTING = 1 << 14

_UNKNOWN: Any = object()


class Inode:
    """A current record: its metadata, the revision that wrote it, and its sealed form."""

    __slots__ = ("extent", "meta", "record", "revision", "stat")

    def __init__(self, meta: FileMetadata, record: Sealed) -> None:
        self.meta = meta
        self.record = record
        self.revision = record.revision
        self.stat: Stat | None = None  # built on first use by the volume, then copied
        self.extent: Extent | None = None  # where its content lies, noted by who has read it


class Version(NamedTuple):
    """A version record: the metadata as of a revision, or None where the path was removed."""

    path: str
    revision: int
    meta: FileMetadata | None
    record: Sealed


def _key_part(text: str) -> bytes:
    return text.encode() + b"\0"


class InodeTable:
    """The records of one volume. Shared by all threads."""

    has_whole_trees = True
    """Whether invariant 1 holds, so that nothing lies in a directory that has just been made."""

    def __init__(self, store: SealedStore, zone_id: str, volume_id: str) -> None:
        self.store = store
        place = _key_part(zone_id) + _key_part(volume_id)
        self.current_prefix = b"C" + place
        self.version_prefix = b"V" + place
        self._cache_lock = ordered_lock(Level.THREAD)  # guards all below; single lookups go without
        self._cache: dict[str, Inode | None] = {}  # None: nothing is there
        self._listings: dict[str, list[str]] = {}
        self._directories: dict[str, list[str]] = {}  # in some of the directories in _listings
        self._listed_names = 0
        self._possible: dict[str, set[str]] = {}
        self._possible_names = 0
        self._epoch = 0
        self._committing: set[object] = set()
        self._end_notices = store.on_uncertain(self.drop_cache)

    def close(self) -> None:
        """Let the store forget this table; called when nothing uses it any more."""
        self._end_notices()

    # -- reading ------------------------------------------------------------------------------

    def get(self, path: str) -> Inode | None:
        """Return the current record of a canonical volume path, or None."""
        found: Inode | None = self._cache.get(path, _UNKNOWN)
        if found is not _UNKNOWN:
            return found
        slash = path.rfind("/")
        names = self._possible.get(path[:slash] or "/")
        if names is not None and path[slash + 1 :] not in names:
            return None
        epoch = self._epoch
        record = self.store.get(self.key(path))
        inode = None if record is None else Inode(decode_metadata(record), record)
        self._remember(path, inode, epoch)
        return inode

    def _is_impossible(self, path: str) -> bool:
        names = self._possible.get(parent(path))
        return names is not None and name(path) not in names

    def load(self, paths: Iterable[str]) -> None:
        """Read several records at once, so that :meth:`get` finds them in memory."""
        if not self.store.cacheable:
            return
        epoch = self._epoch
        wanted = [p for p in paths if p not in self._cache and not self._is_impossible(p)]
        records = self.store.get_many([self.key(path) for path in wanted])
        for path, record in zip(wanted, records, strict=True):
            inode = None if record is None else Inode(decode_metadata(record), record)
            self._remember(path, inode, epoch)

    def key(self, path: str) -> bytes:
        """Return the key of a path's current record."""
        return self.current_prefix + depth(path).to_bytes(2, "big") + path.encode()

    def path_of(self, key: bytes) -> str:
        """Return the path in the key of a current record."""
        return key[len(self.current_prefix) + 2 :].decode()

    def child_names(self, directory: str) -> list[str] | None:
        """Return the sorted names in a directory, or None when too many to keep in memory.

        The list is shared: callers do not change it.
        """
        names = self._listings.get(directory)
        if names is not None:
            return names
        epoch = self._epoch
        records = self._children_at_once(directory)
        if records is None:
            return None
        names = self._names(directory, records)
        self._remember_listing(directory, names, None, epoch)
        return names

    def child_directories(self, directory: str) -> list[str] | None:
        """Return the sorted names of the directories in a directory; as :meth:`child_names`."""
        directories = self._directories.get(directory)
        if directories is not None:
            return directories
        epoch = self._epoch
        records = self._children_at_once(directory)
        if records is None:
            return None
        are = [r for r in records if decode_metadata(r).entry_type in DIRECTORY_TYPES]
        directories = self._names(directory, are)
        self._remember_listing(directory, self._names(directory, records), directories, epoch)
        return directories

    def _children_at_once(self, directory: str) -> list[Sealed] | None:
        prefix = self._children_prefix(directory)
        records = self.store.scan(prefix, limit=_LARGEST_CACHED_LISTING + 1)
        return None if len(records) > _LARGEST_CACHED_LISTING else records

    def _names(self, directory: str, records: Iterable[Sealed]) -> list[str]:
        start = len(self._children_prefix(directory))
        return [record.key[start:].decode() for record in records]

    def children(self, directory: str, after: str = "") -> Iterator[tuple[str, Inode]]:
        """Yield (path, record) of a directory's entries in order, after the path ``after``."""
        prefix = self._children_prefix(directory)
        return self._inodes(prefix, self._after_key(prefix, after))

    def has_children(self, directory: str) -> bool:
        """Return whether anything lies in a directory."""
        names = self._listings.get(directory)
        if names is not None:
            return bool(names)
        return bool(self.store.scan(self._children_prefix(directory), limit=1))

    def subtree(self, directory: str, after: str = "") -> Iterator[tuple[str, Inode]]:
        """Yield (path, record) of everything beneath a directory, sorted bytewise by path.

        Bounded memory: one page a level. Entries that change while this runs may be seen in
        either state.
        """
        levels = []
        level = depth(directory) + 1
        base = b"/" if directory == "/" else directory.encode() + b"/"
        while True:
            prefix = self.current_prefix + level.to_bytes(2, "big") + base
            if not self.store.scan(prefix, limit=1):
                break
            levels.append(self._inodes(prefix, self._after_key(prefix, after)))
            level += 1
        return heapq.merge(*levels, key=lambda item: item[0])

    def _after_key(self, prefix: bytes, after: str) -> bytes:
        if not after:
            return b""
        return prefix[: len(self.current_prefix) + 2] + after.encode()

    def _inodes(self, prefix: bytes, after: bytes) -> Iterator[tuple[str, Inode]]:
        for record in self.store.iterate(prefix, after):
            yield self.path_of(record.key), Inode(decode_metadata(record), record)

    def _children_prefix(self, directory: str) -> bytes:
        level = (depth(directory) + 1).to_bytes(2, "big")
        base = b"/" if directory == "/" else directory.encode() + b"/"
        return self.current_prefix + level + base

    def versions(self, path: str, after_revision: int = 0) -> Iterator[Version]:
        """Yield the kept version records of a path, oldest first."""
        prefix = self.versions_key(path)
        after = prefix + revision_key(after_revision) if after_revision else b""
        for record in self.store.iterate(prefix, after):
            yield self.version_of(record)

    def all_versions(self) -> Iterator[Version]:
        """Yield every kept version record of the volume, grouped by path, oldest first."""
        for record in self.store.iterate(self.version_prefix):
            yield self.version_of(record)

    def all_current(self) -> Iterator[tuple[str, Inode]]:
        """Yield every current record of the volume."""
        return self._inodes(self.current_prefix, b"")

    def version_of(self, record: Sealed) -> Version:
        """Return the typed form of a version record. Errors: CorruptionError."""
        path = record.key[len(self.version_prefix) : -9].decode()
        meta = decode_metadata(record) if record.payload else None
        return Version(path, revision_of(record.key), meta, record)

    def versions_key(self, path: str) -> bytes:
        """Return the prefix of the keys of a path's version records."""
        return self.version_prefix + _key_part(path)

    # -- the cache ----------------------------------------------------------------------------

    def _remember(self, path: str, inode: Inode | None, epoch: int) -> None:
        if not self.store.cacheable:
            return
        with self._cache_lock:
            if epoch == self._epoch and not self._committing:
                self._keep_locked(path, inode)

    def _keep_locked(self, path: str, inode: Inode | None) -> None:
        cache = self._cache
        if len(cache) >= CACHED_RECORDS and path not in cache:
            del cache[next(iter(cache))]
        cache[path] = inode

    def _remember_listing(
        self, directory: str, names: list[str], directories: list[str] | None, epoch: int
    ) -> None:
        if not self.store.cacheable:
            return
        with self._cache_lock:
            if epoch == self._epoch and not self._committing:
                self._keep_listing_locked(directory, names)
                if directories is not None:
                    self._directories[directory] = directories

    def _keep_listing_locked(self, directory: str, names: list[str]) -> None:
        self._forget_listing_locked(directory)
        self._listed_names += len(names)
        while self._listings and self._listed_names > CACHED_LISTING_NAMES:
            self._forget_listing_locked(next(iter(self._listings)))
        self._listings[directory] = names

    def _forget_listing_locked(self, directory: str) -> None:
        names = self._listings.pop(directory, None)
        if names is not None:
            self._listed_names -= len(names)
            self._directories.pop(directory, None)

    def drop_cache(self) -> None:
        """Forget everything kept in memory."""
        with self._cache_lock:
            self._epoch += 1
            self._cache.clear()
            self._listings.clear()
            self._directories.clear()
            self._listed_names = 0
            self._possible.clear()
            self._possible_names = 0

    def begin(self, commit: object, changes: dict[str, Change], moved: Moved) -> None:
        """Drop what a commit is about to change, and keep nothing new until :meth:`end`."""
        with self._cache_lock:
            self._committing.add(commit)
            self._drop_locked(changes, moved)
            if moved and self.has_whole_trees and self.store.cacheable:
                self._note_possible_locked(moved)

    def end(
        self,
        commit: object,
        changes: dict[str, Change],
        moved: Moved,
        written: dict[bytes, Sealed],
    ) -> None:
        """Keep what the commit has ``written``; nothing after one that failed."""
        with self._cache_lock:
            self._committing.discard(commit)
            self._drop_locked(changes, moved)
            if not written or not self.store.cacheable:
                return
            for path, change in changes.items():
                record = written.get(change.key)
                if record is not None and change.meta is not None:
                    self._keep_locked(path, Inode(change.meta, record))

    def _note_possible_locked(self, moved: Moved) -> None:
        """Note which names may be in directories that were made here, before they are there."""
        for path, change in moved:
            # Where a directory's own record was lost, its entries are there before it.
            if change.makes_directory and not self.store.holds_any(self._children_prefix(path)):
                self._forget_possible_locked(path)
                self._possible[path] = set()
        for path, change in moved:
            if change.meta is None:
                continue
            directory = parent(path)
            names = self._possible.get(directory)
            if names is not None:
                names.add(name(path))
                self._possible_names += 1
                if len(names) > _LARGEST_CACHED_LISTING:
                    self._forget_possible_locked(directory)
        while self._possible and self._possible_names > CACHED_LISTING_NAMES:
            self._forget_possible_locked(next(iter(self._possible)))

    def _forget_possible_locked(self, directory: str) -> None:
        self._possible_names -= len(self._possible.pop(directory, ()))

    def _drop_locked(self, changes: dict[str, Change], moved: Moved) -> None:
        self._epoch += 1
        for path in changes:
            self._cache.pop(path, None)
        for path, change in moved:
            if self._listings:
                self._forget_listing_locked(parent(path))
                self._forget_listing_locked(path)
            if change.meta is None:
                self._forget_possible_locked(path)


class OverlayTable(InodeTable):
    """What is known, beyond the driver's own tree, of paths in a path-addressed volume.

    Only paths that were changed through the kernel have a record, so parents may be missing and
    keys are flat: a subtree is one range.
    """

    has_whole_trees = False

    def __init__(self, store: SealedStore, zone_id: str, volume_id: str) -> None:
        super().__init__(store, zone_id, volume_id)
        self.current_prefix = b"O" + self.current_prefix[1:]

    def key(self, path: str) -> bytes:
        return self.current_prefix + path.encode()

    def path_of(self, key: bytes) -> str:
        return key[len(self.current_prefix) :].decode()

    def subtree(self, directory: str, after: str = "") -> Iterator[tuple[str, Inode]]:
        base = b"/" if directory == "/" else directory.encode() + b"/"
        return self._inodes(self.current_prefix + base, self.key(after) if after else b"")


class Change(msgspec.Struct, frozen=True):
    """What a transaction does to one path: a new record, or None to remove it."""

    key: bytes
    meta: FileMetadata | None
    replaced: Inode | None

    @property
    def moves(self) -> bool:
        """Whether a name appears, disappears, or becomes another kind of entry."""
        meta, replaced = self.meta, self.replaced
        return meta is None or replaced is None or meta.entry_type != replaced.meta.entry_type

    @property
    def makes_directory(self) -> bool:
        """Whether a directory appears, in which nothing can be yet."""
        meta = self.meta
        return self.replaced is None and meta is not None and meta.entry_type == DT_DIR


Moved: TypeAlias = list[tuple[str, Change]]
"""The changes by which a name appears, disappears, or becomes another kind of entry."""


def _moved(changes: dict[str, Change]) -> Moved:
    return [item for item in changes.items() if item[1].moves]


class Transaction:
    """Changes to paths of any volumes of one store, committed together. One thread's own.

    The caller holds exclusive VFS locks that cover every path it changes.
    """

    def __init__(self, store: SealedStore, *, reclaim: bool = False) -> None:
        self._store = store
        self._mutation = Mutation(reclaim=reclaim)
        self._changes: dict[InodeTable, dict[str, Change]] = {}
        self._events: list[FileEvent] = []
        self._on_finish: list[Callable[[], None]] = []
        self._on_commit: list[Callable[[], None]] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for callback in self._on_finish:
            callback()

    def on_finish(self, callback: Callable[[], None]) -> None:
        """Call back when the transaction's block is left, committed or not."""
        self._on_finish.append(callback)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back once everything is committed, while the caller's locks are still held."""
        self._on_commit.append(callback)

    def get(self, table: InodeTable, path: str) -> FileMetadata | None:
        """Return the metadata at a path as this transaction would leave it."""
        changes = self._changes.get(table)
        if changes and path in changes:
            return changes[path].meta
        inode = table.get(path)
        return None if inode is None else inode.meta

    def put(self, table: InodeTable, path: str, meta: FileMetadata, *, fresh: bool = False) -> None:
        """Create or replace the record of a path; ``fresh`` promises that none is there."""
        changes = self._changes.setdefault(table, {})
        earlier = changes.get(path)
        replaced = earlier.replaced if earlier else None if fresh else table.get(path)
        changes[path] = Change(table.key(path), meta, replaced)

    def remove(self, table: InodeTable, path: str, inode: Inode) -> None:
        """Remove the record of a path, as read before."""
        self._changes.setdefault(table, {})[path] = Change(table.key(path), None, inode)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self._changes or self._events)

    def event(self, event: FileEvent) -> None:
        """Add a journal entry to the commit."""
        self._events.append(event)

    def require(self, key: bytes, error: ConflictError) -> None:
        """Commit only if a record is at the key then, else raise."""
        self._mutation.require(key, error)

    def put_record(self, key: bytes, payload: bytes, replaced: Sealed | None) -> None:
        """Write a record outside the three keyspaces."""
        self._mutation.put(key, payload, replaced)

    def delete_record(self, record: Sealed) -> None:
        """Remove a record of any keyspace, without a trace in history."""
        self._mutation.delete(record)

    def commit(self, *, durable: bool) -> int:
        """Commit everything; return the revision. Errors: those of the driver."""
        mutation, store, events = self._mutation, self._store, self._events
        changed = [(table, some, _moved(some)) for table, some in self._changes.items()]
        for table, changes, _ in changed:
            for path, change in changes.items():
                self._stage(table, path, change)
        if events:
            self._stage_events(events)
        by_key: dict[bytes, Sealed] = {}
        try:
            for table, changes, moved in changed:
                table.begin(self, changes, moved)
            revision, written = store.commit(mutation, durable=durable)
            by_key = {record.key: record for record in written}
        finally:
            for table, changes, moved in changed:
                table.end(self, changes, moved, by_key)
            # Also where the outcome is unknown: who is woken looks into the journal.
            if events:
                store.announce(events)
        for callback in self._on_commit:
            callback()
        return revision

    def _stage_events(self, events: list[FileEvent]) -> None:
        mutation, store = self._mutation, self._store
        for sequence, event in enumerate(events):
            mutation.put_at_revision(b"J", encode_event(event), sequence.to_bytes(4, "big"))
        if store.tap is not None:
            mutation.on_committed = store.tap(events)
        if store.chain is not None:
            mutation.chain = partial(store.chain, events)

    def _stage(self, table: InodeTable, path: str, change: Change) -> None:
        replaced = change.replaced.record if change.replaced else None
        if change.meta is not None:
            payload = encode_metadata(change.meta)
            self._mutation.put(change.key, payload, replaced)
        elif replaced is not None:
            payload = b""
            self._mutation.delete(replaced)
        else:
            return
        self._mutation.put_at_revision(table.versions_key(path), payload)


def journal_records(
    store: SealedStore, after: tuple[int, int] = (0, 0)
) -> Iterator[tuple[Sealed, FileEvent]]:
    """Yield (record, event) of the journal, oldest first.

    ``after`` is the (revision, sequence) to resume after; (0, 0) starts at the oldest kept.
    Errors: CorruptionError.
    """
    start = b"J" + revision_key(after[0]) + after[1].to_bytes(4, "big") if after[0] else b""
    for record in store.iterate(b"J", start):
        yield record, decode_event(record)


def journal(store: SealedStore, after: tuple[int, int] = (0, 0)) -> Iterator[FileEvent]:
    """Yield the events of the journal; see :func:`journal_records`."""
    for _, event in journal_records(store, after):
        yield event


def commit_records(store: SealedStore, after: int) -> Iterator[Sealed]:
    """Yield the records that recorders stored with commits, oldest first, after a revision."""
    yield from store.iterate(CHAIN, CHAIN + revision_key(after))


class ParsedKey(NamedTuple):
    """What a stored key stands for. ``keyspace`` is its first byte as a letter."""

    keyspace: str
    zone_id: str
    volume_id: str
    path: str


def parse_key(key: bytes) -> ParsedKey | None:
    """Return what a key stands for, or None when it has no known form."""
    keyspace = key[:1].decode("ascii", "replace")
    try:
        if keyspace == "J" and len(key) == 13:
            return ParsedKey("J", "", "", f"revision {int.from_bytes(key[1:9], 'big')}")
        if keyspace == "A" and len(key) == 9:
            return ParsedKey("A", "", "", f"the record of a commit, revision {revision_of(key)}")
        if key == b"B":
            return ParsedKey("B", "", "", "the barrier")
        if keyspace == "L":
            zone, path = key[1:-9].split(b"\0", 1)
            return ParsedKey("L", zone.decode(), "", path.decode())
        if keyspace == "M":
            zone, point = key[1:].split(b"\0", 1)
            return ParsedKey("M", zone.decode(), "", point.decode())
        zone, volume, rest = key[1:].split(b"\0", 2)
        parts = {"C": rest[2:], "O": rest, "V": rest[:-9]}
        return ParsedKey(keyspace, zone.decode(), volume.decode(), parts[keyspace].decode())
    except (ValueError, KeyError):
        return None
