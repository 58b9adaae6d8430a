"""PathVolume: a volume that shows the truth of a folder or bucket somebody else may change.

Layer: core. The driver's tree is asked on every call; nothing of it is copied into the metastore.
What the driver cannot hold (version numbers, custom attributes, who wrote last) stands in an
overlay record, written for paths that change through the kernel. Unix counterpart: a network or
FUSE filesystem.

Invariants:

1. An overlay's facts about content hold only while its etag equals the driver's fingerprint;
   when others changed the file, it counts as one more version.
2. The driver changes first, then the commit records it. A crash in between leaves the file old
   or new, and at most the journal entry of an unacknowledged call missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from nexus.contracts.errors import (
    ConflictError,
    CorruptionError,
    DirectoryNotEmptyError,
    InvalidPathError,
    NexusError,
    NotSupportedError,
    StorageError,
)
from nexus.contracts.file_events import DIR_DELETE, FILE_DELETE, FILE_RENAME
from nexus.contracts.filesystem.syscalls import Precondition, WriteRequest
from nexus.contracts.metadata import (
    DEFAULT_DIRECTORY_MODE,
    DEFAULT_FILE_MODE,
    DT_DIR,
    DT_REG,
    Buffer,
    FileMetadata,
    Stat,
)
from nexus.contracts.object_store import Content, KeyInfo, Leftovers, NamespaceStoreABC
from nexus.core.inode_table import Inode, OverlayTable, Transaction
from nexus.core.namespace_tree import PAGE, NamespaceTree, key_of
from nexus.core.tree_volume import TreeVolume
from nexus.core.volume import (
    Actor,
    Departure,
    TreeEntry,
    check_precondition,
    is_directory,
    mime_type_of,
)
from nexus.lib.hashing import RunningDigest, hex_digest_of
from nexus.lib.paths import join, name


class PathVolume(TreeVolume):
    """The tree behind a :class:`NamespaceStoreABC`. Shared by all threads."""

    keeps_versions = False
    atomic_batch = False
    snapshot_entries = 0
    immutable_content = False

    def __init__(
        self,
        point: str,
        table: OverlayTable,
        store: NamespaceStoreABC,
        *,
        zone_id: str,
        owner_id: str,
        durable: bool,
    ) -> None:
        super().__init__(point, table, store.name, zone_id, durable=durable)
        self._store = store
        self._tree = NamespaceTree(store, self.absolute)
        self._owner_id = owner_id

    # -- reading ------------------------------------------------------------------------------

    def stat(self, relative: str) -> Stat | None:
        info = self._tree.info("stat", relative)
        return None if info is None else self._stat_of(relative, info)

    def _stat_of(self, relative: str, info: KeyInfo) -> Stat:
        meta, revision = self._shown(relative, info)
        return self._build_stat(relative, meta, revision)

    def _lookup(
        self, operation: str, relative: str, txn: Transaction | None = None
    ) -> FileMetadata | None:
        info = self._tree.info(operation, relative)
        return None if info is None else self._shown(relative, info)[0]

    def _has_children(self, operation: str, relative: str) -> bool:
        return bool(self._tree.page(operation, relative, "", 1))

    def _rootless(self, operation: str) -> StorageError:
        return StorageError(operation, self.point, "the folder behind the mount is gone")

    def _shown(self, relative: str, info: KeyInfo) -> tuple[FileMetadata, int]:
        """Return what the driver and the overlay say together, and the revision, 0 if none."""
        overlay = self.table.get(relative)
        default_mode = DEFAULT_DIRECTORY_MODE if info.is_directory else DEFAULT_FILE_MODE
        shown = FileMetadata(
            entry_type=DT_DIR if info.is_directory else DT_REG,
            size=0 if info.is_directory else info.size,
            etag=_etag(info),
            version=1,
            created_at_ns=info.modified_at_ns,
            modified_at_ns=info.modified_at_ns,
            owner_id=self._owner_id,
            mode=info.mode if self._store.capabilities.modes else default_mode,
            mime_type="inode/directory" if info.is_directory else mime_type_of(relative),
            zone_id=self._zone_id,
            backend_name=self._store.name,
            modified_by=self._owner_id,
        )
        if overlay is None or overlay.meta.entry_type != shown.entry_type:
            return shown, 0
        return self._overlaid(shown, overlay.meta), overlay.revision

    def _overlaid(self, shown: FileMetadata, known: FileMetadata) -> FileMetadata:
        lasting = {
            "created_at_ns": known.created_at_ns,
            "owner_id": known.owner_id,
            "mime_type": known.mime_type,
            "attributes": known.attributes,
        }
        if not self._store.capabilities.modes:
            lasting["mode"] = known.mode
        if known.etag != shown.etag:
            return replace(shown, version=known.version + 1, **lasting)
        return replace(
            shown,
            version=known.version,
            modified_at_ns=known.modified_at_ns,
            modified_by=known.modified_by,
            run_id=known.run_id,
            **lasting,
        )

    def read(
        self, operation: str, relative: str, count: int | None, offset: int, version: int | None
    ) -> bytes:
        if version is not None:
            raise NotSupportedError(
                operation,
                self.absolute(relative),
                "a path-addressed mount keeps no earlier versions",
                hint="copy the file to a CAS mount to have its history kept",
            )
        self._file(operation, relative)
        return self._tree.at(operation, relative, self._store.read, offset, count)

    def names(self, relative: str) -> list[str] | None:
        page = self._tree.page("readdir", relative, "", PAGE)
        return None if len(page) == PAGE else [name("/" + info.key) for info in page]

    def entries(self, relative: str, after: str = "") -> Iterator[Stat]:
        for info in self._tree.children(relative, after):
            yield self._stat_of("/" + info.key, info)

    def subtree(self, relative: str, after: str = "") -> Iterator[Stat]:
        for info in self._tree.walk(relative, after):
            yield self._stat_of("/" + info.key, info)

    # -- writing files ------------------------------------------------------------------------

    def write(
        self,
        txn: Transaction,
        operation: str,
        relative: str,
        request: WriteRequest,
        prepared: Content | None,
        actor: Actor,
    ) -> Stat:
        old = self._lookup(operation, relative)
        path = self.absolute(relative)
        if old is None and not request.create:
            raise self._absent(operation, relative)
        if old is not None and old.entry_type != DT_REG:
            raise is_directory(operation, path)
        self._check_precondition(operation, relative, request.precondition, old)
        if old is None:
            self._ensure_parent(txn, operation, relative, request.parents, actor)
        if request.append and old is not None:
            data = _joined(request.buf)
            written = self._splice(operation, relative, old.size, data)
            return self._put_file(txn, relative, old, written, len(data), actor)
        written = self._tree.at(operation, relative, self._store.write, request.buf)
        return self._put_file(txn, relative, old, written, written.size, actor)

    def _check_precondition(
        self,
        operation: str,
        relative: str,
        condition: Precondition | None,
        old: FileMetadata | None,
    ) -> None:
        if condition is not None:
            etag = None if old is None else old.etag
            overlay = self.table.get(relative)
            known = overlay is not None and overlay.meta.entry_type == DT_REG
            revision = None if old is None else overlay.revision if overlay and known else 0
            check_precondition(operation, self.absolute(relative), condition, etag, revision)

    def _splice(self, operation: str, relative: str, offset: int, data: Buffer) -> KeyInfo:
        return self._tree.at(operation, relative, self._store.splice, offset, data)

    def write_at(
        self,
        txn: Transaction,
        relative: str,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
        actor: Actor,
    ) -> Stat:
        old = self._file("write", relative)
        self._check_precondition("write", relative, precondition, old)
        content = Content(old.etag, old.size)
        if len(data):
            written = self._splice("write", relative, offset, data)
            content = Content(_etag(written), written.size)
            self._sync_if_durable()
        return self._put_written(txn, relative, old, content, old.mode, len(data), actor)

    def _put_file(
        self,
        txn: Transaction,
        relative: str,
        old: FileMetadata | None,
        info: KeyInfo,
        bytes_written: int,
        actor: Actor,
    ) -> Stat:
        self._sync_if_durable()
        content = Content(_etag(info), info.size)
        return self._put_written(txn, relative, old, content, info.mode, bytes_written, actor)

    def _new(self, relative: str, info: KeyInfo, actor: Actor) -> FileMetadata:
        """Return the record of what this actor has just made."""
        content = None if info.is_directory else Content(_etag(info), info.size)
        return self._created(relative, actor, mode=info.mode, content=content)

    def _sync_if_durable(self) -> None:
        if self._durable:
            self._store.sync()

    # -- directories and attributes -----------------------------------------------------------

    def _ensure_parent(
        self, txn: Transaction, operation: str, relative: str, create: bool, actor: Actor
    ) -> None:
        if self._store.is_hidden(key_of(relative)):
            reason = "such names are kept for files that are not complete yet"
            raise InvalidPathError(operation, self.absolute(relative), reason)
        super()._ensure_parent(txn, operation, relative, create, actor)

    def _make_directory(
        self, txn: Transaction, operation: str, relative: str, actor: Actor
    ) -> None:
        info = self._tree.at(operation, relative, self._store.create_dir)
        self._sync_if_durable()
        self._drop_overlays(txn, relative)
        self._put(txn, relative, self._new(relative, info, actor), actor)

    def _set_mode(self, relative: str, mode: int) -> dict[str, Any]:
        if not self._store.capabilities.modes:
            return {}
        info = self._tree.at("setattr", relative, self._store.set_mode, mode)
        return {"etag": _etag(info)}

    # -- removing, moving, copying ------------------------------------------------------------

    def remove(self, txn: Transaction, relative: str, recursive: bool, actor: Actor) -> int:
        meta = self._existing("unlink", relative)
        removed = 1
        if meta.entry_type == DT_REG:
            self._tree.at("unlink", relative, self._store.remove)
        elif recursive:
            removed += sum(1 for _ in self._tree.walk(relative))
            self._tree.at("unlink", relative, self._store.remove_tree)
        elif self._has_children("unlink", relative):
            raise DirectoryNotEmptyError(
                "unlink",
                self.absolute(relative),
                "the directory is not empty",
                hint="pass recursive=True to remove everything in it",
            )
        else:
            self._tree.at("unlink", relative, self._store.remove)
        self._note_removed(txn, relative, meta.entry_type != DT_REG, actor)
        return removed

    def _note_removed(
        self, txn: Transaction, relative: str, was_directory: bool, actor: Actor
    ) -> None:
        self._sync_if_durable()
        self._drop_overlays(txn, relative)
        kind = DIR_DELETE if was_directory else FILE_DELETE
        txn.event(actor.event(kind, self.absolute(relative)))

    def _drop_overlays(self, txn: Transaction, relative: str) -> None:
        for path, inode in self._overlays(relative):
            txn.remove(self.table, path, inode)

    def _overlays(self, relative: str) -> Iterator[tuple[str, Inode]]:
        top = self.table.get(relative)
        if top is not None:
            yield relative, top
        yield from self.table.subtree(relative)

    def rename(self, txn: Transaction, old: str, new: str, actor: Actor) -> int:
        meta = self._source(txn, "rename", old, new, actor)
        is_directory = meta.entry_type != DT_REG
        count = 1 + sum(1 for _ in self._tree.walk(old)) if is_directory else 1
        if is_directory and self._tree.info("rename", new) is not None:
            self._tree.at("rename", new, self._store.remove)
        self._tree.at("rename", old, self._store.rename, key_of(new))
        self._sync_if_durable()
        self._drop_overlays(txn, new)  # what others removed there has nothing to do with it
        for path, inode in list(self._overlays(old)):
            txn.remove(self.table, path, inode)
            txn.put(self.table, join(new, path[len(old) :] or "/"), inode.meta)
        moved = self._tree.info("rename", new)
        if moved is not None and not moved.is_directory:
            # Renaming changes the file's ctime, and with it the fingerprint.
            txn.put(self.table, new, replace(meta, etag=_etag(moved)))
        txn.event(actor.event(FILE_RENAME, self.absolute(old), new_path=self.absolute(new)))
        return count

    def copy(self, txn: Transaction, source: str, target: str, actor: Actor) -> int:
        meta = self._source(txn, "copy", source, target, actor)
        if meta.entry_type != DT_REG:
            departure = self.send("copy", source, is_move=False)
            return self.receive(txn, "copy", target, departure, actor)
        old = self._lookup("copy", target)
        info = self._tree.at("copy", source, self._store.copy, key_of(target))
        info = self._with_mode("copy", target, key_of(target), info, meta.mode)
        self._sync_if_durable()
        fresh = self._new(target, info, actor)
        self._put_arrived(txn, target, fresh, meta, old, actor, moving=False)
        return 1

    def send(self, operation: str, relative: str, *, is_move: bool) -> Departure:
        is_directory = self._existing(operation, relative).entry_type != DT_REG
        inventory: dict[str, KeyInfo] = {}
        if is_move:
            entries = self._whole(operation, relative, inventory)
        else:
            entries = self._found(operation, relative)

        def remove(txn: Transaction, actor: Actor) -> None:
            self._tree.at(operation, relative, self._store.remove_unchanged, inventory)
            self._note_removed(txn, relative, is_directory, actor)

        return Departure(is_directory, is_move, entries, remove)

    def _whole(
        self, operation: str, relative: str, inventory: dict[str, KeyInfo]
    ) -> Iterator[TreeEntry]:
        """Yield all that is beneath, and fill the inventory of it.

        Errors: as the store's inventory, before the first entry; ConflictError after the last.
        """
        inventory |= self._tree.at(operation, relative, self._store.inventory)
        for below in sorted(inventory):
            yield self._entry(operation, relative, below, inventory[below])
        now = self._tree.at(operation, relative, self._store.inventory)
        if _etags(now) != _etags(inventory):
            reason = "others changed it while it was copied"
            raise ConflictError(operation, self.absolute(relative), reason, hint="try again")

    def _found(self, operation: str, relative: str) -> Iterator[TreeEntry]:
        top = self._tree.info(operation, relative)
        if top is None:
            raise self._absent(operation, relative)
        yield self._entry(operation, relative, "/", top)
        if top.is_directory:
            for info in self._tree.walk(relative):
                below = "/" + info.key if relative == "/" else info.key[len(relative) - 1 :]
                yield self._entry(operation, relative, below, info)

    def _entry(self, operation: str, top: str, below: str, info: KeyInfo) -> TreeEntry:
        path = join(top, below)
        return TreeEntry(below, self._shown(path, info)[0], self._pieces(operation, path, info))

    def _pieces(self, operation: str, relative: str, info: KeyInfo) -> Iterator[bytes]:
        if info.is_directory:
            return
        pieces = self._tree.at(operation, relative, self._store.stream, info)
        while piece := self._tree.ask(operation, relative, next, pieces, b""):
            yield piece

    def receive(
        self, txn: Transaction, operation: str, target: str, departure: Departure, actor: Actor
    ) -> int:
        self._ensure_parent(txn, operation, target, False, actor)
        old = self._lookup(operation, target)
        staging = self._store.staging_path(key_of(target))
        try:
            staged = self._stage(operation, target, staging, departure.entries)
            if old is not None and old.entry_type != DT_REG:
                self._tree.at(operation, target, self._store.remove)
            self._tree.ask(operation, target, self._store.rename, staging, key_of(target))
        except BaseException:
            with suppress(NexusError):  # the first error is the one to tell; a collection sweeps
                self._store.remove_tree(staging)
            raise
        self._sync_if_durable()
        self._drop_overlays(txn, target)
        for entry, info in staged:
            relative, source = entry.relative, entry.meta
            path = join(target, relative)
            if relative == "/" and not info.is_directory:
                # Renaming changes the file's ctime, and with it the fingerprint.
                info = self._tree.info(operation, path) or info
            fresh = self._new(path, info, actor)
            replaced = old if relative == "/" else None
            self._put_arrived(txn, path, fresh, source, replaced, actor, moving=departure.is_move)
        return len(staged)

    def _stage(
        self, operation: str, target: str, staging: str, entries: Iterable[TreeEntry]
    ) -> list[tuple[TreeEntry, KeyInfo]]:
        """Write all entries below the hidden key ``staging``, which nobody else goes by."""
        staged: list[tuple[TreeEntry, KeyInfo]] = []
        for entry in entries:
            key = staging + ("" if entry.relative == "/" else entry.relative)
            if entry.meta.entry_type != DT_REG:
                info = self._tree.ask(operation, target, self._store.create_dir, key)
            else:
                info = self._store_verified(operation, join(target, entry.relative), key, entry)
                info = self._with_mode(operation, target, key, info, entry.meta.mode)
            staged.append((entry, info))
        for entry, info in reversed(staged):  # what lies in a directory before its own mode
            if info.is_directory:
                key = staging + ("" if entry.relative == "/" else entry.relative)
                self._with_mode(operation, target, key, info, entry.meta.mode)
        return staged

    def _store_verified(self, operation: str, path: str, key: str, entry: TreeEntry) -> KeyInfo:
        digest = RunningDigest()
        info = self._tree.ask(operation, path, self._store.write, key, digest.through(entry.pieces))
        stored = self._tree.ask(operation, path, self._store.stream, key, info)
        if self._tree.ask(operation, path, hex_digest_of, stored) != digest.hex():
            raise CorruptionError(
                operation, self.absolute(path), "what was stored does not read as it was written"
            )
        return info

    def _with_mode(
        self, operation: str, relative: str, key: str, info: KeyInfo, mode: int
    ) -> KeyInfo:
        if not self._store.capabilities.modes or info.mode == mode:
            return info
        return self._tree.ask(operation, relative, self._store.set_mode, key, mode)

    # -- the rest -----------------------------------------------------------------------------

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool) -> Leftovers:
        def call() -> Leftovers:
            return self._store.remove_leftovers(untouched_since_ns, dry_run=dry_run)

        return self._tree.ask("gc", "/", call)

    def sync(self) -> None:
        self._store.sync()

    def close(self) -> None:
        self.table.close()
        self._store.close()


def _etag(info: KeyInfo) -> str:
    return "" if info.is_directory else f"fp:{info.fingerprint}"


def _etags(inventory: dict[str, KeyInfo]) -> dict[str, str]:
    return {path: _etag(info) for path, info in inventory.items()}


def _joined(buf: Buffer | Iterable[Buffer]) -> Buffer:
    return buf if isinstance(buf, Buffer) else b"".join(buf)
