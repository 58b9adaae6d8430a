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
2. What the cache has equals what is stored (:mod:`nexus.core.inode_cache`).

Lock order: the VFS lock of the paths concerned, SealedStore's turn, the cache's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import msgspec

from nexus.contracts.errors import ConflictError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.metadata import DIRECTORY_TYPES, DT_DIR, FileMetadata, Stat
from nexus.contracts.object_store import Extent
from nexus.core.metadata_codec import decode_metadata, encode_event, encode_metadata
from nexus.core.primitives import InodeCache, decode_event
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import (
    CHAIN,
    Mutation,
    SealedStore,
    revision_key,
    revision_of,
)
from nexus.lib.paths import depth

CACHED_RECORDS = 1 << 16
CACHED_LISTING_NAMES = 1 << 18
_LARGEST_CACHED_LISTING = 1 << 14

_UNKNOWN: Any = object()


class Inode(msgspec.Struct, eq=False, gc=False):
    """A current record: its metadata, the revision that wrote it, and its sealed form.

    No cycle runs through one, so the collector of cycles need not look at the many that are kept.
    """

    meta: FileMetadata
    record: Sealed
    stat: Stat | None = None
    """Built on first use by the volume, then copied."""
    extent: Extent | None = None
    """Where its content lies, noted by who has read it."""

    @property
    def revision(self) -> int:
        """The revision that wrote the record."""
        return self.record.revision


class Version(msgspec.Struct, frozen=True, gc=False):
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
        limits = CACHED_RECORDS, CACHED_LISTING_NAMES, _LARGEST_CACHED_LISTING
        self._cache: InodeCache[Inode] = InodeCache(*limits)
        self._look = self._cache.look
        self.drop_cache = self._cache.clear
        """Forget everything kept in memory."""
        self._end_notices = store.on_uncertain(self.drop_cache)

    def close(self) -> None:
        """Let the store forget this table; called when nothing uses it any more."""
        self._end_notices()

    # -- reading ------------------------------------------------------------------------------

    def get(self, path: str) -> Inode | None:
        """Return the current record of a canonical volume path, or None."""
        found: Inode | None = self._look(path, _UNKNOWN)
        if found is not _UNKNOWN:
            return found
        epoch = self._cache.epoch
        record = self.store.get(self.key(path))
        inode = None if record is None else Inode(decode_metadata(record), record)
        if self.store.cacheable:
            self._cache.keep(path, inode, epoch)
        return inode

    def is_known_absent(self, path: str) -> bool:
        """Return whether it is known from memory that nothing is at a path."""
        return self._look(path, _UNKNOWN) is None

    def is_known_directory(self, path: str) -> bool:
        """Return whether it is known from memory that a directory is at a path."""
        inode: Inode | None = self._look(path, None)
        return inode is not None and inode.meta.entry_type in DIRECTORY_TYPES

    def load(self, paths: Iterable[str]) -> None:
        """Read several records at once, so that :meth:`get` finds them in memory."""
        if not self.store.cacheable:
            return
        epoch = self._cache.epoch
        wanted = [path for path in paths if self._look(path, _UNKNOWN) is _UNKNOWN]
        records = self.store.get_many([self.key(path) for path in wanted])
        for path, record in zip(wanted, records, strict=True):
            inode = None if record is None else Inode(decode_metadata(record), record)
            self._cache.keep(path, inode, epoch)

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
        names = self._cache.names(directory)
        if names is not None:
            return names
        epoch = self._cache.epoch
        records = self._children_at_once(directory)
        if records is None:
            return None
        names = self._names(directory, records)
        self._keep_listing(directory, names, None, epoch)
        return names

    def child_directories(self, directory: str) -> list[str] | None:
        """Return the sorted names of the directories in a directory; as :meth:`child_names`."""
        directories = self._cache.directories(directory)
        if directories is not None:
            return directories
        epoch = self._cache.epoch
        records = self._children_at_once(directory)
        if records is None:
            return None
        are = [r for r in records if decode_metadata(r).entry_type in DIRECTORY_TYPES]
        directories = self._names(directory, are)
        self._keep_listing(directory, self._names(directory, records), directories, epoch)
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
        names = self._cache.names(directory)
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
        import heapq  # costs start-up time

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

    def _keep_listing(
        self, directory: str, names: list[str], directories: list[str] | None, epoch: int
    ) -> None:
        if self.store.cacheable:
            self._cache.keep_listing(directory, names, directories, epoch)

    def stage(self, mutation: Mutation, changes: dict[str, Change]) -> Moves:
        """Add what the changes store to a commit; return what they do to names."""
        appearing: list[str] = []
        vanishing: list[str] = []
        empty: list[str] = []
        for path, (key, meta, replaced) in changes.items():
            if meta is not None:
                payload = encode_metadata(meta)
                if replaced is None:
                    mutation.puts.append((key, payload, None))
                    appearing.append(path)
                    if meta.entry_type == DT_DIR and self._is_empty(path):
                        empty.append(path)
                else:
                    mutation.puts.append((key, payload, replaced.record))
                    if meta.entry_type != replaced.meta.entry_type:
                        appearing.append(path)
            elif replaced is not None:
                payload = b""
                mutation.deletes.append(replaced.record)
                vanishing.append(path)
            else:
                continue
            mutation.at_revision.append((self.versions_key(path), payload, b""))
        return appearing, vanishing, empty

    def _is_empty(self, made: str) -> bool:
        """Return whether it is certain that nothing is in a directory that is being made."""
        if not (self.has_whole_trees and self.store.cacheable):
            return False
        # Where a directory's own record was lost, its entries are there before it.
        return not self.store.holds_any(self._children_prefix(made))

    def begin(self, commit: object, changes: dict[str, Change], moves: Moves) -> None:
        """Drop what a commit is about to change, and keep nothing new until :meth:`end`."""
        self._cache.begin(commit, changes, *moves)

    def end(self, commit: object, changes: dict[str, Change], written: Iterator[Sealed]) -> None:
        """Keep what the commit has ``written`` of the changes; nothing after one that failed."""
        kept: list[tuple[str, Inode]] = []
        if self.store.cacheable:
            for path, (_, meta, _) in changes.items():
                if meta is None:
                    continue
                record = next(written, None)
                if record is not None:
                    kept.append((path, Inode(meta, record)))
        self._cache.end(commit, kept)


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


