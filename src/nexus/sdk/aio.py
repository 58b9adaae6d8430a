"""An asyncio view of what can wait: advisory locks, watches, pipes and streams. Layer: sdk.

It holds no state but the filesystem. A waiting task holds no thread, so thousands can wait idle;
what commits runs in the loop's executor. Calls that do not wait have no view here: call them
through :func:`asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    ConflictError,
    EndOfStreamError,
    LockTimeoutError,
    NotSupportedError,
    WaitTimeoutError,
)
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.filesystem.convenience import LOCK_TIMEOUT_S
from nexus.contracts.filesystem.syscalls import WATCH_TIMEOUT_S
from nexus.contracts.lock_manager import DEFAULT_TTL_S, EXCLUSIVE, LockId
from nexus.contracts.metadata import DT_STREAM, Buffer, Stat, StreamMessage


class AsyncView:
    """The waiting calls of a filesystem, as coroutines. Shared by all event loops."""

    def __init__(self, nx: NexusFilesystem) -> None:
        self._nx = nx

    async def lock(
        self,
        path: str,
        mode: str = EXCLUSIVE,
        ttl: float = DEFAULT_TTL_S,
        max_holders: int | None = None,
        *,
        timeout: float = LOCK_TIMEOUT_S,
        context: OperationContext | None = None,
    ) -> LockId:
        """Wait for the advisory lock of a path. Errors: LockTimeoutError; as sys_lock."""
        lock_id = await self._nx._lock_async(path, mode, ttl, max_holders, timeout, context)
        if lock_id is None:
            raise LockTimeoutError("lock", path, f"no {mode} lock within {timeout:g} s")
        return lock_id

    async def unlock(
        self, path: str, lock_id: str, *, context: OperationContext | None = None
    ) -> bool:
        """End a held lock; False where it has ended already."""
        return await asyncio.to_thread(self._nx.sys_unlock, path, lock_id, context=context)

    @asynccontextmanager
    async def locked(
        self,
        path: str,
        mode: str = EXCLUSIVE,
        ttl: float = DEFAULT_TTL_S,
        max_holders: int | None = None,
        *,
        timeout: float = LOCK_TIMEOUT_S,
        context: OperationContext | None = None,
    ) -> AsyncIterator[LockId]:
        """Hold the advisory lock of a path for the length of a block; yields its id.

        Errors: as :meth:`lock`; ConflictError at the end of a block that outlived the lock.
        """
        lock_id = await self.lock(path, mode, ttl, max_holders, timeout=timeout, context=context)
        try:
            yield lock_id
        except BaseException:
            await asyncio.shield(self.unlock(path, lock_id, context=context))
            raise
        if not await asyncio.shield(self.unlock(path, lock_id, context=context)):
            raise ConflictError(
                "unlock", path, "the lock ended before the block did", hint="take a longer ttl"
            )

    async def sys_read(
        self,
        path: str,
        offset: int = 0,
        *,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> bytes:
        """Take the first message of a pipe, or return that of a stream at an offset.

        Errors: as :meth:`nexus.contracts.filesystem.NexusFilesystem.sys_read`; NotSupportedError
        for a file, which has nothing to wait for.
        """
        return await self._nx._read_async(path, offset, timeout, context)

    async def sys_write(
        self,
        path: str,
        buf: Buffer,
        *,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> Stat:
        """Add a message to a pipe or a stream. Errors: as :meth:`sys_read`."""
        return await self._nx._write_async(path, buf, timeout, context)

    async def tail(
        self,
        path: str,
        offset: int = 0,
        *,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> AsyncIterator[StreamMessage]:
        """Yield the messages of a stream from an offset on, each as it comes.

        Ends when the stream has ended, or ``timeout`` seconds went by without a message. Errors:
        as :meth:`sys_read`.
        """
        stat = await asyncio.to_thread(self._nx.sys_stat, path, context=context)
        if stat is not None and stat["entry_type"] != DT_STREAM:
            raise NotSupportedError("tail", path, f"is a {stat['type']}, not a stream")
        while True:
            try:
                message = await self.sys_read(path, offset, timeout=timeout, context=context)
            except (EndOfStreamError, WaitTimeoutError):
                return
            assert isinstance(message, StreamMessage)
            yield message
            offset = message.next_offset

    async def sys_watch(
        self,
        path: str,
        timeout: float = WATCH_TIMEOUT_S,
        recursive: bool = False,
        since: int | str | None = None,
        *,
        context: OperationContext | None = None,
    ) -> FileEvent | None:
        """Return the next event that concerns a path, or None after ``timeout`` seconds.

        Errors: as :meth:`nexus.contracts.filesystem.NexusFilesystem.sys_watch`.
        """
        return await self._nx._watch_async(path, timeout, recursive, since, context)

    def watch(
        self,
        path: str = "/",
        recursive: bool = True,
        since: int | str | None = None,
        *,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> AsyncIterator[FileEvent]:
        """Return an iterator of the events that concern a path, none missed.

        As :meth:`nexus.contracts.filesystem.NexusFilesystem.watch`.
        """
        if since is None:
            since = self._nx._newest_revision()
        return self._events(path, recursive, since, timeout, context)

    async def _events(
        self,
        path: str,
        recursive: bool,
        since: int | str,
        timeout: float | None,
        context: OperationContext | None,
    ) -> AsyncIterator[FileEvent]:
        pause = WATCH_TIMEOUT_S if timeout is None else timeout
        while True:
            event = await self.sys_watch(path, pause, recursive, since, context=context)
            if event is not None:
                since = event.cursor
                yield event
            elif timeout is not None:
                return
