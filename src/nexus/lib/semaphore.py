"""VFSSemaphore: named counting semaphores in memory, fair, with holders that expire.

Layer: lib. Not a kernel primitive: the advisory lock manager and others build on it. It persists
nothing and names no path. Unix counterpart: ``sem_t``.

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
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec

from nexus.contracts.errors import ClosedError, InvalidArgumentError
from nexus.contracts.protocols.semaphore import SemaphoreInfo
from nexus.lib.steps import Steps, run, run_async
from nexus.lib.waiting import Waiter, WaitQueue

_NS_PER_MS: Final = 1_000_000


class _Request(msgspec.Struct, frozen=True, gc=False):
    max_holders: int
    ttl_ms: int


class _Holder(msgspec.Struct, frozen=True, gc=False):
    max_holders: int
    expires_at_ns: int


class _Name:
    """One semaphore. Guarded by the mutex of its :class:`VFSSemaphore`."""

    __slots__ = ("first_expiry_ns", "holders", "queue")

    def __init__(self) -> None:
        self.holders: dict[str, _Holder] = {}
        self.queue: WaitQueue[str] | None = None  # made for the first who has to wait
        self.first_expiry_ns = 0  # no holder expires before it


class VFSSemaphore:
    """Implements :class:`~nexus.contracts.protocols.semaphore.VFSSemaphoreProtocol`."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._mutex = threading.Lock()
        self._names: dict[str, _Name] = {}  # this and all below guarded by _mutex
        self._closed = False

    # -- acquiring ----------------------------------------------------------------------------

    def acquire(
        self, name: str, max_holders: int = 1, timeout_ms: int = 0, ttl_ms: int = 30_000
    ) -> str | None:
        found = self._enter(name, _Request(max_holders, ttl_ms), timeout_ms)
        if not isinstance(found, Waiter):
            return found
        return run(self._waiting(name, found, timeout_ms))

    async def acquire_async(
        self, name: str, max_holders: int = 1, timeout_ms: int = 0, ttl_ms: int = 30_000
    ) -> str | None:
        """As :meth:`acquire`, waiting without a thread."""
        found = self._enter(name, _Request(max_holders, ttl_ms), timeout_ms)
        if not isinstance(found, Waiter):
            return found
        return await run_async(self._waiting(name, found, timeout_ms))

    def _waiting(self, name: str, waiter: Waiter[str], timeout_ms: int) -> Steps[str | None]:
        try:
            return (yield from waiter.steps(timeout_ms / 1000, partial(self._look, name)))
        finally:
            self._left(name)

    def _enter(self, name: str, request: _Request, timeout_ms: int) -> Waiter[str] | str | None:
        """Return a new holder's id, None for one who does not wait, else a place in the queue."""
        _check(name, "max_holders", request.max_holders, 1)
        _check(name, "ttl_ms", request.ttl_ms, 1)
        _check(name, "timeout_ms", timeout_ms, 0)
        with self._mutex:
            if self._closed:
                raise ClosedError("semaphore", None, "it is closed")
            now_ns = self._clock_ns()
            entry = self._live_locked(name, now_ns)
            if entry is None:
                entry = self._names[name] = _Name()
            if not entry.queue and self._admits(entry, request):
                return self._grant_locked(entry, request, now_ns)
            if not timeout_ms:
                return None
            if entry.queue is None:
                entry.queue = WaitQueue(partial(self.release, name))
            return entry.queue.enter(request)

    def restore(self, name: str, holder_id: str, max_holders: int, expires_at_ns: int) -> None:
        """Take up a hold of an earlier process, as it was granted there."""
        with self._mutex:
            entry = self._names.setdefault(name, _Name())
            self._put_locked(entry, holder_id, _Holder(max_holders, expires_at_ns))

    # -- the rest of a hold's life -------------------------------------------------------------

    def release(self, name: str, holder_id: str) -> bool:
        with self._mutex:
            now_ns = self._clock_ns()
            entry = self._live_locked(name, now_ns)
            if entry is None or entry.holders.pop(holder_id, None) is None:
                return False
            self._serve_locked(name, entry, now_ns)
            return True

    def extend(self, name: str, holder_id: str, ttl_ms: int) -> bool:
        _check(name, "ttl_ms", ttl_ms, 1)
        with self._mutex:
            now_ns = self._clock_ns()
            entry = self._live_locked(name, now_ns)
            if entry is None or holder_id not in entry.holders:
                return False
            expires_at_ns = now_ns + ttl_ms * _NS_PER_MS
            holder = entry.holders[holder_id]
            self._put_locked(entry, holder_id, _Holder(holder.max_holders, expires_at_ns))
            if entry.queue:
                entry.queue.nudge()
            return True

    def force_release(self, name: str) -> int:
        with self._mutex:
            now_ns = self._clock_ns()
            entry = self._live_locked(name, now_ns)
            if entry is None:
                return 0
            count = len(entry.holders)
            entry.holders.clear()
            self._serve_locked(name, entry, now_ns)
            return count

    def info(self, name: str) -> SemaphoreInfo | None:
        with self._mutex:
            entry = self._live_locked(name, self._clock_ns())
            if entry is None or not entry.holders:
                return None
            expiries = {i: holder.expires_at_ns for i, holder in entry.holders.items()}
            waiting = 0 if entry.queue is None else len(entry.queue)
            return SemaphoreInfo(name, _least(entry.holders), expiries, waiting)

    def close(self) -> None:
        """End every wait with ClosedError, and refuse to grant any more. Idempotent."""
        with self._mutex:
            self._closed = True
            for entry in self._names.values():
                if entry.queue is not None:
                    entry.queue.close(ClosedError("semaphore", None, "it is closed"))

    # -- under the mutex ----------------------------------------------------------------------

    def _look(self, name: str) -> float | None:
        """End what has expired, grant what can be; return the seconds to the next expiry."""
        with self._mutex:
            now_ns = self._clock_ns()
            entry = self._live_locked(name, now_ns)
            if entry is None or not entry.holders:
                return None
            first = min(holder.expires_at_ns for holder in entry.holders.values())
            return (first - now_ns) / 1e9

    def _left(self, name: str) -> None:
        """Let those go on who stood behind a waiter that left."""
        with self._mutex:
            entry = self._live_locked(name, self._clock_ns())
            if entry is not None and entry.queue:
                entry.queue.nudge()

    def _live_locked(self, name: str, now_ns: int) -> _Name | None:
        """Return a name once it is served, or None where nobody holds it or waits for it."""
        entry = self._names.get(name)
        if entry is None or not self._serve_locked(name, entry, now_ns):
            return None
        return entry

    def _serve_locked(self, name: str, entry: _Name, now_ns: int) -> bool:
        """Drop expired holds, then grant waiters, in order, as far as there is room.

        Returns whether anybody is left; a name that nobody holds or waits for is forgotten.
        """
        if entry.holders and now_ns >= entry.first_expiry_ns:
            live = {i: h for i, h in entry.holders.items() if h.expires_at_ns > now_ns}
            entry.holders = live
            entry.first_expiry_ns = min((h.expires_at_ns for h in live.values()), default=0)
        if entry.queue:
            granted = False
            while (waiter := entry.queue.first()) and self._admits(entry, waiter.request):
                granted |= self._grant_waiter_locked(entry, waiter, now_ns)
            if granted:
                entry.queue.nudge()
        if entry.holders or entry.queue:
            return True
        self._names.pop(name, None)
        return False

    def _grant_waiter_locked(self, entry: _Name, waiter: Waiter[str], now_ns: int) -> bool:
        holder_id = os.urandom(16).hex()
        if not waiter.wake(holder_id):
            return False
        request: _Request = waiter.request
        expires_at_ns = now_ns + request.ttl_ms * _NS_PER_MS
        self._put_locked(entry, holder_id, _Holder(request.max_holders, expires_at_ns))
        return True

    def _grant_locked(self, entry: _Name, request: _Request, now_ns: int) -> str:
        holder_id = os.urandom(16).hex()
        expires_at_ns = now_ns + request.ttl_ms * _NS_PER_MS
        self._put_locked(entry, holder_id, _Holder(request.max_holders, expires_at_ns))
        return holder_id

    def _put_locked(self, entry: _Name, holder_id: str, holder: _Holder) -> None:
        if not entry.holders or holder.expires_at_ns < entry.first_expiry_ns:
            entry.first_expiry_ns = holder.expires_at_ns
        entry.holders[holder_id] = holder

    def _admits(self, entry: _Name, request: _Request) -> bool:
        holders = entry.holders
        if not holders:
            return True
        return len(holders) < min(_least(holders), request.max_holders)


def _least(holders: Mapping[str, _Holder]) -> int:
    """Return how many holders there may be beside the one among them that bears fewest."""
    return min([holder.max_holders for holder in holders.values()])


def _check(name: str, what: str, value: int, least: int) -> None:
    if type(value) is not int or value < least:
        raise InvalidArgumentError(
            "semaphore", None, f"{what} of {name} is {value!r}, not an integer from {least}"
        )
