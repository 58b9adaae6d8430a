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

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from nexus.contracts.errors import (
    ContentNotFoundError,
    CorruptionError,
    DirectoryNotEmptyError,
    NotSupportedError,
)
from nexus.contracts.file_events import (
    DIR_DELETE,
    FILE_DELETE,
    FILE_RENAME,
    METADATA_CHANGE,
)
from nexus.contracts.filesystem.syscalls import Precondition, WriteRequest
from nexus.contracts.metadata import (
    CHANNEL_TYPES,
    DEFAULT_DIRECTORY_MODE,
    DEFAULT_FILE_MODE,
    DIRECTORY_TYPES,
    DT_REG,
    ENTRY_TYPE_NAMES,
    Buffer,
    FileMetadata,
    Stat,
)
from nexus.contracts.object_store import Content, ContentStoreABC, Leftovers
from nexus.core.inode_table import Inode, InodeTable, Transaction
from nexus.core.sealed_store import SCAN_PAGE
from nexus.core.tree_volume import TreeVolume
from nexus.core.volume import (
    Actor,
    Departure,
    TreeEntry,
    bad_attribute,
    check_precondition,
    exists,
    no_file,
    no_such_version,
)
from nexus.lib.on_first_use import OnFirstUse
from nexus.lib.paths import join, parent

if TYPE_CHECKING:
    from nexus.core.channels import Channels

_CLOSED = "its mount was closed"


