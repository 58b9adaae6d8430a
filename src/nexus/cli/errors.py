"""Errors as the command line shows them: two lines or one JSON object, and an exit code.

Layer: cli. Exit codes are a published interface, listed in docs/cli.md.
"""

from __future__ import annotations

import errno
import json
import sys

from nexus.cli.output import printable
from nexus.contracts.errors import (
    AccessDeniedError,
    BusyError,
    ClosedError,
    ConfigError,
    ConflictError,
    ContentNotFoundError,
    DataDirectoryLockedError,
    DirectoryNotEmptyError,
    EndOfStreamError,
    EventsLost,
    InvalidArgumentError,
    InvalidPathError,
    LockOrderError,
    LockTimeoutError,
    MessagesLost,
    NexusError,
    NoSpaceError,
    NotSupportedError,
    PathExistsError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
    ReadOnlyError,
    StorageError,
    StreamOffsetError,
    WaitTimeoutError,
    WouldBlock,
)

EXIT_OK = 0
EXIT_DIFFERS = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_CONFLICT = 4
EXIT_DENIED = 5
EXIT_STORAGE = 6
EXIT_LOCKED = 7
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141

# The first class that matches counts.
_EXIT_CODES: tuple[tuple[type[NexusError], int], ...] = (
    (ContentNotFoundError, EXIT_STORAGE),
    (InvalidPathError, EXIT_USAGE),
    (InvalidArgumentError, EXIT_USAGE),
    (ConfigError, EXIT_USAGE),
    (NotSupportedError, EXIT_USAGE),
    (ClosedError, EXIT_USAGE),
    (PathNotFoundError, EXIT_NOT_FOUND),
    (PathExistsError, EXIT_CONFLICT),
    (ConflictError, EXIT_CONFLICT),
    (EventsLost, EXIT_CONFLICT),
    (MessagesLost, EXIT_CONFLICT),
    (DirectoryNotEmptyError, EXIT_CONFLICT),
    (BusyError, EXIT_CONFLICT),
    (PathIsDirectoryError, EXIT_CONFLICT),
    (PathNotDirectoryError, EXIT_CONFLICT),
    (AccessDeniedError, EXIT_DENIED),
    (ReadOnlyError, EXIT_DENIED),
    (DataDirectoryLockedError, EXIT_LOCKED),
    (LockTimeoutError, EXIT_LOCKED),
    (LockOrderError, EXIT_LOCKED),
    (WouldBlock, EXIT_LOCKED),
    (WaitTimeoutError, EXIT_LOCKED),
    (StreamOffsetError, EXIT_NOT_FOUND),
    (EndOfStreamError, EXIT_NOT_FOUND),
)


class UsageError(NexusError):
    """The command line itself is wrong: an unknown option, a missing argument."""

    code = errno.EINVAL


def exit_code(error: NexusError) -> int:
    """Return the exit code that stands for an error."""
    if isinstance(error, UsageError):
        return EXIT_USAGE
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code
    return EXIT_STORAGE


def report(error: NexusError, *, as_json: bool) -> None:
    """Write an error to stderr."""
    if as_json:
        sys.stderr.write(json.dumps({"error": _fields(error)}) + "\n")
        return
    parts = ["nexus", error.operation, error.path, error.reason]
    sys.stderr.write(": ".join(printable(str(part)) for part in parts if part is not None) + "\n")
    if error.hint:
        sys.stderr.write(f"hint: {printable(error.hint)}\n")


def _fields(error: NexusError) -> dict[str, object]:
    return {
        "class": type(error).__name__,
        "operation": error.operation,
        "path": error.path,
        "reason": error.reason,
        "hint": error.hint,
        "errno": error.errno,
        "retryable": error.retryable,
    }


def host_error(operation: str, path: str | None, error: OSError) -> NexusError:
    """Return the NexusError for an error of the host's own filesystem at a host path."""
    kinds: dict[int | None, type[NexusError]] = {
        errno.ENOENT: PathNotFoundError,
        errno.EEXIST: PathExistsError,
        errno.EISDIR: PathIsDirectoryError,
        errno.ENOTDIR: PathNotDirectoryError,
        errno.ELOOP: PathNotDirectoryError,
        errno.EACCES: AccessDeniedError,
        errno.EPERM: AccessDeniedError,
        errno.EROFS: ReadOnlyError,
        errno.ENOSPC: NoSpaceError,
        errno.EDQUOT: NoSpaceError,
    }
    kind = kinds.get(error.errno, StorageError)
    return kind(operation, path, (error.strerror or str(error)).lower())
