"""The order in which locks are taken, checked at run time when asked to.

Layer: lib. ``NEXUS_DEBUG_LOCK_ORDER=1``, read when a lock is made, makes checked locks; without
it plain ones are made, and nothing is checked or paid. Unix counterpart: lockdep.

Invariant: a thread takes no lock of a lower level while it holds one of a higher level.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from enum import IntEnum

from nexus.contracts.errors import LockOrderError

VARIABLE = "NEXUS_DEBUG_LOCK_ORDER"


class Level(IntEnum):
    """Kinds of locks, in the order in which one thread may take them."""

    IO = 1
    ADVISORY = 2
    ASYNCIO = 3
    THREAD = 4


class _Held(threading.local):
    def __init__(self) -> None:
        self.levels: list[Level] = []


_held = _Held()


def is_checked() -> bool:
    """Return whether locks made now are to be checked ones."""
    return os.environ.get(VARIABLE) == "1"


def check_order(level: Level) -> None:
    """Raise where this thread may not take a lock of a level. Errors: LockOrderError."""
    highest = max(_held.levels, default=level)
    if highest > level:
        raise LockOrderError(
            "lock", None, f"a lock of level {level.name} is taken under one of {highest.name}"
        )


class _CheckedLock:
    """A mutex that notes who holds it at which level."""

    def __init__(self, level: Level) -> None:
        self._level = level
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        check_order(self._level)
        self._lock.acquire()
        _held.levels.append(self._level)

    def __exit__(self, *exc_info: object) -> None:
        _held.levels.remove(self._level)
        self._lock.release()


def ordered_lock(level: Level) -> AbstractContextManager[object]:
    """Return a new mutex of a level."""
    return _CheckedLock(level) if is_checked() else threading.Lock()
