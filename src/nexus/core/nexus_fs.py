"""NexusFS: the system calls. Validates, routes and locks; volumes do the rest.

Layer: core. It holds syscalls, lifecycle and nothing else: conveniences are inherited, storage is
behind volumes, drivers come through :mod:`nexus.core.mounts`, arguments are checked by
:mod:`nexus.core.arguments`, pages are made by :mod:`nexus.core.listing`. Boots with one metastore
and no mount. Unix counterpart: the system call layer of a VFS.

Every call passes its point in :mod:`nexus.core.dispatch` where something is hooked there, and
goes straight to the private method of its name where nothing is.

Order of a mutating call: normalize, lock (exclusive, released last), route, volume, commit, and
the answer while still locked, so that it shows what this call made. The route is looked up under
the lock, since mounting takes the mount point's exclusive lock; a whole-file write routes before,
to store its content, and under the lock only looks whether the mount table is still the same.
Stat takes no lock: it reads one committed record; nor does reading content that is named by its
hash, which no writer changes. Readdir takes none where one scan gives the page and the directory
does not move meanwhile; else, and where it is recursive, it takes a shared lock for each page,
since a rename must not be seen in half.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from nexus.contracts.context import ROOT_ZONE_ID, OperationContext
from nexus.contracts.errors import (
    BusyError,
    ClosedError,
    InvalidArgumentError,
    NexusError,
    NotSupportedError,
    PathNotFoundError,
    StorageError,
    shown,
)
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.filesystem.syscalls import WATCH_TIMEOUT_S
from nexus.contracts.lock_manager import (
    DEFAULT_TTL_S,
    EXCLUSIVE,
    LockId,
    LockRequest,
)
from nexus.contracts.metadata import (
    CHANNEL_TYPES,
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
from nexus.contracts.vfs_hooks import (
    BATCH,
    CONTENT,
    COPY,
    DELETE,
    LOCK,
    MKDIR,
    MKNOD,
    MOUNT,
    READ,
    READDIR,
    RENAME,
    RMDIR,
    SETATTR,
    STAT,
    UNLOCK,
    UNMOUNT,
    WATCH,
    WRITE,
    BatchContext,
    ContentContext,
    CopyContext,
    DeleteContext,
    HookPoint,
    LockContext,
    MkdirContext,
    MknodContext,
    MountContext,
    ReadContext,
    ReaddirContext,
    RenameContext,
    RmdirContext,
    SetattrContext,
    StatContext,
    UnlockContext,
    UnmountContext,
    VFSContext,
    WatchContext,
    WriteContext,
)
from nexus.core import fork_guard
from nexus.core.arguments import (
    MAX_WRITE_END,
    check_admin,
    check_attribute,
    check_context,
    check_no_more,
    check_precondition_type,
    check_range,
    check_version,
    checked_pieces,
    page_limit,
    write_slice,
)
from nexus.core.bound import BoundFilesystem
from nexus.core.channels import (
    Channel,
    capacity_of,
    check_message_read,
    check_message_write,
    no_channel,
    wait_limit,
)
from nexus.core.collector import Collector
from nexus.core.dispatch import KernelDispatch
from nexus.core.file_watcher import FileWatcher
from nexus.core.inode_table import Transaction
from nexus.core.listing import Listings, Query
from nexus.core.lock_manager import LocalLockManager
from nexus.core.mounts import Mount, MountManager, OpenDriver
from nexus.core.primitives import VFSRouter
from nexus.core.sealed_store import SealedStore, revision_key, revision_of
from nexus.core.service_registry import SERVICES_POINT, ServiceRegistry
from nexus.core.sys_volume import SYS_POINT, SysVolume
from nexus.core.vfs_lock import DEFAULT_TIMEOUT_S, Hold, HoldSet, make_vfs_locks
from nexus.core.volume import (
    Actor,
    Departure,
    Volume,
    bad_attribute,
    exists,
    missing,
    not_directory,
)
from nexus.core.waiting_calls import WaitingCalls
from nexus.lib.paths import is_below, is_same_or_below, normalize, parent

_BARRIER_KEY = b"B"
_VERSIONS = SYS_POINT + "/versions"

T = TypeVar("T")
C = TypeVar("C", bound=VFSContext)


class _Target(NamedTuple):
    """A path that a call may create, routed."""

    path: str
    volume: Volume
    relative: str
    request: WriteRequest


class NexusFS(NexusFilesystem):
    """The kernel's implementation of the published contract. Shared by all threads."""

    def __init__(
        self,
        metastore: MetastoreABC,
        *,
        context: OperationContext,
        open_driver: OpenDriver,
        clock_ns: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
        durable: bool = False,
        lock_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.store = SealedStore(metastore)
        self.router: VFSRouter[Mount] = VFSRouter()
        self.locks = make_vfs_locks(lock_timeout_s)
        advisory = LocalLockManager(self.store, clock_ns, durable=durable)
        self.waiting = WaitingCalls(advisory, FileWatcher(self.store))
        self.locks.after_release = self.waiting.watcher.emit
        self.mounts = MountManager(self.router, self.store, open_driver, durable=durable)
        self.dispatch = KernelDispatch(self.store, clock)
        self.services = ServiceRegistry(self.dispatch)
        self.collector = Collector(self.store, self.volumes_in_use, clock_ns, self._sync, advisory)
        self._listings = Listings(self.router)
        self._context = context
        self._clock_ns = clock_ns
        self._durable = durable
        self._closed = ""  # why every call is refused; empty while none is
        self._is_forked = False
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
            lambda: self.waiting.locks.holds(ROOT_ZONE_ID),
            self.services.rows,
        )
        fork_guard.watch(self)
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
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> bytes:
        if READ in self.dispatch.live:
            at = normalize("read", path)
            read = ReadContext(at, self._identity(context), count, offset, version, timeout)
            return self.dispatch.run(READ, read, self._read_hooked)
        return self._read(path, count, offset, version, timeout, context)

    def _read_hooked(self, ctx: ReadContext) -> bytes:
        return self._read(ctx.path, ctx.count, ctx.offset, ctx.version, ctx.timeout, ctx.context)

    def _read(
        self,
        path: str,
        count: int | None,
        offset: int,
        version: int | None,
        timeout: float | None,
        context: OperationContext | None,
    ) -> bytes:
        path = normalize("read", path)
        if count is not None or type(offset) is not int or offset:
            check_range("read", path, count, offset)
        if version is not None:
            check_version("read", path, version)
        zone_id = self._identity(context).zone_id
        volume, relative = self._route("read", path, zone_id)
        channel = self._channel("read", path, zone_id, volume, relative)
        if channel is not None:
            check_message_read(path, count, version)
            limit = wait_limit("read", path, timeout)
            return self.dispatch.wait_in(channel.read, path, offset, limit)
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
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> Stat:
        path = normalize("write", path)
        data = write_slice(path, buf, count)
        if WRITE in self.dispatch.live:
            write = WriteContext(path, self._identity(context), data, offset, precondition)
            write.timeout = timeout
            return self.dispatch.run(WRITE, write, self._write_hooked)
        return self._write_at(path, data, offset, precondition, timeout, context)

    def _write_hooked(self, ctx: WriteContext) -> Stat:
        path = normalize("write", ctx.path)
        if ctx.offset is not None:
            data = write_slice(path, ctx.buf, None)
            return self._write_at(
                path, data, ctx.offset, ctx.precondition, ctx.timeout, ctx.context
            )
        request = WriteRequest(path, ctx.buf, ctx.create, ctx.parents, ctx.append, ctx.precondition)
        return self._write_files((request,), ctx.context)[0]

    def _write_at(
        self,
        path: str,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
        timeout: float | None,
        context: OperationContext | None,
    ) -> Stat:
        check_range("write", path, None, offset)
        check_precondition_type("write", path, precondition)
        if offset + len(data) > MAX_WRITE_END:
            raise InvalidArgumentError("write", path, f"the end is past {MAX_WRITE_END} bytes")
        actor = self._actor(context)
        zone_id = actor.context.zone_id
        channel = self._channel("write", path, zone_id, *self._route("write", path, zone_id))
        if channel is not None:
            check_message_write(path, offset, precondition)
            limit = wait_limit("write", path, timeout)
            return self.dispatch.wait_in(channel.write, path, bytes(data), limit)
        with self._locked(actor, path), Transaction(self.store) as txn:
            volume, relative = self._route("write", path, actor.context.zone_id)
            self.waiting.require(txn, "write", path, precondition, actor.context.zone_id)
            answer = volume.write_at(txn, relative, data, offset, precondition, actor)
            answer["revision"] = txn.commit(durable=self._durable)
        return answer

    def _channel(
        self, operation: str, path: str, zone_id: str, volume: Volume, relative: str
    ) -> Channel | None:
        """Return the pipe or stream at a routed path, opened where need be; None where none is.

        Only opening takes a lock, so that nothing is opened that a call is removing.
        """
        record = volume.channel_record(relative)
        if record is None:
            return None
        channel = volume.channels.find(record)
        if channel is not None:
            return channel
        with self.locks.read(_lock_key(zone_id, path)):
            volume, relative = self._route(operation, path, zone_id)
            record = volume.channel_record(relative)
            return None if record is None else volume.channels.open(path, record)

    def _channel_to_wait_for(
        self, operation: str, path: str, context: OperationContext | None
    ) -> Channel:
        zone_id = self._identity(context).zone_id
        volume, relative = self._route(operation, path, zone_id)
        channel = self._channel(operation, path, zone_id, volume, relative)
        if channel is None:
            if volume.stat(relative) is None:
                raise missing(operation, path)
            raise no_channel(operation, path)
        return channel

    async def _read_async(
        self,
        path: str,
        offset: int,
        timeout: float | None,
        context: OperationContext | None,
    ) -> bytes:
        ctx = ReadContext(normalize("read", path), self._identity(context), offset=offset)
        ctx.timeout = timeout
        return await self._run_async(READ, ctx, self._read_message)

    async def _read_message(self, ctx: ReadContext) -> bytes:
        path = normalize("read", ctx.path)
        check_range("read", path, None, ctx.offset)
        check_message_read(path, ctx.count, ctx.version)
        channel = self._channel_to_wait_for("read", path, ctx.context)
        return await channel.read_async(path, ctx.offset, wait_limit("read", path, ctx.timeout))

    async def _write_async(
        self, path: str, buf: Buffer, timeout: float | None, context: OperationContext | None
    ) -> Stat:
        path = normalize("write", path)
        ctx = WriteContext(path, self._identity(context), write_slice(path, buf, None), 0)
        ctx.timeout = timeout
        return await self._run_async(WRITE, ctx, self._write_message)

    async def _write_message(self, ctx: WriteContext) -> Stat:
        path = normalize("write", ctx.path)
        message = bytes(write_slice(path, ctx.buf, None))
        check_message_write(path, ctx.offset or 0, ctx.precondition)
        channel = self._channel_to_wait_for("write", path, ctx.context)
        return await channel.write_async(path, message, wait_limit("write", path, ctx.timeout))

    def _write_many(
        self, requests: Sequence[WriteRequest], context: OperationContext | None
    ) -> list[Stat]:
        if len(requests) == 1 and WRITE in self.dispatch.live:
            write = _write_context(requests[0], self._identity(context))
            return [self.dispatch.run(WRITE, write, self._write_hooked)]
        if len(requests) > 1 and BATCH in self.dispatch.live:
            first = normalize("write_batch", requests[0].path)
            batch = BatchContext(first, self._identity(context), requests)
            return self.dispatch.run(
                BATCH, batch, lambda c: self._write_files(c.requests, c.context)
            )
        return self._write_files(requests, context)

    def _write_files(
        self, requests: Sequence[WriteRequest], context: OperationContext | None
    ) -> list[Stat]:
        actor = self._actor(context)
        operation = "append" if any(request.append for request in requests) else "write"
        mounted = self.router.table(actor.context.zone_id)
        writes = [self._write_target(operation, request, actor) for request in requests]
        if len(writes) != 1:
            _check_batch(writes)
        contents: list[Content | None] = []
        try:
            if len(writes) == 1:
                (write,) = writes
                contents.append(write.volume.prepare(operation, write.relative, write.request))
            else:
                for volume, some in groupby(writes, key=attrgetter("volume")):
                    pairs = [(write.relative, write.request) for write in some]
                    contents += volume.prepare_many(operation, pairs)
            for volume in {w.volume for w, c in zip(writes, contents, strict=True) if c}:
                volume.settle()
            return self._creating(
                operation,
                writes,
                mounted,
                actor,
                lambda txn: self._write_all(txn, operation, writes, contents, actor),
            )
        finally:
            for write, content in zip(writes, contents, strict=False):
                if content is not None:
                    write.volume.abandon(content)

    def _write_target(self, operation: str, request: WriteRequest, actor: Actor) -> _Target:
        path = normalize(operation, request.path)
        if type(request.buf) is not bytes:
            request = replace(request, buf=checked_pieces(operation, path, request.buf))
        if request.precondition is not None:
            check_precondition_type(operation, path, request.precondition)
        volume, relative = self._route(operation, path, actor.context.zone_id)
        return _Target(path, volume, relative, request)

    def _write_all(
        self,
        txn: Transaction,
        operation: str,
        writes: list[_Target],
        contents: list[Content | None],
        actor: Actor,
    ) -> list[Stat]:
        zone_id = actor.context.zone_id
        for path, _, _, request in writes:
            if request.precondition is not None:
                self.waiting.require(txn, operation, path, request.precondition, zone_id)
        answers = [
            write.volume.write(txn, operation, write.relative, write.request, content, actor)
            for write, content in zip(writes, contents, strict=True)
        ]
        if answers:
            revision = txn.commit(durable=self._durable)
            for answer in answers:
                answer["revision"] = revision
        return answers

    def _creating(
        self,
        operation: str,
        targets: Sequence[_Target],
        mounted: object,
        actor: Actor,
        change: Callable[[Transaction], T],
    ) -> T:
        """Run ``change`` with each path locked, or the topmost directory missing above it.

        Two writers that need the same new directory so take turns. What is missing is looked up
        under the lock only, so that it stays so; where it is more than a name, more is locked.
        ``mounted`` is the mount table by which the targets were routed.
        """
        zone_id = actor.context.zone_id
        wanted = {_lock_key(zone_id, target.path) for target in targets}
        while True:
            with self._locked_all(wanted), Transaction(self.store) as txn:
                if self._closed or self.router.table(zone_id) is not mounted:
                    self._check_still_routed(operation, targets, zone_id)
                # What is missing above a path is the same for all in one directory.
                places = {
                    (volume, parent(relative)): relative
                    for _, volume, relative, request in targets
                    if request.create and request.parents
                }
                needed = {
                    _lock_key(zone_id, volume.absolute(top))
                    for (volume, _), relative in places.items()
                    if (top := volume.first_missing(relative)) != relative
                }
                if all(any(is_same_or_below(lock, held) for held in wanted) for lock in needed):
                    return change(txn)
            wanted |= needed

    def _check_still_routed(self, operation: str, targets: Sequence[_Target], zone_id: str) -> None:
        for path, volume, _, _ in targets:
            if self._route(operation, path, zone_id)[0] is not volume:
                raise BusyError(operation, path, "the mount changed meanwhile", hint="retry")

    def sys_copy(self, src: str, dst: str, *, context: OperationContext | None = None) -> Stat:
        src, dst = normalize("copy", src), normalize("copy", dst)
        if COPY in self.dispatch.live:
            copy = CopyContext(src, self._identity(context), dst)
            return self.dispatch.run(
                COPY, copy, lambda c: self._copy(c.path, c.new_path, c.context)
            )
        return self._copy(src, dst, context)

    def _copy(self, src: str, dst: str, context: OperationContext | None) -> Stat:
        src, dst = normalize("copy", src), normalize("copy", dst)
        actor = self._actor(context)
        if src == dst or is_below(dst, src):
            raise InvalidArgumentError("copy", src, f"cannot copy it into itself, at {dst}")
        with self._lock_pair(src, dst, actor, shared_source=True), Transaction(self.store) as txn:
            source, target = self._pair("copy", src, dst, actor)
            if source[0] is target[0]:
                copied = source[0].copy(txn, source[1], target[1], actor)
            else:
                copied, _ = self._transfer("copy", txn, source, target, actor)
            revision = txn.commit(durable=self._durable)
            stat = _stat_after("copy", *target)
        return stat | {"copied": copied, "revision": revision}

    # -- metadata -----------------------------------------------------------------------------

    def sys_stat(
        self, path: str, include_lock: bool = False, *, context: OperationContext | None = None
    ) -> Stat | None:
        if STAT in self.dispatch.live:
            ctx = StatContext(normalize("stat", path), self._identity(context), bool(include_lock))
            return self.dispatch.run(
                STAT, ctx, lambda c: self._stat(c.path, c.context, c.include_lock)
            )
        return self._stat(path, context, include_lock)

    def _stat(
        self, path: str, context: OperationContext | None, include_lock: bool = False
    ) -> Stat | None:
        path = normalize("stat", path)
        zone_id = self._identity(context).zone_id
        try:
            volume, relative = self._route("stat", path, zone_id)
        except PathNotFoundError:
            return None  # a zone in which nothing is mounted
        stat = volume.stat(relative)
        if stat is not None and stat["entry_type"] in CHANNEL_TYPES:
            channel = self._channel("stat", path, zone_id, volume, relative)
            if channel is not None:
                stat |= channel.describe()
        if include_lock and stat is not None:
            stat["locks"] = [hold.as_dict() for hold in self.waiting.locks.holds(zone_id, path)]
        return stat

    def sys_setattr(
        self, path: str, *, context: OperationContext | None = None, **attrs: Any
    ) -> Stat:
        path = normalize("setattr", path)
        if is_below(path, SERVICES_POINT):
            return self._set_service(path, attrs, self._actor(context).context)
        kind = attrs.pop("entry_type", None)
        if kind is None:
            setattr_context = SetattrContext(path, self._identity(context), attrs)
            return self._run(SETATTR, setattr_context, self._update)
        if type(kind) is not int or kind not in range(len(ENTRY_TYPE_NAMES)):
            raise bad_attribute(path, "entry_type", f"{shown(kind)} is no entry type")
        if kind == DT_DIR:
            parents, exist_ok = attrs.pop("parents", False), attrs.pop("exist_ok", False)
            check_no_more(path, attrs)
            mkdir = MkdirContext(path, self._identity(context), bool(parents), bool(exist_ok))
            return self._run(MKDIR, mkdir, self._make_directory)
        if kind == DT_MOUNT:
            backend = attrs.pop("backend", None)
            check_no_more(path, attrs)
            mount = MountContext(path, self._identity(context), backend)
            return self._run(MOUNT, mount, self._mount)
        if kind == DT_REG:
            check_no_more(path, attrs)
            write = WriteContext(path, self._identity(context), create=True)
            write.precondition = Precondition(if_none_match="*")
            return self._run(WRITE, write, self._make_file)
        if kind in CHANNEL_TYPES:
            capacity_bytes = capacity_of(path, kind, attrs)
            mknod = MknodContext(path, self._identity(context), kind, capacity_bytes)
            return self._run(MKNOD, mknod, self._make_channel)
        raise bad_attribute(path, "entry_type", f"{ENTRY_TYPE_NAMES[kind]} cannot be created here")

    def _run(self, point: HookPoint[C, T], ctx: C, call: Callable[[C], T]) -> T:
        return self.dispatch.run(point, ctx, call) if point in self.dispatch.live else call(ctx)

    async def _run_async(
        self, point: HookPoint[C, T], ctx: C, call: Callable[[C], Awaitable[T]]
    ) -> T:
        if point in self.dispatch.live:
            return await self.dispatch.run_async(point, ctx, call)
        return await call(ctx)

    def _update(self, ctx: SetattrContext) -> Stat:
        path, attrs, actor = normalize("setattr", ctx.path), ctx.attrs, self._actor(ctx.context)
        if not attrs:
            raise InvalidArgumentError("setattr", path, "no attribute is given")
        for name, value in attrs.items():
            check_attribute(path, name, value)
        with self._locked(actor, path), Transaction(self.store) as txn:
            volume, relative = self._route("setattr", path, actor.context.zone_id)
            volume.set_attributes(txn, relative, attrs, actor)
            txn.commit(durable=self._durable)
            return _stat_after("setattr", volume, relative)

    def _make_directory(self, ctx: MkdirContext) -> Stat:
        path, actor = normalize("mkdir", ctx.path), self._actor(ctx.context)
        parents, exist_ok = ctx.parents, ctx.exist_ok
        zone_id = actor.context.zone_id
        mounted = self.router.table(zone_id)
        volume, relative = self._route("mkdir", path, zone_id)

        def make(txn: Transaction) -> Stat:
            volume.create_directory(txn, relative, parents, exist_ok, actor)
            if not txn.is_empty:
                txn.commit(durable=self._durable)
            return _stat_after("mkdir", volume, relative)

        target = _Target(path, volume, relative, WriteRequest(path, b"", parents=parents))
        return self._creating("mkdir", [target], mounted, actor, make)

    def _make_file(self, ctx: WriteContext) -> Stat:
        path, actor = normalize("mknod", ctx.path), self._actor(ctx.context)
        request = WriteRequest(path, ctx.buf, parents=False)
        with self._locked(actor, path), Transaction(self.store) as txn:
            volume, relative = self._route("mknod", path, actor.context.zone_id)
            if volume.stat(relative) is not None:
                raise exists("mknod", path)
            content = volume.prepare("mknod", relative, request)
            if content is not None:
                txn.on_finish(lambda: volume.abandon(content))
                volume.settle()
            volume.write(txn, "mknod", relative, request, content, actor)
            txn.commit(durable=self._durable)
            return _stat_after("mknod", volume, relative)

    def _make_channel(self, ctx: MknodContext) -> Stat:
        path, actor = normalize("setattr", ctx.path), self._actor(ctx.context)
        with self._locked(actor, path), Transaction(self.store) as txn:
            volume, relative = self._route("setattr", path, actor.context.zone_id)
            volume.create_channel(txn, relative, ctx.entry_type, ctx.capacity_bytes, actor)
            if not txn.is_empty:
                txn.commit(durable=self._durable)
            record = volume.channel_record(relative)
            if record is None:
                raise missing("setattr", path)
            channel = volume.channels.open(path, record)
            return _stat_after("setattr", volume, relative) | channel.describe()

    def _mount(self, ctx: MountContext) -> Stat:
        path, actor = normalize("mount", ctx.path), self._actor(ctx.context)
        if actor.context.zone_id != self._context.zone_id:
            raise NotSupportedError("mount", path, "only the filesystem's own zone has mounts")
        with self._locked(actor, path):
            self._check_open("mount", path)
            stat = _stat_after("mount", self.mounts.mount(path, ctx.backend, actor), "/")
        if path == "/":
            self.mounts.restore(actor.context, actor.now_ns)
        return stat

    def sys_unlink(
        self, path: str, recursive: bool = False, *, context: OperationContext | None = None
    ) -> Stat:
        path = normalize("unlink", path)
        if is_below(path, SERVICES_POINT):
            check_admin("unlink", path, self._actor(context).context)
            self.services.unregister(path.removeprefix(SERVICES_POINT + "/"))
            return {"path": path, "removed": 1, "revision": self.store.head().revision}
        if {DELETE, RMDIR, UNMOUNT} & self.dispatch.live:
            return self._unlink_hooked(path, recursive, self._identity(context))
        return self._unlink(path, recursive, context)

    def _unlink_hooked(self, path: str, recursive: bool, context: OperationContext) -> Stat:
        """Pass the point of what is there now."""
        if self.router.at(path, context.zone_id) is not None:
            unmount = UnmountContext(path, context)
            return self._run(UNMOUNT, unmount, lambda c: self._unlink(c.path, recursive, c.context))
        stat = self._stat(path, context)
        if stat is not None and stat["is_directory"]:
            rmdir = RmdirContext(path, context, recursive)
            return self._run(RMDIR, rmdir, lambda c: self._unlink(c.path, c.recursive, c.context))
        delete = DeleteContext(path, context, recursive)
        return self._run(DELETE, delete, lambda c: self._unlink(c.path, c.recursive, c.context))

    def _unlink(self, path: str, recursive: bool, context: OperationContext | None) -> Stat:
        path = normalize("unlink", path)
        actor = self._actor(context)
        zone_id = actor.context.zone_id
        with self._locked(actor, path):
            self._check_open("unlink", path)
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
        if RENAME in self.dispatch.live:
            rename = RenameContext(old, self._identity(context), new)
            return self.dispatch.run(
                RENAME, rename, lambda c: self._rename(c.path, c.new_path, c.context)
            )
        return self._rename(old, new, context)

    def _rename(self, old: str, new: str, context: OperationContext | None) -> Stat:
        old, new = normalize("rename", old), normalize("rename", new)
        actor = self._actor(context)
        if is_below(new, old):
            raise InvalidArgumentError("rename", old, f"cannot move it into itself, to {new}")
        with self._lock_pair(old, new, actor, shared_source=False), Transaction(self.store) as txn:
            for path in (old, new):
                self._check_not_mount("rename", path, actor.context.zone_id)
            self._check_no_mount_below("rename", old, actor.context.zone_id)
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
        """Copy to the target, then delete the source; in one commit where both can share one.

        Where they cannot, the target is durable first: a power cut that undoes the arrival must
        not find the source gone.
        """
        moved, departure = self._transfer("rename", txn, source, target, actor)
        if not (source[0].atomic_batch and target[0].atomic_batch):
            target[0].sync()
        if source[0].atomic_batch:
            departure.remove(txn, actor)
            return moved, txn.commit(durable=self._durable)
        txn.commit(durable=True)
        with Transaction(self.store) as second:
            try:
                departure.remove(second, actor)
            except NexusError as error:
                hint = f"a whole copy is at {target[0].absolute(target[1])}"
                raise type(error)("rename", error.path, error.reason, hint=hint) from error
            return moved, second.commit(durable=self._durable)

    def _transfer(
        self,
        operation: str,
        txn: Transaction,
        source: tuple[Volume, str],
        target: tuple[Volume, str],
        actor: Actor,
    ) -> tuple[int, Departure]:
        departure = source[0].send(operation, source[1], is_move=operation == "rename")
        target[0].check_target(operation, target[1], departure.is_directory)
        return target[0].receive(txn, operation, target[1], departure, actor), departure

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
        if READDIR in self.dispatch.live:
            ctx = ReaddirContext(
                _normalize_listed(path),
                self._identity(context),
                bool(recursive),
                limit,
                cursor,
                bool(details),
            )
            return self.dispatch.run(READDIR, ctx, self._readdir)
        identity = self._identity(context)
        return self._readdir(ReaddirContext(path, identity, recursive, limit, cursor, details))

    def _readdir(self, ctx: ReaddirContext) -> DirectoryPage:
        recursive, cursor, details, context = ctx.recursive, ctx.cursor, ctx.details, ctx.context
        path = _normalize_listed(ctx.path)
        limit = page_limit(path, ctx.limit)
        zone_id = self._identity(context).zone_id
        volume, relative = self._route("readdir", path, zone_id)
        if isinstance(volume, SysVolume):
            if recursive:
                raise NotSupportedError("readdir", path, "views are listed one at a time")
            return volume.readdir(relative, limit, cursor, details)
        after = "" if cursor is None else normalize("readdir", cursor)
        query = Query(path, zone_id, bool(recursive), limit, after, bool(details))
        if not recursive and volume.snapshot_entries:
            page = self._page_of_one_scan(volume, relative, query)
            if page is not None:
                return page
        with self.locks.read(_lock_key(zone_id, path)):
            volume, relative = self._route("readdir", path, zone_id)
            self._check_directory(volume, relative, path)
            return self._listings.page(volume, relative, query)

    def _page_of_one_scan(
        self, volume: Volume, relative: str, query: Query
    ) -> DirectoryPage | None:
        """Return a page without a lock, or None where it might show two moments."""
        path, most = query.path, volume.snapshot_entries
        whole = query.limit is None or query.limit > most
        before = self._check_directory(volume, relative, path)
        if whole and (query.details or query.after or query.limit is not None):
            query = query._replace(limit=most)
        page = self._listings.page(volume, relative, query)
        if whole and page.next_cursor is not None:
            return None
        # Moving a directory rewrites its record: an equal revision says that it stayed.
        return page if self._check_directory(volume, relative, path) == before else None

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
        path = normalize("history", path)
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
        self._check_open("lock", path)
        if LOCK in self.dispatch.live:
            path, identity = normalize("lock", path), self._identity(context)
            ctx = LockContext(path, identity, mode, ttl, max_holders, lock_id, timeout)
            return self.dispatch.run(LOCK, ctx, self._lock_hooked)
        request = LockRequest(path, self._identity(context), mode, ttl, max_holders)
        return self.waiting.lock(request, lock_id, timeout)

    def _lock_hooked(self, ctx: LockContext) -> LockId | None:
        request = _lock_request(ctx)
        return self.dispatch.wait_in(self.waiting.lock, request, ctx.lock_id, ctx.timeout)

    async def _lock_async(
        self,
        path: str,
        mode: str,
        ttl: float,
        max_holders: int | None,
        timeout: float,
        context: OperationContext | None,
    ) -> LockId | None:
        self._check_open("lock", path)
        path, identity = normalize("lock", path), self._identity(context)
        ctx = LockContext(path, identity, mode, ttl, max_holders, None, timeout)
        return await self._run_async(
            LOCK, ctx, lambda c: self.waiting.lock_async(_lock_request(c), c.timeout)
        )

    def sys_unlock(
        self,
        path: str,
        lock_id: str | None = None,
        force: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> bool:
        self._check_open("unlock", path)
        if UNLOCK in self.dispatch.live:
            path = normalize("unlock", path)
            ctx = UnlockContext(path, self._identity(context), lock_id, bool(force))
            return self.dispatch.run(
                UNLOCK,
                ctx,
                lambda c: self.waiting.unlock(c.path, c.context, c.lock_id, c.force),
            )
        return self.waiting.unlock(path, self._identity(context), lock_id, force)

    def sys_watch(
        self,
        path: str,
        timeout: float = WATCH_TIMEOUT_S,
        recursive: bool = False,
        since: int | str | None = None,
        *,
        context: OperationContext | None = None,
    ) -> FileEvent | None:
        self._check_open("watch", path)
        identity = self._identity(context)
        if WATCH in self.dispatch.live:
            path = normalize("watch", path)
            ctx = WatchContext(path, identity, timeout, recursive, since)
            return self.dispatch.run(WATCH, ctx, self._watch_hooked)
        return self.waiting.watch(path, identity, timeout, recursive, since)

    def _watch_hooked(self, ctx: WatchContext) -> FileEvent | None:
        return self.dispatch.wait_in(
            self.waiting.watch,
            ctx.path,
            ctx.context,
            ctx.timeout,
            ctx.recursive,
            ctx.since,
        )

    async def _watch_async(
        self,
        path: str,
        timeout: float,
        recursive: bool,
        since: int | str | None,
        context: OperationContext | None,
    ) -> FileEvent | None:
        self._check_open("watch", path)
        path, identity = normalize("watch", path), self._identity(context)
        ctx = WatchContext(path, identity, timeout, recursive, since)
        return await self._run_async(
            WATCH,
            ctx,
            lambda c: self.waiting.watch_async(c.path, c.context, c.timeout, c.recursive, c.since),
        )

    def _newest_revision(self) -> int:
        self._check_open("watch", None)
        return self.store.head().revision

    # -- lifecycle ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Content first, then a barrier that says so, then the records."""
        self._check_open("sync", None)
        self._sync()

    def _sync(self) -> None:
        with self._syncing:
            commits = self.store.commits
            revision = self.store.head().revision if commits != self._synced_commits else 0
            with self.mounts.unchanging():
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
        if self._is_forked:
            return  # everything behind it is the parent's
        with self._closing:
            if self._closed:
                return
            self.services.close()
            self.dispatch.close()
            while self._before_close:
                self._before_close.pop()()
            self.waiting.close()
            # Every call under way holds a lock beneath its zone's root.
            with self.locks.write(f"/{self._context.zone_id}"):
                self._closed = "the filesystem is closed"
            with ExitStack() as undo:
                for callback in self._on_close:
                    undo.callback(callback)
                undo.callback(self.store.close)
                for volume in self.volumes():
                    undo.callback(volume.close)
                self._sync()
                self.closed_cleanly = True

    def bootstrap(self) -> None:
        """Start the services that were enlisted, in dependency order. Errors: theirs."""
        self._check_open("bootstrap", None)
        self.services.bootstrap()

    def service(self, name: str) -> Any:
        if self._is_forked:
            self._check_open("service", None)
        return self.services.lookup(name)

    def _set_service(self, path: str, attrs: dict[str, Any], context: OperationContext) -> Stat:
        """Enlist a service, or put another instance in its place."""
        check_admin("setattr", path, context)
        name = path.removeprefix(SERVICES_POINT + "/")
        instance, depends_on = attrs.pop("service", None), attrs.pop("depends_on", ())
        check_no_more(path, attrs)
        if instance is None:
            raise bad_attribute(path, "service", "the instance to enlist is missing")
        if self._stat(path, context) is None:
            self.services.enlist(name, instance, depends_on=depends_on)
        else:
            self.services.swap(name, instance)
        return _stat_after("setattr", *self._route("setattr", path, context.zone_id))

    def in_forked_child(self) -> None:
        """Refuse every call from now on: this process is a child of the one that owns it."""
        self._is_forked = True
        self.dispatch.in_forked_child()
        self._closed = f"it was opened by the process {os.getppid()}, which forked this one"

    def on_closing(self, callback: Callable[[], None]) -> None:
        """Call back before anything is closed, last registered first."""
        self._before_close.append(callback)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back after everything is closed, last registered first."""
        self._on_close.append(callback)

    def bind(self, context: OperationContext) -> NexusFilesystem:
        check_context(context)
        return BoundFilesystem(self, context)

    def volumes(self) -> list[Volume]:
        """Return every volume that is mounted and available."""
        mounts = self.router.mounts(self._context.zone_id)
        return [mount.volume for _, mount in mounts if mount.volume is not None]

    def volumes_in_use(self) -> AbstractContextManager[list[Volume]]:
        """Return a block with every available volume, in which none of them can be unmounted."""
        self._check_open("filesystem", None)
        return self.mounts.in_use(self._context.zone_id)

    def _store_content(
        self, path: str, pieces: Iterable[Buffer], context: OperationContext | None
    ) -> str:
        ctx = ContentContext(normalize("content", path), self._identity(context), writing=True)
        etag: str = self._run(CONTENT, ctx, lambda c: self._store_pieces(c.path, pieces, c.context))
        return etag

    def _store_pieces(
        self, path: str, pieces: Iterable[Buffer], context: OperationContext | None
    ) -> str:
        path = normalize("content", path)
        volume, _ = self._route("content", path, self._identity(context).zone_id)
        store = volume.content_store()
        content = store.write_content(checked_pieces("content", path, pieces))
        try:
            volume.settle()
        finally:
            store.unpin(content.etag)
        return content.etag

    def _content_store(self, path: str, context: OperationContext | None) -> ContentStoreABC:
        def store_of(ctx: ContentContext) -> ContentStoreABC:
            path = normalize("content", ctx.path)
            return self._route("content", path, ctx.context.zone_id)[0].content_store()

        ctx = ContentContext(normalize("content", path), self._identity(context))
        store: ContentStoreABC = self._run(CONTENT, ctx, store_of)
        return store

    # -- helpers ------------------------------------------------------------------------------

    def _check_open(self, operation: str, path: str | None) -> None:
        if self._closed:
            hint = "connect() in the process that uses it" if self._is_forked else None
            raise ClosedError(operation, path, self._closed, hint=hint)

    def _identity(self, context: OperationContext | None) -> OperationContext:
        if context is None:
            return self._context
        check_context(context)
        return context

    def _actor(self, context: OperationContext | None) -> Actor:
        self._check_open("filesystem", None)  # before a lock that a fork left held is waited for
        return Actor(self._identity(context), self._clock_ns())

    def _route(self, operation: str, path: str, zone_id: str) -> tuple[Volume, str]:
        if self._closed:
            self._check_open(operation, path)
        mount, point, relative = self.router.route(path, zone_id)
        if mount.volume is None:
            raise StorageError(
                operation,
                path,
                f"the mount {point} is unavailable: {mount.problem}",
                hint="repair what is behind it and reopen, or unmount it",
            )
        return mount.volume, relative

    def _locked(self, actor: Actor, path: str) -> Hold:
        return self.locks.write(_lock_key(actor.context.zone_id, path))

    def _locked_all(self, locks: set[str]) -> Hold | HoldSet:
        if len(locks) == 1:
            return self.locks.write(next(iter(locks)))
        return self.locks.write_many(locks)

    def _lock_pair(self, source: str, target: str, actor: Actor, *, shared_source: bool) -> HoldSet:
        source, target = (_lock_key(actor.context.zone_id, path) for path in (source, target))
        if shared_source:
            return self.locks.copy_pair(source, target)
        return self.locks.write_many((source, target))

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


def _lock_request(ctx: LockContext) -> LockRequest:
    return LockRequest(ctx.path, ctx.context, ctx.mode, ctx.ttl, ctx.max_holders)


def _write_context(request: WriteRequest, context: OperationContext) -> WriteContext:
    return WriteContext(
        normalize("append" if request.append else "write", request.path),
        context,
        request.buf,
        None,
        request.precondition,
        request.create,
        request.parents,
        request.append,
    )


def _normalize_listed(path: str) -> str:
    """Normalize a path to list; what follows a view's prefix may itself be of full length."""
    if isinstance(path, str) and path.startswith(_VERSIONS + "/"):
        return _VERSIONS + normalize("history", path[len(_VERSIONS) :])
    return normalize("readdir", path)


def _lock_key(zone_id: str, path: str) -> str:
    """Return what the VFS lock calls a path; the root covers its whole zone."""
    return f"/{zone_id}" if path == "/" else f"/{zone_id}{path}"


def _check_batch(writes: list[_Target]) -> None:
    seen = set()
    for path, volume, _, _ in writes:
        if path in seen:
            raise InvalidArgumentError("write_batch", path, "the path is in the batch twice")
        seen.add(path)
        if not volume.atomic_batch:
            raise NotSupportedError(
                "write_batch",
                path,
                f"the mount {volume.point} cannot take part in one commit with others",
                hint="write its files one by one",
            )


def _stat_after(operation: str, volume: Volume, relative: str) -> Stat:
    """Return what a call has made; its locks are still held, so nobody has changed it since."""
    stat = volume.stat(relative)
    if stat is None:  # behind a path-addressed mount others may
        raise missing(operation, volume.absolute(relative))
    return stat
