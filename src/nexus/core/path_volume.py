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

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from typing import Any, TypeVar

from msgspec.structs import replace

from nexus.contracts.errors import (
    ContentNotFoundError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
    NexusError,
    NotSupportedError,
    PathNotFoundError,
    StorageError,
)
from nexus.contracts.file_events import (
    DIR_CREATE,
    DIR_DELETE,
    FILE_DELETE,
    FILE_RENAME,
    FILE_WRITE,
    METADATA_CHANGE,
)
from nexus.contracts.filesystem.syscalls import Precondition, WriteRequest
from nexus.contracts.metadata import (
    DEFAULT_DIRECTORY_MODE,
    DEFAULT_FILE_MODE,
    DT_DIR,
    DT_MOUNT,
    DT_REG,
    ENTRY_TYPE_NAMES,
    Buffer,
    FileMetadata,
    Stat,
)
from nexus.contracts.object_store import Content, KeyInfo, NamespaceStoreABC
from nexus.core.inode_table import Inode, OverlayTable, Transaction
from nexus.core.volume import (
    Actor,
    TreeEntry,
    Volume,
    check_precondition,
    exists,
    is_directory,
    merged_attributes,
    mime_type_of,
    missing,
    missing_parent,
    not_directory,
)
from nexus.lib.paths import join, name, parent

T = TypeVar("T")
_PAGE = 1000


