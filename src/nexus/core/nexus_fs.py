"""NexusFS: the system calls. Validates, routes and locks; volumes do the rest.

Layer: core. It holds syscalls, lifecycle and nothing else: conveniences are inherited, storage is
behind volumes, drivers come through :mod:`nexus.core.mounts`. Boots with one metastore and no
mount. Unix counterpart: the system call layer of a VFS.

Order of a mutating call: normalize, lock (exclusive, released last), route, volume, commit. The
route is looked up under the lock, since mounting takes the mount point's exclusive lock.
Stat takes no lock: it reads one committed record; nor does reading content that is named by its
hash, which no writer changes. Readdir of one directory takes none unless the
directory moves meanwhile; a recursive one takes a shared lock for each page, since it reads level
by level and a rename must not be seen in half.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple, cast

from nexus.contracts.context import ROOT_ZONE_ID, OperationContext
from nexus.contracts.errors import (
    BusyError,
    ClosedError,
    InvalidArgumentError,
    NotSupportedError,
    PathNotFoundError,
    StorageError,
)
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.filesystem.syscalls import WATCH_TIMEOUT_S
from nexus.contracts.lock_manager import (
    DEFAULT_TTL_S,
    EXCLUSIVE,
    LockId,
    LockManagerABC,
    LockRequest,
)
from nexus.contracts.metadata import (
    DT_DIR,
    DT_MOUNT,
    DT_REG,
    ENTRY_TYPE_NAMES,
    Buffer,
    DirectoryPage,
    Stat,
)
from nexus.contracts.metastore import MetastoreABC
from nexus.contracts.object_store import Content, ContentStoreABC
from nexus.core.bound import BoundFilesystem
from nexus.core.collector import Collector
from nexus.core.file_watcher import FileWatcher
from nexus.core.inode_table import Transaction
from nexus.core.lock_manager import LocalLockManager, stale_token
from nexus.core.mounts import Mount, MountManager, OpenDriver
from nexus.core.router import VFSRouter
from nexus.core.sealed_store import SealedStore, revision_key, revision_of
from nexus.core.sys_volume import SYS_POINT, SysVolume
from nexus.core.vfs_lock import DEFAULT_TIMEOUT_S, HoldSet, make_vfs_locks
from nexus.core.volume import (
    Actor,
    TreeEntry,
    Volume,
    bad_attribute,
    exists,
    missing,
    not_directory,
)
from nexus.lib.paths import is_below, join, normalize

_ATTRIBUTE_TYPES: Mapping[str, tuple[type, ...]] = {
    "mode": (int,),
    "owner_id": (str,),
    "mime_type": (str,),
    "modified_at": (int, float),
    "attributes": (Mapping,),
}
MAX_TEXT_BYTES = 255
MAX_WRITE_END = 1 << 36
"""Where a write at an offset may end: a gap is filled with zeros while the file is locked."""
MAX_TIME_S = 253_402_300_799
"""The last second of the year 9999, beyond which calendars in most languages end."""
_PATH = itemgetter("path")
_BARRIER_KEY = b"B"
_VERSIONS = SYS_POINT + "/versions"


class _Query(NamedTuple):
    """What one page of a directory is asked for."""

    path: str
    zone_id: str
    recursive: bool
    limit: int | None
    after: str
    details: bool


class NexusFS(NexusFilesystem):
    """The kernel's implementation of the published contract. Shared by all threads."""

    def __init__(
        self,
        metastore: MetastoreABC,
        *,
        context: OperationContext,
        open_driver: OpenDriver,
        clock_ns: Callable[[], int],
        durable: bool = False,
        lock_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.store = SealedStore(metastore)
        self.router: VFSRouter[Mount] = VFSRouter()
        self.locks = make_vfs_locks(lock_timeout_s)
        self.advisory: LockManagerABC = LocalLockManager(self.store, clock_ns, durable=durable)
        self.watcher = FileWatcher(self.store)
        self.locks.after_release = self.watcher.emit
        self.mounts = MountManager(self.router, self.store, open_driver, durable=durable)
        self.collector = Collector(self.store, self.volumes, clock_ns, self._sync, self.advisory)
        self._context = context
        self._clock_ns = clock_ns
        self._durable = durable
        self._closed = False
        self.closed_cleanly = False
        self._closing = threading.Lock()
        self._syncing = threading.Lock()
        self._synced_commits = 0  # guarded by _syncing
        self._before_close: list[Callable[[], None]] = []
        self._on_close: list[Callable[[], None]] = []
        system = SysVolume(
            self.store,
            ROOT_ZONE_ID,
            lambda: self.mounts.rows(ROOT_ZONE_ID),
            self._list_versions,
            lambda: self.advisory.holds(ROOT_ZONE_ID),
        )
        self.router.add(
            ROOT_ZONE_ID, SYS_POINT, Mount(SYS_POINT, "kernel", "__sys__", system, None)
        )

    # -- content ------------------------------------------------------------------------------

    def sys_read(
        self,
        path: str,
        count: int | None = None,
        offset: int = 0,
        *,
        version: int | None = None,
        context: OperationContext | None = None,
    ) -> bytes:
        path = normalize("read", path)
        if offset or count is not None:
            _check_range("read", path, count, offset)
        zone_id = (context or self._context).zone_id
        volume, relative = self._route("read", path, zone_id)
        if volume.immutable_content:
            return volume.read("read", relative, count, offset, version)
        with self.locks.read(_lock_key(zone_id, path)):
            volume, relative = self._route("read", path, zone_id)
            return volume.read("read", relative, count, offset, version)

    def sys_write(
        self,
        path: str,
        buf: Buffer,
        count: int | None = None,
        offset: int = 0,
        *,
        precondition: Precondition | None = None,
        context: OperationContext | None = None,
    ) -> Stat:
        path = normalize("write", path)
        data = _view("write", path, buf)
        _check_range("write", path, count, offset)
        if count is not None:
            if count > len(data):
                raise InvalidArgumentError(
                    "write", path, f"count is {count} but buf has {len(data)} bytes"
                )
            data = data[:count]
        if offset + len(data) > MAX_WRITE_END:
            raise InvalidArgumentError("write", path, f"the end is past {MAX_WRITE_END} bytes")
        actor = self._actor(context)
        with self._locked(actor, path), Transaction(self.store) as txn:
            volume, relative = self._route("write", path, actor.context.zone_id)
            self._require_lock(txn, "write", path, precondition, actor)
            answer = volume.write_at(txn, relative, data, offset, precondition, actor)
            answer["revision"] = txn.commit(durable=self._durable)
        return answer

    def _write_many(
        self, requests: Sequence[WriteRequest], context: OperationContext | None
    ) -> list[Stat]:
        actor = self._actor(context)
        operation = "append" if any(request.append for request in requests) else "write"
        paths = [normalize(operation, request.path) for request in requests]
        requests = [
            request
            if type(request.buf) is bytes
            else replace(request, buf=_pieces(operation, path, request.buf))
            for path, request in zip(paths, requests, strict=True)
        ]
        if len(requests) != 1:
            self._check_batch(paths, actor)
        prepared: list[tuple[Volume, Content]] = []
        try:
            contents = [
                self._prepare(operation, path, request, actor, prepared)
                for path, request in zip(paths, requests, strict=True)
            ]
            for volume in {volume for volume, _ in prepared}:
                volume.settle()
            with (
                self._locked_to_create(operation, paths, requests, actor),
                Transaction(self.store) as txn,
            ):
                answers = []
                stored_in = iter(prepared)
                for path, request, content in zip(paths, requests, contents, strict=True):
                    volume, relative = self._route(operation, path, actor.context.zone_id)
                    if (content is None) != (request.append or not volume.atomic_batch) or (
                        content is not None and next(stored_in)[0] is not volume
                    ):
                        raise BusyError(
                            operation, path, "the mount changed meanwhile", hint="retry"
                        )
                    self._require_lock(txn, operation, path, request.precondition, actor)
                    answers.append(volume.write(txn, operation, relative, request, content, actor))
                revision = txn.commit(durable=self._durable) if answers else 0
        finally:
            for volume, content in prepared:
                volume.abandon(content)
        for answer in answers:
            answer["revision"] = revision
        return answers

    def _prepare(
        self,
        operation: str,
        path: str,
        request: WriteRequest,
        actor: Actor,
        prepared: list[tuple[Volume, Content]],
    ) -> Content | None:
        volume, relative = self._route(operation, path, actor.context.zone_id)
        content = volume.prepare(operation, relative, request)
        if content is not None:
            prepared.append((volume, content))
        return content

    def _check_batch(self, paths: list[str], actor: Actor) -> None:
        seen = set()
        for path in paths:
            if path in seen:
                raise InvalidArgumentError("write_batch", path, "the path is in the batch twice")
            seen.add(path)
            volume, _ = self._route("write_batch", path, actor.context.zone_id)
            if not volume.atomic_batch:
                raise NotSupportedError(
                    "write_batch",
                    path,
                    f"the mount {volume.point} cannot take part in one commit with others",
                    hint="write its files one by one",
                )

    def _locked_to_create(
        self,
        operation: str,
        paths: list[str],
        requests: Sequence[WriteRequest],
        actor: Actor,
    ) -> HoldSet:
        """Lock each path, or the topmost directory that has to be created for it.

        Two writers that need the same new directory so take turns. What is missing is looked up
        again under the lock; when a directory above went away meanwhile, more has to be locked.
        """
        wanted = self._creation_locks(operation, paths, requests, actor)
        while True:
            holds = self.locks.write_many(wanted)
            try:
                needed = self._creation_locks(operation, paths, requests, actor)
                if all(
                    lock in wanted or any(is_below(lock, above) for above in wanted)
                    for lock in needed
                ):
                    return holds
            except BaseException:
                holds.release()
                raise
            holds.release()
            wanted |= needed

    def _creation_locks(
        self,
        operation: str,
        paths: Iterable[str],
        requests: Sequence[WriteRequest],
        actor: Actor,
    ) -> set[str]:
        zone_id = actor.context.zone_id
        wanted = set()
        for path, request in zip(paths, requests, strict=True):
            if request.create and request.parents:
                volume, relative = self._route(operation, path, zone_id)
                path = volume.absolute(volume.first_missing(relative))
            wanted.add(_lock_key(zone_id, path))
        return wanted

    def sys_copy(self, src: str, dst: str, *, context: OperationContext | None = None) -> Stat:
        src, dst = normalize("copy", src), normalize("copy", dst)
        actor = self._actor(context)
        if src == dst or is_below(dst, src):
            raise InvalidArgumentError("copy", src, f"cannot copy it into itself, at {dst}")
        with ExitStack() as held:
            self._lock_pair(held, src, dst, actor, shared_source=True)
            txn = held.enter_context(Transaction(self.store))
            source, target = self._pair("copy", src, dst, actor)
            if source[0] is target[0]:
                copied = source[0].copy(txn, source[1], target[1], actor)
            else:
                copied = self._transfer("copy", txn, source, target, actor)
            revision = txn.commit(durable=self._durable)
        stat = self.sys_stat(dst, context=context) or {"path": dst}
        return stat | {"copied": copied, "revision": revision}

    # -- metadata -----------------------------------------------------------------------------

    def sys_stat(
        self, path: str, include_lock: bool = False, *, context: OperationContext | None = None
    ) -> Stat | None:
        path = normalize("stat", path)
        zone_id = (context or self._context).zone_id
        try:
            volume, relative = self._route("stat", path, zone_id)
        except PathNotFoundError:
            return None  # a zone in which nothing is mounted
        stat = volume.stat(relative)
        if include_lock and stat is not None:
            stat["locks"] = [hold.as_dict() for hold in self.advisory.holds(zone_id, path)]
        return stat

    def sys_setattr(
        self, path: str, *, context: OperationContext | None = None, **attrs: Any
    ) -> Stat:
        path = normalize("setattr", path)
        actor = self._actor(context)
        kind = attrs.pop("entry_type", None)
        if kind is None:
            self._update(path, attrs, actor)
        elif kind == DT_DIR:
            self._make_directory(path, attrs, actor)
        elif kind == DT_MOUNT:
            self._mount(path, attrs, actor)
        elif kind == DT_REG:
            self._make_file(path, attrs, actor)
        else:
            name = ENTRY_TYPE_NAMES[kind] if kind in range(len(ENTRY_TYPE_NAMES)) else repr(kind)
            raise bad_attribute(path, "entry_type", f"{name} cannot be created here")
        if path == "/" and kind == DT_MOUNT:
            # Its record may be damaged, which must not keep a checker from being started.
            return {"path": "/", "entry_type": DT_DIR, "type": "directory", "is_directory": True}
        stat = self.sys_stat(path, context=context)
        if stat is None:
            raise missing("setattr", path)
        return stat

    def _update(self, path: str, attrs: dict[str, Any], actor: Actor) -> None:
        if not attrs:
            raise InvalidArgumentError("setattr", path, "no attribute is given")
        for name, value in attrs.items():
            _check_attribute(path, name, value)
        with self._locked(actor, path), Transaction(self.store) as txn:
            volume, relative = self._route("setattr", path, actor.context.zone_id)
            volume.set_attributes(txn, relative, attrs, actor)
            txn.commit(durable=self._durable)

    def _make_directory(self, path: str, attrs: dict[str, Any], actor: Actor) -> None:
        parents, exist_ok = bool(attrs.pop("parents", False)), bool(attrs.pop("exist_ok", False))
        _check_no_more(path, attrs)
        request = WriteRequest(path, b"", parents=parents)
        with (
            self._locked_to_create("mkdir", [path], [request], actor),
            Transaction(self.store) as txn,
        ):
            volume, relative = self._route("mkdir", path, actor.context.zone_id)
            volume.create_directory(txn, relative, parents, exist_ok, actor)
            txn.commit(durable=self._durable)

    def _make_file(self, path: str, attrs: dict[str, Any], actor: Actor) -> None:
        _check_no_more(path, attrs)
        request = WriteRequest(
            path, b"", parents=False, precondition=Precondition(if_none_match="*")
        )
        if self.sys_stat(path, context=actor.context) is not None:
            raise exists("mknod", path)
        self._write_many([request], actor.context)

    def _mount(self, path: str, attrs: dict[str, Any], actor: Actor) -> None:
        backend = attrs.pop("backend", None)
        _check_no_more(path, attrs)
        if actor.context.zone_id != self._context.zone_id:
            raise NotSupportedError("mount", path, "only the filesystem's own zone has mounts")
        with self._locked(actor, path):
            self.mounts.mount(path, backend, actor)
        if path == "/":
            self.mounts.restore(actor.context, actor.now_ns)

    def sys_unlink(
        self, path: str, recursive: bool = False, *, context: OperationContext | None = None
    ) -> Stat:
        path = normalize("unlink", path)
        actor = self._actor(context)
        zone_id = actor.context.zone_id
        with self._locked(actor, path):
            self._check_open()
            if self.router.at(path, zone_id) is not None:
                if recursive:
                    raise BusyError("unlink", path, "is a mount point", hint="unmount it first")
                revision = self.mounts.unmount(path, actor)
                return {"path": path, "removed": 1, "revision": revision}
            self._check_no_mount_below("unlink", path, zone_id)
            volume, relative = self._route("unlink", path, zone_id)
            with Transaction(self.store, reclaim=True) as txn:
                removed = volume.remove(txn, relative, recursive, actor)
                revision = txn.commit(durable=self._durable)
        return {"path": path, "removed": removed, "revision": revision}

    def sys_rename(self, old: str, new: str, *, context: OperationContext | None = None) -> Stat:
        old, new = normalize("rename", old), normalize("rename", new)
        actor = self._actor(context)
        if is_below(new, old):
            raise InvalidArgumentError("rename", old, f"cannot move it into itself, to {new}")
        with ExitStack() as held:
            self._lock_pair(held, old, new, actor, shared_source=False)
            for path in (old, new):
                self._check_not_mount("rename", path, actor.context.zone_id)
            self._check_no_mount_below("rename", old, actor.context.zone_id)
            txn = held.enter_context(Transaction(self.store))
            source, target = self._pair("rename", old, new, actor)
            if old == new:
                renamed, revision = self._rename_onto_itself(source, old)
            elif source[0] is target[0]:
                renamed = source[0].rename(txn, source[1], target[1], actor)
                revision = txn.commit(durable=self._durable)
            else:
                renamed, revision = self._move_across(txn, source, target, actor)
        return {"path": new, "old_path": old, "renamed": renamed, "revision": revision}

    def _rename_onto_itself(self, source: tuple[Volume, str], path: str) -> tuple[int, int]:
        stat = source[0].stat(source[1])
        if stat is None:
            raise missing("rename", path)
        return 0, int(stat["revision"])

    def _move_across(
        self,
        txn: Transaction,
        source: tuple[Volume, str],
        target: tuple[Volume, str],
        actor: Actor,
    ) -> tuple[int, int]:
        """Copy to the target, then delete the source; in one commit where both can share one."""
        moved = self._transfer("rename", txn, source, target, actor)
        if source[0].atomic_batch:
            source[0].remove(txn, source[1], True, actor)
            return moved, txn.commit(durable=self._durable)
        txn.commit(durable=self._durable)
        with Transaction(self.store) as second:
            source[0].remove(second, source[1], True, actor)
            return moved, second.commit(durable=self._durable)

    def _transfer(
        self,
        operation: str,
        txn: Transaction,
        source: tuple[Volume, str],
        target: tuple[Volume, str],
        actor: Actor,
    ) -> int:
        volume, relative = source
        stat = volume.stat(relative)
        if stat is None:
            raise missing(operation, volume.absolute(relative))
        target[0].check_target(operation, target[1], stat["is_directory"])
        return target[0].receive(txn, target[1], _entries_of(volume, relative, stat), actor)

    # -- directories --------------------------------------------------------------------------

    def sys_readdir(
        self,
        path: str,
        recursive: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        details: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> DirectoryPage:
        path = _normalize_listed(path)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise InvalidArgumentError("readdir", path, f"limit is {limit!r}, not at least 1")
        zone_id = (context or self._context).zone_id
        volume, relative = self._route("readdir", path, zone_id)
        if isinstance(volume, SysVolume):
            if recursive:
                raise NotSupportedError("readdir", path, "views are listed one at a time")
            return volume.readdir(relative, limit, cursor, details)
        after = normalize("readdir", cursor) if cursor else ""
        query = _Query(path, zone_id, recursive, limit, after, details)
        if not recursive:
            before = self._check_directory(volume, relative, path)
            page = self._page(volume, relative, query)
            # Moving a directory rewrites its record: an equal revision says that it stayed.
            if self._check_directory(volume, relative, path) == before:
                return page
        with self.locks.read(_lock_key(zone_id, path)):
            volume, relative = self._route("readdir", path, zone_id)
            self._check_directory(volume, relative, path)
            return self._page(volume, relative, query)

    def _page(self, volume: Volume, relative: str, query: _Query) -> DirectoryPage:
        path, limit, details = query.path, query.limit, query.details
        if not (query.recursive or details or limit or query.after):
            names = volume.names(relative)
            if names is not None:
                base = "/" if path == "/" else path + "/"
                return DirectoryPage([base + name for name in names])
        stats = self._listing(volume, relative, query)
        taken = list(stats if limit is None else islice(stats, limit))
        more = limit is not None and next(stats, None) is not None
        return DirectoryPage(
            taken if details else map(_PATH, taken), taken[-1]["path"] if more else None
        )

    def _listing(self, volume: Volume, relative: str, query: _Query) -> Iterator[Stat]:
        """Yield the stats of a listing, with mounts in the place of what they shadow."""
        path, zone_id, after = query.path, query.zone_id, query.after
        points = [p for p in self.router.points_below(path, zone_id) if p != SYS_POINT]
        start = _relative_to(volume.point, after)
        if not query.recursive:
            stats = volume.entries(relative, start)
            return self._overlay_mounts(stats, points, zone_id) if points else stats
        if not points:
            return volume.subtree(relative, start)
        listings = [_unshadowed(volume.subtree(relative, start), points)]
        for point in points:
            mount = self.router.at(point, zone_id)
            if mount is not None and mount.volume is not None:
                inner = mount.volume.subtree("/", _relative_to(point, after))
                beneath = [p for p in points if is_below(p, point)]
                listings.append(_unshadowed(inner, beneath))
                root = mount.volume.stat("/")
                if root is not None:
                    listings.append(iter((root,)))
        return (stat for stat in merge(*listings, key=_PATH) if stat["path"] > after)

    def _overlay_mounts(
        self, stats: Iterator[Stat], points: list[str], zone_id: str
    ) -> Iterator[Stat]:
        for stat in stats:
            if stat["path"] in points:
                mount = self.router.at(stat["path"], zone_id)
                if mount is not None and mount.volume is not None:
                    yield mount.volume.stat("/") or stat
                    continue
            yield stat

    def _check_directory(self, volume: Volume, relative: str, path: str) -> int:
        """Return the revision of a directory. Errors: PathNotFoundError, PathNotDirectoryError."""
        stat = volume.stat(relative)
        if stat is None:
            volume.first_missing(relative)
            raise missing("readdir", path)
        if not stat["is_directory"]:
            raise not_directory("readdir", path, path)
        return int(stat["revision"])

    def _list_versions(self, path: str, after_revision: int) -> Iterator[Stat]:
        volume, relative = self._route("history", path, self._context.zone_id)
        return volume.versions(relative, after_revision)

    # -- waiting: advisory locks and watches --------------------------------------------------

    def sys_lock(
        self,
        path: str,
        mode: str = EXCLUSIVE,
        ttl: float = DEFAULT_TTL_S,
        max_holders: int | None = None,
        lock_id: str | None = None,
        *,
        timeout: float = 0.0,
        context: OperationContext | None = None,
    ) -> LockId | None:
        request = self._lock_request(path, mode, ttl, max_holders, context)
        if lock_id is not None:
            hold = self.advisory.extend(request, lock_id)
        else:
            hold = self.advisory.acquire(request, timeout)
        return None if hold is None else LockId(hold)

    async def _lock_async(
        self,
        path: str,
        mode: str,
        ttl: float,
        max_holders: int | None,
        timeout: float,
        context: OperationContext | None,
    ) -> LockId | None:
        request = self._lock_request(path, mode, ttl, max_holders, context)
        hold = await self.advisory.acquire_async(request, timeout)
        return None if hold is None else LockId(hold)

    def sys_unlock(
        self,
        path: str,
        lock_id: str | None = None,
        force: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> bool:
        path = normalize("unlock", path)
        self._check_open()
        zone_id = (context or self._context).zone_id
        if force:
            return self.advisory.force_release(zone_id, path) > 0
        if lock_id is None:
            raise InvalidArgumentError("unlock", path, "neither lock_id nor force is given")
        return self.advisory.release(zone_id, path, lock_id)

    def sys_watch(
        self,
        path: str,
        timeout: float = WATCH_TIMEOUT_S,
        recursive: bool = False,
        since: int | str | None = None,
        *,
        context: OperationContext | None = None,
    ) -> FileEvent | None:
        path = normalize("watch", path)
        zone_id = (context or self._context).zone_id
        return self.watcher.wait(zone_id, path, timeout, recursive, since)

    async def _watch_async(
        self,
        path: str,
        timeout: float,
        recursive: bool,
        since: int | str | None,
        context: OperationContext | None,
    ) -> FileEvent | None:
        path = normalize("watch", path)
        zone_id = (context or self._context).zone_id
        return await self.watcher.wait_async(zone_id, path, timeout, recursive, since)

    def _lock_request(
        self,
        path: str,
        mode: str,
        ttl: float,
        max_holders: int | None,
        context: OperationContext | None,
    ) -> LockRequest:
        self._check_open()
        path = normalize("lock", path)
        return LockRequest(path, context or self._context, mode, ttl, max_holders)

    def _require_lock(
        self,
        txn: Transaction,
        operation: str,
        path: str,
        precondition: Precondition | None,
        actor: Actor,
    ) -> None:
        """Have the commit fail unless the lock that a precondition names still stands."""
        if precondition is None or precondition.lock_token is None:
            return
        zone_id, token = actor.context.zone_id, precondition.lock_token
        key = self.advisory.proof_of(operation, zone_id, path, token)
        txn.require(key, stale_token(operation, path, token))

    # -- lifecycle ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Content first, then a barrier that says so, then the records."""
        self._check_open()
        self._sync()

    def _sync(self) -> None:
        with self._syncing:
            commits = self.store.commits
            revision = self.store.head().revision if commits != self._synced_commits else 0
            for volume in self.volumes():
                volume.sync()
            if commits != self._synced_commits:
                with Transaction(self.store, reclaim=True) as txn:
                    old = self.store.get(_BARRIER_KEY)
                    txn.put_record(_BARRIER_KEY, revision_key(revision), old)
                    txn.commit(durable=False)
                # A commit that came between is not covered, and has its number still to come.
                self._synced_commits = commits + 1
            self.store.sync()

    def barrier(self) -> int:
        """Return the revision up to which content is known to be durable, 0 for none."""
        record = self.store.get(_BARRIER_KEY)
        return 0 if record is None else revision_of(record.payload)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            while self._before_close:
                self._before_close.pop()()
            self.advisory.close()
            self.watcher.close()
            # Every call under way holds a lock beneath its zone's root.
            with self.locks.write(f"/{self._context.zone_id}"):
                self._closed = True
            with ExitStack() as undo:
                for callback in self._on_close:
                    undo.callback(callback)
                undo.callback(self.store.close)
                for volume in self.volumes():
                    undo.callback(volume.close)
                self._sync()
                self.closed_cleanly = True

    def on_closing(self, callback: Callable[[], None]) -> None:
        """Call back before anything is closed, last registered first."""
        self._before_close.append(callback)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back after everything is closed, last registered first."""
        self._on_close.append(callback)

    def bind(self, context: OperationContext) -> NexusFilesystem:
        return BoundFilesystem(self, context)

    def volumes(self) -> list[Volume]:
        """Return every volume that is mounted and available."""
        mounts = self.router.mounts(self._context.zone_id)
        return [mount.volume for _, mount in mounts if mount.volume is not None]

    def _store_content(
        self, path: str, pieces: Iterable[Buffer], context: OperationContext | None
    ) -> str:
        path = normalize("content", path)
        volume, _ = self._route("content", path, (context or self._context).zone_id)
        store = volume.content_store()
        content = store.write_content(_pieces("content", path, pieces))
        try:
            volume.settle()
        finally:
            store.unpin(content.etag)
        return content.etag

    def _content_store(self, path: str, context: OperationContext | None) -> ContentStoreABC:
        path = normalize("content", path)
        zone_id = (context or self._context).zone_id
        return self._route("content", path, zone_id)[0].content_store()

    # -- helpers ------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("filesystem", None, "it is closed")

    def _actor(self, context: OperationContext | None) -> Actor:
        return Actor(context or self._context, self._clock_ns())

    def _route(self, operation: str, path: str, zone_id: str) -> tuple[Volume, str]:
        if self._closed:
            raise ClosedError(operation, path, "the filesystem is closed")
        mount, point, relative = self.router.route(path, zone_id)
        if mount.volume is None:
            raise StorageError(
                operation,
                path,
                f"the mount {point} is unavailable: {mount.problem}",
                hint="repair what is behind it and reopen, or unmount it",
            )
        return mount.volume, relative

    def _locked(self, actor: Actor, path: str) -> Any:
        return self.locks.write(_lock_key(actor.context.zone_id, path))

    def _lock_pair(
        self, held: ExitStack, source: str, target: str, actor: Actor, *, shared_source: bool
    ) -> None:
        source, target = (_lock_key(actor.context.zone_id, path) for path in (source, target))
        if shared_source:
            held.enter_context(self.locks.copy_pair(source, target))
        else:
            held.enter_context(self.locks.write_many((source, target)))

    def _pair(
        self, operation: str, source: str, target: str, actor: Actor
    ) -> tuple[tuple[Volume, str], tuple[Volume, str]]:
        zone_id = actor.context.zone_id
        return self._route(operation, source, zone_id), self._route(operation, target, zone_id)

    def _check_not_mount(self, operation: str, path: str, zone_id: str) -> None:
        if self.router.at(path, zone_id) is not None:
            raise BusyError(operation, path, "is a mount point", hint="unmount it first")

    def _check_no_mount_below(self, operation: str, path: str, zone_id: str) -> None:
        below = [point for point in self.router.points_below(path, zone_id) if point != SYS_POINT]
        if below:
            raise BusyError(operation, path, f"{below[0]} is mounted beneath it")


def _entries_of(
    volume: Volume, relative: str, stat: Stat
) -> Iterator[tuple[TreeEntry, Iterable[Buffer]]]:
    """Yield a file, or a directory and all beneath it, parents first, with its bytes."""
    top = volume.absolute(relative)
    yield TreeEntry("/", stat), () if stat["is_directory"] else volume.stream(relative)
    if stat["is_directory"]:
        for below in volume.subtree(relative):
            inner = _relative_to(top, below["path"])
            pieces = () if below["is_directory"] else volume.stream(join(relative, inner))
            yield TreeEntry(inner, below), pieces


def _normalize_listed(path: str) -> str:
    """Normalize a path to list; what follows a view's prefix may itself be of full length."""
    if isinstance(path, str) and path.startswith(_VERSIONS + "/"):
        return _VERSIONS + normalize("history", path[len(_VERSIONS) :])
    return normalize("readdir", path)


def _relative_to(base: str, path: str) -> str:
    if base == "/" or not path:
        return path
    return (
        path[len(base) :] if is_below(path, base) else ("" if path < base + "/" else "/\U0010ffff")
    )


def _unshadowed(stats: Iterator[Stat], points: list[str]) -> Iterator[Stat]:
    for stat in stats:
        path = stat["path"]
        if not any(path == point or is_below(path, point) for point in points):
            yield stat


def _lock_key(zone_id: str, path: str) -> str:
    """Return what the VFS lock calls a path; the root covers its whole zone."""
    return f"/{zone_id}" if path == "/" else f"/{zone_id}{path}"


def _check_range(operation: str, path: str, count: int | None, offset: int) -> None:
    if type(offset) is not int or offset < 0:
        raise InvalidArgumentError(operation, path, f"offset is {offset!r}, not 0 or more")
    if count is not None and (type(count) is not int or count < 0):
        raise InvalidArgumentError(operation, path, f"count is {count!r}, not 0 or more")


def _view(operation: str, path: str, buf: Buffer) -> memoryview:
    """Return the bytes of a buffer, whatever its shape and item type."""
    try:
        view = memoryview(buf)
    except TypeError as error:
        raise InvalidArgumentError(operation, path, f"buf is not bytes: {error}") from error
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _pieces(operation: str, path: str, buf: Buffer | Iterable[Buffer]) -> Buffer | Iterable[Buffer]:
    """Return what a whole-file write stores: one buffer, or an iterable of them."""
    if isinstance(buf, bytes):
        return buf
    if isinstance(buf, str):
        raise InvalidArgumentError(operation, path, "buf is text; encode it to bytes")
    try:
        memoryview(cast(Buffer, buf))
    except TypeError:
        if isinstance(buf, Iterable):
            return (_view(operation, path, cast(Buffer, piece)) for piece in buf)
        kind = type(buf).__name__
        raise InvalidArgumentError(operation, path, f"buf is {kind}, not bytes") from None
    return _view(operation, path, cast(Buffer, buf))


def _check_attribute(path: str, name: str, value: Any) -> None:
    types = _ATTRIBUTE_TYPES.get(name)
    if types is None:
        known = ", ".join(_ATTRIBUTE_TYPES)
        raise bad_attribute(path, name, f"unknown attribute; there are {known}")
    matches: bool = isinstance(value, types) and not isinstance(value, bool)
    if not matches:
        raise bad_attribute(path, name, f"{type(value).__name__} is not {types[0].__name__}")
    if name == "mode" and not 0 <= value <= 0o777:
        raise bad_attribute(path, name, f"{value:o} is not within 0 to 777")
    if isinstance(value, str) and len(value.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise bad_attribute(path, name, f"over {MAX_TEXT_BYTES} bytes")
    if name == "modified_at" and not 0 <= value <= MAX_TIME_S:
        raise bad_attribute(path, name, f"{value} is not within 0 to {MAX_TIME_S} seconds")
    if name == "attributes":
        _check_custom(path, value)


def _check_custom(path: str, value: Mapping[str, Any]) -> None:
    for key, item in value.items():
        if not isinstance(key, str) or not key:
            raise bad_attribute(path, "attributes", f"{key!r} is not a name")
        if not isinstance(item, str | int | float | bool | None):
            raise bad_attribute(path, "attributes", f"{key} is neither text, number nor bool")


def _check_no_more(path: str, attrs: dict[str, Any]) -> None:
    for name in attrs:
        raise bad_attribute(path, name, "has no meaning for this entry type")
