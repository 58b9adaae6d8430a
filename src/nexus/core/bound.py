"""BoundFilesystem: a view in which another identity is the default. Layer: core.

It holds no state but the context: every call goes to the filesystem it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nexus.contracts.context import OperationContext
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.filesystem.syscalls import WATCH_TIMEOUT_S
from nexus.contracts.lock_manager import DEFAULT_TTL_S, EXCLUSIVE, LockId
from nexus.contracts.metadata import Buffer, DirectoryPage, Stat
from nexus.contracts.object_store import ContentStoreABC


class BoundFilesystem(NexusFilesystem):
    """A view with ``context`` bound; ``context=`` in a call still wins."""

    def __init__(self, target: NexusFilesystem, context: OperationContext) -> None:
        self._target = target
        self._context = context

    def sys_read(
        self,
        path: str,
        count: int | None = None,
        offset: int = 0,
        *,
        version: int | None = None,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> bytes:
        context = context or self._context
        return self._target.sys_read(
            path, count, offset, version=version, timeout=timeout, context=context
        )

    def sys_write(
        self,
        path: str,
        buf: Buffer,
        count: int | None = None,
        offset: int = 0,
        *,
        precondition: Precondition | None = None,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> Stat:
        context = context or self._context
        return self._target.sys_write(
            path, buf, count, offset, precondition=precondition, timeout=timeout, context=context
        )

    async def _read_async(
        self,
        path: str,
        offset: int,
        timeout: float | None,
        context: OperationContext | None,
    ) -> bytes:
        return await self._target._read_async(path, offset, timeout, context or self._context)

    async def _write_async(
        self, path: str, buf: Buffer, timeout: float | None, context: OperationContext | None
    ) -> Stat:
        return await self._target._write_async(path, buf, timeout, context or self._context)

    def sys_stat(
        self, path: str, include_lock: bool = False, *, context: OperationContext | None = None
    ) -> Stat | None:
        return self._target.sys_stat(path, include_lock, context=context or self._context)

    def sys_setattr(
        self, path: str, *, context: OperationContext | None = None, **attrs: Any
    ) -> Stat:
        return self._target.sys_setattr(path, context=context or self._context, **attrs)

    def sys_unlink(
        self, path: str, recursive: bool = False, *, context: OperationContext | None = None
    ) -> Stat:
        return self._target.sys_unlink(path, recursive, context=context or self._context)

    def sys_rename(self, old: str, new: str, *, context: OperationContext | None = None) -> Stat:
        return self._target.sys_rename(old, new, context=context or self._context)

    def sys_copy(self, src: str, dst: str, *, context: OperationContext | None = None) -> Stat:
        return self._target.sys_copy(src, dst, context=context or self._context)

    def sys_readdir(
        self,
        path: str,
        recursive: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        details: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> DirectoryPage:
        return self._target.sys_readdir(
            path, recursive, limit, cursor, details, context=context or self._context
        )

    def sys_lock(
        self,
        path: str,
        mode: str = EXCLUSIVE,
        ttl: float = DEFAULT_TTL_S,
        max_holders: int | None = None,
        lock_id: str | None = None,
        *,
        timeout: float = 0.0,
        context: OperationContext | None = None,
    ) -> LockId | None:
        return self._target.sys_lock(
            path,
            mode,
            ttl,
            max_holders,
            lock_id,
            timeout=timeout,
            context=context or self._context,
        )

    async def _lock_async(
        self,
        path: str,
        mode: str,
        ttl: float,
        max_holders: int | None,
        timeout: float,
        context: OperationContext | None,
    ) -> LockId | None:
        return await self._target._lock_async(
            path, mode, ttl, max_holders, timeout, context or self._context
        )

    def sys_unlock(
        self,
        path: str,
        lock_id: str | None = None,
        force: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> bool:
        return self._target.sys_unlock(path, lock_id, force, context=context or self._context)

    def sys_watch(
        self,
        path: str,
        timeout: float = WATCH_TIMEOUT_S,
        recursive: bool = False,
        since: int | str | None = None,
        *,
        context: OperationContext | None = None,
    ) -> FileEvent | None:
        return self._target.sys_watch(
            path, timeout, recursive, since, context=context or self._context
        )

    async def _watch_async(
        self,
        path: str,
        timeout: float,
        recursive: bool,
        since: int | str | None,
        context: OperationContext | None,
    ) -> FileEvent | None:
        return await self._target._watch_async(
            path, timeout, recursive, since, context or self._context
        )

    def _newest_revision(self) -> int:
        return self._target._newest_revision()

    def sync(self) -> None:
        """Sync the filesystem this is a view of."""
        self._target.sync()

    def close(self) -> None:
        """Nothing: the filesystem this is a view of stays open."""

    def bind(self, context: OperationContext) -> NexusFilesystem:
        return BoundFilesystem(self._target, context)

    def service(self, name: str) -> Any:
        return self._target.service(name)

    def _write_many(
        self, requests: Sequence[WriteRequest], context: OperationContext | None
    ) -> list[Stat]:
        return self._target._write_many(requests, context or self._context)

    def _store_content(
        self, path: str, pieces: Iterable[Buffer], context: OperationContext | None
    ) -> str:
        return self._target._store_content(path, pieces, context or self._context)

    def _content_store(self, path: str, context: OperationContext | None) -> ContentStoreABC:
        return self._target._content_store(path, context or self._context)
