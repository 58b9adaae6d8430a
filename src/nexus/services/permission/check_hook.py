"""PermissionCheckHook: owner and mode checks before every call. The default is to deny.

Layer: services. It hooks every point, so that a call it has no rule for is refused rather than
let through; it looks at attributes past every hook. It keeps no state.
Unix counterpart: ``generic_permission``, without the search bit: an entry decides for itself,
not the directories above it.

Rules:

1. An administrator may do everything, and nobody else may mount, unmount, name content by its
   hash, or look beneath ``/__sys__``.
2. The owner of an entry has the first three bits of its mode. Whoever is in the group that owns
   it (``owner_id`` is one of the caller's groups) has the next three. Everybody else has the last
   three, but only of an entry whose custom attribute ``public`` is True, since every entry is
   made with a mode that lets all read.
3. To read a file or to list a directory takes r on it; to write a file, w on it; to create or
   remove an entry, w on the directory that holds it, or on the nearest one above that exists;
   to see attributes, r on the entry or on the directory that lists it; to set them, ownership.
4. What concerns all beneath a directory (a recursive listing, watch or removal, a copy) takes the
   same of every directory, and for a copy of every file, beneath it.
5. A message is written or read as a file is. To lock a path takes w on it, to watch it r; where
   nothing is at the path, on the nearest directory above. Who holds a lock may end it, and so may
   whoever has w; to end all of them by force takes ownership.

The check comes before the call takes its locks: a change of mode made meanwhile takes effect on
the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import AccessDeniedError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import Stat
from nexus.contracts.protocols.brick import Look
from nexus.contracts.protocols.permission import READ_ACCESS, WRITE_ACCESS
from nexus.contracts.vfs_hooks import (
    BATCH,
    COPY,
    DELETE,
    LOCK,
    MKDIR,
    MKNOD,
    POINTS,
    READ,
    READDIR,
    RENAME,
    RMDIR,
    SETATTR,
    STAT,
    UNLOCK,
    WATCH,
    WRITE,
    BatchContext,
    CopyContext,
    DeleteContext,
    HookPoint,
    HookSpec,
    Interceptor,
    LockContext,
    MkdirContext,
    MknodContext,
    ReadContext,
    ReaddirContext,
    RenameContext,
    RmdirContext,
    SetattrContext,
    StatContext,
    UnlockContext,
    VFSContext,
    WatchContext,
    WriteContext,
    pre,
)
from nexus.lib.paths import is_same_or_below, normalize, parent

SYS_POINT: Final = "/__sys__"
_LOCKS: Final = SYS_POINT + "/locks"
PUBLIC: Final = "public"
"""The custom attribute that gives everybody the last three bits of an entry's mode."""

C = TypeVar("C", bound=VFSContext)
Rule = Callable[[C], None]


