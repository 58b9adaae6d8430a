"""The error tree. Every error names the operation, the path and the cause.

Layer: contracts. Unix counterpart: errno(3). Each class also derives from the builtin
exception a Python programmer would catch, with ``errno`` and ``filename`` set::

    NexusError
    |-- InvalidPathError            ValueError, OSError       EINVAL
    |   `-- NameTooLongError                                  ENAMETOOLONG
    |-- InvalidArgumentError        ValueError, OSError       EINVAL
    |-- ConfigError                 ValueError
    |-- ClosedError                 ValueError, OSError       EBADF
    |-- PathNotFoundError           FileNotFoundError         ENOENT
    |   `-- ContentNotFoundError
    |-- PathExistsError             FileExistsError           EEXIST
    |-- PathIsDirectoryError        IsADirectoryError         EISDIR
    |-- PathNotDirectoryError       NotADirectoryError        ENOTDIR
    |-- DirectoryNotEmptyError      OSError                   ENOTEMPTY
    |-- AccessDeniedError           PermissionError           EACCES
    |-- ReadOnlyError               OSError                   EROFS
    |-- BusyError                   OSError                   EBUSY
    |-- NotSupportedError           OSError                   ENOTSUP
    |-- ConflictError               BlockingIOError           EAGAIN
    |-- LockTimeoutError            TimeoutError              ETIMEDOUT
    |-- WouldBlock                  BlockingIOError           EAGAIN
    |-- WaitTimeoutError            TimeoutError              ETIMEDOUT
    |-- StreamOffsetError           LookupError               ERANGE
    |-- EndOfStreamError            EOFError                  ENODATA
    |-- LockOrderError              RuntimeError              EDEADLK
    |-- EventsLost                  OSError                   EOVERFLOW
    |-- MessagesLost                OSError                   EOVERFLOW
    |-- DataDirectoryLockedError    BlockingIOError           EWOULDBLOCK
    `-- StorageError                OSError                   EIO
        |-- NoSpaceError                                      ENOSPC
        |-- StorageFailedError                                EIO
        `-- CorruptionError                                   EIO
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar


class NexusError(Exception):
    """Root of every error raised by NexusFS.

    ``operation`` is the call that failed, ``path`` what it was asked to act on (None when the
    failure concerns no path), ``reason`` the cause, ``hint`` what the caller can do about it, and
    ``retryable`` whether the same call can succeed later without the caller changing it.
    """

    code: ClassVar[int] = _errno.EIO
    retryable: ClassVar[bool] = False
    errno: int | None
    strerror: str | None
    filename: Any

    def __init__(
        self, operation: str, path: str | None, reason: str, *, hint: str | None = None
    ) -> None:
        super().__init__(operation, path, reason)
        self.operation = operation
        self.path = path
        self.reason = reason
        self.hint = hint
        # OSError exposes these three; on the other classes they are plain attributes.
        self.errno = self.code
        self.strerror = reason
        self.filename = path

    def __str__(self) -> str:
        where = f"{self.operation}: {self.path}" if self.path is not None else self.operation
        return f"{where}: {self.reason}" + (f" ({self.hint})" if self.hint else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.operation, self.path, self.reason, self.hint)


def _rebuild(
    cls: type[NexusError], operation: str, path: str | None, reason: str, hint: str | None
) -> NexusError:
    return cls(operation, path, reason, hint=hint)


class InvalidPathError(NexusError, ValueError, OSError):
    """The path is relative, holds ``..``, NUL or a control character, or is not UTF-8."""

    code = _errno.EINVAL


class NameTooLongError(InvalidPathError):
    """A path over 4,096 bytes or a component over 255 bytes."""

    code = _errno.ENAMETOOLONG


class InvalidArgumentError(NexusError, ValueError, OSError):
    """An argument has no meaning for this call: a negative count, an unknown attribute, …"""

    code = _errno.EINVAL


class ConfigError(NexusError, ValueError):
    """The configuration has an unknown key, a value of the wrong shape, or cannot be read."""

    code = _errno.EINVAL


class ClosedError(NexusError, ValueError, OSError):
    """The filesystem, store or driver was closed before the call."""

    code = _errno.EBADF


class PathNotFoundError(NexusError, FileNotFoundError):
    """Nothing exists at the path."""

    code = _errno.ENOENT


class ContentNotFoundError(PathNotFoundError):
    """No content with this id is stored."""


class PathExistsError(NexusError, FileExistsError):
    """Something exists where the call wanted to create."""

    code = _errno.EEXIST


class PathIsDirectoryError(NexusError, IsADirectoryError):
    """A file operation on a directory."""

    code = _errno.EISDIR


class PathNotDirectoryError(NexusError, NotADirectoryError):
    """A directory operation on a file, or a path that runs through a file."""

    code = _errno.ENOTDIR


class DirectoryNotEmptyError(NexusError, OSError):
    """The directory still has entries."""

    code = _errno.ENOTEMPTY


class AccessDeniedError(NexusError, PermissionError):
    """The caller, or the process, may not do this."""

    code = _errno.EACCES


class ReadOnlyError(NexusError, OSError):
    """The mount, the store or the disk beneath it accepts no writes."""

    code = _errno.EROFS


class BusyError(NexusError, OSError):
    """The object is in use: a mount point, or a mount that still has calls in flight."""

    code = _errno.EBUSY


class NotSupportedError(NexusError, OSError):
    """The driver behind this path does not declare the capability that the call needs."""

    code = _errno.ENOTSUP


class ConflictError(NexusError, BlockingIOError):
    """A precondition (``if_match``, ``lock_token``, a compare condition, …) did not hold."""

    code = _errno.EAGAIN


class LockTimeoutError(NexusError, TimeoutError):
    """A lock was not granted within its timeout."""

    code = _errno.ETIMEDOUT
    retryable = True


class WouldBlock(NexusError, BlockingIOError):
    """The call would have to wait, and was asked not to."""

    code = _errno.EAGAIN
    retryable = True


class WaitTimeoutError(NexusError, TimeoutError):
    """What a call waited for did not come within its timeout; nothing was taken or written."""

    code = _errno.ETIMEDOUT
    retryable = True


class StreamOffsetError(NexusError, LookupError):
    """The stream does not hold the message at this offset; ``begin`` and ``end`` say what it holds.

    Below ``begin`` it had the message and let go of it; past ``end`` it never had one.
    """

    code = _errno.ERANGE

    def __init__(
        self, operation: str, path: str | None, offset: int, *, begin: int, end: int
    ) -> None:
        reason = f"nothing is kept at offset {offset}, but from {begin} to before {end}"
        super().__init__(operation, path, reason, hint=f"read on from offset {begin}")
        self.offset = offset
        self.begin = begin
        self.end = end

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.operation, self.path, self.offset, self.begin, self.end
        return _rebuild_offset, fields


def _rebuild_offset(
    operation: str, path: str | None, offset: int, begin: int, end: int
) -> StreamOffsetError:
    return StreamOffsetError(operation, path, offset, begin=begin, end=end)


class EndOfStreamError(NexusError, EOFError):
    """Every message of the stream was read, and nobody will write another."""

    code = _errno.ENODATA


class LockOrderError(NexusError, RuntimeError):
    """Locks were taken in a forbidden order; only with ``NEXUS_DEBUG_LOCK_ORDER=1``."""

    code = _errno.EDEADLK


class EventsLost(NexusError, OSError):
    """The journal does not go back to where a watch wants to go on: events are missing.

    ``revision`` is the present one. Look at what is there now, then watch from it.
    """

    code = _errno.EOVERFLOW

    def __init__(
        self,
        operation: str,
        path: str | None,
        reason: str,
        *,
        hint: str | None = None,
        revision: int = 0,
    ) -> None:
        super().__init__(operation, path, reason, hint=hint)
        self.revision = revision

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()
        return rebuild, arguments, {"revision": self.revision}


class MessagesLost(NexusError, OSError):
    """A subscriber fell behind and ``missed`` messages were dropped; the ones after them follow."""

    code = _errno.EOVERFLOW
    retryable = True

    def __init__(
        self,
        operation: str,
        path: str | None,
        reason: str,
        *,
        hint: str | None = None,
        missed: int = 0,
    ) -> None:
        super().__init__(operation, path, reason, hint=hint)
        self.missed = missed

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments = super().__reduce__()
        return rebuild, arguments, {"missed": self.missed}


class DataDirectoryLockedError(NexusError, BlockingIOError):
    """Another process owns the data directory."""

    code = _errno.EWOULDBLOCK
    retryable = True


class StorageError(NexusError, OSError):
    """The storage beneath a driver reported an error."""

    code = _errno.EIO


class NoSpaceError(StorageError):
    """The disk or the quota is full. Reads, deletes and collection still work."""

    code = _errno.ENOSPC
    retryable = True


class StorageFailedError(StorageError):
    """A write or sync failed earlier and the driver has not recovered yet; nothing was stored."""

    retryable = True


class CorruptionError(StorageError):
    """Stored bytes do not match their checksum. The damaged object is named in ``reason``."""


def shown(value: object) -> str:
    """Return a caller's value as an error shows it, however long or odd it is."""
    if isinstance(value, str | bytes):
        return repr(value if len(value) <= 200 else value[:200])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int) and value.bit_length() <= 128:
        return repr(value)
    return f"<{type(value).__name__}>"  # its own repr may fail: that of a huge int does
