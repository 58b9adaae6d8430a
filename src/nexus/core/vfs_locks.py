"""The VFS lock that a kernel makes: the chosen twin, checked where lock order is.

Layer: core, a kernel primitive. It holds nothing itself: :mod:`nexus.core.primitives` chooses,
:mod:`nexus.core.vfs_lock` says what a lock does. Unix counterpart: lockdep.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nexus.core.primitives import VFSLockManager
from nexus.lib.lock_order import Level, check_order, is_checked

if TYPE_CHECKING:
    from nexus.core.vfs_lock import Hold, HoldSet


class CheckedVFSLockManager(VFSLockManager):
    """Raises LockOrderError where a thread takes an I/O lock under a lock of a higher level.

    The I/O lock is of the lowest level, so holding it forbids nothing and is not noted.
    """

    def read(self, path: str, timeout_s: float | None = None) -> Hold:
        check_order(Level.IO)
        return super().read(path, timeout_s)

    def write(self, path: str, timeout_s: float | None = None) -> Hold:
        check_order(Level.IO)
        return super().write(path, timeout_s)

    def write_many(self, paths: Iterable[str], timeout_s: float | None = None) -> HoldSet:
        check_order(Level.IO)
        return super().write_many(paths, timeout_s)

    def copy_pair(self, source: str, target: str, timeout_s: float | None = None) -> HoldSet:
        check_order(Level.IO)
        return super().copy_pair(source, target, timeout_s)


def make_vfs_locks(timeout_s: float | None = None) -> VFSLockManager:
    """Return a lock manager, a checked one where lock order is; None: its own default."""
    manager = CheckedVFSLockManager if is_checked() else VFSLockManager
    return manager() if timeout_s is None else manager(timeout_s)
