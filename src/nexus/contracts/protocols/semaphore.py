"""VFSSemaphoreProtocol: a named counting semaphore with holders that expire. Layer: contracts.

Unix counterpart: ``sem_t``, named, extended with holders and a time to live.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import msgspec


class SemaphoreInfo(msgspec.Struct, frozen=True):
    """Who holds a semaphore. ``holders`` maps each holder id to when it expires, in ns."""

    name: str
    max_holders: int
    holders: dict[str, int]
    waiting: int


@runtime_checkable
class VFSSemaphoreProtocol(Protocol):
    """Grants names to holders, in the order in which they asked. Shared by all threads.

    Every hold ends by itself ``ttl_ms`` after it was granted or extended, judged by the clock the
    implementation was given, whenever somebody looks. A name exists while it is held or waited
    for. Each holder states how many holders it bears, itself counted: another is granted while
    there are fewer than the lowest number that any of them stated.
    """

    def acquire(
        self, name: str, max_holders: int = 1, timeout_ms: int = 0, ttl_ms: int = 30_000
    ) -> str | None:
        """Return a new holder id, or None when not granted within ``timeout_ms``; 0 only tries.

        Errors: InvalidArgumentError for a number below its least; ClosedError.
        """

    def release(self, name: str, holder_id: str) -> bool:
        """End a hold; return False where it has ended already."""

    def extend(self, name: str, holder_id: str, ttl_ms: int) -> bool:
        """Let a hold end ``ttl_ms`` from now; return False where it has ended already."""

    def info(self, name: str) -> SemaphoreInfo | None:
        """Return who holds a name, or None where nobody does."""

    def force_release(self, name: str) -> int:
        """End every hold of a name; return how many there were."""
