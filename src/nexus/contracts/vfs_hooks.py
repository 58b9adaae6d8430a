"""Hook shapes: what can be hooked into the kernel's calls, and how each hook is called.

Layer: contracts. Every shape is here; the kernel's dispatch calls them and decides the order. A
service names its hooks in a :class:`HookSpec`. Unix counterparts: ``security_hook_heads`` for
PRE and POST, ``fsnotify`` for OBSERVE, ``file_operations`` for RESOLVE.

The calling rule, for one call at one :class:`HookPoint`:

1. RESOLVE: resolvers are asked, those with the longest matching prefix first, those without a
   prefix last. The first answer is the answer of the whole call: nothing below happens, so a
   resolver checks permissions itself. What it raises reaches the caller.
2. PRE: hooks run in the caller's thread, one after the other, in registration order. They may
   change the fields of the context, which is what the call then does; what they raise reaches
   the caller, and nothing was read or written.
3. The call itself: lock, I/O, commit, unlock. A call that waits, for a message, an advisory lock
   or an event, holds nothing meanwhile, and nobody who unregisters a hook waits for it: the POST
   hooks that it meets afterwards are those of that time.
   Within the commit, where there is a recorder: it makes a record that is stored with the change.
4. POST: as PRE, with the answer, and only after a call that succeeded. No I/O lock is held.
   What it raises is logged; the call stays done.
5. OBSERVE: observers get the events of the commit in another thread, in commit order, one at a
   time for each observer. What they raise is logged. A full queue drops events and says so with
   an event of the kind ``overflow``, whose ``size`` counts them and whose ``revision`` is the last
   of them; the journal still has them.

Hooks are plain functions. They may call the filesystem; a PRE hook that does so at its own point
is called again for that call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem.syscalls import WATCH_TIMEOUT_S, Precondition, WriteRequest
from nexus.contracts.lock_manager import DEFAULT_TTL_S, EXCLUSIVE, LockId
from nexus.contracts.metadata import DT_PIPE, Buffer, DirectoryPage, Stat
from nexus.contracts.object_store import ObjectStoreABC

PRE: Final = "pre"
POST: Final = "post"


class VFSContext(msgspec.Struct):
    """One call on its way: a canonical path, and who calls. Belongs to the calling thread."""

    path: str
    context: OperationContext


class ReadContext(VFSContext):
    """sys_read: ``count`` bytes (None: to the end) from ``offset``, of a version (None: now).

    Of a pipe or a stream a message, for which it waits ``timeout`` seconds (None: without end).
    """

    count: int | None = None
    offset: int = 0
    version: int | None = None
    timeout: float | None = None


class WriteContext(VFSContext):
    """sys_write, or the write of one whole file, whose ``offset`` is None.

    ``timeout`` is for a message of sys_write that waits for room in a pipe (None: without end).
    """

    buf: Buffer | Iterable[Buffer] = b""
    offset: int | None = None
    precondition: Precondition | None = None
    create: bool = False
    parents: bool = False
    append: bool = False
    timeout: float | None = None


class BatchContext(VFSContext):
    """write_batch: many whole files in one commit; ``path`` is that of the first."""

    requests: Sequence[WriteRequest] = ()


class DeleteContext(VFSContext):
    """sys_unlink of anything but a directory; ``recursive`` is allowed and has no effect."""

    recursive: bool = False


class RmdirContext(VFSContext):
    """sys_unlink of a directory."""

    recursive: bool = False


class RenameContext(VFSContext):
    """sys_rename of ``path`` to ``new_path``."""

    new_path: str = ""


class CopyContext(VFSContext):
    """sys_copy of ``path`` to ``new_path``."""

    new_path: str = ""


class MkdirContext(VFSContext):
    """sys_setattr with DT_DIR."""

    parents: bool = False
    exist_ok: bool = False


class MknodContext(VFSContext):
    """sys_setattr with DT_PIPE or DT_STREAM: a capacity of None is the default."""

    entry_type: int = DT_PIPE
    capacity_bytes: int | None = None


class StatContext(VFSContext):
    """sys_stat, and with it access, exists and is_directory."""

    include_lock: bool = False


class ReaddirContext(VFSContext):
    """sys_readdir of one page."""

    recursive: bool = False
    limit: int | None = None
    cursor: str | None = None
    details: bool = False


class SetattrContext(VFSContext):
    """sys_setattr of the attributes of something that exists."""

    attrs: dict[str, Any]


class MountContext(VFSContext):
    """sys_setattr with DT_MOUNT. ``backend`` is a driver or a description of one."""

    backend: ObjectStoreABC | Any


class UnmountContext(VFSContext):
    """sys_unlink of a mount point."""


class ContentContext(VFSContext):
    """A call by content hash in the mount that holds ``path``; ``writing`` stores content."""

    writing: bool = False


class LockContext(VFSContext):
    """sys_lock; with the ``lock_id`` of a held lock it is to be extended."""

    mode: str = EXCLUSIVE
    ttl: float = DEFAULT_TTL_S
    max_holders: int | None = None
    lock_id: str | None = None
    timeout: float = 0.0


class UnlockContext(VFSContext):
    """sys_unlock of one hold, or with ``force`` of every one."""

    lock_id: str | None = None
    force: bool = False


class WatchContext(VFSContext):
    """sys_watch for one event."""

    timeout: float = WATCH_TIMEOUT_S
    recursive: bool = False
    since: int | str | None = None


C_contra = TypeVar("C_contra", bound=VFSContext, contravariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
C = TypeVar("C", bound=VFSContext)
R = TypeVar("R")


class HookPoint(Generic[C, R]):
    """A kind of call that can be hooked: its context, and the type of its answer.

    ``mutates`` says whether its calls commit events.
    """

    __slots__ = ("context_type", "mutates", "name")

    def __init__(self, name: str, context_type: type[C], *, mutates: bool) -> None:
        self.name = name
        self.context_type = context_type
        self.mutates = mutates

    def __repr__(self) -> str:
        return f"HookPoint({self.name!r})"


READ: Final = HookPoint[ReadContext, bytes]("read", ReadContext, mutates=False)
WRITE: Final = HookPoint[WriteContext, Stat]("write", WriteContext, mutates=True)
BATCH: Final = HookPoint[BatchContext, list[Stat]]("batch", BatchContext, mutates=True)
DELETE: Final = HookPoint[DeleteContext, Stat]("delete", DeleteContext, mutates=True)
RMDIR: Final = HookPoint[RmdirContext, Stat]("rmdir", RmdirContext, mutates=True)
RENAME: Final = HookPoint[RenameContext, Stat]("rename", RenameContext, mutates=True)
COPY: Final = HookPoint[CopyContext, Stat]("copy", CopyContext, mutates=True)
MKDIR: Final = HookPoint[MkdirContext, Stat]("mkdir", MkdirContext, mutates=True)
MKNOD: Final = HookPoint[MknodContext, Stat]("mknod", MknodContext, mutates=True)
STAT: Final = HookPoint[StatContext, Stat | None]("stat", StatContext, mutates=False)
READDIR: Final = HookPoint[ReaddirContext, DirectoryPage]("readdir", ReaddirContext, mutates=False)
SETATTR: Final = HookPoint[SetattrContext, Stat]("setattr", SetattrContext, mutates=True)
MOUNT: Final = HookPoint[MountContext, Stat]("mount", MountContext, mutates=True)
UNMOUNT: Final = HookPoint[UnmountContext, Stat]("unmount", UnmountContext, mutates=True)
CONTENT: Final = HookPoint[ContentContext, Any]("content", ContentContext, mutates=False)
LOCK: Final = HookPoint[LockContext, LockId | None]("lock", LockContext, mutates=False)
UNLOCK: Final = HookPoint[UnlockContext, bool]("unlock", UnlockContext, mutates=False)
WATCH: Final = HookPoint[WatchContext, FileEvent | None]("watch", WatchContext, mutates=False)

POINTS: Final[tuple[HookPoint[Any, Any], ...]] = (
    *(READ, WRITE, BATCH, DELETE, RMDIR, RENAME, COPY, MKDIR, MKNOD, STAT, READDIR),
    *(SETATTR, MOUNT, UNMOUNT, CONTENT, LOCK, UNLOCK, WATCH),
)
"""Every point there is."""


class VFSPreHook(Protocol[C_contra]):
    """Called before a call, with its context. Raising refuses the call."""

    def __call__(self, ctx: C_contra, /) -> None: ...


class VFSPostHook(Protocol[C_contra, R_contra]):
    """Called after a call that succeeded, with its context and its answer."""

    def __call__(self, ctx: C_contra, result: R_contra, /) -> None: ...


class Handled(NamedTuple):
    """A resolver's answer, which may itself be None."""

    result: Any


