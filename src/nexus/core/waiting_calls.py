"""WaitingCalls: the part of the system calls that can wait, advisory locks and watches.

Layer: core, between the system calls and their primitives. It checks arguments, asks the lock
manager and the watcher of one filesystem, and puts lock tokens into transactions. Paths are
canonical, and whether the filesystem is open its owner has settled. Holds no lock while it waits.
Unix counterparts: the system call halves of ``fs/locks.c`` and ``fs/notify``.
"""

from __future__ import annotations

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import InvalidArgumentError, shown
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import Precondition
from nexus.contracts.lock_manager import LockHold, LockId, LockManagerABC, LockRequest
from nexus.core.file_watcher import FileWatcher
from nexus.core.inode_table import Transaction
from nexus.core.lock_manager import stale_token
from nexus.lib.steps import Steps, step


class WaitingCalls:
    """Advisory locks and watches of one filesystem. Shared by all threads and event loops."""

    def __init__(self, locks: LockManagerABC, watcher: FileWatcher) -> None:
        self.locks = locks
        self.watcher = watcher

    def lock(self, request: LockRequest, lock_id: str | None, timeout_s: float) -> LockId | None:
        """Acquire a lock, or extend the held one that ``lock_id`` names. Errors: as sys_lock."""
        _zone_of("lock", request.path, request.context)
        if lock_id is not None:
            return self._extended(request, lock_id)
        hold = None
        try:
            hold = self.locks.acquire(request, timeout_s)
            return None if hold is None else LockId(hold)
        except BaseException:
            self._give_back(hold, request)
            raise

    def locking(
        self, request: LockRequest, lock_id: str | None, timeout_s: float
    ) -> Steps[LockId | None]:
        """As :meth:`lock`, for a thread or a task."""
        locks = self.locks
        _zone_of("lock", request.path, request.context)
        if lock_id is not None:
            return self._extended(request, lock_id)
        hold = None
        try:
            hold = yield from step(
                lambda: locks.acquire(request, timeout_s),
                lambda: locks.acquire_async(request, timeout_s),
            )
            return _id_of(hold)
        except BaseException:
            self._give_back(hold, request)
            raise

    def _give_back(self, hold: LockHold | None, request: LockRequest) -> None:
        """End a hold of which an interrupted call did not get to tell its caller."""
        if hold is not None:
            self.locks.release(request.context.zone_id, request.path, hold.lock_id)

    def _extended(self, request: LockRequest, lock_id: object) -> LockId | None:
        return _id_of(self.locks.extend(request, _lock_id("lock", request.path, lock_id)))

    def unlock(
        self, path: str, context: OperationContext, lock_id: str | None, force: bool
    ) -> bool:
        """End one hold, or with ``force`` every one; return whether there was any."""
        zone_id = _zone_of("unlock", path, context)
        if force:
            return self.locks.force_release(zone_id, path) > 0
        if lock_id is None:
            raise InvalidArgumentError("unlock", path, "neither lock_id nor force is given")
        return self.locks.release(zone_id, path, _lock_id("unlock", path, lock_id))

    def watching(
        self,
        path: str,
        context: OperationContext,
        timeout_s: float,
        recursive: bool,
        since: int | str | None,
    ) -> Steps[FileEvent | None]:
        """Return the next event, or None when there is none in time. Errors: as sys_watch."""
        return self.watcher.watching(context.zone_id, path, timeout_s, recursive, since)

    def require(
        self,
        txn: Transaction,
        operation: str,
        path: str,
        precondition: Precondition | None,
        zone_id: str,
    ) -> None:
        """Have the commit fail unless the lock that a precondition names still stands."""
        if precondition is not None and precondition.lock_token is not None:
            token = precondition.lock_token
            key = self.locks.proof_of(operation, zone_id, path, token)
            txn.require(key, stale_token(operation, path, token))

    def close(self) -> None:
        """End every wait with ClosedError. Idempotent."""
        self.locks.close()
        self.watcher.close()


def _zone_of(operation: str, path: str, context: OperationContext) -> str:
    """Return the zone whose lock is meant; nothing need be mounted there."""
    zone_id = context.zone_id
    if not zone_id.isprintable():
        raise InvalidArgumentError(operation, path, f"there is no zone {shown(zone_id)}")
    return zone_id


def _lock_id(operation: str, path: str, lock_id: object) -> str:
    if not isinstance(lock_id, str):
        raise InvalidArgumentError(operation, path, f"lock_id is {shown(lock_id)}, not text")
    return lock_id


def _id_of(hold: LockHold | None) -> LockId | None:
    return None if hold is None else LockId(hold)
