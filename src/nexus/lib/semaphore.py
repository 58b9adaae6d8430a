"""VFSSemaphore: named counting semaphores in memory, fair, with holders that expire.

Layer: lib. Who holds is in :class:`nexus.lib.holders.Holders`, which has a twin in Rust; who waits
is in a :class:`nexus.lib.waiting.WaitQueue`. Not a kernel primitive: the advisory lock manager and
others build on it. It persists nothing and names no path. Unix counterpart: ``sem_t``.

Invariants:

1. A hold is granted only while there are fewer live ones than any of them, and the new one, bears.
2. Waiters of one name are granted in order, and newcomers queue behind them, even those that
   could be granted at once: who waits for exclusive use is not starved by a stream of shared use.
3. A hold ends when released, forced or expired. Expiry is judged when somebody looks; the first
   waiter looks by itself when a hold becomes due.
4. A hold granted to a wait that was interrupted is released.

Lock order: ``_mutex``, then the mutex of a wait queue.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec

from nexus.contracts.errors import ClosedError, InvalidArgumentError, shown
from nexus.contracts.protocols.semaphore import SemaphoreInfo
from nexus.lib.holders import Holders, make_holders
from nexus.lib.steps import Steps, run, run_async
from nexus.lib.waiting import Waiter, WaitQueue

_NS_PER_MS: Final = 1_000_000
_MOST: Final = (1 << 63) - 1
_LONGEST_TTL_MS: Final = 1 << 42
"""Over a century; the time in ns at which a hold ends so fits 64 bits."""


def new_holder_id() -> str:
    """Return an id that nobody has, and nobody guesses."""
    return os.urandom(16).hex()


class _Request(msgspec.Struct, frozen=True, gc=False):
    holder_id: str
    max_holders: int
    ttl_ms: int


class VFSSemaphore:
    """Implements :class:`~nexus.contracts.protocols.semaphore.VFSSemaphoreProtocol`.

    Who names the ``holder_id`` that a hold is to have, a new one, can release it however the call
    ended: an interrupt may come between the grant and the return.
    """

    def __init__(self, clock_ns: Callable[[], int], holders: Holders | None = None) -> None:
        self._clock_ns = clock_ns
        self._mutex = threading.Lock()
        # This and all below guarded by _mutex. There is a queue where somebody waits.
        self._holders = make_holders() if holders is None else holders
        self._queues: dict[str, WaitQueue[str]] = {}
        self._closed = False

    # -- acquiring ----------------------------------------------------------------------------

    def acquire(
        self,
        name: str,
        max_holders: int = 1,
        timeout_ms: int = 0,
        ttl_ms: int = 30_000,
        holder_id: str | None = None,
    ) -> str | None:
        found = self._enter(name, max_holders, timeout_ms, ttl_ms, holder_id)
        if not isinstance(found, Waiter):
            return found
        return run(self._waiting(name, found, timeout_ms))

    async def acquire_async(
        self,
        name: str,
        max_holders: int = 1,
        timeout_ms: int = 0,
        ttl_ms: int = 30_000,
        holder_id: str | None = None,
    ) -> str | None:
        """As :meth:`acquire`, waiting without a thread."""
        found = self._enter(name, max_holders, timeout_ms, ttl_ms, holder_id)
        if not isinstance(found, Waiter):
            return found
        return await run_async(self._waiting(name, found, timeout_ms))

    def _waiting(self, name: str, waiter: Waiter[str], timeout_ms: int) -> Steps[str | None]:
        try:
            return (yield from waiter.steps(timeout_ms / 1000, partial(self._look, name)))
        finally:
            self._left(name)

    def _enter(
        self, name: str, max_holders: int, timeout_ms: int, ttl_ms: int, holder_id: str | None
    ) -> Waiter[str] | str | None:
        """Return a new holder's id, None for one who does not wait, else a place in the queue."""
        if not (
            type(max_holders) is type(ttl_ms) is type(timeout_ms) is int
            and 1 <= max_holders <= _MOST
            and 1 <= ttl_ms <= _LONGEST_TTL_MS
            and 0 <= timeout_ms <= _MOST
        ):
            _check(name, "max_holders", max_holders, 1)
            _check(name, "ttl_ms", ttl_ms, 1, _LONGEST_TTL_MS)
            _check(name, "timeout_ms", timeout_ms, 0)
        if holder_id is None:
            holder_id = new_holder_id()
        with self._mutex:
            if self._closed:
                raise ClosedError("semaphore", None, "it is closed")
            now_ns = self._clock_ns()
            queue = self._queues.get(name)
            if queue is not None:
                self._serve_locked(name, now_ns)
                queue = self._queues.get(name)
            if queue is None:
                until_ns = now_ns + ttl_ms * _NS_PER_MS
                if self._holders.try_put(name, holder_id, max_holders, until_ns, now_ns):
                    return holder_id
            if not timeout_ms:
                return None
            if queue is None:
                queue = self._queues[name] = WaitQueue(partial(self.release, name))
            return queue.enter(_Request(holder_id, max_holders, ttl_ms))

    def restore(self, name: str, holder_id: str, max_holders: int, expires_at_ns: int) -> None:
        """Take up a hold of an earlier process, as it was granted there."""
        with self._mutex:
            self._holders.put(name, holder_id, min(max_holders, _MOST), min(expires_at_ns, _MOST))

    # -- the rest of a hold's life -------------------------------------------------------------

    def release(self, name: str, holder_id: str) -> bool:
        with self._mutex:
            now_ns = self._clock_ns()
            found = self._holders.remove(name, holder_id, now_ns)
            if name in self._queues:
                self._serve_locked(name, now_ns)
            return found

    def extend(self, name: str, holder_id: str, ttl_ms: int) -> bool:
        _check(name, "ttl_ms", ttl_ms, 1, _LONGEST_TTL_MS)
        with self._mutex:
            now_ns = self._clock_ns()
            until_ns = now_ns + ttl_ms * _NS_PER_MS
            found = self._holders.extend(name, holder_id, until_ns, now_ns)
            self._serve_locked(name, now_ns)
            if found and name in self._queues:
                self._queues[name].nudge()
            return found

    def force_release(self, name: str) -> int:
        with self._mutex:
            now_ns = self._clock_ns()
            self._serve_locked(name, now_ns)
            count = self._holders.clear(name, now_ns)
            self._serve_locked(name, now_ns)
            return count

    def ends_at_ns(self, name: str, holder_id: str) -> int | None:
        """Return when a hold ends, or None where it has ended already."""
        with self._mutex:
            now_ns = self._clock_ns()
            for holder, _, expires_at_ns in self._holders.of(name, now_ns):
                if holder == holder_id:
                    return expires_at_ns
            return None

    def info(self, name: str) -> SemaphoreInfo | None:
        with self._mutex:
            now_ns = self._clock_ns()
            self._serve_locked(name, now_ns)
            holders = self._holders.of(name, now_ns)
            if not holders:
                return None
            queue = self._queues.get(name)
            return SemaphoreInfo(
                name,
                min(max_holders for _, max_holders, _ in holders),
                {holder_id: expires_at_ns for holder_id, _, expires_at_ns in holders},
                0 if queue is None else len(queue),
            )

    def close(self) -> None:
        """End every wait with ClosedError, and refuse to grant any more. Idempotent."""
        with self._mutex:
            self._closed = True
            for queue in self._queues.values():
                queue.close(ClosedError("semaphore", None, "it is closed"))

    # -- under the mutex ----------------------------------------------------------------------

    def _look(self, name: str) -> float | None:
        """End what has expired, grant what can be; return the seconds to the next expiry."""
        with self._mutex:
            now_ns = self._clock_ns()
            self._serve_locked(name, now_ns)
            holders = self._holders.of(name, now_ns)
            if not holders:
                return None
            first_ns = min(expires_at_ns for _, _, expires_at_ns in holders)
            return (first_ns - now_ns) / 1e9

    def _left(self, name: str) -> None:
        """Let those go on who stood behind a waiter that left."""
        with self._mutex:
            self._serve_locked(name, self._clock_ns())
            if name in self._queues:
                self._queues[name].nudge()

    def _serve_locked(self, name: str, now_ns: int) -> None:
        """Grant waiters, in order, as far as there is room."""
        queue = self._queues.get(name)
        if queue is None:
            return
        granted = False
        while (waiter := queue.first()) and self._admits_locked(name, waiter, now_ns):
            granted |= self._grant_locked(name, waiter, now_ns)
        if granted:
            queue.nudge()
        if not queue:
            del self._queues[name]

    def _admits_locked(self, name: str, waiter: Waiter[str], now_ns: int) -> bool:
        request: _Request = waiter.request
        return self._holders.admits(name, request.max_holders, now_ns)

    def _grant_locked(self, name: str, waiter: Waiter[str], now_ns: int) -> bool:
        request: _Request = waiter.request
        if not waiter.wake(request.holder_id):
            return False
        until_ns = now_ns + request.ttl_ms * _NS_PER_MS
        self._holders.put(name, request.holder_id, request.max_holders, until_ns)
        return True


def _check(name: str, what: str, value: int, least: int, most: int = _MOST) -> None:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgumentError(
            "semaphore",
            None,
            f"{what} of {name} is {shown(value)}, not an integer from {least} to {most}",
        )
