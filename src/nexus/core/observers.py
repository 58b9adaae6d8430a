"""ObserverHub: brings committed events to observers, in order, in other threads.

Layer: core, the OBSERVE half of :mod:`nexus.core.dispatch`. It knows observers by their shape
only; it keeps nothing that the journal does not have. Unix counterpart: the queues of fsnotify.

A commit is entered in commit order, while the store's turn is held, and handed out once the
operation that made it has let go of its locks and its POST hooks are done: a commit waits for
those before it, so that every observer sees commit order.

Invariants:

1. An observer gets events in commit order, one at a time, and none before the operation that made
   it has ended.
2. A queue holds at most ``queue_limit`` events; what does not fit is counted, and an ``overflow``
   event stands where it is missing.
3. An observer that takes longer than ``hang_timeout_s`` is reported once; its worker is replaced
   and the others go on.

Locks: ``_mutex`` is a leaf; no observer is called while it is held.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from nexus.contracts.file_events import OVERFLOW, FileEvent
from nexus.contracts.vfs_hooks import VFSObserver

QUEUE_LIMIT: Final = 4096
WORKERS: Final = 2
DRAIN_TIMEOUT_S: Final = 5.0

_log = logging.getLogger(__name__)


class Operation:
    """One mediated call: the commits it makes."""

    __slots__ = ("commits", "outer")

    def __init__(self, outer: Operation | None) -> None:
        self.commits: list[_Commit] = []
        self.outer = outer  # the one that this thread was in before


class _Commit:
    __slots__ = ("events", "released", "revision")

    def __init__(self, events: Sequence[FileEvent]) -> None:
        self.events = events
        self.revision = 0
        self.released = False

    def numbered(self) -> list[FileEvent]:
        return [
            msgspec.structs.replace(event, revision=self.revision, sequence=sequence)
            for sequence, event in enumerate(self.events)
        ]


class _Loss:
    """Stands in a queue for what did not fit."""

    __slots__ = ("count", "last")

    def __init__(self, last: FileEvent) -> None:
        self.count = 1
        self.last = last

    def as_event(self) -> FileEvent:
        last = self.last
        return FileEvent(
            OVERFLOW,
            "/",
            "kernel",
            last.timestamp_ns,
            last.zone_id,
            revision=last.revision,
            size=self.count,
        )


class _Queue:
    """The events on their way to one observer. All fields guarded by the hub's mutex."""

    def __init__(self, owner: str, observer: VFSObserver, kinds: frozenset[str] | None) -> None:
        self.owner = owner
        self.observer = observer
        self.kinds = kinds
        self.waiting: deque[FileEvent | _Loss] = deque()
        self.lost = 0
        self.failed = 0
        self.worker: int | None = None  # the thread that is in the observer now
        self.started = 0.0
        self.overdue = False
        self.closed = False


