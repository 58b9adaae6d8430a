"""HookedCalls: the calls with dispatch around them.

Layer: core, between the entry points of :mod:`nexus.core.entry_points` and the calls behind them.
Each method makes the context of its point, runs dispatch around the call of the same name, and
checks what hooks left in the context as an argument would be. Unix counterpart: the ``security_*``
calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nexus.contracts.context import OperationContext
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import Precondition, WriteRequest
from nexus.contracts.lock_manager import LockId, LockRequest
from nexus.contracts.metadata import Buffer, DirectoryPage, Stat
from nexus.contracts.object_store import ContentStoreABC
from nexus.contracts.vfs_hooks import (
    BATCH,
    CONTENT,
    COPY,
    DELETE,
    LOCK,
    MKDIR,
    MKNOD,
    MOUNT,
    READ,
    READDIR,
    RENAME,
    RMDIR,
    SETATTR,
    STAT,
    UNLOCK,
    UNMOUNT,
    WATCH,
    WRITE,
    BatchContext,
    ContentContext,
    CopyContext,
    DeleteContext,
    LockContext,
    MkdirContext,
    MknodContext,
    MountContext,
    ReadContext,
    ReaddirContext,
    RenameContext,
    RmdirContext,
    SetattrContext,
    StatContext,
    UnlockContext,
    UnmountContext,
    VFSContext,
    WatchContext,
    WriteContext,
)
from nexus.core.arguments import check_context, wait_limit, write_slice
from nexus.core.content_calls import ContentCalls
from nexus.core.dispatch import KernelDispatch
from nexus.core.kernel_state import KernelState
from nexus.core.sys_volume import normalize_listed
from nexus.core.tree_calls import TreeCalls
from nexus.lib.paths import normalize
from nexus.lib.steps import Steps, run


class HookedCalls:
    """Every call, mediated. Shared by all threads; holds no state of its own."""

    def __init__(
        self,
        kernel: KernelState,
        content: ContentCalls,
        tree: TreeCalls,
        dispatch: KernelDispatch,
    ) -> None:
        self._kernel = kernel
        self._content = content
        self._tree = tree
        self._dispatch = dispatch

    # -- content ------------------------------------------------------------------------------

    def read(
        self,
        path: str,
        who: OperationContext,
        count: int | None,
        offset: int,
        version: int | None,
        timeout: float | None,
    ) -> bytes:
        ctx = ReadContext(path, who, count, offset, version, timeout)
        return run(self._dispatch.steps(READ, ctx, self._read))

    def _read(self, ctx: ReadContext) -> Steps[bytes]:
        path, who = _entered("read", ctx)
        found = self._content.look(path, who, ctx.count, ctx.offset, ctx.version)
        if isinstance(found, bytes):
            return found
        return (yield from found.reading(path, ctx.offset, wait_limit("read", path, ctx.timeout)))

    def reading(
        self,
        path: str,
        who: OperationContext,
        count: int | None,
        offset: int,
        version: int | None,
        timeout: float | None,
    ) -> Steps[bytes]:
        ctx = ReadContext(path, who, count, offset, version, timeout)
        return self._dispatch.steps(READ, ctx, self._reading)

    def _reading(self, ctx: ReadContext) -> Steps[bytes]:
        path, who = _entered("read", ctx)
        return self._content.reading(path, who, ctx.count, ctx.offset, ctx.version, ctx.timeout)

    def write_at(
        self,
        path: str,
        who: OperationContext,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
        timeout: float | None,
    ) -> Stat:
        ctx = WriteContext(path, who, data, offset, precondition, timeout=timeout)
        return run(self._dispatch.steps(WRITE, ctx, self._write))

    def write_file(self, request: WriteRequest, who: OperationContext) -> Stat:
        path = normalize("append" if request.append else "write", request.path)
        condition, append = request.precondition, request.append
        ctx = WriteContext(
            path, who, request.buf, None, condition, request.create, request.parents, append
        )
        return self._dispatch.run(WRITE, ctx, self._write_file)

    def _write_file(self, ctx: WriteContext) -> Stat:
        if ctx.offset is not None:
            # A hook made it a write at an offset. As a whole file waits for nobody, nor does this.
            path, who = _entered("write", ctx)
            data = write_slice(path, ctx.buf, None)
            return self._content.write_at(path, who, data, ctx.offset, ctx.precondition, 0.0)
        check_context(ctx.context)  # the path is checked as that of any request
        request = WriteRequest(
            ctx.path, ctx.buf, ctx.create, ctx.parents, ctx.append, ctx.precondition
        )
        return self._content.write_file(request, ctx.context)

    def _write(self, ctx: WriteContext) -> Steps[Stat]:
        offset, precondition = ctx.offset, ctx.precondition
        if offset is None:
            return self._write_file(ctx)
        content, (path, who) = self._content, _entered("write", ctx)
        data = write_slice(path, ctx.buf, None)
        channel = content.channel_to_write(path, who, data, offset, precondition)
        if channel is None:
            return content.write_file_at(path, who, data, offset, precondition)
        limit = wait_limit("write", path, ctx.timeout)
        return (yield from channel.writing(path, bytes(data), limit))

    def writing(
        self,
        path: str,
        who: OperationContext,
        message: Buffer,
        offset: int,
        precondition: Precondition | None,
        timeout: float | None,
    ) -> Steps[Stat]:
        ctx = WriteContext(path, who, message, offset, precondition, timeout=timeout)
        return self._dispatch.steps(WRITE, ctx, self._writing)

    def _writing(self, ctx: WriteContext) -> Steps[Stat]:
        path, who = _entered("write", ctx)
        message, offset = write_slice(path, ctx.buf, None), ctx.offset or 0
        return self._content.writing(path, who, message, offset, ctx.precondition, ctx.timeout)

    def write_files(self, requests: Sequence[WriteRequest], who: OperationContext) -> list[Stat]:
        if not requests:
            return self._content.write_files(requests, who)
        ctx = BatchContext(normalize("write_batch", requests[0].path), who, requests)
        return self._dispatch.run(BATCH, ctx, self._write_files)

    def _write_files(self, ctx: BatchContext) -> list[Stat]:
        check_context(ctx.context)
        return self._content.write_files(ctx.requests, ctx.context)

    def store_content(self, path: str, who: OperationContext, pieces: Iterable[Buffer]) -> str:
        def store(ctx: ContentContext) -> str:
            return self._content.store_content(*_entered("content", ctx), pieces)

        etag: str = self._dispatch.run(CONTENT, ContentContext(path, who, writing=True), store)
        return etag

    def content_store(self, path: str, who: OperationContext) -> ContentStoreABC:
        def find(ctx: ContentContext) -> ContentStoreABC:
            return self._content.content_store(*_entered("content", ctx))

        store: ContentStoreABC = self._dispatch.run(CONTENT, ContentContext(path, who), find)
        return store

    # -- tree ---------------------------------------------------------------------------------

    def stat(self, path: str, who: OperationContext, include_lock: bool) -> Stat | None:
        return self._dispatch.run(STAT, StatContext(path, who, bool(include_lock)), self._stat)

    def _stat(self, ctx: StatContext) -> Stat | None:
        return self._tree.stat(*_entered("stat", ctx), ctx.include_lock)

    def set_attributes(self, path: str, who: OperationContext, attrs: dict[str, Any]) -> Stat:
        return self._dispatch.run(SETATTR, SetattrContext(path, who, attrs), self._set_attributes)

    def _set_attributes(self, ctx: SetattrContext) -> Stat:
        return self._tree.set_attributes(*_entered("setattr", ctx), ctx.attrs)

    def make_directory(
        self, path: str, who: OperationContext, parents: bool, exist_ok: bool
    ) -> Stat:
        ctx = MkdirContext(path, who, parents, exist_ok)
        return self._dispatch.run(MKDIR, ctx, self._make_directory)

    def _make_directory(self, ctx: MkdirContext) -> Stat:
        return self._tree.make_directory(*_entered("mkdir", ctx), ctx.parents, ctx.exist_ok)

    def make_file(self, path: str, who: OperationContext) -> Stat:
        ctx = WriteContext(path, who, create=True, precondition=Precondition(if_none_match="*"))
        return self._dispatch.run(WRITE, ctx, self._make_file)

    def _make_file(self, ctx: WriteContext) -> Stat:
        return self._tree.make_file(*_entered("mknod", ctx), ctx.buf)

    def make_channel(
        self, path: str, who: OperationContext, kind: int, capacity_bytes: int | None
    ) -> Stat:
        ctx = MknodContext(path, who, kind, capacity_bytes)
        return self._dispatch.run(MKNOD, ctx, self._make_channel)

    def _make_channel(self, ctx: MknodContext) -> Stat:
        path, who = _entered("setattr", ctx)
        return self._tree.make_channel(path, who, ctx.entry_type, ctx.capacity_bytes)

    def mount(self, path: str, who: OperationContext, backend: Any) -> Stat:
        return self._dispatch.run(MOUNT, MountContext(path, who, backend), self._mount)

    def _mount(self, ctx: MountContext) -> Stat:
        return self._tree.mount(*_entered("mount", ctx), ctx.backend)

    def unlink(self, path: str, who: OperationContext, recursive: bool) -> Stat:
        """Pass the point of what is there now."""
        if self._kernel.router.at(path, who.zone_id) is not None:
            unmount = UnmountContext(path, who)
            return self._dispatch.run(UNMOUNT, unmount, lambda ctx: self._unlink(ctx, recursive))
        stat = self._tree.stat(path, who, include_lock=False)
        if stat is not None and stat["is_directory"]:
            rmdir = RmdirContext(path, who, recursive)
            return self._dispatch.run(RMDIR, rmdir, lambda ctx: self._unlink(ctx, ctx.recursive))
        delete = DeleteContext(path, who, recursive)
        return self._dispatch.run(DELETE, delete, lambda ctx: self._unlink(ctx, ctx.recursive))

    def _unlink(self, ctx: VFSContext, recursive: bool) -> Stat:
        return self._tree.unlink(*_entered("unlink", ctx), recursive)

    def rename(self, old: str, new: str, who: OperationContext) -> Stat:
        return self._dispatch.run(RENAME, RenameContext(old, who, new), self._rename)

    def _rename(self, ctx: RenameContext) -> Stat:
        path, who = _entered("rename", ctx)
        return self._tree.rename(path, normalize("rename", ctx.new_path), who)

    def copy(self, src: str, dst: str, who: OperationContext) -> Stat:
        return self._dispatch.run(COPY, CopyContext(src, who, dst), self._copy)

    def _copy(self, ctx: CopyContext) -> Stat:
        path, who = _entered("copy", ctx)
        return self._tree.copy(path, normalize("copy", ctx.new_path), who)

    def readdir(
        self,
        path: str,
        who: OperationContext,
        recursive: bool,
        limit: int | None,
        cursor: str | None,
        details: bool,
    ) -> DirectoryPage:
        ctx = ReaddirContext(path, who, bool(recursive), limit, cursor, bool(details))
        return self._dispatch.run(READDIR, ctx, self._readdir)

    def _readdir(self, ctx: ReaddirContext) -> DirectoryPage:
        check_context(ctx.context)
        path = normalize_listed(ctx.path)
        return self._tree.readdir(
            path, ctx.context, ctx.recursive, ctx.limit, ctx.cursor, ctx.details
        )

    # -- locks and watches --------------------------------------------------------------------

    def lock(self, request: LockRequest, lock_id: str | None, timeout_s: float) -> LockId | None:
        return run(self.locking(request, lock_id, timeout_s))

    def locking(
        self, request: LockRequest, lock_id: str | None, timeout_s: float
    ) -> Steps[LockId | None]:
        ctx = LockContext(
            request.path,
            request.context,
            request.mode,
            request.ttl_s,
            request.max_holders,
            lock_id,
            timeout_s,
        )
        return self._dispatch.steps(LOCK, ctx, self._locking)

    def _locking(self, ctx: LockContext) -> Steps[LockId | None]:
        request = LockRequest(*_entered("lock", ctx), ctx.mode, ctx.ttl, ctx.max_holders)
        return self._kernel.waiting.locking(request, ctx.lock_id, ctx.timeout)

    def unlock(self, path: str, who: OperationContext, lock_id: str | None, force: bool) -> bool:
        ctx = UnlockContext(path, who, lock_id, bool(force))
        return self._dispatch.run(UNLOCK, ctx, self._unlock)

    def _unlock(self, ctx: UnlockContext) -> bool:
        return self._kernel.waiting.unlock(*_entered("unlock", ctx), ctx.lock_id, ctx.force)

    def watching(
        self,
        path: str,
        who: OperationContext,
        timeout_s: float,
        recursive: bool,
        since: int | str | None,
    ) -> Steps[FileEvent | None]:
        ctx = WatchContext(path, who, timeout_s, recursive, since)
        return self._dispatch.steps(WATCH, ctx, self._watching)

    def _watching(self, ctx: WatchContext) -> Steps[FileEvent | None]:
        path, who = _entered("watch", ctx)
        return self._kernel.waiting.watching(path, who, ctx.timeout, ctx.recursive, ctx.since)


def _entered(operation: str, ctx: VFSContext) -> tuple[str, OperationContext]:
    """Return the path and the identity that hooks left, checked as where a call enters."""
    check_context(ctx.context)
    return normalize(operation, ctx.path), ctx.context
