"""TreeVolume: what the volumes of files and directories have in common, over one lookup.

Layer: core. The checks of paths, parents and targets, the shapes of answers, and the records that
a write, a copy or a move leaves are the same whatever stores the tree. It stores nothing: a
subclass says what is at a path, and makes directories. Unix counterpart: the generic helpers of
the VFS (``fs/namei.c``, ``fs/libfs.c``).

Locks: none; see :mod:`nexus.core.volume`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from nexus.contracts.errors import BusyError, DirectoryNotEmptyError, NexusError, PathNotFoundError
from nexus.contracts.file_events import FILE_WRITE, METADATA_CHANGE
from nexus.contracts.metadata import (
    CHANNEL_TYPES,
    DIRECTORY_TYPES,
    DT_DIR,
    DT_MOUNT,
    DT_REG,
    ENTRY_TYPE_NAMES,
    FileMetadata,
    Stat,
)
from nexus.contracts.object_store import Content
from nexus.core.inode_table import InodeTable, Transaction
from nexus.core.volume import (
    Actor,
    Volume,
    exists,
    is_directory,
    merged_attributes,
    mime_type_of,
    missing,
    missing_parent,
    no_file,
    not_directory,
)
from nexus.lib.paths import parent


class TreeVolume(Volume):
    """A volume of files and directories with records in the metastore."""

    table: InodeTable

    def __init__(
        self, point: str, table: InodeTable, backend_name: str, zone_id: str, *, durable: bool
    ) -> None:
        self.point = point
        self.table = table
        self._backend_name = backend_name
        self._zone_id = zone_id
        self._durable = durable

    # -- what a subclass says -----------------------------------------------------------------

    @abstractmethod
    def _lookup(
        self, operation: str, relative: str, txn: Transaction | None = None
    ) -> FileMetadata | None:
        """Return what is at a path, as ``txn`` would leave it where one is given, or None."""

    @abstractmethod
    def _rootless(self, operation: str) -> NexusError:
        """Return the error for a volume whose root itself is missing."""

    @abstractmethod
    def _has_children(self, operation: str, relative: str) -> bool:
        """Return whether anything lies in a directory."""

    @abstractmethod
    def _make_directory(
        self, txn: Transaction, operation: str, relative: str, actor: Actor
    ) -> None:
        """Make a directory where nothing is and its parent stands."""

    def _set_mode(self, relative: str, mode: int) -> dict[str, Any]:
        """Change the mode outside of the record too; return what else that changes in it."""
        return {}

    # -- what is there ------------------------------------------------------------------------

    def _existing(self, operation: str, relative: str) -> FileMetadata:
        meta = self._lookup(operation, relative)
        if meta is None:
            raise self._absent(operation, relative)
        return meta

    def _file(self, operation: str, relative: str) -> FileMetadata:
        meta = self._existing(operation, relative)
        if meta.entry_type != DT_REG:
            raise no_file(operation, self.absolute(relative), meta.entry_type)
        return meta

    def _absent(self, operation: str, relative: str) -> PathNotFoundError:
        """Return the error for a missing path. Errors: PathNotDirectoryError, also above it."""
        self._nearest(operation, relative)
        return missing(operation, self.absolute(relative))

    def _nearest(
        self, operation: str, relative: str, txn: Transaction | None = None
    ) -> tuple[str, str]:
        """Return the nearest existing directory above a path, and what is missing right in it.

        Errors: PathNotDirectoryError; that of a volume without a root.
        """
        first, above = relative, parent(relative)
        while (meta := self._lookup(operation, above, txn)) is None:
            if above == "/":
                raise self._rootless(operation)
            first, above = above, parent(above)
        if meta.entry_type not in DIRECTORY_TYPES:
            raise not_directory(operation, self.absolute(relative), self.absolute(above))
        return above, first

    def first_missing(self, relative: str) -> str:
        return self._nearest("write", relative)[1]

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

    def _build_stat(self, relative: str, meta: FileMetadata, revision: int) -> Stat:
        kind = meta.entry_type
        if relative == "/" and self.point != "/":
            kind = DT_MOUNT
        stat = {
            "path": self.absolute(relative),
            "entry_type": kind,
            "type": ENTRY_TYPE_NAMES[kind],
            "is_directory": kind in DIRECTORY_TYPES,
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
        if kind in CHANNEL_TYPES:
            stat |= {"size": 0, "capacity_bytes": meta.size}
        return stat

    # -- directories and attributes -----------------------------------------------------------

    def _ensure_parent(
        self, txn: Transaction, operation: str, relative: str, create: bool, actor: Actor
    ) -> None:
        """Check, or make, the directories above a path that is about to be created."""
        first = self._nearest(operation, relative, txn)[1]
        if first == relative:
            return
        above = parent(relative)
        if not create:
            raise missing_parent(operation, self.absolute(relative), self.absolute(above))
        missing_ones = [above]
        while missing_ones[-1] != first:
            missing_ones.append(parent(missing_ones[-1]))
        for path in reversed(missing_ones):
            self._make_directory(txn, operation, path, actor)

    def create_directory(
        self, txn: Transaction, relative: str, parents: bool, exist_ok: bool, actor: Actor
    ) -> None:
        there = self._lookup("mkdir", relative, txn)
        if there is not None:
            if there.entry_type not in DIRECTORY_TYPES or not exist_ok:
                raise exists("mkdir", self.absolute(relative))
            return
        self._ensure_parent(txn, "mkdir", relative, parents, actor)
        self._make_directory(txn, "mkdir", relative, actor)

    def set_attributes(
        self, txn: Transaction, relative: str, attrs: dict[str, Any], actor: Actor
    ) -> None:
        meta = self._existing("setattr", relative)
        path = self.absolute(relative)
        changes = attrs | {"modified_by": actor.name, "run_id": actor.context.run_id}
        if "attributes" in changes:
            changes["attributes"] = merged_attributes(path, meta.attributes, changes["attributes"])
        if "modified_at" in changes:
            changes["modified_at_ns"] = round(changes.pop("modified_at") * 1e9)
        if "mode" in changes:
            changes |= self._set_mode(relative, changes["mode"])
        txn.put(self.table, relative, replace(meta, **changes))
        txn.event(actor.event(METADATA_CHANGE, path, version=meta.version))

    # -- moving and copying -------------------------------------------------------------------

    def _source(
        self, txn: Transaction, operation: str, source: str, target: str, actor: Actor
    ) -> FileMetadata:
        """Return the source's metadata once both ends are checked as rename(2) does."""
        meta = self._existing(operation, source)
        self.check_target(operation, target, meta.entry_type in DIRECTORY_TYPES)
        if meta.entry_type in CHANNEL_TYPES and self._lookup(operation, target) is not None:
            raise exists(operation, self.absolute(target))
        self._ensure_parent(txn, operation, target, False, actor)
        return meta

    def check_target(self, operation: str, target: str, source_is_directory: bool) -> None:
        there = self._lookup(operation, target)
        if there is None:
            return
        path = self.absolute(target)
        if there.entry_type in CHANNEL_TYPES:
            raise exists(operation, path)
        if there.entry_type == DT_REG:
            if source_is_directory:
                raise not_directory(operation, path, path)
        elif not source_is_directory:
            raise is_directory(operation, path)
        elif self._has_children(operation, target):
            raise DirectoryNotEmptyError(operation, path, "the directory is not empty")
        elif target == "/":
            hint = "name a path beneath it"
            raise BusyError(operation, path, "a mount point cannot be replaced", hint=hint)

    # -- records ------------------------------------------------------------------------------

    def _created(
        self, relative: str, actor: Actor, *, mode: int, content: Content | None
    ) -> FileMetadata:
        """Return the record of a new file, or of a new directory where there is no content."""
        return FileMetadata(
            entry_type=DT_DIR if content is None else DT_REG,
            size=0 if content is None else content.size,
            etag="" if content is None else content.etag,
            version=1,
            created_at_ns=actor.now_ns,
            modified_at_ns=actor.now_ns,
            owner_id=actor.context.user_id,
            mode=mode,
            mime_type="inode/directory" if content is None else mime_type_of(relative),
            zone_id=self._zone_id,
            backend_name=self._backend_name,
            modified_by=actor.name,
            run_id=actor.context.run_id,
        )

    def _put_written(
        self,
        txn: Transaction,
        relative: str,
        old: FileMetadata | None,
        content: Content,
        mode: int,
        bytes_written: int,
        actor: Actor,
    ) -> Stat:
        """Record a file's new content, over ``old`` where it had one; return a write's answer."""
        if old is None:
            meta = self._created(relative, actor, mode=mode, content=content)
        else:
            meta = replace(
                old,
                size=content.size,
                etag=content.etag,
                version=old.version + 1,
                modified_at_ns=actor.now_ns,
                modified_by=actor.name,
                run_id=actor.context.run_id,
                backend_name=self._backend_name,
            )
        return self._record_written(txn, relative, meta, bytes_written, actor)

    def _record_written(
        self,
        txn: Transaction,
        relative: str,
        meta: FileMetadata,
        bytes_written: int,
        actor: Actor,
        *,
        fresh: bool = False,
    ) -> Stat:
        path = self.absolute(relative)
        txn.put(self.table, relative, meta, fresh=fresh)
        txn.event(
            actor.event(FILE_WRITE, path, etag=meta.etag, size=meta.size, version=meta.version)
        )
        return {
            "path": path,
            "bytes_written": bytes_written,
            "etag": meta.etag,
            "version": meta.version,
            "size": meta.size,
            "modified_at": meta.modified_at_ns / 1e9,
        }

    def _put_arrived(
        self,
        txn: Transaction,
        relative: str,
        fresh: FileMetadata,
        source: FileMetadata,
        old: FileMetadata | None,
        actor: Actor,
        *,
        moving: bool,
    ) -> None:
        """Record what a copy leaves where ``old`` was: the source's nature, a life of its own.

        ``fresh`` is the record of something new there. What moves keeps its life too.
        """
        if moving:
            meta = replace(
                source,
                size=fresh.size,
                etag=fresh.etag,
                first_version=source.version,
                zone_id=fresh.zone_id,
                backend_name=fresh.backend_name,
            )
        else:
            meta = replace(
                fresh,
                mode=source.mode,
                mime_type=source.mime_type,
                attributes=dict(source.attributes),
                version=old.version + 1 if old else 1,
                first_version=old.first_version if old else 1,
                created_at_ns=old.created_at_ns if old else fresh.created_at_ns,
            )
        self._put(txn, relative, meta, actor)

    def _put(self, txn: Transaction, relative: str, meta: FileMetadata, actor: Actor) -> None:
        """Record what was made or rewritten, with its event."""
        txn.put(self.table, relative, meta)
        txn.event(actor.event_of(self.absolute(relative), meta))
