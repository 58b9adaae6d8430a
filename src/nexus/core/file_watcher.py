"""FileWatcher: waits for changes. The journal remembers them; this module only wakes who waits.

Layer: core, a kernel primitive. An event is in the journal by the commit that it tells of, so a
watch is a read of the journal from a position on, and waiting for it to grow. It keeps no events
and knows no observers of other kinds. Unix counterpart: inotify(7), but resumable.

Invariants:

1. From any position the journal still covers, every committed event that concerns the watched
   path is returned, once, in commit order; a position it does not cover is EventsLost.
2. A watch is registered before it reads the journal, so no commit falls between the two.
3. Nobody is woken before the change's I/O lock is released: the thread that committed tells of it
   when it has let go.
4. A commit costs the watches that it concerns, not those that there are: they are found by path.

Locks: ``_mutex`` guards the table of watches and is a leaf but for the mutex of a wait queue.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from nexus.contracts.errors import ClosedError, EventsLost, InvalidArgumentError, shown
from nexus.contracts.file_events import (
    DIR_DELETE,
    FILE_RENAME,
    MOUNT,
    UNMOUNT,
    FileEvent,
)
from nexus.core.primitives import WatchTable, decode_event
from nexus.core.sealed_store import SCAN_PAGE, SealedStore, revision_key
from nexus.lib.paths import is_below, parent
from nexus.lib.steps import Steps
from nexus.lib.waiting import Waiter, WaitQueue

_WHOLE_REVISION: Final = (1 << 32) - 1
_LAST_REVISION: Final = (1 << 63) - 1
_CURSOR: Final = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})").fullmatch
_FIRST_PAGE: Final = 8
_OF_SUBTREES: Final = frozenset({FILE_RENAME, DIR_DELETE, MOUNT, UNMOUNT})
"""Kinds that stand for everything beneath their path, whatever is watched there."""


class _Interest(NamedTuple):
    zone_id: str
    path: str
    recursive: bool


class _Queue(WaitQueue[bool]):
    """Who waits for the same. A wake-up that nobody takes is no loss: the journal has the event."""

    def __init__(self, interest: _Interest) -> None:
        super().__init__(lambda _: None)
        self.interest = interest


class _Watch:
    """One call that watches: what for, and up to where it has read."""

    __slots__ = ("interest", "position")

    def __init__(self, interest: _Interest, position: tuple[int, int]) -> None:
        self.interest = interest
        self.position = position


class _Pending(threading.local):
    def __init__(self) -> None:
        self.events: list[FileEvent] = []


class FileWatcher:
    """Watches of every path of one store. Shared by all threads and event loops."""

    def __init__(self, store: SealedStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._pending = _Pending()
        self._mutex = threading.Lock()
        self._queues: dict[_Interest, _Queue] = {}  # this and below guarded by _mutex
        # Whatever is interrupted, it has at least what _queues has: no event overlooks who waits.
        self._table: WatchTable[_Queue] = WatchTable()
        self._closed = False
        store.on_announce(self._note)

    # -- waking -------------------------------------------------------------------------------

    def _note(self, events: Sequence[Any]) -> None:
        # With nobody registered there is nobody to wake: who registers now finds it on reading. The
        # table has also what an interrupted call left, which goes with the next event for it.
        if self._table:
            self._pending.events += events

    def emit(self) -> None:
        """Wake who watches for what this thread has committed; it holds no I/O lock any more."""
        events = self._pending.events
        if events:
            with self._mutex:
                for queue in self._concerned_locked(events):
                    # Every wait of the queue ends here, also one whose caller was interrupted
                    # before it could leave.
                    queue.wake_all(True)
                    self._forget_locked(queue)
            events.clear()  # last, so that what interrupts this leaves it to the next call

    def _concerned_locked(self, events: Iterable[FileEvent]) -> list[_Queue]:
        found: dict[_Queue, None] = {}
        for event in events:
            of_subtree = event.kind in _OF_SUBTREES
            about = (event.zone_id, event.path, event.new_path, of_subtree)
            found.update(dict.fromkeys(self._table.concerned(*about)))
        return list(found)

    def _forget_locked(self, queue: _Queue) -> None:
        if self._queues.get(queue.interest) is queue:
            del self._queues[queue.interest]
        self._table.remove(*queue.interest, queue)

    # -- watching -----------------------------------------------------------------------------

    def watching(
        self,
        zone_id: str,
        path: str,
        timeout_s: float,
        recursive: bool,
        since: int | str | None,
    ) -> Steps[FileEvent | None]:
        """Return the next event after ``since``, or None when there is none in time.

        Errors: EventsLost, InvalidArgumentError, ClosedError, CorruptionError.
        """
        watch = self._start(zone_id, path, timeout_s, recursive, since)
        deadline = self._clock() + timeout_s
        while True:
            waiter = self._enter(watch.interest)
            try:
                event = self._next(watch)
                if event is not None:
                    return event
                woken = yield from waiter.steps(max(deadline - self._clock(), 0.0))
                if woken is None:
                    return self._next(watch)  # who committed may have been interrupted
            finally:
                self._leave(watch.interest, waiter)

    def watched(self) -> list[str]:
        """Return the paths that somebody waits for at the moment."""
        return sorted({interest.path for interest in list(self._queues)})

    def rows(self) -> list[dict[str, Any]]:
        """Return what is waited for at the moment, and by how many, sorted by path."""
        with self._mutex:
            waits = [(interest, len(queue)) for interest, queue in self._queues.items()]
        return [
            {"path": at.path, "recursive": at.recursive, "zone_id": at.zone_id, "waiting": waiting}
            for at, waiting in sorted(waits)
        ]

    def close(self) -> None:
        """End every wait with ClosedError, and refuse to begin more. Idempotent."""
        with self._mutex:
            self._closed = True
            for queue in self._queues.values():
                queue.close(ClosedError("watch", None, "the filesystem is closed"))

    def _start(
        self, zone_id: str, path: str, timeout_s: float, recursive: bool, since: int | str | None
    ) -> _Watch:
        number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        if not number or not 0 <= timeout_s <= threading.TIMEOUT_MAX:
            raise InvalidArgumentError("watch", path, f"timeout is {shown(timeout_s)}, not seconds")
        interest = _Interest(zone_id, path, bool(recursive))
        return _Watch(interest, self._position(path, since))

    def _position(self, path: str, since: int | str | None) -> tuple[int, int]:
        if since is None:
            return self._store.head().revision, _WHOLE_REVISION
        if type(since) is int and 0 <= since <= _LAST_REVISION:
            return since, _WHOLE_REVISION
        found = _CURSOR(since) if isinstance(since, str) else None
        if found is not None and int(found[1]) <= _LAST_REVISION:
            return int(found[1]), min(int(found[2]), _WHOLE_REVISION)
        raise InvalidArgumentError(
            "watch", path, f"since is {shown(since)}, neither a revision nor the cursor of an event"
        )

    def _next(self, watch: _Watch) -> FileEvent | None:
        """Return the next event that concerns the watch; without one, note how far it has read."""
        interest = watch.interest
        start = watch.position
        complete = self._store.head().revision
        at, limit = start, _FIRST_PAGE
        found: FileEvent | None = None
        while found is None:
            key = b"J" + revision_key(at[0]) + at[1].to_bytes(4, "big")
            page = self._store.scan(b"J", key, limit)
            for record in page:
                event = decode_event(record)
                at = (event.revision, event.sequence)
                if event.zone_id == interest.zone_id and concerns(event, interest):
                    found = event
                    break
            if len(page) < limit:
                break
            limit = min(limit * 4, SCAN_PAGE)
        self._check_covered(interest.path, start, complete)
        # All of every revision up to this one has been read, whether or not it had events.
        watch.position = max(at, (complete, _WHOLE_REVISION))
        return found

    def _check_covered(self, path: str, start: tuple[int, int], newest: int) -> None:
        """Raise EventsLost unless the journal still has all that follows a position."""
        head = self._store.head()
        revision, sequence = start
        needed = revision + 1 if sequence == _WHOLE_REVISION else revision
        if needed < head.journal_start or revision > newest:
            raise EventsLost(
                "watch",
                path,
                f"the journal does not go back to revision {revision}",
                hint=f"look at what is there now, then watch from revision {head.revision}",
                revision=head.revision,
            )

    def _enter(self, interest: _Interest) -> Waiter[bool]:
        with self._mutex:
            if self._closed:
                raise ClosedError("watch", interest.path, "the filesystem is closed")
            queue = self._queues.get(interest)
            if queue is None:
                queue = _Queue(interest)
                self._table.insert(*interest, queue)
                self._queues[interest] = queue
            return queue.enter()

    def _leave(self, interest: _Interest, waiter: Waiter[bool]) -> None:
        with self._mutex:
            waiter.cancel()
            queue = self._queues.get(interest)
            if queue is not None and not queue:
                self._forget_locked(queue)


def concerns(event: FileEvent, interest: _Interest) -> bool:
    """Return whether an event is about what is watched.

    That is the watched path itself, an entry of it, with ``recursive`` anything beneath it, and
    what happens to a directory above it as a whole.
    """
    watched = interest.path
    for path in _paths_of(event):
        if path == watched or (path != "/" and parent(path) == watched):
            return True
        if interest.recursive and is_below(path, watched):
            return True
        if event.kind in _OF_SUBTREES and is_below(watched, path):
            return True
    return False


def _paths_of(event: FileEvent) -> tuple[str, ...]:
    return (event.path,) if event.new_path is None else (event.path, event.new_path)