class InodeVolume(TreeVolume):
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
        super().__init__(point, table, content.name, zone_id, durable=durable)
        self._content = content
        self._channels = OnFirstUse(self._make_channels)
        self._is_closing = False

    def ensure_root(self, actor: Actor) -> None:
        """Create the root record of a new volume, which has no history either."""
        try:
            is_new = self.table.get("/") is None and next(self.table.all_versions(), None) is None
        except CorruptionError:
            return  # open all the same: what is whole stays readable, and fsck can run
        if is_new:
            txn = Transaction(self.table.store)
            txn.put(self.table, "/", self._directory("/", actor))
            txn.commit(durable=self._durable)

    # -- reading ------------------------------------------------------------------------------

    def stat(self, relative: str) -> Stat | None:
        inode = self.table.get(relative)
        if inode is None:
            if relative == "/":
                raise self._rootless("stat")
            return None
        answer = (inode.stat or self._keep_stat(relative, inode)).copy()
        if answer["attributes"]:
            answer["attributes"] = dict(answer["attributes"])
        return answer

    def look(self, relative: str) -> Stat | None:
        while (inode := self.table.get(relative)) is None:
            if relative == "/":
                raise self._rootless("stat")
            relative = parent(relative)
        return inode.stat or self._keep_stat(relative, inode)

    def _keep_stat(self, relative: str, inode: Inode) -> Stat:
        stat = inode.stat = self._build_stat(relative, inode.meta, inode.revision)
        return stat

    def _lookup(
        self, operation: str, relative: str, txn: Transaction | None = None
    ) -> FileMetadata | None:
        if txn is not None:
            return txn.get(self.table, relative)
        inode = self.table.get(relative)
        return None if inode is None else inode.meta

    def _has_children(self, operation: str, relative: str) -> bool:
        return self.table.has_children(relative)

    def _rootless(self, operation: str) -> CorruptionError:
        return CorruptionError(
            operation,
            self.absolute("/"),
            "the record of the volume's root is missing",
            hint="run `nexus fsck --repair`",
        )

    def read_again(self, relative: str) -> bytes | None:
        inode = self.table.get(relative)
        extent = None if inode is None else inode.extent
        return None if extent is None else extent.read()

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
                    data = self._content.read_content(meta.etag, size=meta.size)
                    self._note_extent(relative, meta)
                    return data
                return self._content.read_content(meta.etag, offset, count, size=meta.size)
            except ContentNotFoundError as error:
                # Without retention a collector may take it once the record has moved on.
                now = self.table.get(relative)
                gone = now is None or now.meta.etag != meta.etag
                if version is not None or not gone:
                    raise self._damaged(operation, relative, error) from error
            except CorruptionError as error:
                raise self._damaged(operation, relative, error) from error

    def _note_extent(self, relative: str, meta: FileMetadata) -> None:
        inode = self.table.get(relative)
        if inode is not None and inode.meta is meta:
            inode.extent = self._content.extent(meta.etag)

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

    def names(self, relative: str) -> list[str] | None:
        return self.table.child_names(relative)

    def paths(self, relative: str) -> list[str] | None:
        found: list[str] = []
        directories = [relative]
        while directories:
            directory = directories.pop()
            below = self.table.child_directories(directory)
            names = self.table.child_names(directory)
            if below is None or names is None:
                return None
            directories += [join(directory, "/" + name) for name in below]
            start = self.absolute(directory).rstrip("/") + "/"
            found += [start + name for name in names]
        found.sort()
        return found

    def entries(self, relative: str, after: str = "") -> Iterator[Stat]:
        for path, inode in self.table.children(relative, after):
            yield self._build_stat(path, inode.meta, inode.revision)

    def subtree(self, relative: str, after: str = "") -> Iterator[Stat]:
        for path, inode in self.table.subtree(relative, after):
            yield self._build_stat(path, inode.meta, inode.revision)

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
            raise no_file(operation, self.absolute(relative), found.entry_type)
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

    def prepare(self, operation: str, relative: str, request: WriteRequest) -> Content | None:
        # Content depends on nothing that the lock protects, so it is stored and settled before:
        # readers and writers of the path wait for the commit alone. The early check only saves
        # storing what is bound to be refused; the one that counts runs under the lock.
        self._check_early(operation, relative, request)
        if request.append:
            return None
        return self._content.write_content(request.buf)

    def prepare_many(
        self, operation: str, writes: Sequence[tuple[str, WriteRequest]]
    ) -> list[Content | None]:
        buffers = [
            request.buf
            for _, request in writes
            if isinstance(request.buf, Buffer) and not request.append
        ]
        if len(buffers) != len(writes):
            return super().prepare_many(operation, writes)
        if len(writes) > 1:
            self.table.load(relative for relative, _ in writes)
        for relative, request in writes:
            self._check_early(operation, relative, request)
        return list(self._content.write_many(buffers))

    def _check_early(self, operation: str, relative: str, request: WriteRequest) -> None:
        inode = self.table.get(relative)
        if inode is not None and inode.meta.entry_type != DT_REG:
            raise no_file(operation, self.absolute(relative), inode.meta.entry_type)
        if not request.append or inode is None:
            self._check_precondition(operation, relative, request.precondition, inode)

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

    def write_new(
        self, txn: Transaction, relative: str, prepared: Content, actor: Actor
    ) -> Stat | None:
        table = self.table
        if not table.is_known_absent(relative) or not table.is_known_directory(parent(relative)):
            return None
        meta = self._created(relative, actor, mode=DEFAULT_FILE_MODE, content=prepared)
        return self._record_written(txn, relative, meta, prepared.size, actor, fresh=True)

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
                raise no_file(operation, self.absolute(relative), old.entry_type)
            return old
        if not request.create:
            raise self._absent(operation, relative)
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
        mode = DEFAULT_FILE_MODE
        return self._put_written(txn, relative, old, content, mode, bytes_written, actor)

    # -- directories --------------------------------------------------------------------------

    def _directory(self, relative: str, actor: Actor) -> FileMetadata:
        return self._created(relative, actor, mode=DEFAULT_DIRECTORY_MODE, content=None)

    def _make_directory(
        self, txn: Transaction, operation: str, relative: str, actor: Actor
    ) -> None:
        self._put(txn, relative, self._directory(relative, actor), actor)

    # -- pipes and streams --------------------------------------------------------------------

    @property
    def channels(self) -> Channels:
        return self._channels()

    def _make_channels(self) -> Channels:
        from nexus.core.channels import Channels  # costs start-up time, and many use no channel

        channels = Channels(self._content.streams, strict=self._durable)
        if self._is_closing:
            channels.close(_CLOSED)
        return channels

    def create_channel(
        self, txn: Transaction, relative: str, kind: int, capacity_bytes: int | None, actor: Actor
    ) -> None:
        there = txn.get(self.table, relative)
        path = self.absolute(relative)
        if there is not None:
            if there.entry_type != kind:
                raise exists("setattr", path)
            if capacity_bytes not in (None, there.size):
                raise bad_attribute(path, "capacity_bytes", f"it exists and has {there.size}")
            return
        from nexus.core.channels import default_capacity, new_channel_id  # as in _make_channels

        self.channels.check_kind(path, kind)
        self._ensure_parent(txn, "setattr", relative, False, actor)
        content = Content("", capacity_bytes or default_capacity(kind))
        meta = replace(
            self._created(relative, actor, mode=DEFAULT_FILE_MODE, content=content),
            entry_type=kind,
            mime_type=f"inode/{ENTRY_TYPE_NAMES[kind]}",
            channel_id=new_channel_id(),
        )
        txn.put(self.table, relative, meta)
        txn.event(actor.event(METADATA_CHANGE, path, version=meta.version))

    def channel_record(self, relative: str) -> FileMetadata | None:
        inode = self.table.get(relative)
        return inode.meta if inode and inode.meta.channel_id is not None else None

    def channel_rows(self) -> list[Stat]:
        channels = self._channels.existing()
        return [] if channels is None else channels.rows()

    # -- removing, moving, copying ------------------------------------------------------------

    def remove(self, txn: Transaction, relative: str, recursive: bool, actor: Actor) -> int:
        inode = self.table.get(relative)
        if inode is None:
            raise self._absent("unlink", relative)
        if inode.meta.entry_type not in DIRECTORY_TYPES:
            self._remove_one(txn, relative, inode)
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
            self._remove_one(txn, path, below)
            removed += 1
        txn.remove(self.table, relative, inode)
        txn.event(actor.event(DIR_DELETE, self.absolute(relative)))
        return removed

    def _remove_one(self, txn: Transaction, relative: str, inode: Inode) -> None:
        txn.remove(self.table, relative, inode)
        if inode.meta.entry_type in CHANNEL_TYPES:
            txn.on_commit(partial(self.channels.remove, self.absolute(relative), inode.meta))

    def rename(self, txn: Transaction, old: str, new: str, actor: Actor) -> int:
        self._source(txn, "rename", old, new, actor)
        count = 0
        for relative, inode in self._tree(old):
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
        self._source(txn, "copy", source, target, actor)
        count = 0
        for relative, inode in self._tree(source):
            meta = inode.meta
            self._check_no_channel("copy", join(source, relative), meta)
            content = None if meta.entry_type != DT_REG else Content(meta.etag, meta.size)
            self._arrive(txn, join(target, relative), meta, content, actor, moving=False)
            count += 1
        return count

    def _arrive(
        self,
        txn: Transaction,
        path: str,
        source: FileMetadata,
        content: Content | None,
        actor: Actor,
        *,
        moving: bool,
    ) -> None:
        fresh = self._created(path, actor, mode=source.mode, content=content)
        old = txn.get(self.table, path)
        self._put_arrived(txn, path, fresh, source, old, actor, moving=moving)

    def _tree(self, top: str) -> Iterator[tuple[str, Inode]]:
        inode = self.table.get(top)
        if inode is None:
            raise self._absent("read", top)
        yield "/", inode
        if inode.meta.entry_type in DIRECTORY_TYPES:
            skip = 0 if top == "/" else len(top)
            for path, below in self.table.subtree(top):
                yield path[skip:], below

    def _check_no_channel(self, operation: str, relative: str, meta: FileMetadata) -> None:
        """Refuse to copy what carries messages: they are for one place."""
        if meta.entry_type in CHANNEL_TYPES:
            name = ENTRY_TYPE_NAMES[meta.entry_type]
            raise NotSupportedError(
                operation,
                self.absolute(relative),
                f"a {name} can neither be copied nor leave its mount",
                hint="create another one there",
            )

    def send(self, operation: str, relative: str, *, is_move: bool) -> Departure:
        is_directory = self._existing(operation, relative).entry_type in DIRECTORY_TYPES
        for below, inode in self._tree(relative):
            self._check_no_channel(operation, join(relative, below), inode.meta)
        entries = (
            TreeEntry(below, inode.meta, self._pieces(operation, join(relative, below), inode.meta))
            for below, inode in self._tree(relative)
        )

        def remove(txn: Transaction, actor: Actor) -> None:
            self.remove(txn, relative, True, actor)

        return Departure(is_directory, is_move, entries, remove)

    def _pieces(self, operation: str, relative: str, meta: FileMetadata) -> Iterator[bytes]:
        try:
            if meta.entry_type == DT_REG:
                yield from self._content.stream_content(meta.etag)
        except (ContentNotFoundError, CorruptionError) as error:
            raise self._damaged(operation, relative, error) from error

    def receive(
        self, txn: Transaction, operation: str, target: str, departure: Departure, actor: Actor
    ) -> int:
        self._ensure_parent(txn, operation, target, False, actor)
        count = 0
        for entry in departure.entries:
            relative, source, pieces = entry.relative, entry.meta, entry.pieces
            content = None
            if source.entry_type == DT_REG:
                content = self._content.write_content(pieces)
                txn.on_finish(partial(self._content.unpin, content.etag))
            path = join(target, relative)
            self._arrive(txn, path, source, content, actor, moving=departure.is_move)
            count += 1
        if self._durable:
            self._content.sync()
        return count

    # -- the rest -----------------------------------------------------------------------------

    def content_store(self) -> ContentStoreABC:
        return self._content

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool) -> Leftovers:
        content = self._content.remove_leftovers(untouched_since_ns, dry_run=dry_run)
        streams = self.channels.remove_leftovers(self._all_records(), dry_run=dry_run)
        return Leftovers(content.entries + streams.entries, content.size_bytes + streams.size_bytes)

    def _all_records(self) -> Iterator[FileMetadata]:
        # Current ones first: one that a rename moves past them has left a version record then.
        yield from (inode.meta for _, inode in self.table.all_current())
        yield from (version.meta for version in self.table.all_versions() if version.meta)

    def sync(self) -> None:
        self._content.sync()
        if (channels := self._channels.existing()) is not None:
            channels.sync()

    def close(self) -> None:
        self._is_closing = True  # channels that are made from now on are closed where they are made
        if (channels := self._channels.existing()) is not None:
            channels.close(_CLOSED)
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