class ObserverHub:
    """Queues and workers of all observers. Shared by all threads."""

    def __init__(
        self,
        clock: Callable[[], float],
        hang_timeout_s: float,
        *,
        queue_limit: int = QUEUE_LIMIT,
        workers: int = WORKERS,
    ) -> None:
        self._clock = clock
        self._hang_timeout_s = hang_timeout_s
        self._queue_limit = queue_limit
        self._most_workers = workers
        self._local = threading.local()
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        # All guarded by _mutex.
        self._queues: list[_Queue] = []
        self._sequence: deque[_Commit] = deque()
        self._ready: deque[_Queue] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._abandoned = 0
        self._closing = False

    # -- registration -------------------------------------------------------------------------

    def add(self, owner: str, observer: VFSObserver, kinds: frozenset[str] | None) -> None:
        """Bring events to an observer from now on."""
        with self._mutex:
            self._queues.append(_Queue(owner, observer, kinds))

    def remove(self, observer: VFSObserver) -> None:
        """Forget an observer; it is not called any more when this returns.

        Called by the observer itself, or while it hangs, it may still be in its last call.
        """
        me = threading.get_ident()
        with self._changed:
            for queue in [queue for queue in self._queues if queue.observer is observer]:
                queue.closed = True
                queue.waiting.clear()
                self._queues.remove(queue)
                if queue.worker != me:
                    self._wait_until_out_locked(queue)

    def _wait_until_out_locked(self, queue: _Queue) -> None:
        def is_out() -> bool:
            return queue.worker is None or queue.overdue

        if not self._changed.wait_for(is_out, self._hang_timeout_s):
            self._abandon_locked(queue)

    def __len__(self) -> int:
        return len(self._queues)

    def __contains__(self, observer: object) -> bool:
        return any(queue.observer is observer for queue in self._queues)

    def rows(self) -> list[dict[str, Any]]:
        """Return what there is to know of each observer, in registration order."""
        with self._mutex:
            return [
                {
                    "owner": queue.owner,
                    "waiting": len(queue.waiting),
                    "lost": queue.lost,
                    "failed": queue.failed,
                    "overdue": queue.overdue,
                }
                for queue in self._queues
            ]

    # -- commits ------------------------------------------------------------------------------

    def begin(self) -> Operation:
        """Collect what this thread commits until :meth:`end`, which hands it out."""
        operation = self._local.operation = Operation(getattr(self._local, "operation", None))
        return operation

    def end(self, operation: Operation) -> None:
        """Stop collecting, and let observers have what was."""
        self._local.operation = operation.outer
        self.release(operation)

    def tap(self, events: Sequence[FileEvent]) -> Callable[[int], None] | None:
        """Return what to call, within the commit's turn, once these events are committed."""
        operation: Operation | None = getattr(self._local, "operation", None)
        if operation is None:
            return None  # a call that began before the first observer was there
        commit = _Commit(events)
        operation.commits.append(commit)
        return lambda revision: self._enter(commit, revision)

    def _enter(self, commit: _Commit, revision: int) -> None:
        with self._changed:
            commit.revision = revision
            self._sequence.append(commit)
            self._hand_out_locked()

    def release(self, operation: Operation) -> None:
        """Let observers have what an operation committed. Idempotent."""
        if operation.commits:
            with self._changed:
                for commit in operation.commits:
                    commit.released = True
                self._hand_out_locked()

    def _hand_out_locked(self) -> None:
        while self._sequence and self._sequence[0].released:
            for event in self._sequence.popleft().numbered():
                for queue in self._queues:
                    if queue.kinds is None or event.kind in queue.kinds:
                        self._queue_locked(queue, event)
        self._report_overdue_locked()
        self._man_locked()

    def _queue_locked(self, queue: _Queue, event: FileEvent) -> None:
        waiting = queue.waiting
        if len(waiting) >= self._queue_limit:
            queue.lost += 1
            if isinstance(waiting[-1], _Loss):
                waiting[-1].count += 1
                waiting[-1].last = event
                return
            _log.warning("observer of %s: its queue is full, events are dropped", queue.owner)
            waiting.append(_Loss(event))
            return
        waiting.append(event)
        if queue.worker is None and len(waiting) == 1:
            self._ready.append(queue)

    # -- workers ------------------------------------------------------------------------------

    def _man_locked(self) -> None:
        """See to it that somebody takes what is ready."""
        if not self._ready:
            return
        working = len(self._threads) - self._abandoned
        if self._idle == 0 and working < self._most_workers:
            thread = threading.Thread(target=self._work, name="nexus-observer", daemon=True)
            self._threads.add(thread)
            thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while (queue := self._take()) is not None:
            while (event := self._next(queue)) is not None:
                failed = False
                try:
                    queue.observer.on_mutation(event)
                except Exception:  # noqa: BLE001 - the boundary of observer dispatch
                    failed = True
                    _log.exception("observer of %s failed on %s", queue.owner, event)
                if self._done(queue, failed):
                    return

    def _take(self) -> _Queue | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._ready or self._closing)
            self._idle -= 1
            if self._ready:
                return self._ready.popleft()
            self._threads.discard(threading.current_thread())
            self._changed.notify_all()
            return None

    def _next(self, queue: _Queue) -> FileEvent | None:
        """Return the next event, and note that its observer is at it."""
        with self._changed:
            if not queue.waiting:
                # Removed since this worker was at the event before, and who removed it waits.
                queue.worker = None
                self._changed.notify_all()
                return None
            if self._ready and queue.worker is not None:
                # Others wait as well: one event each in turn.
                queue.worker = None
                self._ready.append(queue)
                return None
            found = queue.waiting.popleft()
            queue.worker = threading.get_ident()
            queue.started = self._clock()
            return found.as_event() if isinstance(found, _Loss) else found

    def _done(self, queue: _Queue, failed: bool) -> bool:
        """Note that an observer has returned; return whether this worker was replaced."""
        with self._changed:
            was_abandoned = queue.overdue
            queue.failed += failed
            queue.overdue = False
            if was_abandoned or not queue.waiting:
                queue.worker = None
            if was_abandoned:
                self._abandoned -= 1
                self._threads.discard(threading.current_thread())
                if queue.waiting:
                    self._ready.append(queue)
                    self._man_locked()
            self._changed.notify_all()
            return was_abandoned

    def report_overdue(self) -> None:
        """Report observers that hang, and replace the workers they keep."""
        with self._changed:
            self._report_overdue_locked()
            self._man_locked()

    def _report_overdue_locked(self) -> None:
        now = self._clock()
        for queue in self._queues:
            if queue.worker is None or queue.overdue:
                continue
            if now - queue.started > self._hang_timeout_s:
                self._abandon_locked(queue)

    def _abandon_locked(self, queue: _Queue) -> None:
        queue.overdue = True
        self._abandoned += 1
        late_s = self._clock() - queue.started
        _log.error("observer of %s has not returned for %g s", queue.owner, late_s)

    # -- ending -------------------------------------------------------------------------------

    def settle(self, timeout_s: float) -> bool:
        """Return whether every observer has had all that was committed, waiting for it."""
        with self._changed:
            return self._changed.wait_for(self._is_settled_locked, timeout_s)

    def _is_settled_locked(self) -> bool:
        return not self._sequence and all(
            queue.overdue or (queue.worker is None and not queue.waiting) for queue in self._queues
        )

    def close(self) -> None:
        """Hand out what is waiting, for a while, then end the workers."""
        if not self.settle(DRAIN_TIMEOUT_S):
            _log.error("observers have not finished within %g s of closing", DRAIN_TIMEOUT_S)
        with self._changed:
            self._closing = True
            self._ready.clear()
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: len(self._threads) <= self._abandoned, self._hang_timeout_s
            )
