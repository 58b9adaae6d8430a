"""ReaderPool: a bounded number of read connections, lent to one thread at a time.

Layer: storage. It opens connections through a function handed in and knows nothing of keys.

Invariants:

1. At most ``limit`` readers are open; a thread that finds none idle waits for one.
2. While paused, none is open, and threads that ask for one wait.

Locks: ``_changed`` guards the counts. ``idle`` is popped and appended without it (both are
atomic), so that taking an idle reader costs no lock: a thread that gives one back looks at
``_waiting`` after appending, and one that waits raises ``_waiting`` before it looks at ``idle``.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nexus.contracts.errors import ClosedError


class ReaderPool:
    """Lends cursors, each with a connection of its own. Shared freely between threads."""

    def __init__(self, open_reader: Callable[[], sqlite3.Cursor], *, limit: int) -> None:
        self._open_reader = open_reader
        self._limit = limit
        self._changed = threading.Condition()
        self.idle: list[sqlite3.Cursor] = []
        self._open = 0  # guard: _changed
        self._waiting = 0  # written under _changed
        self._draining = False  # paused or closed; written under _changed
        self._closed = False  # guard: _changed

    def take(self, operation: str) -> sqlite3.Cursor:
        """Return a reader, waiting while all are lent. Errors: ClosedError; those of opening."""
        try:
            return self.idle.pop()
        except IndexError:
            return self._wait_for_reader(operation)

    def give_back(self, reader: sqlite3.Cursor) -> None:
        """Return a reader to the pool."""
        if self._draining:
            # Straight to its end: put back, another reader could take it for ever.
            with self._changed:
                _end(reader)
                self._open -= 1
                self._changed.notify_all()
            return
        self.idle.append(reader)
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Close every reader, waiting for those lent, and open none until the block ends."""
        with self._changed:
            self._draining = True
            self._close_all_locked()
        try:
            yield
        finally:
            with self._changed:
                self._draining = self._closed
                self._changed.notify_all()

    def close(self) -> None:
        """Close every reader for good, waiting for those lent. Idempotent."""
        with self._changed:
            self._closed = self._draining = True
            self._changed.notify_all()
            self._close_all_locked()

    def _wait_for_reader(self, operation: str) -> sqlite3.Cursor:
        with self._changed:
            self._waiting += 1
            try:
                reader = self._take_or_reserve_locked(operation)
            finally:
                self._waiting -= 1
        return reader if reader is not None else self._open_reserved()

    def _take_or_reserve_locked(self, operation: str) -> sqlite3.Cursor | None:
        while True:
            if self._closed:
                raise ClosedError(operation, None, "the metastore is closed")
            try:
                return self.idle.pop()
            except IndexError:
                if not self._draining and self._open < self._limit:
                    self._open += 1
                    return None
            self._changed.wait()

    def _open_reserved(self) -> sqlite3.Cursor:
        reader = None
        try:
            reader = self._open_reader()
        finally:
            if reader is None:
                with self._changed:
                    self._open -= 1
                    self._changed.notify_all()
        return reader

    def _close_all_locked(self) -> None:
        self._waiting += 1
        try:
            while self._open:
                try:
                    reader = self.idle.pop()
                except IndexError:
                    self._changed.wait()
                else:
                    _end(reader)
                    self._open -= 1
        finally:
            self._waiting -= 1


def _end(reader: sqlite3.Cursor) -> None:
    # The cursor too: a statement that an interrupt left open would keep the connection alive, and
    # what it has locked, for as long as anything, a traceback say, refers to the cursor.
    reader.close()
    reader.connection.close()
