"""InodeVolume: a volume with its records in the metastore and its content by hash.

Layer: core. The content store holds immutable bytes and decides nothing; a record naming them is
committed after they are stored, so a crash leaves old or new. Unix counterpart: a disk filesystem
(ext4) as opposed to one that shows another's tree.

Invariants:

1. A record names content only after that content is stored (and synced, when ``durable``).
2. Content is pinned from before it is stored until the record naming it is committed, so that no
   collector takes it in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec.structs import replace

from nexus.contracts.errors import (
    ContentNotFoundError,
    CorruptionError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
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
    DIRECTORY_TYPES,
    DT_DIR,
    DT_MOUNT,
    DT_REG,
    ENTRY_TYPE_NAMES,
    Buffer,
    FileMetadata,
    Stat,
)
from nexus.contracts.object_store import Content, ContentStoreABC
from nexus.core.inode_table import Inode, InodeTable, Transaction
from nexus.core.sealed_store import SCAN_PAGE
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
    no_such_version,
    not_directory,
)
from nexus.lib.paths import join, parent


class InodeVolume(Volume):
    """Files and directories of one zone over one content store. Shared by all threads."""

    keeps_versions = True
    atomic_batch = True
    snapshot_entries = SCAN_PAGE
    immutable_content = True

    def __init__(
        self,
        point: str,
        table: InodeTable,
        content: ContentStoreABC,
        *,
        zone_id: str,
        durable: bool,
    ) -> None:
        self.point = point
        self.table = table
        self._content = content
        self._zone_id = zone_id
        self._durable = durable

    def ensure_root(self, actor: Actor) -> None:
        """Create the root record of a new volume, which has no history either."""
        try:
            is_new = self.table.get("/") is None and next(self.table.all_versions(), None) is None
        except CorruptionError:
            return  # open all the same: what is whole stays readable, and fsck can run
        if is_new:
            txn = Transaction(self.table.store)
            txn.put(self.table, "/", self._directory(actor))
            txn.commit(durable=self._durable)

    # -- reading ------------------------------------------------------------------------------

    def stat(self, relative: str) -> Stat | None:
        inode = self.table.get(relative)
        if inode is None:
            if relative == "/":
                raise self._rootless("stat")
            return None
        stat = inode.stat
        if stat is None:
            stat = inode.stat = self._build_stat(relative, inode)
        answer = stat.copy()
        if answer["attributes"]:
            answer["attributes"] = dict(answer["attributes"])
        return answer

    def _rootless(self, operation: str) -> CorruptionError:
        return CorruptionError(
            operation,
            self.absolute("/"),
            "the record of the volume's root is missing",
            hint="run `nexus fsck --repair`",
        )

    def _build_stat(self, relative: str, inode: Inode) -> Stat:
        meta = inode.meta
        kind = meta.entry_type
        if relative == "/" and self.point != "/":
            kind = DT_MOUNT
        return {
            "path": self.absolute(relative),
            "entry_type": kind,
            "type": ENTRY_TYPE_NAMES[kind],
            "is_directory": kind in DIRECTORY_TYPES,
            "size": meta.size,
            "etag": meta.etag,
            "version": meta.version,
            "revision": inode.revision,
            "mime_type": meta.mime_type,
            "mode": meta.mode,
            "owner_id": meta.owner_id,
            "created_at": meta.created_at_ns / 1e9,
            "modified_at": meta.modified_at_ns / 1e9,
            "modified_by": meta.modified_by,
            "run_id": meta.run_id,
            "zone_id": meta.zone_id,
            "backend_name": meta.backend_name,
            "attributes": meta.attributes,
        }

    def read(
        self, operation: str, relative: str, count: int | None, offset: int, version: int | None
    ) -> bytes:
        while True:
            if version is None:
                meta = self._file(operation, relative)
            else:
                meta = self._version(operation, relative, version)
            try:
                if offset == 0 and (count is None or count >= meta.size):
                    return self._content.read_content(meta.etag, size=meta.size)
                return self._content.read_content(meta.etag, offset, count, size=meta.size)
            except ContentNotFoundError as error:
                # Without retention a collector may take it once the record has moved on.
                now = self.table.get(relative)
                gone = now is None or now.meta.etag != meta.etag
                if version is not None or not gone:
                    raise self._damaged(operation, relative, error) from error
            except CorruptionError as error:
                raise self._damaged(operation, relative, error) from error

    def _damaged(
        self, operation: str, relative: str, error: ContentNotFoundError | CorruptionError
    ) -> CorruptionError:
        if isinstance(error, CorruptionError):
            return CorruptionError(
                operation, self.absolute(relative), error.reason, hint=error.hint
            )
        return CorruptionError(
            operation,
            self.absolute(relative),
            f"its content {error.path} is missing",
            hint="run `nexus fsck`; an earlier version may be whole, see `nexus log`",
        )

    def stream(self, relative: str) -> Iterator[bytes]:
        meta = self._file("read", relative)
        try:
            yield from self._content.stream_content(meta.etag)
        except (ContentNotFoundError, CorruptionError) as error:
            raise self._damaged("read", relative, error) from error

    def names(self, relative: str) -> list[str] | None:
        return self.table.child_names(relative)

    def entries(self, relative: str, after: str = "") -> Iterator[Stat]:
        for path, inode in self.table.children(relative, after):
            yield self._build_stat(path, inode)

    def subtree(self, relative: str, after: str = "") -> Iterator[Stat]:
        for path, inode in self.table.subtree(relative, after):
            yield self._build_stat(path, inode)

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

    def _file(self, operation: str, relative: str) -> FileMetadata:
        inode = self.table.get(relative)
        if inode is None:
            self._explain_missing(operation, relative)
            raise missing(operation, self.absolute(relative))
        if inode.meta.entry_type != DT_REG:
            raise is_directory(operation, self.absolute(relative))
        return inode.meta

    def _explain_missing(self, operation: str, relative: str) -> None:
        """Raise PathNotDirectoryError where a file stands on the way to a missing path."""
        above = relative
        while above != "/":
            above = parent(above)
            inode = self.table.get(above)
            if inode is not None:
                if inode.meta.entry_type == DT_REG:
                    raise not_directory(operation, self.absolute(relative), self.absolute(above))
                return

    def _version(self, operation: str, relative: str, number: int) -> FileMetadata:
        """Return the record of a version in the latest life of the path that had it.

        A life runs from where a file comes to the path to where it goes. Every record says with
        which number its life started, so one that is missing is noticed, and an older life never
        answers for it. What history forgot is not damage: all that is older went with it.
        """
        now = self.table.get(relative)
        found = now.meta if now is not None and now.meta.version == number else None
        if found is None:
            found, is_lost = _search(self._records(relative, now), number)
            if is_lost:
                raise CorruptionError(
                    operation,
                    self.absolute(relative),
                    f"the record of version {number} is missing",
                    hint="run `nexus fsck`",
                )
        if found is None:
            raise no_such_version(operation, self.absolute(relative), number)
        if found.entry_type != DT_REG:
            raise is_directory(operation, self.absolute(relative))
        return found

    def _records(self, relative: str, now: Inode | None) -> Iterator[FileMetadata | None]:
        """Yield every kept record of a path, oldest first, None where it was removed."""
        last = 0
        for version in self.table.versions(relative):
            last = version.revision
            yield version.meta
        if now is not None and now.revision > last:
            yield now.meta

    # -- writing files ------------------------------------------------------------------------

    def first_missing(self, relative: str) -> str:
        top = relative
        above = relative
        while above != "/":
            above = parent(above)
            inode = self.table.get(above)
            if inode is not None:
                if inode.meta.entry_type not in DIRECTORY_TYPES:
                    raise not_directory("write", self.absolute(relative), self.absolute(above))
                return top
            top = above
        return top

    def prepare(self, operation: str, relative: str, request: WriteRequest) -> Content | None:
        # Content depends on nothing that the lock protects, so it is stored and settled before:
        # readers and writers of the path wait for the commit alone. The early check only saves
        # storing what is bound to be refused; the one that counts runs under the lock.
        inode = self.table.get(relative)
        if inode is not None and inode.meta.entry_type != DT_REG:
            raise is_directory(operation, self.absolute(relative))
        if not request.append or inode is None:
            self._check_precondition(operation, relative, request.precondition, inode)
        if request.append:
            return None
        return self._content.write_content(request.buf)

    def _check_precondition(
        self, operation: str, relative: str, condition: Precondition | None, inode: Inode | None
    ) -> None:
        if condition is not None:
            etag, revision = (None, None) if inode is None else (inode.meta.etag, inode.revision)
            check_precondition(operation, self.absolute(relative), condition, etag, revision)

    def settle(self) -> None:
        if self._durable:
            self._content.sync()

    def _stored(self, content: Content) -> Content:
        if self._durable:
            try:
                self._content.sync()
            except BaseException:
                self._content.unpin(content.etag)
                raise
        return content

    def abandon(self, prepared: Content) -> None:
        self._content.unpin(prepared.etag)

    def write(
        self,
        txn: Transaction,
        operation: str,
        relative: str,
        request: WriteRequest,
        prepared: Content | None,
        actor: Actor,
    ) -> Stat:
        old = self._target(txn, operation, relative, request, actor)
        inode = None if old is None else self.table.get(relative)
        self._check_precondition(operation, relative, request.precondition, inode)
        if prepared is not None:
            return self._put_file(txn, relative, old, prepared, prepared.size, actor)
        data = b"".join(request.buf) if not isinstance(request.buf, Buffer) else request.buf
        size, etag = (old.size, old.etag) if old else (0, "")
        content = self._stored(self._content.splice(etag, size, data))
        txn.on_finish(lambda: self._content.unpin(content.etag))
        return self._put_file(txn, relative, old, content, memoryview(data).nbytes, actor)

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
        self._check_precondition("write", relative, precondition, self.table.get(relative))
        if not len(data):
            content = Content(old.etag, old.size)
        else:
            try:
                content = self._stored(self._content.splice(old.etag, offset, data))
            except (ContentNotFoundError, CorruptionError) as error:
                raise self._damaged("write", relative, error) from error
            txn.on_finish(lambda: self._content.unpin(content.etag))
        return self._put_file(txn, relative, old, content, len(data), actor)

    def _target(
        self,
        txn: Transaction,
        operation: str,
        relative: str,
        request: WriteRequest,
        actor: Actor,
    ) -> FileMetadata | None:
        old = txn.get(self.table, relative)
        if old is not None:
            if old.entry_type != DT_REG:
                raise is_directory(operation, self.absolute(relative))
            return old
        if not request.create:
            self._explain_missing(operation, relative)
            raise missing(operation, self.absolute(relative))
        self._ensure_parent(txn, operation, relative, request.parents, actor)
        return None

    def _put_file(
        self,
        txn: Transaction,
        relative: str,
        old: FileMetadata | None,
        content: Content,
        bytes_written: int,
        actor: Actor,
    ) -> Stat:
        if old is None:
            meta = self._new_file(relative, content, actor)
        else:
            meta = replace(
                old,
                size=content.size,
                etag=content.etag,
                version=old.version + 1,
                modified_at_ns=actor.now_ns,
                modified_by=actor.name,
                run_id=actor.context.run_id,
                backend_name=self._content.name,
            )
        txn.put(self.table, relative, meta)
        path = self.absolute(relative)
        txn.event(self._write_event(actor, path, meta))
        return {
            "path": path,
            "bytes_written": bytes_written,
            "etag": meta.etag,
            "version": meta.version,
            "size": meta.size,
            "modified_at": meta.modified_at_ns / 1e9,
        }

    def _write_event(self, actor: Actor, path: str, meta: FileMetadata) -> Any:
        return actor.event(FILE_WRITE, path, etag=meta.etag, size=meta.size, version=meta.version)

    def _new_file(self, relative: str, content: Content, actor: Actor) -> FileMetadata:
        return FileMetadata(
            entry_type=DT_REG,
            size=content.size,
            etag=content.etag,
            version=1,
            created_at_ns=actor.now_ns,
            modified_at_ns=actor.now_ns,
            owner_id=actor.context.user_id,
            mode=DEFAULT_FILE_MODE,
            mime_type=mime_type_of(relative),
            zone_id=self._zone_id,
            backend_name=self._content.name,
            modified_by=actor.name,
            run_id=actor.context.run_id,
        )

    # -- directories and attributes -----------------------------------------------------------

    def _directory(self, actor: Actor) -> FileMetadata:
        return FileMetadata(
            entry_type=DT_DIR,
            size=0,
            etag="",
            version=1,
            created_at_ns=actor.now_ns,
            modified_at_ns=actor.now_ns,
            owner_id=actor.context.user_id,
            mode=DEFAULT_DIRECTORY_MODE,
            mime_type="inode/directory",
            zone_id=self._zone_id,
            backend_name=self._content.name,
            modified_by=actor.name,
            run_id=actor.context.run_id,
        )

    def _ensure_parent(
        self, txn: Transaction, operation: str, relative: str, create: bool, actor: Actor
    ) -> None:
        missing_ones: list[str] = []
        above = parent(relative)
        while (meta := txn.get(self.table, above)) is None:
            if above == "/":
                raise CorruptionError(
                    operation, self.point, "its root record is missing", hint="run `nexus fsck`"
                )
            if not create:
                self._explain_missing(operation, relative)
                raise missing_parent(operation, self.absolute(relative), self.absolute(above))
            missing_ones.append(above)
            above = parent(above)
        if meta.entry_type not in DIRECTORY_TYPES:
            raise not_directory(operation, self.absolute(relative), self.absolute(above))
        for path in reversed(missing_ones):
            self._put_directory(txn, path, actor)

    def _put_directory(
        self, txn: Transaction, relative: str, actor: Actor, source: Stat | None = None
    ) -> None:
        meta = self._directory(actor)
        if source is not None:
            meta = replace(meta, mode=source["mode"], attributes=dict(source["attributes"]))
        txn.put(self.table, relative, meta)
        txn.event(actor.event(DIR_CREATE, self.absolute(relative)))

    def create_directory(
        self, txn: Transaction, relative: str, parents: bool, exist_ok: bool, actor: Actor
    ) -> None:
        there = txn.get(self.table, relative)
        if there is not None:
            if there.entry_type == DT_REG or not exist_ok:
                raise exists("mkdir", self.absolute(relative))
            return
        self._ensure_parent(txn, "mkdir", relative, parents, actor)
        self._put_directory(txn, relative, actor)

    def set_attributes(
        self, txn: Transaction, relative: str, attrs: dict[str, Any], actor: Actor
    ) -> None:
        inode = self.table.get(relative)
        if inode is None:
            self._explain_missing("setattr", relative)
            raise missing("setattr", self.absolute(relative))
        changes = dict(attrs)
        if "attributes" in changes:
            changes["attributes"] = merged_attributes(
                self.absolute(relative), inode.meta.attributes, changes["attributes"]
            )
        if "modified_at" in changes:
            changes["modified_at_ns"] = round(changes.pop("modified_at") * 1e9)
        meta = replace(inode.meta, modified_by=actor.name, run_id=actor.context.run_id, **changes)
        txn.put(self.table, relative, meta)
        txn.event(actor.event(METADATA_CHANGE, self.absolute(relative), version=meta.version))

    # -- removing, moving, copying ------------------------------------------------------------

    def remove(self, txn: Transaction, relative: str, recursive: bool, actor: Actor) -> int:
        inode = self.table.get(relative)
        if inode is None:
            self._explain_missing("unlink", relative)
            raise missing("unlink", self.absolute(relative))
        if inode.meta.entry_type == DT_REG:
            txn.remove(self.table, relative, inode)
            txn.event(actor.event(FILE_DELETE, self.absolute(relative)))
            return 1
        removed = 1
        for path, below in self.table.subtree(relative):
            if not recursive:
                raise DirectoryNotEmptyError(
                    "unlink",
                    self.absolute(relative),
                    "the directory is not empty",
                    hint="pass recursive=True to remove everything in it",
                )
            txn.remove(self.table, path, below)
            removed += 1
        txn.remove(self.table, relative, inode)
        txn.event(actor.event(DIR_DELETE, self.absolute(relative)))
        return removed

    def rename(self, txn: Transaction, old: str, new: str, actor: Actor) -> int:
        source = self._source(txn, "rename", old, new, actor)
        count = 0
        for relative, inode in self._tree(old, source):
            txn.remove(self.table, join(old, relative), inode)
            # Beneath a target that was missing or empty nothing can be in the way.
            meta = inode.meta
            if meta.first_version != meta.version:
                meta = replace(meta, first_version=meta.version)
            txn.put(self.table, join(new, relative), meta, fresh=relative != "/")
            count += 1
        txn.event(actor.event(FILE_RENAME, self.absolute(old), new_path=self.absolute(new)))
        return count

    def copy(self, txn: Transaction, source: str, target: str, actor: Actor) -> int:
        top = self._source(txn, "copy", source, target, actor)
        count = 0
        for relative, inode in self._tree(source, top):
            path = join(target, relative)
            meta = inode.meta
            stat = self._build_stat(join(source, relative), inode)
            if meta.entry_type == DT_REG:
                self._put_copy(txn, path, stat, Content(meta.etag, meta.size), actor)
            elif txn.get(self.table, path) is None:
                self._put_directory(txn, path, actor, stat)
            count += 1
        return count

    def _put_copy(
        self, txn: Transaction, path: str, source: Stat, content: Content, actor: Actor
    ) -> None:
        """Write what a copy leaves at a path: the source's attributes, a life of its own."""
        old = txn.get(self.table, path)
        meta = replace(
            self._new_file(path, content, actor),
            mode=source["mode"],
            mime_type=source["mime_type"],
            attributes=dict(source["attributes"]),
            version=old.version + 1 if old else 1,
            first_version=old.first_version if old else 1,
            created_at_ns=old.created_at_ns if old else actor.now_ns,
        )
        txn.put(self.table, path, meta)
        txn.event(self._write_event(actor, self.absolute(path), meta))

    def _source(
        self, txn: Transaction, operation: str, source: str, target: str, actor: Actor
    ) -> Inode:
        """Return the source's record once both ends are checked as rename(2) does."""
        inode = self.table.get(source)
        if inode is None:
            self._explain_missing(operation, source)
            raise missing(operation, self.absolute(source))
        self.check_target(operation, target, inode.meta.entry_type != DT_REG)
        self._ensure_parent(txn, operation, target, False, actor)
        return inode

    def check_target(self, operation: str, target: str, source_is_directory: bool) -> None:
        """Raise unless a file or a directory may go to ``target``."""
        there = self.table.get(target)
        if there is None:
            return
        path = self.absolute(target)
        if there.meta.entry_type == DT_REG:
            if source_is_directory:
                raise not_directory(operation, path, path)
        elif not source_is_directory:
            raise is_directory(operation, path)
        elif self.table.has_children(target):
            raise DirectoryNotEmptyError(operation, path, "the directory is not empty")

    def _tree(self, top: str, inode: Inode) -> Iterator[tuple[str, Inode]]:
        yield "/", inode
        if inode.meta.entry_type != DT_REG:
            skip = 0 if top == "/" else len(top)
            for path, below in self.table.subtree(top):
                yield path[skip:], below

    def receive(
        self,
        txn: Transaction,
        target: str,
        entries: Iterable[tuple[TreeEntry, Iterable[Buffer]]],
        actor: Actor,
    ) -> int:
        self._ensure_parent(txn, "copy", target, False, actor)
        count = 0
        for (relative, stat), pieces in entries:
            path = join(target, relative)
            if stat["is_directory"]:
                if txn.get(self.table, path) is None:
                    self._put_directory(txn, path, actor, stat)
            else:
                self._receive_file(txn, path, stat, pieces, actor)
            count += 1
        if self._durable:
            self._content.sync()
        return count

    def _receive_file(
        self,
        txn: Transaction,
        path: str,
        stat: Stat,
        pieces: Iterable[Buffer],
        actor: Actor,
    ) -> None:
        content = self._content.write_content(pieces)
        txn.on_finish(lambda: self._content.unpin(content.etag))
        if content.size != stat["size"]:
            raise InvalidArgumentError(
                "copy", stat["path"], "the file changed while it was copied", hint="try again"
            )
        self._put_copy(txn, path, stat, content, actor)

    # -- the rest -----------------------------------------------------------------------------

    def content_store(self) -> ContentStoreABC:
        return self._content

    def sync(self) -> None:
        self._content.sync()

    def close(self) -> None:
        self.table.close()
        self._content.close()


def _search(
    records: Iterable[FileMetadata | None], number: int
) -> tuple[FileMetadata | None, bool]:
    """Return the latest record with a version number, and whether one is missing instead."""
    found: FileMetadata | None = None
    is_lost = has_older = found_here = False
    before: FileMetadata | None = None  # the record before, in the same life
    for meta in records:
        if before is not None and (meta is None or not _same_life(before, meta)):
            before = None
        if before is None:
            found_here = False
        if meta is not None and meta.version == number:
            found, found_here, is_lost = meta, True, False
        elif meta is not None and meta.first_version <= number < meta.version and not found_here:
            found = None
            is_lost = is_lost or (has_older if before is None else before.version < number)
        before, has_older = meta, True
    return found, is_lost


def _same_life(before: FileMetadata, meta: FileMetadata) -> bool:
    return (
        before.created_at_ns == meta.created_at_ns
        and before.first_version == meta.first_version
        and before.version <= meta.version
    )
