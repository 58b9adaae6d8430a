"""NexusFS: where calls enter the kernel, and its life from boot to close.

Layer: core. A system call here checks the path and who calls, and goes on by its entry point: to
the bare call, or to the hooked one around it, see :mod:`nexus.core.hooked_calls`. What a call does
is in :mod:`nexus.core.content_calls`, :mod:`nexus.core.tree_calls` and
:mod:`nexus.core.waiting_calls`; conveniences are inherited, storage is behind volumes, drivers come
through :mod:`nexus.core.mounts`. Boots with one metastore and no mount. Unix counterpart: the
system call table of a kernel, and its ``start_kernel()``.

Invariant: a path is normalized once on its way, and a second time only where a hook may have
changed it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from nexus.contracts.context import ROOT_ZONE_ID, OperationContext
from nexus.contracts.errors import shown
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.filesystem.syscalls import WATCH_TIMEOUT_S
from nexus.contracts.lock_manager import DEFAULT_TTL_S, EXCLUSIVE, LockId, LockRequest
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
from nexus.contracts.object_store import ContentStoreABC
from nexus.core import fork_guard
from nexus.core.arguments import capacity_of, check_admin, check_context, check_no_more, write_slice
from nexus.core.content_calls import ContentCalls
from nexus.core.driver_lifecycle_coordinator import DriverLifecycleCoordinator, OpenDriver
from nexus.core.entry_points import EntryPoints
from nexus.core.inode_table import Transaction
from nexus.core.kernel_state import KernelState, stat_after
from nexus.core.mounts import Mount, MountManager
from nexus.core.primitives import VFSRouter
from nexus.core.sealed_store import SealedStore, revision_key, revision_of
from nexus.core.sys_volume import SERVICES_POINT, SYS_POINT, SysVolume, normalize_listed
from nexus.core.vfs_locks import make_vfs_locks
from nexus.core.volume import Volume, bad_attribute
from nexus.lib.on_first_use import OnFirstUse
from nexus.lib.paths import is_below, normalize
from nexus.lib.steps import run, run_async

if TYPE_CHECKING:
    from nexus.core.collector import Collector
    from nexus.core.dispatch import KernelDispatch
    from nexus.core.hooked_calls import HookedCalls
    from nexus.core.service_registry import ServiceRegistry
    from nexus.core.tree_calls import TreeCalls
    from nexus.core.waiting_calls import WaitingCalls

_BARRIER_KEY = b"B"


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
        lock_timeout_s: float | None = None,
    ) -> None:
        self.store = SealedStore(metastore)
        self.router: VFSRouter[Mount] = VFSRouter()
        self.locks = make_vfs_locks(lock_timeout_s)
        self._waiting = OnFirstUse(self._make_waiting)
        self._dispatch = OnFirstUse(self._make_dispatch)
        self._collector = OnFirstUse(self._make_collector)
        self.drivers = DriverLifecycleCoordinator(
            self._dispatch, self.store, open_driver, durable=durable
        )
        self.mounts = MountManager(self.router, self.store, self.drivers, durable=durable)
        self._services = OnFirstUse(self._make_services)
        self._is_bootstrapped = False
        self._are_services_closed = False
        self._context = context
        self._clock = clock
        self._clock_ns = clock_ns
        self._kernel = KernelState(
            self.store,
            self.router,
            self.locks,
            self.mounts,
            self.drivers,
            self._waiting,
            own_zone_id=context.zone_id,
            clock_ns=clock_ns,
            durable=durable,
        )
        self._content = ContentCalls(self._kernel)
        self._tree = OnFirstUse(self._make_tree)
        hooked = OnFirstUse(self._make_hooked)
        self._entry = EntryPoints(self._kernel, self._content, self._tree, hooked)
        self.closed_cleanly = False
        self._closing = threading.Lock()
        self._is_closing = False
        self._syncing = threading.Lock()
        self._synced_commits = 0  # guarded by _syncing
        self._before_close: list[Callable[[], None]] = []
        self._on_close: list[Callable[[], None]] = []
        system = SysVolume(
            self.store,
            ROOT_ZONE_ID,
            lambda: self.mounts.rows(ROOT_ZONE_ID),
            lambda path, after: self._tree().versions(path, context.zone_id, after),
            lambda: self.waiting.locks.holds(ROOT_ZONE_ID),
            lambda: self.services.rows(),
            {
                "channels": lambda: [r for volume in self.volumes() for r in volume.channel_rows()],
                "hooks": lambda: self.dispatch.rows(),
                "watches": lambda: self.waiting.watcher.rows(),
            },
        )
        fork_guard.watch(self)
        self.router.add(
            ROOT_ZONE_ID, SYS_POINT, Mount(SYS_POINT, "kernel", "__sys__", system, None)
        )

    # -- what many programs never use, made when it is --------------------------------------------

    @property
    def dispatch(self) -> KernelDispatch:
        """The hooks; while nobody has asked for them there are none."""
        return self._dispatch()

    @property
    def waiting(self) -> WaitingCalls:
        """Advisory locks and watches; what is remembered of locks is read when it is made."""
        return self._waiting()

    @property
    def services(self) -> ServiceRegistry:
        """The services by name."""
        return self._services()

    @property
    def collector(self) -> Collector:
        """What forgets old history and removes content that nothing names."""
        return self._collector()

    def _make_dispatch(self) -> KernelDispatch:
        from nexus.core.dispatch import KernelDispatch  # costs start-up time, as all of these do

        dispatch = KernelDispatch(self.store, self._clock)
        dispatch.on_live = self._entry.choose
        if self._is_closing:
            dispatch.close()
        return dispatch

    def _make_hooked(self) -> HookedCalls:
        from nexus.core.hooked_calls import HookedCalls

        return HookedCalls(self._kernel, self._content, self._tree(), self.dispatch)

    def _make_services(self) -> ServiceRegistry:
        from nexus.core.service_registry import ServiceRegistry

        services = ServiceRegistry(self._dispatch)
        if self._is_bootstrapped:
            services.bootstrap()
        if self._are_services_closed:
            services.close()
        return services

    def _make_tree(self) -> TreeCalls:
        from nexus.core.tree_calls import TreeCalls

        return TreeCalls(self._kernel)

    def _make_waiting(self) -> WaitingCalls:
        from nexus.core.file_watcher import FileWatcher
        from nexus.core.lock_manager import LocalLockManager
        from nexus.core.waiting_calls import WaitingCalls

        advisory = LocalLockManager(self.store, self._clock_ns, durable=self._kernel.durable)
        waiting = WaitingCalls(advisory, FileWatcher(self.store))
        self.locks.after_release = waiting.watcher.emit
        if self._is_closing:
            waiting.close()
        return waiting

    def _make_collector(self) -> Collector:
        from nexus.core.collector import Collector

        return Collector(
            self.store, self.volumes_in_use, self._clock_ns, self._sync, self.waiting.locks
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
        path = normalize("read", path)
        who = self._context if context is None else self._identity(context)
        enter = self._entry.read  # by itself: called as a method it would take longer to find
        return enter(path, who, count, offset, version, timeout)

    async def _read_async(
        self, path: str, offset: int, timeout: float | None, context: OperationContext | None
    ) -> bytes:
        path, who = normalize("read", path), self._identity(context)
        return await run_async(self._entry.reading(path, who, None, offset, None, timeout))

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
        who = self._context if context is None else self._identity(context)
        data = write_slice(path, buf, count)
        return self._entry.write_at(path, who, data, offset, precondition, timeout)

    async def _write_async(
        self, path: str, buf: Buffer, timeout: float | None, context: OperationContext | None
    ) -> Stat:
        path, who = normalize("write", path), self._identity(context)
        data = write_slice(path, buf, None)
        return await run_async(self._entry.writing(path, who, data, 0, None, timeout))

    def _write_many(
        self, requests: Sequence[WriteRequest], context: OperationContext | None
    ) -> list[Stat]:
        who = self._identity(context)
        if len(requests) == 1:
            return [self._entry.write_file(requests[0], who)]
        return self._entry.write_files(requests, who)

    def _store_content(
        self, path: str, pieces: Iterable[Buffer], context: OperationContext | None
    ) -> str:
        path, who = normalize("content", path), self._identity(context)
        return self._entry.store_content(path, who, pieces)

    def _content_store(self, path: str, context: OperationContext | None) -> ContentStoreABC:
        return self._entry.content_store(normalize("content", path), self._identity(context))

    # -- the tree -----------------------------------------------------------------------------

    def sys_stat(
        self, path: str, include_lock: bool = False, *, context: OperationContext | None = None
    ) -> Stat | None:
        who = self._context if context is None else self._identity(context)
        enter = self._entry.stat  # by itself, as in sys_read
        return enter(normalize("stat", path), who, include_lock)

    def sys_setattr(
        self, path: str, *, context: OperationContext | None = None, **attrs: Any
    ) -> Stat:
        path, who = normalize("setattr", path), self._identity(context)
        if is_below(path, SERVICES_POINT):
            return self._set_service(path, attrs, who)
        kind = attrs.pop("entry_type", None)
        if kind is None:
            return self._entry.set_attributes(path, who, attrs)
        if type(kind) is not int or kind not in range(len(ENTRY_TYPE_NAMES)):
            raise bad_attribute(path, "entry_type", f"{shown(kind)} is no entry type")
        if kind == DT_DIR:
            parents, exist_ok = attrs.pop("parents", False), attrs.pop("exist_ok", False)
            check_no_more(path, attrs)
            return self._entry.make_directory(path, who, bool(parents), bool(exist_ok))
        if kind == DT_MOUNT:
            backend = attrs.pop("backend", None)
            check_no_more(path, attrs)
            return self._entry.mount(path, who, backend)
        if kind == DT_REG:
            check_no_more(path, attrs)
            return self._entry.make_file(path, who)
        if kind in CHANNEL_TYPES:
            return self._entry.make_channel(path, who, kind, capacity_of(path, kind, attrs))
        raise bad_attribute(path, "entry_type", f"{ENTRY_TYPE_NAMES[kind]} cannot be created here")

    def sys_unlink(
        self, path: str, recursive: bool = False, *, context: OperationContext | None = None
    ) -> Stat:
        path, who = normalize("unlink", path), self._identity(context)
        if is_below(path, SERVICES_POINT):
            return self._remove_service(path, who)
        return self._entry.unlink(path, who, recursive)

    def sys_rename(self, old: str, new: str, *, context: OperationContext | None = None) -> Stat:
        old, new = normalize("rename", old), normalize("rename", new)
        return self._entry.rename(old, new, self._identity(context))

    def sys_copy(self, src: str, dst: str, *, context: OperationContext | None = None) -> Stat:
        src, dst = normalize("copy", src), normalize("copy", dst)
        return self._entry.copy(src, dst, self._identity(context))

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
        path, who = normalize_listed(path), self._identity(context)
        return self._entry.readdir(path, who, recursive, limit, cursor, details)

    # -- advisory locks and watches -----------------------------------------------------------

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
        return self._entry.lock(request, lock_id, timeout)

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
        return await run_async(self._entry.locking(request, None, timeout))

    def _lock_request(
        self,
        path: str,
        mode: str,
        ttl: float,
        max_holders: int | None,
        context: OperationContext | None,
    ) -> LockRequest:
        self._kernel.check_open("lock", path)
        who = self._context if context is None else self._identity(context)
        return LockRequest(normalize("lock", path), who, mode, ttl, max_holders)

    def sys_unlock(
        self,
        path: str,
        lock_id: str | None = None,
        force: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> bool:
        self._kernel.check_open("unlock", path)
        who = self._context if context is None else self._identity(context)
        return self._entry.unlock(normalize("unlock", path), who, lock_id, force)

    def sys_watch(
        self,
        path: str,
        timeout: float = WATCH_TIMEOUT_S,
        recursive: bool = False,
        since: int | str | None = None,
        *,
        context: OperationContext | None = None,
    ) -> FileEvent | None:
        self._kernel.check_open("watch", path)
        path, who = normalize("watch", path), self._identity(context)
        return run(self._entry.watching(path, who, timeout, recursive, since))

    async def _watch_async(
        self,
        path: str,
        timeout: float,
        recursive: bool,
        since: int | str | None,
        context: OperationContext | None,
    ) -> FileEvent | None:
        self._kernel.check_open("watch", path)
        path, who = normalize("watch", path), self._identity(context)
        return await run_async(self._entry.watching(path, who, timeout, recursive, since))

    def _newest_revision(self) -> int:
        self._kernel.check_open("watch", None)
        return self.store.head().revision

    # -- lifecycle ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Content first, then a barrier that says so, then the records."""
        self._kernel.check_open("sync", None)
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
        if self._kernel.is_forked:
            return  # everything behind it is the parent's
        with self._closing:
            if self._kernel.closed:
                return
            self._are_services_closed = True
            if (services := self._services.existing()) is not None:
                services.close()
            self._is_closing = True  # what is made from now on is closed where it is made
            if (dispatch := self._dispatch.existing()) is not None:
                dispatch.close()
            while self._before_close:
                self._before_close.pop()()
            if (waiting := self._waiting.existing()) is not None:
                waiting.close()
            # Every call under way holds a lock beneath its zone's root.
            with self.locks.write(f"/{self._context.zone_id}"):
                self._kernel.closed = "the filesystem is closed"
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
        self._kernel.check_open("bootstrap", None)
        self._is_bootstrapped = True
        if (services := self._services.existing()) is not None:
            services.bootstrap()

    def service(self, name: str) -> Any:
        if self._kernel.is_forked:
            self._kernel.check_open("service", None)
        return self.services.lookup(name)

    def in_forked_child(self) -> None:
        """Refuse every call from now on: this process is a child of the one that owns it."""
        self._kernel.leave_to_parent()
        if self._dispatch.made is not None:
            self._dispatch.made.in_forked_child()

    def on_closing(self, callback: Callable[[], None]) -> None:
        """Call back before anything is closed, last registered first."""
        self._before_close.append(callback)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back after everything is closed, last registered first."""
        self._on_close.append(callback)

    def bind(self, context: OperationContext) -> NexusFilesystem:
        check_context(context)
        from nexus.core.bound import BoundFilesystem  # costs start-up time

        return BoundFilesystem(self, context)

    def volumes(self) -> list[Volume]:
        """Return every volume that is mounted and available."""
        mounts = self.router.mounts(self._context.zone_id)
        return [mount.volume for _, mount in mounts if mount.volume is not None]

    def volumes_in_use(self) -> AbstractContextManager[list[Volume]]:
        """Return a block with every available volume, in which none of them can be unmounted."""
        self._kernel.check_open("filesystem", None)
        return self.mounts.in_use(self._context.zone_id)

    # -- helpers ------------------------------------------------------------------------------

    def _identity(self, context: OperationContext | None) -> OperationContext:
        if context is None:
            return self._context
        check_context(context)
        return context

    def _set_service(self, path: str, attrs: dict[str, Any], who: OperationContext) -> Stat:
        """Enlist a service, or put another instance in its place."""
        self._kernel.check_open("filesystem", None)
        check_admin("setattr", path, who)
        name = path.removeprefix(SERVICES_POINT + "/")
        instance, depends_on = attrs.pop("service", None), attrs.pop("depends_on", ())
        check_no_more(path, attrs)
        if instance is None:
            raise bad_attribute(path, "service", "the instance to enlist is missing")
        volume, relative = self._kernel.route("setattr", path, who.zone_id)
        if volume.stat(relative) is None:
            self.services.enlist(name, instance, depends_on=depends_on)
        else:
            self.services.swap(name, instance)
        return stat_after("setattr", *self._kernel.route("setattr", path, who.zone_id))

    def _remove_service(self, path: str, who: OperationContext) -> Stat:
        self._kernel.check_open("filesystem", None)
        check_admin("unlink", path, who)
        self.services.unregister(path.removeprefix(SERVICES_POINT + "/"))
        return {"path": path, "removed": 1, "revision": self.store.head().revision}
