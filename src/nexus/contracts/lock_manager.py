"""LockManagerABC: advisory locks on paths, for the users of a filesystem. Layer: contracts.

Not the I/O lock that a system call holds for itself. Nothing in the kernel heeds an advisory
lock but a write that names its fencing token. Unix counterpart: fcntl(F_SETLK), with a time to
live and a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

import msgspec

from nexus.contracts.context import OperationContext

EXCLUSIVE: Final = "exclusive"
SHARED: Final = "shared"
COUNTING: Final = "counting"

DEFAULT_TTL_S: Final = 30.0
MAX_TTL_S: Final = 86_400.0
"""The longest time to live: a forgotten lock is gone after a day."""


class LockRequest(msgspec.Struct, frozen=True):
    """What is asked for. ``max_holders`` is for counting locks alone."""

    path: str
    context: OperationContext
    mode: str = EXCLUSIVE
    ttl_s: float = DEFAULT_TTL_S
    max_holders: int | None = None


class LockHold(msgspec.Struct, frozen=True, gc=False):
    """A granted lock. Times are seconds since the Unix epoch.

    ``token`` is the fencing token: the revision of the commit that granted the lock, so it is
    higher than that of every lock granted before, on any path, across restarts.
    """

    path: str
    lock_id: str
    mode: str
    max_holders: int | None
    token: int
    acquired_at: float
    expires_at: float
    user_id: str
    agent_id: str | None
    run_id: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as calls and views show them."""
        return msgspec.structs.asdict(self)


class LockId(str):
    """What ``sys_lock`` returns: the lock id, a str, with the terms it was granted on.

    ``token`` goes into ``write(lock_token=…)``; ``expires_at`` is seconds since the epoch.
    """

    __slots__ = ("expires_at", "token")
    token: int
    expires_at: float

    def __new__(cls, hold: LockHold) -> LockId:
        """Return the id of a hold."""
        lock_id = str.__new__(cls, hold.lock_id)
        lock_id.token = hold.token
        lock_id.expires_at = hold.expires_at
        return lock_id


class LockManagerABC(ABC):
    """Grants advisory locks on the canonical paths of a zone. Shared by all threads.

    A path need not exist. A lock is on the path alone, not on what lies beneath it, and stays
    there when what is at the path moves. Each holder states how many holders it bears, itself
    counted: exclusive 1, shared any number, counting ``max_holders``. Who waits is served in
    order. A hold ends when released, forced or expired; it is granted, extended and ended
    durably, as any other change.
    """

    @abstractmethod
    def acquire(self, request: LockRequest, timeout_s: float = 0.0) -> LockHold | None:
        """Return a new hold, or None when there is no room within ``timeout_s``; 0 only tries.

        Errors: InvalidArgumentError, ClosedError, and those of a commit, with nothing held.
        """

    @abstractmethod
    async def acquire_async(self, request: LockRequest, timeout_s: float = 0.0) -> LockHold | None:
        """As :meth:`acquire`, holding no thread while it waits."""

    @abstractmethod
    def extend(self, request: LockRequest, lock_id: str) -> LockHold | None:
        """Let a hold expire ``request.ttl_s`` from now; return None where it has ended already.

        The token stays. Errors: as :meth:`acquire`.
        """

    @abstractmethod
    def release(self, zone_id: str, path: str, lock_id: str) -> bool:
        """End a hold; return False where it has ended already. Errors: those of a commit."""

    @abstractmethod
    def force_release(self, zone_id: str, path: str) -> int:
        """End every hold of a path; return how many there were. Errors: those of a commit."""

    @abstractmethod
    def holds(self, zone_id: str, path: str | None = None) -> list[LockHold]:
        """Return the live holds of a path, or of all paths, in the order of their tokens."""

    @abstractmethod
    def proof_of(self, operation: str, zone_id: str, path: str, token: int) -> bytes:
        """Return the key of the record that is there as long as the hold with this token stands.

        Nobody else is granted the lock while it is there, so a commit that requires it cannot
        come after such a grant. Errors: ConflictError for a token of no live hold.
        """

    @abstractmethod
    def forget_expired(self) -> int:
        """Remove what is stored of holds that have expired; return how many there were.

        Nothing but space depends on it. Errors: those of a commit.
        """

    @abstractmethod
    def close(self) -> None:
        """End every wait with ClosedError. Holds stay, as stored. Idempotent."""
