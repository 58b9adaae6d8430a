"""WaitQueue: the one way to wait, in order, with a thread or without.

Layer: lib. Whatever can wait (an advisory lock, a watch, a pipe) keeps its state under a mutex of
its own and its waiters in a queue; the queue knows nothing of what is waited for. Unix
counterpart: ``wait_queue_head_t``.

How an owner uses it: check its state and, finding nothing, :meth:`WaitQueue.enter` under one hold
of its mutex; let go of the mutex; then :meth:`Waiter.wait`, or ``await`` :meth:`Waiter.wait_async`,
or ``yield from`` :meth:`Waiter.steps` in an algorithm for both.
Whoever changes the state wakes waiters under the same mutex, so no change falls between the check
and the wait.

Invariants:

1. A waiter ends once: woken with a value, cancelled, or closed with an error. ``wake`` and
   ``cancel`` say which of two that race came first.
2. Waiters leave in the order in which they entered, but those that cancel.
3. A value is never lost: it is returned by one wait, or ``wake`` returns False and the waker still
   has it, or it goes to ``give_back`` because the wait that it was meant for was interrupted.
4. A wait ends no later than its timeout; a value that comes at that moment is returned.
5. An awaited waiter holds no thread.

Lock order: ``_mutex`` is a leaf below the owner's; no foreign code but an event loop's
``call_soon_threadsafe`` runs while it is held. ``give_back`` and ``alarm`` run without it.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

from nexus.lib.steps import Steps, step

T = TypeVar("T")

Alarm: TypeAlias = Callable[[], float | None]
"""Does what has become due and returns the seconds until more does; None when nothing will."""

_WAITING: Final = 0
_WOKEN: Final = 1
_CANCELLED: Final = 2
_CLOSED: Final = 3


class Waiter(Generic[T]):
    """One place in a queue, used for one wait by one thread or one task."""

    __slots__ = ("_error", "_gate", "_queue", "_signal", "_state", "_value", "request")

    def __init__(self, queue: WaitQueue[T], request: Any) -> None:
        self.request = request
        self._queue = queue
        self._state = _WAITING  # this and all below guarded by the queue's _mutex
        self._value: T | None = None
        self._error: BaseException | None = None
        self._gate: threading.Lock | None = None
        self._signal: Callable[[], bool] | None = None

    def wake(self, value: T) -> bool:
        """End the wait with a value; return False where it has ended already. Never blocks."""
        with self._queue._mutex:
            return self._wake_locked(value)

    def cancel(self) -> bool:
        """Leave the queue; return False where the wait has ended already."""
        with self._queue._mutex:
            if self._state != _WAITING:
                return False
            self._end_locked(_CANCELLED)
            return True

    def wait(self, timeout_s: float | None = None, alarm: Alarm | None = None) -> T | None:
        """Block until woken and return the value, or None once ``timeout_s`` have passed.

        None waits without end, 0 only looks. ``alarm`` is called before each sleep, for what
        becomes due by time alone. Errors: what the queue was closed with.
        """
        clock = self._queue._clock
        deadline = None if timeout_s is None else clock() + timeout_s
        gate = self._shut_gate()
        try:
            while True:
                pause = _pause(deadline, clock, alarm)
                gate.acquire(timeout=-1 if pause is None else min(pause, _LONGEST_S))
                if self._ended():
                    return self._outcome()
                if deadline is not None and clock() >= deadline and self._give_up():
                    return None
        except BaseException:
            self._abandon()
            raise

    async def wait_async(
        self, timeout_s: float | None = None, alarm: Alarm | None = None
    ) -> T | None:
        """As :meth:`wait`, without a thread: the running event loop is told of the wake-up."""
        import asyncio  # at the top it would cost every start of the kernel

        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def signal() -> bool:
            try:
                loop.call_soon_threadsafe(woken.set)
            except RuntimeError:
                return False  # the loop is closed, and the task will never run again
            return True

        deadline = None if timeout_s is None else loop.time() + timeout_s
        self._connect(signal)
        try:
            while True:
                pause = _pause(deadline, loop.time, alarm)
                handle = None if pause is None else loop.call_later(pause, woken.set)
                try:
                    await woken.wait()
                finally:
                    if handle is not None:
                        handle.cancel()
                woken.clear()
                if self._ended():
                    return self._outcome()
                if deadline is not None and loop.time() >= deadline and self._give_up():
                    return None
        except BaseException:
            self._abandon()
            raise

    def steps(self, timeout_s: float | None = None, alarm: Alarm | None = None) -> Steps[T | None]:
        """Wait in whichever of the two forms the driver takes."""
        return step(lambda: self.wait(timeout_s, alarm), lambda: self.wait_async(timeout_s, alarm))

    def _shut_gate(self) -> threading.Lock:
        gate = threading.Lock()
        with self._queue._mutex:
            if self._state == _WAITING:
                gate.acquire()
                self._gate = gate
        return gate

    def _connect(self, signal: Callable[[], bool]) -> None:
        with self._queue._mutex:
            if self._state == _WAITING:
                self._signal = signal
            else:
                signal()

    def _ended(self) -> bool:
        with self._queue._mutex:  # the signal comes before the state changes
            return self._state != _WAITING

    def _give_up(self) -> bool:
        """Leave the queue at the timeout, unless woken at the last moment."""
        return self.cancel() or self._state == _CANCELLED

    def _outcome(self) -> T | None:
        if self._error is not None:
            # Several waiters are closed with one error, and raising writes to its traceback.
            raise copy.copy(self._error)
        return self._value

    def _abandon(self) -> None:
        if not self.cancel() and self._state == _WOKEN:
            self._queue._give_back(cast(T, self._value))

    def _wake_locked(self, value: T) -> bool:
        if self._state != _WAITING:
            return False
        if self._signal is not None and not self._signal():
            self._end_locked(_CANCELLED)
            return False
        self._value = value
        self._end_locked(_WOKEN)
        return True

    def _close_locked(self, error: BaseException) -> None:
        self._error = error
        self._end_locked(_CLOSED)
        if self._signal is not None:
            self._signal()

    def _nudge_locked(self) -> None:
        if self._signal is not None:
            self._signal()
        # Only under the mutex is a gate released, so a shut one stays shut until here.
        if self._gate is not None and self._gate.locked():
            self._gate.release()

    def _end_locked(self, state: int) -> None:
        self._state = state
        del self._queue._waiters[self]
        if self._gate is not None and self._gate.locked():
            self._gate.release()


class WaitQueue(Generic[T]):
    """Waiters in the order in which they came. Shared by all threads and event loops.

    ``give_back`` gets a value whose wait was interrupted (a KeyboardInterrupt, a cancelled task)
    after it was woken: release what was granted, or wake the next. Values are not None.
    """

    def __init__(
        self, give_back: Callable[[T], object], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._give_back = give_back
        self._clock = clock
        self._mutex = threading.Lock()
        self._waiters: OrderedDict[Waiter[T], None] = (
            OrderedDict()
        )  # this and all below guarded by _mutex
        self._closed: BaseException | None = None

    def enter(self, request: Any = None) -> Waiter[T]:
        """Return a new waiter at the end of the queue; ``request`` is what it waits for.

        Errors: what the queue was closed with.
        """
        waiter = Waiter(self, request)
        with self._mutex:
            if self._closed is not None:
                raise copy.copy(self._closed)
            self._waiters[waiter] = None
        return waiter

    def wake_one(self, value: T) -> bool:
        """Wake the first waiter; return False, with the value still the caller's, without one."""
        with self._mutex:
            while self._waiters:
                if next(iter(self._waiters))._wake_locked(value):
                    return True
            return False

    def wake_all(self, value: T) -> int:
        """Wake every waiter with the same value; return how many there were."""
        with self._mutex:
            return sum(waiter._wake_locked(value) for waiter in list(self._waiters))

    def close(self, error: BaseException) -> None:
        """End every wait, and every later :meth:`enter`, with an error. Idempotent."""
        with self._mutex:
            if self._closed is None:
                self._closed = error
                for waiter in list(self._waiters):
                    waiter._close_locked(error)

    def __len__(self) -> int:
        return len(self._waiters)

    def first(self) -> Waiter[T] | None:
        """Return who has waited longest, or None."""
        with self._mutex:
            return next(iter(self._waiters), None)

    def nudge(self) -> None:
        """Have the first waiter, if there is one, call its alarm again: something is due sooner."""
        with self._mutex:
            for waiter in self._waiters:
                waiter._nudge_locked()
                return


_LONGEST_S: Final = min(threading.TIMEOUT_MAX, 86_400.0)
"""One sleep of a gate; a longer wait sleeps again."""


def _pause(deadline: float | None, clock: Callable[[], float], alarm: Alarm | None) -> float | None:
    """Return how long to sleep: to the deadline or the next alarm, None for neither."""
    due = None if alarm is None else alarm()
    if deadline is None:
        return None if due is None else max(due, 0.0)
    left = max(deadline - clock(), 0.0)
    return left if due is None else min(left, max(due, 0.0))