class PathVolume(Volume):
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
        self.point = point
        self.table = table
        self._store = store
        self._zone_id = zone_id
        self._owner_id = owner_id
        self._durable = durable

    # -- reading ------------------------------------------------------------------------------

    def stat(self, relative: str) -> Stat | None:
        info = self._info("stat", relative)
        return None if info is None else self._build_stat(relative, info)

    def _info(self, operation: str, relative: str) -> KeyInfo | None:
        return self._ask(operation, relative, self._store.stat, _key(relative))

    def _ask(self, operation: str, relative: str, call: Callable[..., T], *args: Any) -> T:
        """Call the driver, and put the kernel's operation and path on its errors."""
        try:
            return call(*args)
        except ContentNotFoundError as error:
            raise missing(operation, self.absolute(relative)) from error
        except NexusError as error:
            path = self.absolute(relative)
            raise type(error)(operation, path, error.reason, hint=error.hint) from error

    def _meta(self, relative: str, info: KeyInfo) -> tuple[FileMetadata, int]:
        """Return what the driver and the overlay say together, and the revision, 0 if none."""
        overlay = self.table.get(relative)
        etag = "" if info.is_directory else f"fp:{info.fingerprint}"
        default_mode = DEFAULT_DIRECTORY_MODE if info.is_directory else DEFAULT_FILE_MODE
        shown = FileMetadata(
            entry_type=DT_DIR if info.is_directory else DT_REG,
            size=0 if info.is_directory else info.size,
            etag=etag,
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

    def _build_stat(self, relative: str, info: KeyInfo) -> Stat:
        meta, revision = self._meta(relative, info)
        kind = DT_MOUNT if relative == "/" else meta.entry_type
        return {
            "path": self.absolute(relative),
            "entry_type": kind,
            "type": ENTRY_TYPE_NAMES[kind],
            "is_directory": info.is_directory,
            "size": meta.size,
            "etag": meta.etag,
            "version": meta.version,
            "revision": revision,
            "mime_type": meta.mime_type,
            "mode": meta.mode,
            "owner_id": meta.owner_id,
            "created_at": meta.created_at_ns / 1e9,
            "modified_at": meta.modified_at_ns / 1e9,
            "modified_by": meta.modified_by,
            "run_id": meta.run_id,
            "zone_id": meta.zone_id,
            "backend_name": meta.backend_name,
            "attributes": dict(meta.attributes),
        }

    def _file(self, operation: str, relative: str) -> KeyInfo:
        info = self._info(operation, relative)
        if info is None:
            self._explain_missing(operation, relative)
            raise missing(operation, self.absolute(relative))
        if info.is_directory:
            raise is_directory(operation, self.absolute(relative))
        return info

    def _explain_missing(self, operation: str, relative: str) -> None:
        """Raise PathNotDirectoryError where a file stands on the way to a missing path."""
        above = relative
        while above != "/":
            above = parent(above)
            info = self._info(operation, above)
            if info is not None:
                if not info.is_directory:
                    raise not_directory(operation, self.absolute(relative), self.absolute(above))
                return

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
        return self._ask(operation, relative, self._store.read, _key(relative), offset, count)

    def stream(self, relative: str) -> Iterator[bytes]:
        info = self._file("read", relative)
        offset = 0
        while offset < info.size:
            piece = self._ask("read", relative, self._store.read, _key(relative), offset, 1 << 20)
            if not piece:
                return
            yield piece
            offset += len(piece)

    def names(self, relative: str) -> list[str] | None:
        page = self._list(relative, "", _PAGE)
        return None if len(page) == _PAGE else [name("/" + info.key) for info in page]

    def entries(self, relative: str, after: str = "") -> Iterator[Stat]:
        for info in self._children(relative, after):
            yield self._build_stat("/" + info.key, info)

    def _list(self, relative: str, after: str, limit: int) -> list[KeyInfo]:
        return self._ask(
            "readdir", relative, self._store.list_dir, _key(relative), _key(after or "/"), limit
        )

    def _children(self, relative: str, after: str = "") -> Iterator[KeyInfo]:
        while True:
            page = self._list(relative, after, _PAGE)
            yield from page
            if len(page) < _PAGE:
                return
            after = "/" + page[-1].key

    def subtree(self, relative: str, after: str = "") -> Iterator[Stat]:
        for info in self._walk(relative, after):
            yield self._build_stat("/" + info.key, info)

    def _walk(self, relative: str, after: str) -> Iterator[KeyInfo]:
        """Yield everything beneath a directory, bytewise by path, after the path ``after``.

        A merge of the directories that have been met and are not exhausted: what lies in one
        sorts as ``name/…``, so among siblings such as ``name.txt`` and ``name-1``.
        """
        waiting: list[tuple[str, KeyInfo, Iterator[KeyInfo]]] = []

        def advance(listing: Iterator[KeyInfo]) -> None:
            info = next(listing, None)
            if info is not None:
                heappush(waiting, (info.key, info, listing))

        advance(self._children(relative))
        while waiting:
            _, info, listing = heappop(waiting)
            if "/" + info.key > after:
                yield info
            advance(listing)
            enters = info.is_directory and not info.is_linked
            if enters and f"/{info.key}0" > after:  # "0" follows "/"
                advance(self._children("/" + info.key))

    def versions(self, relative: str, after_revision: int) -> Iterator[Stat]:
        for version in self.table.versions(relative, after_revision):
            meta = version.meta
            yield {
                "path": self.absolute(relative),
                "version": meta.version if meta else None,
                "revision": version.revision,
                "size": meta.size if meta else 0,
                "etag": meta.etag if meta else "",
                "modified_at": meta.modified_at_ns / 1e9 if meta else None,
                "modified_by": meta.modified_by if meta else None,
                "run_id": meta.run_id if meta else None,
                "deleted": meta is None,
            }

    # -- writing files ------------------------------------------------------------------------

    def first_missing(self, relative: str) -> str:
        top = relative
        above = relative
        while above != "/":
            above = parent(above)
            info = self._info("write", above)
            if info is not None:
                if not info.is_directory:
                    raise not_directory("write", self.absolute(relative), self.absolute(above))
                return top
            top = above
        return top

    def write(
        self,
        txn: Transaction,
        operation: str,
        relative: str,
        request: WriteRequest,
        prepared: Content | None,
        actor: Actor,
    ) -> Stat:
        info = self._info(operation, relative)
        path = self.absolute(relative)
        if info is None:
            if not request.create:
                self._explain_missing(operation, relative)
                raise missing(operation, path)
            check_precondition(operation, path, request.precondition, None, None)
            self._ensure_parent(txn, operation, relative, request.parents, actor)
            old = None
        else:
            if info.is_directory:
                raise is_directory(operation, path)
            old, revision = self._meta(relative, info)
            check_precondition(operation, path, request.precondition, old.etag, revision)
        if request.append and info is not None:
            data = _joined(request.buf)
            written = self._splice(operation, relative, info.size, data)
            return self._put_file(txn, relative, old, written, len(data), actor)
        written = self._ask(operation, relative, self._store.write, _key(relative), request.buf)
        return self._put_file(txn, relative, old, written, written.size, actor)

    def _splice(self, operation: str, relative: str, offset: int, data: Buffer) -> KeyInfo:
        return self._ask(operation, relative, self._store.splice, _key(relative), offset, data)

    def write_at(
        self,
        txn: Transaction,
        relative: str,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
        actor: Actor,
    ) -> Stat:
        info = self._file("write", relative)
        old, revision = self._meta(relative, info)
        check_precondition("write", self.absolute(relative), precondition, old.etag, revision)
        written = self._splice("write", relative, offset, data) if len(data) else info
        return self._put_file(txn, relative, old, written, len(data), actor)

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
        meta = self._changed(relative, info, actor)
        if old is not None:
            meta = replace(
                meta,
                version=old.version + 1,
                created_at_ns=old.created_at_ns,
                owner_id=old.owner_id,
                mime_type=old.mime_type,
                attributes=old.attributes,
            )
        txn.put(self.table, relative, meta)
        path = self.absolute(relative)
        event = actor.event(FILE_WRITE, path, etag=meta.etag, size=meta.size, version=meta.version)
        txn.event(event)
        return {
            "path": path,
            "bytes_written": bytes_written,
            "etag": meta.etag,
            "version": meta.version,
            "size": meta.size,
            "modified_at": meta.modified_at_ns / 1e9,
        }

    def _changed(self, relative: str, info: KeyInfo, actor: Actor) -> FileMetadata:
        """Return the record of something this actor has just created or rewritten."""
        return FileMetadata(
            entry_type=DT_DIR if info.is_directory else DT_REG,
            size=0 if info.is_directory else info.size,
            etag="" if info.is_directory else f"fp:{info.fingerprint}",
            version=1,
            created_at_ns=actor.now_ns,
            modified_at_ns=actor.now_ns,
            owner_id=actor.context.user_id,
            mode=info.mode,
            mime_type="inode/directory" if info.is_directory else mime_type_of(relative),
            zone_id=self._zone_id,
            backend_name=self._store.name,
            modified_by=actor.name,
            run_id=actor.context.run_id,
        )

    def _sync_if_durable(self) -> None:
        if self._durable:
            self._store.sync()

    # -- directories and attributes -----------------------------------------------------------

    def _ensure_parent(
        self, txn: Transaction, operation: str, relative: str, create: bool, actor: Actor
    ) -> None:
        missing_ones: list[str] = []
        above = parent(relative)
        while (info := self._info(operation, above)) is None:
            if above == "/":
                raise StorageError(operation, self.point, "the folder behind the mount is gone")
            if not create:
                self._explain_missing(operation, relative)
                raise missing_parent(operation, self.absolute(relative), self.absolute(above))
            missing_ones.append(above)
            above = parent(above)
        if not info.is_directory:
            raise not_directory(operation, self.absolute(relative), self.absolute(above))
        for path in reversed(missing_ones):
            self._make_directory(txn, operation, path, actor)

    def _make_directory(
        self, txn: Transaction, operation: str, relative: str, actor: Actor
    ) -> None:
        info = self._ask(operation, relative, self._store.create_dir, _key(relative))
        self._sync_if_durable()
        txn.put(self.table, relative, self._changed(relative, info, actor))
        txn.event(actor.event(DIR_CREATE, self.absolute(relative)))

    def create_directory(
        self, txn: Transaction, relative: str, parents: bool, exist_ok: bool, actor: Actor
    ) -> None:
        info = self._info("mkdir", relative)
        if info is not None:
            if not info.is_directory or not exist_ok:
                raise exists("mkdir", self.absolute(relative))
            return
        self._ensure_parent(txn, "mkdir", relative, parents, actor)
        self._make_directory(txn, "mkdir", relative, actor)

    def set_attributes(
        self, txn: Transaction, relative: str, attrs: dict[str, Any], actor: Actor
    ) -> None:
        info = self._info("setattr", relative)
        if info is None:
            self._explain_missing("setattr", relative)
            raise missing("setattr", self.absolute(relative))
        meta = self._meta(relative, info)[0]
        changes = dict(attrs)
        if "mode" in changes and self._store.capabilities.modes:
            info = self._ask(
                "setattr", relative, self._store.set_mode, _key(relative), changes["mode"]
            )
            changes["etag"] = "" if info.is_directory else f"fp:{info.fingerprint}"
        if "attributes" in changes:
            changes["attributes"] = merged_attributes(
                self.absolute(relative), meta.attributes, changes["attributes"]
            )
        if "modified_at" in changes:
            changes["modified_at_ns"] = round(changes.pop("modified_at") * 1e9)
        changes |= {"modified_by": actor.name, "run_id": actor.context.run_id}
        txn.put(self.table, relative, replace(meta, **changes))
        txn.event(actor.event(METADATA_CHANGE, self.absolute(relative), version=meta.version))

    # -- removing, moving, copying ------------------------------------------------------------

    def remove(self, txn: Transaction, relative: str, recursive: bool, actor: Actor) -> int:
        info = self._info("unlink", relative)
        if info is None:
            self._explain_missing("unlink", relative)
            raise missing("unlink", self.absolute(relative))
        removed = 1
        if info.is_directory and recursive:
            removed += sum(1 for _ in self._walk(relative, ""))
            self._ask("unlink", relative, self._store.remove_tree, _key(relative))
        elif info.is_directory and next(self._children(relative), None) is not None:
            raise DirectoryNotEmptyError(
                "unlink",
                self.absolute(relative),
                "the directory is not empty",
                hint="pass recursive=True to remove everything in it",
            )
        else:
            self._ask("unlink", relative, self._store.remove, _key(relative))
        self._sync_if_durable()
        self._drop_overlays(txn, relative)
        kind = DIR_DELETE if info.is_directory else FILE_DELETE
        txn.event(actor.event(kind, self.absolute(relative)))
        return removed

    def _drop_overlays(self, txn: Transaction, relative: str) -> None:
        for path, inode in self._overlays(relative):
            txn.remove(self.table, path, inode)

    def _overlays(self, relative: str) -> Iterator[tuple[str, Inode]]:
        top = self.table.get(relative)
        if top is not None:
            yield relative, top
        yield from self.table.subtree(relative)

    def rename(self, txn: Transaction, old: str, new: str, actor: Actor) -> int:
        info = self._source(txn, "rename", old, new, actor)
        count = 1 + sum(1 for _ in self._walk(old, "")) if info.is_directory else 1
        meta = self._meta(old, info)[0]
        if info.is_directory and self._info("rename", new) is not None:
            self._ask("rename", new, self._store.remove, _key(new))
        self._ask("rename", old, self._store.rename, _key(old), _key(new))
        self._sync_if_durable()
        for path, inode in list(self._overlays(old)):
            txn.remove(self.table, path, inode)
            txn.put(self.table, join(new, path[len(old) :] or "/"), inode.meta)
        moved = self._info("rename", new)
        if moved is not None and not moved.is_directory:
            # Renaming changes the file's ctime, and with it the fingerprint.
            txn.put(self.table, new, replace(meta, etag=f"fp:{moved.fingerprint}"))
        txn.event(actor.event(FILE_RENAME, self.absolute(old), new_path=self.absolute(new)))
        return count

    def copy(self, txn: Transaction, source: str, target: str, actor: Actor) -> int:
        info = self._source(txn, "copy", source, target, actor)
        if not info.is_directory:
            copied = self._ask("copy", source, self._store.copy, _key(source), _key(target))
            self._sync_if_durable()
            stat = self._build_stat(source, info)
            self._put_copy(txn, target, stat, copied, actor)
            return 1
        entries = (
            (TreeEntry(_beneath(path, source), stat), self.stream(path))
            for path, stat in self._tree(source, info)
        )
        return self.receive(txn, target, entries, actor)

    def _tree(self, source: str, top: KeyInfo) -> Iterator[tuple[str, Stat]]:
        yield source, self._build_stat(source, top)
        for info in self._walk(source, ""):
            yield "/" + info.key, self._build_stat("/" + info.key, info)

    def _source(
        self, txn: Transaction, operation: str, source: str, target: str, actor: Actor
    ) -> KeyInfo:
        info = self._info(operation, source)
        if info is None:
            self._explain_missing(operation, source)
            raise missing(operation, self.absolute(source))
        self.check_target(operation, target, info.is_directory)
        self._ensure_parent(txn, operation, target, False, actor)
        return info

    def check_target(self, operation: str, target: str, source_is_directory: bool) -> None:
        """Raise unless a file or a directory may go to ``target``."""
        there = self._info(operation, target)
        if there is None:
            return
        path = self.absolute(target)
        if not there.is_directory:
            if source_is_directory:
                raise not_directory(operation, path, path)
        elif not source_is_directory:
            raise is_directory(operation, path)
        elif next(self._children(target), None) is not None:
            raise DirectoryNotEmptyError(operation, path, "the directory is not empty")

    def receive(
        self,
        txn: Transaction,
        target: str,
        entries: Iterable[tuple[TreeEntry, Iterable[Buffer]]],
        actor: Actor,
    ) -> int:
        self._ensure_parent(txn, "copy", target, False, actor)
        staging = self._store.staging_path(_key(target))
        received: list[tuple[str, Stat]] = []
        for (relative, stat), pieces in entries:
            key = staging + ("" if relative == "/" else relative)
            if stat["is_directory"]:
                self._ask("copy", target, self._store.create_dir, key)
            else:
                written = self._ask("copy", target, self._store.write, key, pieces)
                if written.size != stat["size"]:
                    raise InvalidArgumentError(
                        "copy", stat["path"], "the file changed while it was copied"
                    )
            received.append((join(target, relative), stat))
        there = self._info("copy", target)
        if there is not None and there.is_directory:
            self._ask("copy", target, self._store.remove, _key(target))
        self._ask("copy", target, self._store.rename, staging, _key(target))
        self._sync_if_durable()
        for path, stat in received:
            info = self._info("copy", path)
            if info is None:
                raise PathNotFoundError("copy", self.absolute(path), "it vanished while copied")
            self._put_copy(txn, path, stat, info, actor)
        return len(received)

    def _put_copy(
        self, txn: Transaction, path: str, source: Stat, info: KeyInfo, actor: Actor
    ) -> None:
        if info.is_directory:
            txn.put(self.table, path, self._changed(path, info, actor))
            txn.event(actor.event(DIR_CREATE, self.absolute(path)))
            return
        if self._store.capabilities.modes and info.mode != source["mode"]:
            info = self._ask("copy", path, self._store.set_mode, _key(path), source["mode"])
        old = self.table.get(path)
        meta = replace(
            self._changed(path, info, actor),
            mode=source["mode"],
            mime_type=source["mime_type"],
            attributes=dict(source["attributes"]),
            version=old.meta.version + 1 if old else 1,
        )
        txn.put(self.table, path, meta)
        event = actor.event(
            FILE_WRITE, self.absolute(path), etag=meta.etag, size=meta.size, version=meta.version
        )
        txn.event(event)

    # -- the rest -----------------------------------------------------------------------------

    def sync(self) -> None:
        self._store.sync()

    def close(self) -> None:
        self.table.close()
        self._store.close()


def _key(relative: str) -> str:
    return relative[1:]


def _beneath(path: str, top: str) -> str:
    return path if top == "/" else path[len(top) :] or "/"


def _joined(buf: Buffer | Iterable[Buffer]) -> Buffer:
    return buf if isinstance(buf, Buffer) else b"".join(buf)
