"""VFSLockManager: the per-path shared/exclusive lock that one system call holds.

Layer: core, a kernel primitive in memory; users never see it, a crash releases it. Not the
advisory lock. Unix counterpart: ``inode->i_rwsem``.

Invariants:

1. An exclusive hold on a path excludes every other hold on the path, above it and beneath it; a
   shared hold excludes exclusive ones there.
2. Waiters are served in order: nobody is granted past an earlier waiter it conflicts with, but
   who holds one path of a set already. The earlier waiter may be waiting for just that one.
3. Every wait ends: granted, or LockTimeoutError.
4. Who takes several paths takes them in tree order (:func:`nexus.lib.paths.tree_order`), which
   admits no cycle even though a hold also covers what lies beneath. Plain string order does:
   ``/a-`` sorts between ``/a`` and ``/a/k``.

Lock order: ``_mutex`` is a leaf; nothing is called while it is held. ``after_release`` is called
with nothing of this module held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Final

from nexus.contracts.errors import LockTimeoutError
from nexus.lib.lock_order import Level, entering, is_checked, leaving
from nexus.lib.paths import is_same_or_below, tree_order

DEFAULT_TIMEOUT_S: Final = 30.0


def _ancestors(path: str) -> list[str]:
    found = []
    cut = path.rfind("/")
    while cut > 0:
        path = path[:cut]
        found.append(path)
        cut = path.rfind("/")
    return found


class _Waiter:
    __slots__ = ("ancestors", "exclusive", "gate", "granted", "holding", "path")

    def __init__(self, path: str, ancestors: list[str], exclusive: bool, holding: bool) -> None:
        self.path = path
        self.holding = holding
        self.ancestors = ancestors
        self.exclusive = exclusive
        self.granted = False
        self.gate = threading.Lock()
        self.gate.acquire()

    def conflicts(self, path: str, exclusive: bool) -> bool:
        if not (exclusive or self.exclusive):
            return False
        return is_same_or_below(path, self.path) or is_same_or_below(self.path, path)


class Hold:
    """A granted lock, released by leaving its ``with`` block or by :meth:`release`, once."""

    __slots__ = ("_ancestors", "_exclusive", "_manager", "path")

    def __init__(
        self, manager: VFSLockManager, path: str, ancestors: list[str], exclusive: bool
    ) -> None:
        self._manager = manager
        self.path = path
        self._ancestors = ancestors
        self._exclusive = exclusive

    def release(self) -> None:
        """Give the lock back and wake who can go on."""
        self._release()
        self._manager.after_release()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._manager._release(self.path, self._ancestors, self._exclusive)
        self._manager.after_release()

    def _release(self) -> None:
        self._manager._release(self.path, self._ancestors, self._exclusive)


class HoldSet:
    """Several holds, released together in reverse order."""

    __slots__ = ("_holds",)

    def __init__(self, holds: list[Hold]) -> None:
        self._holds = holds

    def __enter__(self) -> HoldSet:
        return self

    def release(self) -> None:
        """Give every lock back."""
        for hold in reversed(self._holds):
            hold._release()
        if self._holds:
            self._holds[0]._manager.after_release()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class VFSLockManager:
    """Grants shared and exclusive holds on canonical paths. Shared by all threads.

    Not reentrant: a thread that waits for its own hold times out.
    """

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self.after_release: Callable[[], None] = _nothing
        """Called by a thread that has let go of what it took in one call."""
        self._mutex = threading.Lock()
        # All guarded by _mutex. _held counts readers, or is -1 for a writer; the two _below maps
        # count, for each directory, the holds (and the exclusive holds) somewhere beneath it.
        self._held: dict[str, int] = {}
        self._below: dict[str, int] = {}
        self._below_exclusive: dict[str, int] = {}
        self._waiters: list[_Waiter] = []

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
            HoldSet(holds).release()
            raise
        return HoldSet(holds)

    def copy_pair(self, source: str, target: str, timeout_s: float | None = None) -> HoldSet:
        """Return a shared hold on ``source`` and an exclusive one on ``target``.

        Where the target covers the source, the exclusive hold alone. Errors: LockTimeoutError.
        """
        if is_same_or_below(source, target):
            return HoldSet([self._acquire(target, True, timeout_s)])
        first, second = sorted((source, target), key=tree_order)
        hold = self._acquire(first, first == target, timeout_s)
        try:
            other = self._acquire(second, second == target, timeout_s, holding=True)
            return HoldSet([hold, other])
        except BaseException:
            hold.release()
            raise

    def held(self) -> dict[str, str]:
        """Return a snapshot of held paths: ``"read"`` or ``"write"`` for each."""
        with self._mutex:
            return {path: "write" if n < 0 else "read" for path, n in self._held.items()}

    def _acquire(
        self, path: str, exclusive: bool, timeout_s: float | None, *, holding: bool = False
    ) -> Hold:
        ancestors = _ancestors(path)
        hold = Hold(self, path, ancestors, exclusive)
        with self._mutex:
            if self._free_locked(path, ancestors, exclusive) and (
                holding
                or not self._waiters
                or not any(waiter.conflicts(path, exclusive) for waiter in self._waiters)
            ):
                self._grant_locked(path, ancestors, exclusive)
                return hold
            waiter = _Waiter(path, ancestors, exclusive, holding)
            self._waiters.append(waiter)
        self._wait(waiter, self._timeout_s if timeout_s is None else timeout_s)
        return hold

    def _wait(self, waiter: _Waiter, timeout_s: float) -> None:
        try:
            if waiter.gate.acquire(timeout=max(timeout_s, 0)):
                return
        except BaseException:
            # Interrupted (KeyboardInterrupt): the hold has no owner who would release it.
            if self._withdraw(waiter):
                VFSLockManager._release(self, waiter.path, waiter.ancestors, waiter.exclusive)
            raise
        if not self._withdraw(waiter):
            kind = "exclusive" if waiter.exclusive else "shared"
            raise LockTimeoutError("lock", waiter.path, f"no {kind} lock within {timeout_s:g} s")

    def _withdraw(self, waiter: _Waiter) -> bool:
        """Stop waiting; return whether the lock was granted in the meantime."""
        with self._mutex:
            if waiter.granted:
                return True
            self._waiters.remove(waiter)
            self._serve_locked()
            return False

    def _free_locked(self, path: str, ancestors: list[str], exclusive: bool) -> bool:
        held = self._held
        if exclusive:
            if path in held or path in self._below:
                return False
            if held:
                for above in ancestors:
                    if above in held:
                        return False
            return True
        if held.get(path, 0) < 0 or path in self._below_exclusive:
            return False
        for above in ancestors:  # noqa: SIM110 - a generator costs more than the whole check
            if held.get(above, 0) < 0:
                return False
        return True

    def _grant_locked(self, path: str, ancestors: list[str], exclusive: bool) -> None:
        below = self._below
        for above in ancestors:
            below[above] = below.get(above, 0) + 1
        if exclusive:
            self._held[path] = -1
            below = self._below_exclusive
            for above in ancestors:
                below[above] = below.get(above, 0) + 1
        else:
            self._held[path] = self._held.get(path, 0) + 1

    def _release(self, path: str, ancestors: list[str], exclusive: bool) -> None:
        with self._mutex:
            readers = self._held[path]
            if readers <= 1:
                del self._held[path]
            else:
                self._held[path] = readers - 1
            _count_down(self._below, ancestors)
            if exclusive:
                _count_down(self._below_exclusive, ancestors)
            if self._waiters:
                self._serve_locked()

    def _serve_locked(self) -> None:
        """Grant every waiter, in order, that conflicts with no hold and no earlier waiter."""
        still: list[_Waiter] = []
        for waiter in self._waiters:
            blocked = not waiter.holding and any(
                earlier.conflicts(waiter.path, waiter.exclusive) for earlier in still
            )
            if blocked or not self._free_locked(waiter.path, waiter.ancestors, waiter.exclusive):
                still.append(waiter)
                continue
            self._grant_locked(waiter.path, waiter.ancestors, waiter.exclusive)
            waiter.granted = True
            waiter.gate.release()
        self._waiters = still


class CheckedVFSLockManager(VFSLockManager):
    """Raises LockOrderError where a thread takes an I/O lock under a lock of a higher level."""

    def _acquire(
        self, path: str, exclusive: bool, timeout_s: float | None, *, holding: bool = False
    ) -> Hold:
        entering(Level.IO)
        try:
            return super()._acquire(path, exclusive, timeout_s, holding=holding)
        except BaseException:
            leaving(Level.IO)
            raise

    def _release(self, path: str, ancestors: list[str], exclusive: bool) -> None:
        super()._release(path, ancestors, exclusive)
        leaving(Level.IO)


def _nothing() -> None:
    pass


def make_vfs_locks(timeout_s: float = DEFAULT_TIMEOUT_S) -> VFSLockManager:
    """Return a lock manager, a checked one where lock order is."""
    return (CheckedVFSLockManager if is_checked() else VFSLockManager)(timeout_s)


def _count_down(counts: dict[str, int], ancestors: list[str]) -> None:
    for above in ancestors:
        left = counts[above] - 1
        if left:
            counts[above] = left
        else:
            del counts[above]