Change: TypeAlias = tuple[bytes, FileMetadata | None, Inode | None]
"""What a transaction does to one path: the key, the new record or None to remove it, and the record
that it replaces. Plain tuples, here and below: a write makes some, and names cost time."""

Moves: TypeAlias = tuple[list[str], list[str], list[str]]
"""Paths of a commit at which something appears, at which something vanishes, and new directories in
which nothing is; see :meth:`InodeCache.begin`."""


class Transaction:
    """Changes to paths of any volumes of one store, committed together. One thread's own.

    The caller holds exclusive VFS locks that cover every path it changes.
    """

    def __init__(self, store: SealedStore, *, reclaim: bool = False) -> None:
        self._store = store
        self._mutation = Mutation(reclaim=reclaim)
        self._changes: dict[InodeTable, dict[str, Change]] = {}
        self._events: list[FileEvent] = []
        self._on_finish: tuple[Callable[[], None], ...] = ()
        self._on_commit: tuple[Callable[[], None], ...] = ()

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for callback in self._on_finish:
            callback()

    def on_finish(self, callback: Callable[[], None]) -> None:
        """Call back when the transaction's block is left, committed or not."""
        self._on_finish += (callback,)

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call back once everything is committed, while the caller's locks are still held."""
        self._on_commit += (callback,)

    def get(self, table: InodeTable, path: str) -> FileMetadata | None:
        """Return the metadata at a path as this transaction would leave it."""
        changes = self._changes.get(table)
        if changes and path in changes:
            return changes[path][1]
        inode = table.get(path)
        return None if inode is None else inode.meta

    def put(self, table: InodeTable, path: str, meta: FileMetadata, *, fresh: bool = False) -> None:
        """Create or replace the record of a path; ``fresh`` promises that none is there."""
        changes = self._changes.get(table)
        if changes is None:
            changes = self._changes[table] = {}
        earlier = changes.get(path)
        replaced = earlier[2] if earlier else None if fresh else table.get(path)
        changes[path] = (table.key(path), meta, replaced)

    def remove(self, table: InodeTable, path: str, inode: Inode) -> None:
        """Remove the record of a path, as read before."""
        self._changes.setdefault(table, {})[path] = (table.key(path), None, inode)

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
        others = len(mutation.puts)  # the records outside of the tables, which come first
        changed = [(t, changes, t.stage(mutation, changes)) for t, changes in self._changes.items()]
        if events:
            self._stage_events(events)
        written: Iterator[Sealed] = iter(())
        try:
            for table, changes, moves in changed:
                table.begin(self, changes, moves)
            revision, records = store.commit(mutation, durable=durable)
            written = iter(records[others:])
        finally:
            for table, changes, _ in changed:
                table.end(self, changes, written)
            # Also where the outcome is unknown: who is woken looks into the journal.
            if events:
                store.announce(events)
        for callback in self._on_commit:
            callback()
        return revision

    def _stage_events(self, events: list[FileEvent]) -> None:
        mutation, store = self._mutation, self._store
        for sequence, event in enumerate(events):
            entry = b"J", encode_event(event), sequence.to_bytes(4, "big")
            mutation.at_revision.append(entry)
        if store.tap is not None:
            mutation.on_committed = store.tap(events)
        if store.chain is not None:
            mutation.chain = partial(store.chain, events)


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


class ParsedKey(msgspec.Struct, frozen=True, gc=False):
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