@runtime_checkable
class VFSPathResolver(Protocol):
    """Answers calls in place of the kernel.

    ``prefixes`` are canonical directories; it is asked for them and what lies beneath. An empty
    sequence asks it for every path, after the resolvers that have a prefix.
    """

    prefixes: Sequence[str]

    def try_resolve(self, point: HookPoint[Any, Any], ctx: VFSContext, /) -> Handled | None:
        """Return the answer of the call, or None to leave it to the next."""


@runtime_checkable
class VFSObserver(Protocol):
    """Hears of every committed change that began after it was registered."""

    def on_mutation(self, event: FileEvent, /) -> None:
        """Take one event, in commit order."""


@runtime_checkable
class VFSRecorder(Protocol):
    """Makes the record that is stored in each commit, chained to the one before. One at a time."""

    def record(self, events: Sequence[FileEvent], revision: int, previous: bytes, /) -> bytes:
        """Return what to store with these events; ``previous`` is the last record, or empty.

        Called in commit order while the whole store waits: it computes and calls nothing.
        Raising fails the commits that are under way, with nothing stored.
        """


@runtime_checkable
class VFSMeter(Protocol):
    """Hears how long each call took, from RESOLVE to POST. One at a time."""

    def on_call(
        self, point: HookPoint[Any, Any], ctx: VFSContext, seconds: float, failed: bool, /
    ) -> None:
        """Take note of a call that has ended; ``failed`` says that it raised.

        Called in the caller's thread, with no lock held: it counts and calls nothing. What it
        raises is logged.
        """


class Interceptor(NamedTuple):
    """A PRE or a POST hook with the point it belongs to; see :func:`pre` and :func:`post`."""

    point: HookPoint[Any, Any]
    phase: str
    hook: Callable[..., None]


class Observation(NamedTuple):
    """An observer and the kinds of events it wants; None: all."""

    observer: VFSObserver
    kinds: frozenset[str] | None = None


def pre(point: HookPoint[C, R], hook: VFSPreHook[C]) -> Interceptor:
    """Return a PRE hook for a spec."""
    return Interceptor(point, PRE, hook)


def post(point: HookPoint[C, R], hook: VFSPostHook[C, R]) -> Interceptor:
    """Return a POST hook for a spec."""
    return Interceptor(point, POST, hook)


class HookSpec(msgspec.Struct, frozen=True):
    """All hooks of a service: what its ``hook_spec()`` returns. They come and go together."""

    resolvers: tuple[VFSPathResolver, ...] = ()
    interceptors: tuple[Interceptor, ...] = ()
    observers: tuple[Observation, ...] = ()
    recorder: VFSRecorder | None = None
    meter: VFSMeter | None = None
