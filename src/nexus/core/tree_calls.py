"""TreeCalls: what is there, and making, changing, moving, removing and listing it.

Layer: core, the calls behind the entry points of :mod:`nexus.core.nexus_fs`. It knows no hook and
no default identity: paths are canonical and identities checked. Volumes keep records, mounts are
:mod:`nexus.core.mounts`, pages are made by :mod:`nexus.core.listing`. Unix counterparts:
``fs/namei.c``, ``fs/stat.c``, ``fs/readdir.c``.

Order of a mutating call: lock (exclusive, released last), route, volume, commit, and the answer
while still locked, so that it shows what this call made. The route is looked up under the lock,
since mounting takes the mount point's exclusive lock. Stat takes no lock: it reads one committed
record. Readdir takes none where one scan gives the page and the directory does not move meanwhile;
else, and where it is recursive, it takes a shared lock for each page, since a rename must not be
seen in half.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    BusyError,
    InvalidArgumentError,
    NexusError,
    NotSupportedError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import WriteRequest
from nexus.contracts.metadata import CHANNEL_TYPES, Buffer, DirectoryPage, Stat
from nexus.core.arguments import check_attribute, page_limit
from nexus.core.inode_table import Transaction
from nexus.core.kernel_state import KernelState, Target, lock_key, stat_after
from nexus.core.listing import Listings, Query
from nexus.core.sys_volume import SYS_POINT, SysVolume
from nexus.core.volume import Actor, Departure, Volume, exists, missing, not_directory
from nexus.lib.paths import is_below, normalize


class TreeCalls:
    """The calls on names and attributes. Shared by all threads; holds no state of its own."""

    def __init__(self, kernel: KernelState) -> None:
        self._kernel = kernel
        self._listings = Listings(kernel.router)

    # -- attributes ---------------------------------------------------------------------------

    def stat(self, path: str, who: OperationContext, include_lock: bool) -> Stat | None:
        """Return the attributes of what is at a path, or None. Errors: as sys_stat."""
        kernel, zone_id = self._kernel, who.zone_id
        try:
            volume, relative = kernel.route("stat", path, zone_id)
        except PathNotFoundError:
            return None  # a zone in which nothing is mounted
        stat = volume.stat(relative)
        if stat is not None and stat["entry_type"] in CHANNEL_TYPES:
            record = volume.channel_record(relative)
            if record is not None:
                channel = kernel.channel_of("stat", path, zone_id, volume, record)
                stat |= {} if channel is None else channel.describe()
        if include_lock and stat is not None:
            stat["locks"] = [hold.as_dict() for hold in kernel.waiting.locks.holds(zone_id, path)]
        return stat

    def set_attributes(self, path: str, who: OperationContext, attrs: dict[str, Any]) -> Stat:
        """Change attributes of what exists. Errors: as sys_setattr."""
        kernel, actor = self._kernel, self._kernel.actor(who)
        if not attrs:
            raise InvalidArgumentError("setattr", path, "no attribute is given")
        for name, value in attrs.items():
            check_attribute(path, name, value)
        with kernel.locked(actor, path), Transaction(kernel.store) as txn:
            volume, relative = kernel.route("setattr", path, who.zone_id)
            volume.set_attributes(txn, relative, attrs, actor)
            txn.commit(durable=kernel.durable)
            return stat_after("setattr", volume, relative)

    # -- making -------------------------------------------------------------------------------

    def make_directory(
        self, path: str, who: OperationContext, parents: bool, exist_ok: bool
    ) -> Stat:
        """Make a directory. Errors: as sys_setattr with DT_DIR."""
        kernel, actor = self._kernel, self._kernel.actor(who)
        mounted = kernel.router.table(who.zone_id)
        volume, relative = kernel.route("mkdir", path, who.zone_id)

        def make(txn: Transaction) -> Stat:
            volume.create_directory(txn, relative, parents, exist_ok, actor)
            if not txn.is_empty:
                txn.commit(durable=kernel.durable)
            return stat_after("mkdir", volume, relative)

        target = Target(path, volume, relative, WriteRequest(path, b"", parents=parents))
        return kernel.creating("mkdir", [target], mounted, actor, make)

    def make_file(
        self, path: str, who: OperationContext, content: Buffer | Iterable[Buffer] = b""
    ) -> Stat:
        """Make a file where nothing is. Errors: as sys_setattr with DT_REG."""
        kernel, actor = self._kernel, self._kernel.actor(who)
        request = WriteRequest(path, content, parents=False)
        with kernel.locked(actor, path), Transaction(kernel.store) as txn:
            volume, relative = kernel.route("mknod", path, who.zone_id)
            if volume.stat(relative) is not None:
                raise exists("mknod", path)
            prepared = volume.prepare("mknod", relative, request)
            if prepared is not None:
                txn.on_finish(lambda: volume.abandon(prepared))
                volume.settle()
            volume.write(txn, "mknod", relative, request, prepared, actor)
            txn.commit(durable=kernel.durable)
            return stat_after("mknod", volume, relative)

    def make_channel(
        self, path: str, who: OperationContext, kind: int, capacity_bytes: int | None
    ) -> Stat:
        """Make a pipe or a stream, or open the one that is there. Errors: as sys_setattr."""
        kernel, actor = self._kernel, self._kernel.actor(who)
        with kernel.locked(actor, path), Transaction(kernel.store) as txn:
            volume, relative = kernel.route("setattr", path, who.zone_id)
            volume.create_channel(txn, relative, kind, capacity_bytes, actor)
            if not txn.is_empty:
                txn.commit(durable=kernel.durable)
            record = volume.channel_record(relative)
            if record is None:
                raise missing("setattr", path)
            channel = volume.channels.open(path, record)
            return stat_after("setattr", volume, relative) | channel.describe()

    def mount(self, path: str, who: OperationContext, backend: Any) -> Stat:
        """Mount a driver, or what a description says. Errors: as sys_setattr with DT_MOUNT."""
        kernel, actor = self._kernel, self._kernel.actor(who)
        if who.zone_id != kernel.own_zone_id:
            raise NotSupportedError("mount", path, "only the filesystem's own zone has mounts")
        with kernel.drivers.telling(), kernel.locked(actor, path):
            kernel.check_open("mount", path)
            stat = stat_after("mount", kernel.mounts.mount(path, backend, actor), "/")
        if path == "/":
            kernel.mounts.restore(who, actor.now_ns)
        return stat

    # -- removing and moving ------------------------------------------------------------------

    def unlink(self, path: str, who: OperationContext, recursive: bool) -> Stat:
        """Remove a file, a directory or a mount. Errors: as sys_unlink."""
        kernel, zone_id = self._kernel, who.zone_id
        actor = kernel.actor(who)
        with kernel.drivers.telling(), kernel.locked(actor, path):
            kernel.check_open("unlink", path)
            if kernel.router.at(path, zone_id) is not None:
                if recursive:
                    raise BusyError("unlink", path, "is a mount point", hint="unmount it first")
                revision = kernel.mounts.unmount(path, actor)
                return {"path": path, "removed": 1, "revision": revision}
            self._check_no_mount_below("unlink", path, zone_id)
            volume, relative = kernel.route("unlink", path, zone_id)
            with Transaction(kernel.store, reclaim=True) as txn:
                removed = volume.remove(txn, relative, recursive, actor)
                revision = txn.commit(durable=kernel.durable)
        return {"path": path, "removed": removed, "revision": revision}

    def rename(self, old: str, new: str, who: OperationContext) -> Stat:
        """Move a file or a whole subtree. Errors: as sys_rename."""
        kernel, zone_id = self._kernel, who.zone_id
        actor = kernel.actor(who)
        if is_below(new, old):
            raise InvalidArgumentError("rename", old, f"cannot move it into itself, to {new}")
        locks = kernel.locks.write_many((lock_key(zone_id, old), lock_key(zone_id, new)))
        with locks, Transaction(kernel.store) as txn:
            for path in (old, new):
                self._check_not_mount("rename", path, zone_id)
            self._check_no_mount_below("rename", old, zone_id)
            source, target = self._pair("rename", old, new, zone_id)
            if old == new:
                renamed, revision = self._rename_onto_itself(source, old)
            elif source[0] is target[0]:
                renamed = source[0].rename(txn, source[1], target[1], actor)
                revision = txn.commit(durable=kernel.durable)
            else:
                renamed, revision = self._move_across(txn, source, target, actor)
        return {"path": new, "old_path": old, "renamed": renamed, "revision": revision}

    def copy(self, src: str, dst: str, who: OperationContext) -> Stat:
        """Copy a file or a whole subtree. Errors: as sys_copy."""
        kernel, zone_id = self._kernel, who.zone_id
        actor = kernel.actor(who)
        if src == dst or is_below(dst, src):
            raise InvalidArgumentError("copy", src, f"cannot copy it into itself, at {dst}")
        locks = kernel.locks.copy_pair(lock_key(zone_id, src), lock_key(zone_id, dst))
        with locks, Transaction(kernel.store) as txn:
            source, target = self._pair("copy", src, dst, zone_id)
            if source[0] is target[0]:
                copied = source[0].copy(txn, source[1], target[1], actor)
            else:
                copied, _ = self._transfer("copy", txn, source, target, actor)
            revision = txn.commit(durable=kernel.durable)
            stat = stat_after("copy", *target)
        return stat | {"copied": copied, "revision": revision}

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
            return moved, txn.commit(durable=self._kernel.durable)
        txn.commit(durable=True)
        with Transaction(self._kernel.store) as second:
            try:
                departure.remove(second, actor)
            except NexusError as error:
                hint = f"a whole copy is at {target[0].absolute(target[1])}"
                raise type(error)("rename", error.path, error.reason, hint=hint) from error
            return moved, second.commit(durable=self._kernel.durable)

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

    def _pair(
        self, operation: str, source: str, target: str, zone_id: str
    ) -> tuple[tuple[Volume, str], tuple[Volume, str]]:
        route = self._kernel.route
        return route(operation, source, zone_id), route(operation, target, zone_id)

    def _check_not_mount(self, operation: str, path: str, zone_id: str) -> None:
        if self._kernel.router.at(path, zone_id) is not None:
            raise BusyError(operation, path, "is a mount point", hint="unmount it first")

    def _check_no_mount_below(self, operation: str, path: str, zone_id: str) -> None:
        points = self._kernel.router.points_below(path, zone_id)
        below = [point for point in points if point != SYS_POINT]
        if below:
            raise BusyError(operation, path, f"{below[0]} is mounted beneath it")

    # -- directories --------------------------------------------------------------------------

    def readdir(
        self,
        path: str,
        who: OperationContext,
        recursive: bool,
        limit: int | None,
        cursor: str | None,
        details: bool,
    ) -> DirectoryPage:
        """Return one page of a directory. Errors: as sys_readdir."""
        kernel, zone_id = self._kernel, who.zone_id
        limit = page_limit(path, limit)
        volume, relative = kernel.route("readdir", path, zone_id)
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
        with kernel.locks.read(lock_key(zone_id, path)):
            volume, relative = kernel.route("readdir", path, zone_id)
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

    def versions(self, path: str, zone_id: str, after_revision: int) -> Iterator[Stat]:
        """Return what was at a path, oldest first. Errors: as sys_readdir of a view."""
        path = normalize("history", path)
        volume, relative = self._kernel.route("history", path, zone_id)
        return volume.versions(relative, after_revision)
