"""VFSLockManager: the per-path shared/exclusive lock that one system call holds.

Layer: core, a kernel primitive in memory; users never see it, a crash releases it. Not the
advisory lock. The kernel takes it from :mod:`nexus.core.vfs_locks`, which may choose the twin in
Rust. Unix counterpart: ``inode->i_rwsem``.

Invariants:

1. An exclusive hold on a path excludes every other hold on the path, above it and beneath it; a
   shared hold excludes exclusive ones there.
2. Waiters are served in order: nobody is granted past an earlier waiter it conflicts with, but
   who holds one path of a set already. The earlier waiter may be waiting for just that one.
3. Every wait ends: granted, or LockTimeoutError, or the interrupt that ended it, with nothing
   held. ``_lone`` and ``_held`` alone say what is held: an interrupt while the counts beside them
   change has them made anew.
4. Who takes several paths takes them in tree order (:func:`nexus.lib.paths.tree_order`), which
   admits no cycle even though a hold also covers what lies beneath. Plain string order does:
   ``/a-`` sorts between ``/a`` and ``/a/k``.
5. A hold granted while there is no other, and nobody waits, is the lone one: it is in ``_lone``
   and in no count. While there is a lone hold nothing else is held and nobody waits: who comes
   next counts it first. So a lock that nobody else wants costs the same at any depth.

An interrupt (KeyboardInterrupt, from a signal) may come before or after any step here, also
between a grant and the ``with`` block that would release it. A hold that is dropped without being
released therefore releases itself.

Lock order: ``_mutex`` is a leaf; nothing is called while it is held. ``after_release`` is called
with nothing of this module held, by who released explicitly what it held exclusively: who shares
has changed nothing to tell of, and a hold may be dropped anywhere.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from nexus.contracts.errors import LockTimeoutError
from nexus.lib.paths import is_same_or_below, tree_order

DEFAULT_TIMEOUT_S: Final = 30.0

_EXCLUSIVE: Final = 1 << 32
"""What an exclusive hold adds to a count of holds beneath a directory, besides itself."""


_REMEMBERED_LENGTH: Final = 256
"""Longer directories are not remembered: one may have two thousand directories above it."""


def _ancestors(path: str) -> tuple[str, ...]:
    if path == "/":
        return ()
    directory = path[: path.rfind("/")]
    if len(directory) > _REMEMBERED_LENGTH:
        return _with_ancestors(directory)
    return _remembered_with_ancestors(directory)


def _with_ancestors(directory: str) -> tuple[str, ...]:
    found = []
    while len(directory) > 1:  # it may be "/" itself, where a zone is called so
        found.append(directory)
        directory = directory[: directory.rfind("/")]
    return (*found, "/")


# Calls come by the directory, and to look this up anew is a tenth of what a lock costs.
_remembered_with_ancestors = lru_cache(maxsize=1024)(_with_ancestors)


class _Waiter:
    __slots__ = ("ancestors", "exclusive", "gate", "hold", "holding", "path")

    def __init__(self, hold: Hold, holding: bool) -> None:
        self.hold = hold
        self.path = hold.path
        self.holding = holding
        self.ancestors = hold.ancestors
        self.exclusive = hold.exclusive
        self.gate = threading.Lock()
        self.gate.acquire()

    def conflicts(self, path: str, exclusive: bool) -> bool:
        if not (exclusive or self.exclusive):
            return False
        return is_same_or_below(path, self.path) or is_same_or_below(self.path, path)


class Hold:
    """A granted lock, released by leaving its ``with`` block, by :meth:`release`, or when dropped.

    Releasing it again does nothing. It is made by :meth:`VFSLockManager._acquire` alone, which
    sets its fields itself: the call of an ``__init__`` shows in what so short a step costs.
    """

    __slots__ = ("_manager", "ancestors", "exclusive", "granted", "path")
    _manager: VFSLockManager
    path: str
    ancestors: tuple[str, ...]  # empty until it is one among others
    exclusive: bool
    granted: bool  # guarded by the manager's _mutex

    def release(self, *exc_info: object) -> None:
        """Give the lock back and wake who can go on. Takes what leaving a block tells."""
        manager = self._manager
        manager._release(self)
        if self.exclusive and manager.after_release is not None:
            manager.after_release()

    def __enter__(self) -> Hold:
        return self

    __exit__ = release

    def __del__(self) -> None:
        try:
            if self.granted:
                self._manager._reclaim(self)
        except AttributeError:
            pass  # it was interrupted while it was made
        except BaseException:
            self._manager._dropped.append(self)  # for the next call; twice does no harm
            raise


class HoldSet:
    """Several holds, one of them exclusive at least, released together in reverse order."""

    __slots__ = ("_holds", "_manager")

    def __init__(self, manager: VFSLockManager, holds: list[Hold]) -> None:
        self._manager = manager
        self._holds = holds

    def __enter__(self) -> HoldSet:
        return self

    def release(self) -> None:
        """Give every lock back."""
        self._manager._release_all(self._holds)
        if self._manager.after_release is not None:
            self._manager.after_release()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class VFSLockManager:
    """Grants shared and exclusive holds on canonical paths. Shared by all threads.

    Not reentrant: a thread that waits for its own hold times out.
    """

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self.after_release: Callable[[], object] | None = None
        """Called by a thread that has let go of what it took, some of it exclusively, in a call."""
        self._mutex = threading.Lock()
        # All guarded by _mutex. _lone is the path of the lone hold, and whether it is exclusive.
        # _held counts readers, or is -1 for a writer; _below counts, for each directory, the holds
        # somewhere beneath it, and in its high half the exclusive ones.
        self._lone: tuple[str, bool] | None = None
        self._held: dict[str, int] = {}
        self._below: dict[str, int] = {}
        self._waiters: list[_Waiter] = []
        self._dropped: deque[Hold] = deque()  # appended to without the mutex

    def read(self, path: str, timeout_s: float | None = None) -> Hold:
        """Return a shared hold. Errors: LockTimeoutError."""
        return self._acquire(path, False, timeout_s)

    def write(self, path: str, timeout_s: float | None = None) -> Hold:
        """Return an exclusive hold. Errors: LockTimeoutError."""
        return self._acquire(path, True, timeout_s)

    def write_many(self, paths: Iterable[str], timeout_s: float | None = None) -> HoldSet:
        """Return exclusive holds on all paths; one beneath another is covered by it.

        Errors: LockTimeoutError, with nothing held.
        """
        holds: list[Hold] = []
        try:
            for path in sorted(set(paths), key=tree_order):
                if not holds or not is_same_or_below(path, holds[-1].path):
                    holding = bool(holds)
                    holds.append(self._acquire(path, True, timeout_s, holding=holding))
        except BaseException:
            self._release_all(holds)
            raise
        return HoldSet(self, holds)

    def copy_pair(self, source: str, target: str, timeout_s: float | None = None) -> HoldSet:
        """Return a shared hold on ``source`` and an exclusive one on ``target``.

        Where the target covers the source, the exclusive hold alone. Errors: LockTimeoutError.
        """
        if is_same_or_below(source, target):
            return HoldSet(self, [self._acquire(target, True, timeout_s)])
        first, second = sorted((source, target), key=tree_order)
        hold = self._acquire(first, first == target, timeout_s)
        try:
            other = self._acquire(second, second == target, timeout_s, holding=True)
            return HoldSet(self, [hold, other])
        except BaseException:
            self._release(hold)
            raise

    def held(self) -> dict[str, str]:
        """Return a snapshot of held paths: ``"read"`` or ``"write"`` for each."""
        with self._mutex:
            if self._lone is not None:
                path, exclusive = self._lone
                return {path: "write" if exclusive else "read"}
            return {path: "write" if n < 0 else "read" for path, n in self._held.items()}

    def waiting(self) -> int:
        """Return how many calls wait."""
        with self._mutex:
            return len(self._waiters)

    def _acquire(
        self, path: str, exclusive: bool, timeout_s: float | None, *, holding: bool = False
    ) -> Hold:
        hold = Hold()
        hold._manager, hold.path, hold.ancestors = self, path, ()
        hold.exclusive, hold.granted = exclusive, False
        try:
            with self._mutex:
                if self._lone is None and not (self._held or self._waiters or self._dropped):
                    # One line, without a call in it: an interrupt comes before or after both.
                    hold.granted, self._lone = True, (path, exclusive)
                    return hold
                waiter = self._enter_locked(hold, holding)
                if waiter is None:
                    return hold
            granted = waiter.gate.acquire(timeout=self._patience_s(timeout_s))
        except BaseException:
            self._withdraw(hold)
            raise
        if not granted and not self._withdraw(hold, keep=True):
            kind = "exclusive" if exclusive else "shared"
            waited = self._patience_s(timeout_s)
            raise LockTimeoutError("lock", path, f"no {kind} lock within {waited:g} s")
        return hold

    def _enter_locked(self, hold: Hold, holding: bool) -> _Waiter | None:
        """Grant a hold beside others, or return its place among those who wait."""
        if self._dropped:
            self._release_dropped_locked()
        if self._lone is not None:
            self._count_lone_locked()
        path, exclusive = hold.path, hold.exclusive
        hold.ancestors = ancestors = _ancestors(path)
        if (not self._held or self._free_locked(path, ancestors, exclusive)) and (
            holding
            or not self._waiters
            or not any(waiter.conflicts(path, exclusive) for waiter in self._waiters)
        ):
            self._grant_locked(hold)
            return None
        waiter = _Waiter(hold, holding)
        self._waiters.append(waiter)
        return waiter

    def _count_lone_locked(self) -> None:
        """Make the lone hold one among others."""
        assert self._lone is not None
        path, exclusive = self._lone
        held = {path: -1 if exclusive else 1}
        below = dict.fromkeys(_ancestors(path), _EXCLUSIVE + 1 if exclusive else 1)
        self._held, self._below, self._lone = held, below, None  # one line, as in granting

    def _patience_s(self, timeout_s: float | None) -> float:
        wanted = self._timeout_s if timeout_s is None else timeout_s
        return min(max(wanted, 0), threading.TIMEOUT_MAX)

    def _withdraw(self, hold: Hold, *, keep: bool = False) -> bool:
        """Stop waiting; return whether the lock was granted meanwhile, and is kept."""
        with self._mutex:
            if hold.granted and keep:
                return True
            self._recount_locked()
            self._waiters = [waiter for waiter in self._waiters if waiter.hold is not hold]
            if hold.granted:
                self._take_back_locked(hold)
            self._serve_locked()
            return False

    def _free_locked(self, path: str, ancestors: tuple[str, ...], exclusive: bool) -> bool:
        held = self._held
        if exclusive:
            if path in held or path in self._below:
                return False
            if held:
                for above in ancestors:
                    if above in held:
                        return False
            return True
        if held.get(path, 0) < 0 or self._below.get(path, 0) >= _EXCLUSIVE:
            return False
        for above in ancestors:  # noqa: SIM110 - a generator costs more than the whole check
            if held.get(above, 0) < 0:
                return False
        return True

    def _grant_locked(self, hold: Hold) -> None:
        path, held = hold.path, self._held
        hold.granted, held[path] = True, -1 if hold.exclusive else held.get(path, 0) + 1  # one line
        below, more = self._below, _EXCLUSIVE + 1 if hold.exclusive else 1
        for above in hold.ancestors:
            below[above] = below.get(above, 0) + more

    def _take_back_locked(self, hold: Hold) -> None:
        if self._lone is not None:
            hold.granted, self._lone = False, None  # one line, as in granting
            return
        path, held = hold.path, self._held
        left = 0 if hold.exclusive else held[path] - 1
        hold.granted, held[path] = False, left  # one line, as in granting
        if not left:
            del held[path]
        below, less = self._below, _EXCLUSIVE + 1 if hold.exclusive else 1
        for above in hold.ancestors or _ancestors(path):  # it may have been the lone one
            left = below[above] - less
            if left:
                below[above] = left
            else:
                del below[above]

    def _release(self, hold: Hold) -> None:
        try:
            with self._mutex:
                if hold.granted:
                    self._take_back_locked(hold)
                    if self._waiters:
                        self._serve_locked()
        except BaseException:
            self._withdraw(hold)
            raise

    def _release_all(self, holds: list[Hold]) -> None:
        for hold in reversed(holds):
            self._release(hold)

    def _reclaim(self, hold: Hold) -> None:
        """Release a hold that nobody has any more; may run wherever memory is given back."""
        self._dropped.append(hold)
        if not self._mutex.locked():  # else its holder may be this very thread
            with self._mutex:
                self._release_dropped_locked()

    def _release_dropped_locked(self) -> None:
        while self._dropped:
            hold = self._dropped[0]
            if hold.granted:
                self._take_back_locked(hold)
            else:  # it is there twice, or an interrupt came before it left the queue
                self._recount_locked()
            self._dropped.popleft()
        self._serve_locked()

    def _recount_locked(self) -> None:
        """Make the counts anew from ``_held``, after an interrupt that may have cut a change."""
        self._below = {}
        self._held = {path: count for path, count in self._held.items() if count}
        for path, count in self._held.items():
            more = _EXCLUSIVE + 1 if count < 0 else count
            for above in _ancestors(path):
                self._below[above] = self._below.get(above, 0) + more

    def _serve_locked(self) -> None:
        """Grant every waiter, in order, that conflicts with no hold and no earlier waiter."""
        still: list[_Waiter] = []
        for waiter in self._waiters:
            if waiter.hold.granted:  # an interrupt came before the list was put in place
                if waiter.gate.locked():
                    waiter.gate.release()
                continue
            blocked = not waiter.holding and any(
                earlier.conflicts(waiter.path, waiter.exclusive) for earlier in still
            )
            if blocked or not self._free_locked(waiter.path, waiter.ancestors, waiter.exclusive):
                still.append(waiter)
                continue
            self._grant_locked(waiter.hold)
            waiter.gate.release()
        self._waiters = still
