"""The abstract half of NexusFilesystem: path-addressed system calls.

Layer: contracts. Implemented by the kernel, by bound views and by remote clients. Every call is
plain and thread-safe, takes ``context=`` (None: the identity the filesystem was opened with) and
takes absolute paths (rules in :mod:`nexus.lib.paths`).

Calls that can wait have a plain form and, for views that hold no thread, an awaitable one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Self

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.lock_manager import DEFAULT_TTL_S, EXCLUSIVE, LockId
from nexus.contracts.metadata import Buffer, DirectoryPage, Stat
from nexus.contracts.object_store import ContentStoreABC

WATCH_TIMEOUT_S = 30.0
"""How long :meth:`Syscalls.sys_watch` waits unless told otherwise."""

_CONDITION_TYPES = (
    ("if_match", str),
    ("if_none_match", str),
    ("if_revision", int),
    ("lock_token", int),
)


class Precondition(msgspec.Struct, frozen=True):
    """What must hold inside the commit of a write, else ConflictError.

    ``if_match``: the file exists with this etag. ``if_none_match``: ``"*"`` means that nothing
    exists at the path; an etag means that the file, if there, has another. ``if_revision``: the
    record of the file is of this revision, as in its stat. An etag comes back with old content,
    a revision never does, so only this says that nothing happened to the path meanwhile.
    ``lock_token``: the advisory lock that was granted with this fencing token is still held.
    """

    if_match: str | None = None
    if_none_match: str | None = None
    if_revision: int | None = None
    lock_token: int | None = None

    def __post_init__(self) -> None:
        """Refuse what can never hold. Errors: InvalidArgumentError."""
        for name, kind in _CONDITION_TYPES:
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                reason = f"{name} is {type(value).__name__}, not {kind.__name__}"
                raise InvalidArgumentError("precondition", None, reason)


class WriteRequest(msgspec.Struct, frozen=True):
    """One whole-file write. ``buf`` may be an iterable of pieces for content of any size.

    ``create`` makes a missing file, ``parents`` its missing directories. ``append`` adds to the
    end instead of replacing, atomically under concurrency.
    """

    path: str
    buf: Buffer | Iterable[Buffer]
    create: bool = True
    parents: bool = True
    append: bool = False
    precondition: Precondition | None = None


class Syscalls(ABC):
    """Path-addressed system calls. Unix counterparts are named call by call."""

    @abstractmethod
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
        """Return ``count`` bytes from ``offset`` (pread(2)); fewer, or none, at the end.

        ``count=None`` reads to the end; ``version`` reads an earlier version that retention
        still keeps. Errors: PathNotFoundError, PathIsDirectoryError, PathNotDirectoryError,
        InvalidArgumentError for a negative count or offset, CorruptionError, NotSupportedError
        for a version on a mount that keeps none.

        Of a pipe it takes the first message; of a stream it returns the message at ``offset``, a
        :class:`~nexus.contracts.metadata.StreamMessage`. Where there is none yet it waits, at most
        ``timeout`` seconds: None without end, 0 not at all. A file never waits. Errors:
        WouldBlock, WaitTimeoutError, StreamOffsetError, EndOfStreamError, InvalidArgumentError
        for a count, PathNotFoundError and ClosedError for what goes away meanwhile.
        """

    @abstractmethod
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
        """Write ``count`` bytes of ``buf`` at ``offset`` into an existing file (pwrite(2)).

        Bytes outside the range stay; a gap past the end reads as zeros; readers see the old or
        the new file. Returns path, bytes_written, etag, version, size, modified_at, revision.
        Errors: PathNotFoundError when missing, PathIsDirectoryError, ConflictError,
        InvalidArgumentError, NoSpaceError, StorageFailedError.

        To a pipe or a stream it is one message. A full pipe makes the writer wait, at most
        ``timeout`` seconds, as sys_read does. Returns path, bytes_written and, for a stream, the
        message's offset. Errors: WouldBlock, WaitTimeoutError, InvalidArgumentError for a message
        over the capacity, an offset or a precondition.
        """

    @abstractmethod
    async def _read_async(
        self,
        path: str,
        offset: int,
        timeout: float | None,
        context: OperationContext | None,
    ) -> bytes:
        """As :meth:`sys_read` of a pipe or a stream, holding no thread while it waits."""

    @abstractmethod
    async def _write_async(
        self, path: str, buf: Buffer, timeout: float | None, context: OperationContext | None
    ) -> Stat:
        """As :meth:`sys_write` to a pipe or a stream, holding no thread while it waits."""

    @abstractmethod
    def sys_stat(
        self, path: str, include_lock: bool = False, *, context: OperationContext | None = None
    ) -> Stat | None:
        """Return the attributes of what is at the path (stat(2)), or None where nothing is.

        ``include_lock`` adds ``locks``: who holds the path's advisory lock, a list of dicts.
        Errors: PathNotDirectoryError never: a path below a file is a place where nothing is.
        """

    @abstractmethod
    def sys_setattr(
        self, path: str, *, context: OperationContext | None = None, **attrs: Any
    ) -> Stat:
        """Create by ``entry_type`` (mknod, mkdir, mount), or update mutable attributes (chmod, …).

        Without ``entry_type``: ``mode``, ``owner_id``, ``mime_type``, ``modified_at`` (seconds
        since the epoch) and ``attributes`` (a mapping merged into the custom attributes; None
        removes one). ``entry_type=DT_DIR`` creates a directory, with ``exist_ok`` and
        ``parents``. ``entry_type=DT_MOUNT, backend=…`` mounts a driver object or a description.
        ``entry_type=DT_PIPE`` and ``DT_STREAM`` create a pipe or a stream of ``capacity_bytes``;
        where one is there already, they open it.
        Returns the stat after the change. Errors: PathNotFoundError (also for a missing
        parent), PathExistsError, PathNotDirectoryError, InvalidArgumentError for an unknown
        attribute or a value of the wrong type, BusyError.
        """

    @abstractmethod
    def sys_unlink(
        self, path: str, recursive: bool = False, *, context: OperationContext | None = None
    ) -> Stat:
        """Remove a file, or a directory: an empty one, or with ``recursive`` all beneath it.

        One commit. A mount point is unmounted (umount(2)) and what lies behind it stays.
        Returns path, removed (a count of entries) and revision. Errors: PathNotFoundError,
        DirectoryNotEmptyError, BusyError for a directory above a mount point, for a mount point
        with ``recursive``, and for a mount whose calls in flight do not finish.
        """

    @abstractmethod
    def sys_rename(self, old: str, new: str, *, context: OperationContext | None = None) -> Stat:
        """Move a file or a whole subtree in one commit (rename(2)).

        A file replaces a file; a directory replaces an empty directory. Across mounts: copy,
        verify, then delete, with no half of it visible. Returns path, old_path, renamed (a
        count of entries), revision. Errors: PathNotFoundError, InvalidArgumentError into
        itself, DirectoryNotEmptyError, PathIsDirectoryError, PathNotDirectoryError, BusyError.
        """

    @abstractmethod
    def sys_copy(self, src: str, dst: str, *, context: OperationContext | None = None) -> Stat:
        """Copy a file or a subtree (copy_file_range(2)); within one CAS mount no bytes move.

        A file replaces a file; a directory needs a ``dst`` that is missing or empty. Does not
        cross mount points beneath ``src``. Returns the stat of ``dst`` with copied (a count).
        Errors: as :meth:`sys_rename`.
        """

    @abstractmethod
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
        """List a directory (readdir(3)): absolute paths sorted bytewise, or stats by ``details``.

        The cost grows with what is returned, not with what lies beneath. A page that was cut by
        ``limit`` has ``next_cursor`` set; a cursor stays valid while the tree changes.
        ``limit=None`` returns everything. Errors: PathNotFoundError, PathNotDirectoryError,
        InvalidArgumentError.
        """

    @abstractmethod
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
        """Take the advisory lock of a path, or None when it is busy (fcntl(F_SETLK)).

        ``mode`` is ``exclusive``, ``shared`` or ``counting`` with ``max_holders``. The lock ends
        by itself after ``ttl`` seconds; with the ``lock_id`` of a held one, it is extended to
        ``ttl`` seconds from now, or the answer is None when it has ended. ``timeout`` seconds
        are waited in order. Returns the lock id, whose ``token`` is the fencing token. Errors:
        InvalidArgumentError, ClosedError, StorageError.
        """

    @abstractmethod
    async def _lock_async(
        self,
        path: str,
        mode: str,
        ttl: float,
        max_holders: int | None,
        timeout: float,
        context: OperationContext | None,
    ) -> LockId | None:
        """Take an advisory lock as :meth:`sys_lock` does, waiting without a thread."""

    @abstractmethod
    def sys_unlock(
        self,
        path: str,
        lock_id: str | None = None,
        force: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> bool:
        """End a held lock (flock(LOCK_UN)), or with ``force`` every one on the path.

        Returns False where none was held. Errors: InvalidArgumentError without either.
        """

    @abstractmethod
    def sys_watch(
        self,
        path: str,
        timeout: float = WATCH_TIMEOUT_S,
        recursive: bool = False,
        since: int | str | None = None,
        *,
        context: OperationContext | None = None,
    ) -> FileEvent | None:
        """Return the next event that concerns a path, or None after ``timeout`` s (inotify(7)).

        It concerns the path itself, an entry of it, with ``recursive`` anything beneath, and the
        moving, removal or mounting of a directory above. ``since`` is a revision, after which
        nothing is missed, or the ``cursor`` of the last event; None begins now. Events come in
        commit order. Errors: EventsLost when the journal does not go back that far,
        InvalidArgumentError, ClosedError.
        """

    @abstractmethod
    async def _watch_async(
        self,
        path: str,
        timeout: float,
        recursive: bool,
        since: int | str | None,
        context: OperationContext | None,
    ) -> FileEvent | None:
        """Return the next event as :meth:`sys_watch` does, waiting without a thread."""

    @abstractmethod
    def _newest_revision(self) -> int:
        """Return the revision of the last commit: where a watch begins. Errors: ClosedError."""

    @abstractmethod
    def sync(self) -> None:
        """Return once everything acknowledged survives a power cut (sync(2))."""

    @abstractmethod
    def close(self) -> None:
        """Finish calls in flight, sync and release everything. Idempotent."""

    @abstractmethod
    def bind(self, context: OperationContext) -> Syscalls:
        """Return a view of the same filesystem in which ``context`` is the default identity."""

    @abstractmethod
    def _write_many(
        self, requests: Sequence[WriteRequest], context: OperationContext | None
    ) -> list[Stat]:
        """Apply whole-file writes in one all-or-nothing commit; the same answers as sys_write."""

    @abstractmethod
    def _content_store(self, path: str, context: OperationContext | None) -> ContentStoreABC:
        """Return the content store of the mount that holds ``path``, for hash-addressed calls."""

    @abstractmethod
    def _store_content(
        self, path: str, pieces: Iterable[Buffer], context: OperationContext | None
    ) -> str:
        """Store content in the mount that holds ``path``, as durable as a write; return its id."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