class PermissionCheckHook:
    """Checks every call of everybody but administrators. Shared by all threads."""

    def __init__(self, nx: NexusFilesystem, look: Look) -> None:
        self._nx = nx
        self._look = look

    def hook_spec(self) -> HookSpec:
        """Return a check for every point there is."""
        rules: Mapping[HookPoint[Any, Any], Rule[Any]] = {
            READ: self._read,
            WRITE: self._write,
            BATCH: self._batch,
            DELETE: self._delete,
            RMDIR: self._rmdir,
            RENAME: self._rename,
            COPY: self._copy,
            MKDIR: self._mkdir,
            STAT: self._stat,
            READDIR: self._readdir,
            SETATTR: self._setattr,
            MKNOD: self._mknod,
            LOCK: self._lock,
            UNLOCK: self._unlock,
            WATCH: self._watch,
        }
        return HookSpec(
            interceptors=tuple(self._guard(point, rules.get(point)) for point in POINTS)
        )

    def _guard(self, point: HookPoint[Any, Any], rule: Rule[Any] | None) -> Interceptor:
        def check(ctx: VFSContext) -> None:
            if ctx.context.is_admin:
                return
            path = ctx.path
            if rule is None or (path.startswith(SYS_POINT) and _is_system(path)):
                raise _denied(point.name, path, ctx.context, "only an administrator may")
            rule(ctx)

        return pre(point, check)

    # -- the rule of each point ---------------------------------------------------------------

    def _read(self, ctx: ReadContext) -> None:
        self._require("read", ctx.path, READ_ACCESS, ctx.context)

    def _write(self, ctx: WriteContext) -> None:
        self._require("write", ctx.path, WRITE_ACCESS, ctx.context)

    def _batch(self, ctx: BatchContext) -> None:
        for request in ctx.requests:
            path = normalize("write_batch", request.path)
            self._require("write_batch", path, WRITE_ACCESS, ctx.context)

    def _delete(self, ctx: DeleteContext) -> None:
        self._require("unlink", parent(ctx.path), WRITE_ACCESS, ctx.context)

    def _rmdir(self, ctx: RmdirContext) -> None:
        self._require("unlink", parent(ctx.path), WRITE_ACCESS, ctx.context)
        if ctx.recursive:
            self._require_beneath("unlink", ctx, WRITE_ACCESS, files=False)

    def _rename(self, ctx: RenameContext) -> None:
        for path in (ctx.path, ctx.new_path):
            self._require("rename", parent(path), WRITE_ACCESS, ctx.context)

    def _copy(self, ctx: CopyContext) -> None:
        self._require("copy", ctx.path, READ_ACCESS, ctx.context)
        self._require_beneath("copy", ctx, READ_ACCESS, files=True)
        self._require("copy", ctx.new_path, WRITE_ACCESS, ctx.context)

    def _mkdir(self, ctx: MkdirContext) -> None:
        self._require("mkdir", parent(ctx.path), WRITE_ACCESS, ctx.context)

    def _stat(self, ctx: StatContext) -> None:
        if not self.is_allowed(parent(ctx.path), READ_ACCESS, ctx.context):
            self._require("stat", ctx.path, READ_ACCESS, ctx.context)

    def _readdir(self, ctx: ReaddirContext) -> None:
        self._require("readdir", ctx.path, READ_ACCESS, ctx.context)
        if ctx.recursive:
            self._require_beneath("readdir", ctx, READ_ACCESS, files=False)

    def _setattr(self, ctx: SetattrContext) -> None:
        if self._nearest(ctx.path, ctx.context)["owner_id"] != ctx.context.user_id:
            raise _denied("setattr", ctx.path, ctx.context, "only its owner may")

    def _mknod(self, ctx: MknodContext) -> None:
        self._require("setattr", parent(ctx.path), WRITE_ACCESS, ctx.context)

    def _lock(self, ctx: LockContext) -> None:
        self._require("lock", ctx.path, WRITE_ACCESS, ctx.context)

    def _unlock(self, ctx: UnlockContext) -> None:
        if ctx.force:
            if self._nearest(ctx.path, ctx.context)["owner_id"] != ctx.context.user_id:
                raise _denied("unlock", ctx.path, ctx.context, "only its owner may by force")
        elif not self.is_allowed(ctx.path, WRITE_ACCESS, ctx.context) and not self._holds(ctx):
            reason = f"it takes {_word(WRITE_ACCESS)} access, or to hold the lock"
            raise _denied("unlock", ctx.path, ctx.context, reason)

    def _holds(self, ctx: UnlockContext) -> bool:
        """Return whether the lock named is the caller's own. What it is on may be gone."""
        admin, cursor = _administrator(ctx.context), None
        while True:
            page = self._nx.sys_readdir(_LOCKS, cursor=cursor, details=True, context=admin)
            for hold in page:
                if (hold["path"], hold["lock_id"]) == (ctx.path, ctx.lock_id):
                    return bool(hold["user_id"] == ctx.context.user_id)
            cursor = page.next_cursor
            if cursor is None:
                return False

    def _watch(self, ctx: WatchContext) -> None:
        self._require("watch", ctx.path, READ_ACCESS, ctx.context)
        if ctx.recursive:
            self._require_beneath("watch", ctx, READ_ACCESS, files=False)

    # -- access -------------------------------------------------------------------------------

    def is_allowed(self, path: str, access: int, context: OperationContext) -> bool:
        if context.is_admin:
            return True
        return self._may(path, access, context)

    def _may(self, path: str, access: int, context: OperationContext) -> bool:
        """Return whether somebody who is no administrator has access."""
        # Nearly no path begins like the kernel's own, which is told at a fraction of the cost.
        if path.startswith(SYS_POINT) and _is_system(path):
            return False
        return _grants(self._nearest(path, context), access, context)

    def _require(self, operation: str, path: str, access: int, context: OperationContext) -> None:
        if not self._may(path, access, context):
            raise _denied(operation, path, context, f"it takes {_word(access)} access")

    def _require_beneath(
        self, operation: str, ctx: VFSContext, access: int, *, files: bool
    ) -> None:
        admin = _administrator(ctx.context)
        path = normalize(operation, ctx.path)
        stat = self._look(path, ctx.context.zone_id)
        if stat is None or stat["path"] != path or not stat["is_directory"]:
            return  # nothing is beneath it
        for found in self._nx.walk(ctx.path, context=admin):
            if (files or found["is_directory"]) and not _grants(found, access, ctx.context):
                reason = f"it takes {_word(access)} access"
                raise _denied(operation, found["path"], ctx.context, reason)

    def _nearest(self, path: str, context: OperationContext) -> Stat:
        """Return the attributes of an entry, or of the nearest directory above that exists."""
        stat = self._look(normalize("permission", path), context.zone_id)
        if stat is None:
            raise _denied("permission", path, context, "nothing is mounted in its zone")
        return stat


def _is_system(path: str) -> bool:
    return is_same_or_below(path, SYS_POINT)


def _grants(stat: Stat, access: int, context: OperationContext) -> bool:
    owner, mode = stat["owner_id"], stat["mode"]
    if owner == context.user_id:
        bits = mode >> 6
    elif owner in context.groups:
        bits = mode >> 3
    else:
        bits = mode if stat["attributes"].get(PUBLIC) is True else 0
    allowed: bool = bits & access == access
    return allowed


def _administrator(context: OperationContext) -> OperationContext:
    return OperationContext("permission", zone_id=context.zone_id, is_admin=True)


def _word(access: int) -> str:
    return "read" if access == READ_ACCESS else "write"


def _denied(operation: str, path: str, context: OperationContext, reason: str) -> AccessDeniedError:
    return AccessDeniedError(operation, path, f"{context.user_id} may not: {reason}")
