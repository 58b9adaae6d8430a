"""EntryPoints: which way a call goes now, straight to the bare call or through its hooks.

Layer: core, between :mod:`nexus.core.nexus_fs` and the calls behind it. It knows hook points by
their names, and of hooked calls only how to get them, once there is a hook: until then nothing of
dispatch is loaded. Unix counterpart: the static keys that patch the LSM calls in.

Invariants:

1. Where nothing is hooked a call meets nothing of dispatch: its entry point is the bare call.
2. Entry points are looked up anew by each system call, so a system call that somebody has kept, as
   a bound method, meets the hooks that are registered later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nexus.contracts.context import OperationContext
from nexus.contracts.file_events import FileEvent
from nexus.contracts.lock_manager import LockId, LockRequest
from nexus.core.content_calls import ContentCalls
from nexus.core.kernel_state import KernelState
from nexus.lib.on_first_use import OnFirstUse

if TYPE_CHECKING:
    from nexus.contracts.vfs_hooks import HookPoint
    from nexus.core.hooked_calls import HookedCalls
    from nexus.core.tree_calls import TreeCalls
    from nexus.lib.steps import Steps

_OF_TREE = (
    *("stat", "readdir", "set_attributes", "make_directory", "make_file", "make_channel"),
    *("mount", "unlink", "rename", "copy"),
)


class EntryPoints:
    """For each call the bare one, or the hooked one while its point is live.

    Shared by all threads: a field is replaced as a whole, and looked up once a call.
    """

    def __init__(
        self,
        kernel: KernelState,
        content: ContentCalls,
        tree: OnFirstUse[TreeCalls],
        hooked: OnFirstUse[HookedCalls],
    ) -> None:
        self._kernel = kernel
        self._content = content
        self._tree = tree
        self._hooked = hooked
        self.choose(())

    def choose(self, live_points: Iterable[HookPoint[Any, Any]]) -> None:
        """Lead the calls of the points that are live through their hooks, and no others."""
        live = {point.name for point in live_points}
        if live:
            self._choose_some(live, self._hooked())
        else:
            self._choose_bare()

    if not TYPE_CHECKING:  # the fields are known from where they are chosen

        def __getattr__(self, name: str) -> Any:
            """Lead the calls on the tree to the bare calls, when the first one comes by."""
            if name not in _OF_TREE:
                raise AttributeError(name)
            tree = self._tree()
            for call in _OF_TREE:
                self.__dict__.setdefault(call, getattr(tree, call))  # what was chosen stays
            return self.__dict__[name]

    def _choose_some(self, live: set[str], hooked: HookedCalls) -> None:
        content, tree = self._content, self._tree()
        is_write, is_content, is_lock = "write" in live, "content" in live, "lock" in live
        self.read = hooked.read if "read" in live else content.read
        self.reading = hooked.reading if "read" in live else content.reading
        self.write_at = hooked.write_at if is_write else content.write_at
        self.write_file = hooked.write_file if is_write else content.write_file
        self.writing = hooked.writing if is_write else content.writing
        self.write_files = hooked.write_files if "batch" in live else content.write_files
        self.store_content = hooked.store_content if is_content else content.store_content
        self.content_store = hooked.content_store if is_content else content.content_store
        self.stat = hooked.stat if "stat" in live else tree.stat
        self.set_attributes = hooked.set_attributes if "setattr" in live else tree.set_attributes
        self.make_directory = hooked.make_directory if "mkdir" in live else tree.make_directory
        self.make_file = hooked.make_file if is_write else tree.make_file
        self.make_channel = hooked.make_channel if "mknod" in live else tree.make_channel
        self.mount = hooked.mount if "mount" in live else tree.mount
        self.unlink = hooked.unlink if live & {"delete", "rmdir", "unmount"} else tree.unlink
        self.rename = hooked.rename if "rename" in live else tree.rename
        self.copy = hooked.copy if "copy" in live else tree.copy
        self.readdir = hooked.readdir if "readdir" in live else tree.readdir
        self.lock = hooked.lock if is_lock else self._lock
        self.locking = hooked.locking if is_lock else self._locking
        self.unlock = hooked.unlock if "unlock" in live else self._unlock
        self.watching = hooked.watching if "watch" in live else self._watching

    def _choose_bare(self) -> None:
        content, tree = self._content, self._tree.made
        self.read, self.reading = content.read, content.reading
        self.write_at, self.writing = content.write_at, content.writing
        self.write_file, self.write_files = content.write_file, content.write_files
        self.store_content, self.content_store = content.store_content, content.content_store
        self.lock, self.locking, self.unlock = self._lock, self._locking, self._unlock
        self.watching = self._watching
        if tree is not None:
            for name in _OF_TREE:
                setattr(self, name, getattr(tree, name))

    # -- the bare calls of what is made when it is used ---------------------------------------

    def _lock(self, request: LockRequest, lock_id: str | None, timeout_s: float) -> LockId | None:
        return self._kernel.waiting.lock(request, lock_id, timeout_s)

    def _locking(
        self, request: LockRequest, lock_id: str | None, timeout_s: float
    ) -> Steps[LockId | None]:
        return self._kernel.waiting.locking(request, lock_id, timeout_s)

    def _unlock(
        self, path: str, context: OperationContext, lock_id: str | None, force: bool
    ) -> bool:
        return self._kernel.waiting.unlock(path, context, lock_id, force)

    def _watching(
        self,
        path: str,
        context: OperationContext,
        timeout_s: float,
        recursive: bool,
        since: int | str | None,
    ) -> Steps[FileEvent | None]:
        return self._kernel.waiting.watching(path, context, timeout_s, recursive, since)
