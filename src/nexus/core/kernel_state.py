"""KernelState: what every system call works on, and the steps that most of them begin with.

Layer: core, beneath the calls and above the tables they use. It says whether the filesystem is
open, where a path leads and what to lock; it makes no call. Unix counterparts: ``current->nsproxy``
and ``struct super_block``.

Paths are canonical and identities checked: both is done where a call enters the kernel, in
:mod:`nexus.core.nexus_fs`, and again where a hook may have changed them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import BusyError, ClosedError, StorageError
from nexus.contracts.filesystem import WriteRequest
from nexus.contracts.metadata import FileMetadata, Stat
from nexus.core.driver_lifecycle_coordinator import DriverLifecycleCoordinator
from nexus.core.inode_table import Transaction
from nexus.core.mounts import Mount, MountManager
from nexus.core.primitives import VFSRouter
from nexus.core.sealed_store import SealedStore
from nexus.core.volume import Actor, Volume, missing, no_channel
from nexus.lib.on_first_use import OnFirstUse
from nexus.lib.paths import is_same_or_below

if TYPE_CHECKING:
    from nexus.core.channels import Channel
    from nexus.core.vfs_lock import Hold, HoldSet, VFSLockManager
    from nexus.core.waiting_calls import WaitingCalls

T = TypeVar("T")


class Target(msgspec.Struct, frozen=True):
    """A path that a call may create, routed."""

    path: str
    volume: Volume
    relative: str
    request: WriteRequest


class KernelState:
    """The tables of one filesystem. Shared by all threads."""

    def __init__(
        self,
        store: SealedStore,
        router: VFSRouter[Mount],
        locks: VFSLockManager,
        mounts: MountManager,
        drivers: DriverLifecycleCoordinator,
        waiting: OnFirstUse[WaitingCalls],
        *,
        own_zone_id: str,
        clock_ns: Callable[[], int],
        durable: bool,
    ) -> None:
        self.store = store
        self.router = router
        self.locks = locks
        self.mounts = mounts
        self.drivers = drivers
        self._waiting = waiting
        self.own_zone_id = own_zone_id
        self.durable = durable
        self.closed = ""  # why every call is refused; empty while none is
        self.is_forked = False
        self._clock_ns = clock_ns

    @property
    def waiting(self) -> WaitingCalls:
        """Advisory locks and watches, made on the first use."""
        return self._waiting()

    # -- whether, and who ---------------------------------------------------------------------

    def check_open(self, operation: str, path: str | None) -> None:
        """Raise ClosedError once the filesystem is closed, or was left to a parent process."""
        if self.closed:
            hint = "connect() in the process that uses it" if self.is_forked else None
            raise ClosedError(operation, path, self.closed, hint=hint)

    def leave_to_parent(self) -> None:
        """Refuse every call from now on: this process is a child of the one that owns it."""
        self.is_forked = True
        self.closed = f"it was opened by the process {os.getppid()}, which forked this one"

    def actor(self, who: OperationContext) -> Actor:
        """Return who changes something, and when. Errors: ClosedError."""
        self.check_open("filesystem", None)  # before a lock that a fork left held is waited for
        return Actor(who, self._clock_ns())

    # -- where --------------------------------------------------------------------------------

    def route(self, operation: str, path: str, zone_id: str) -> tuple[Volume, str]:
        """Return the volume that serves a path, and the path within it.

        Errors: ClosedError; PathNotFoundError for a zone without mounts; StorageError.
        """
        if self.closed:
            self.check_open(operation, path)
        mount, point, relative = self.router.route(path, zone_id)
        if mount.volume is None:
            raise StorageError(
                operation,
                path,
                f"the mount {point} is unavailable: {mount.problem}",
                hint="repair what is behind it and reopen, or unmount it",
            )
        return mount.volume, relative

    def channel_of(
        self, operation: str, path: str, zone_id: str, volume: Volume, record: FileMetadata
    ) -> Channel | None:
        """Return the pipe or stream of a record at a path, opened where need be; None: it is gone.

        Only opening takes a lock, so that nothing is opened that a call is removing.
        """
        channel = volume.channels.find(record)
        if channel is not None:
            return channel
        with self.locks.read(lock_key(zone_id, path)):
            volume, relative = self.route(operation, path, zone_id)
            now = volume.channel_record(relative)
            return None if now is None else volume.channels.open(path, now)

    def channel_to_wait_for(self, operation: str, path: str, zone_id: str) -> Channel:
        """Return the pipe or stream at a path. Errors: PathNotFoundError, NotSupportedError."""
        volume, relative = self.route(operation, path, zone_id)
        record = volume.channel_record(relative)
        if record is not None:
            channel = self.channel_of(operation, path, zone_id, volume, record)
            if channel is not None:
                return channel
        if volume.stat(relative) is None:
            raise missing(operation, path)
        raise no_channel(operation, path)

    # -- what to lock -------------------------------------------------------------------------

    def locked(self, actor: Actor, path: str) -> Hold:
        """Hold a path and all beneath it exclusively for the length of a block."""
        return self.locks.write(lock_key(actor.context.zone_id, path))

    def creating(
        self,
        operation: str,
        targets: Sequence[Target],
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
        wanted = {lock_key(zone_id, target.path) for target in targets}
        while True:
            with self.locked_all(wanted), Transaction(self.store) as txn:
                if self.closed or self.router.table(zone_id) is not mounted:
                    self._check_still_routed(operation, targets, zone_id)
                needed = _topmost_missing(targets, zone_id)
                if not needed or all(
                    any(is_same_or_below(lock, held) for held in wanted) for lock in needed
                ):
                    return change(txn)
            wanted |= needed

    def locked_all(self, locks: set[str]) -> Hold | HoldSet:
        """Hold several lock keys exclusively for the length of a block."""
        if len(locks) == 1:
            return self.locks.write(next(iter(locks)))
        return self.locks.write_many(locks)

    def _check_still_routed(self, operation: str, targets: Sequence[Target], zone_id: str) -> None:
        for target in targets:
            path = target.path
            if self.route(operation, path, zone_id)[0] is not target.volume:
                raise BusyError(operation, path, "the mount changed meanwhile", hint="retry")


def _topmost_missing(targets: Sequence[Target], zone_id: str) -> set[str]:
    """Return the lock keys of the directories to be made, the topmost one above each path."""
    needed: set[str] = set()
    for target in targets:
        if target.request.create and target.request.parents:
            top = target.volume.first_missing(target.relative)
            if top != target.relative:
                needed.add(lock_key(zone_id, target.volume.absolute(top)))
    return needed


def lock_key(zone_id: str, path: str) -> str:
    """Return what the VFS lock calls a path; the root covers its whole zone."""
    return f"/{zone_id}" if path == "/" else f"/{zone_id}{path}"


def stat_after(operation: str, volume: Volume, relative: str) -> Stat:
    """Return what a call has made; its locks are still held, so nobody has changed it since."""
    stat = volume.stat(relative)
    if stat is None:  # behind a path-addressed mount others may
        raise missing(operation, volume.absolute(relative))
    return stat
