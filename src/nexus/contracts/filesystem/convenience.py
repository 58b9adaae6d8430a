"""The concrete half of NexusFilesystem: calls that only compose the system calls.

Layer: contracts. No state, no storage and no lock of its own: whatever implements
:class:`~nexus.contracts.filesystem.syscalls.Syscalls` gets all of these by inheritance.
"""

from __future__ import annotations

import builtins
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    AccessDeniedError,
    ConflictError,
    InvalidArgumentError,
    LockTimeoutError,
    NotSupportedError,
    PathNotDirectoryError,
    PathNotFoundError,
    shown,
)
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem.syscalls import (
    WATCH_TIMEOUT_S,
    Precondition,
    Syscalls,
    WriteRequest,
)
from nexus.contracts.lock_manager import DEFAULT_TTL_S, EXCLUSIVE, LockId
from nexus.contracts.metadata import (
    CHANNEL_TYPES,
    DT_DIR,
    DT_REG,
    Buffer,
    DirectoryPage,
    Stat,
)
from nexus.contracts.object_store import PIECE_BYTES

WALK_PAGE = 1000
"""Entries fetched at a time by calls that walk a tree."""

EDIT_TIMEOUT_S = 30.0
"""How long :meth:`NexusFilesystem.edit` retries against concurrent writers."""

LOCK_TIMEOUT_S = 30.0
"""How long :meth:`NexusFilesystem.lock` waits unless told otherwise."""

GREP_MAX_FILE_BYTES = 64 << 20
"""Files above this size are reported by grep as skipped, not searched."""


_MAX_NUMBER = (1 << 63) - 1
_BAD_PATTERN = (re.error, RecursionError, OverflowError, UnicodeEncodeError)
T = TypeVar("T")


class GrepMatch(NamedTuple):
    """One matching line; ``line_number`` counts from 1."""

    path: str
    line_number: int
    line: str


class GrepResult(list[GrepMatch]):
    """Matches; ``truncated`` says the limit cut them, ``skipped`` names files not searched."""

    truncated: bool = False
    skipped: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.skipped = []


class NexusFilesystem(Syscalls):
    """The published contract: what :func:`nexus.sdk.connect` returns, in every mode."""

    @abstractmethod
    def bind(self, context: OperationContext) -> NexusFilesystem:
        """Return a view of the same filesystem in which ``context`` is the default identity."""

    @abstractmethod
    def service(self, name: str) -> Any:
        """Return a handle for a service: calls go to whatever instance serves at the moment.

        Errors: PathNotFoundError for an unknown name; calls raise BusyError for a service that
        has not started, and LockTimeoutError while it is exchanged for too long.
        """

    # -- content by path ----------------------------------------------------------------------

    def read(
        self,
        path: str,
        count: int | None = None,
        offset: int = 0,
        *,
        version: int | None = None,
        context: OperationContext | None = None,
    ) -> bytes:
        """Return a file's bytes, or ``count`` of them from ``offset``. Errors: as sys_read."""
        return self.sys_read(path, count, offset, version=version, context=context)

    def write(
        self,
        path: str,
        buf: Buffer | str | Iterable[Buffer],
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        lock_token: int | None = None,
        context: OperationContext | None = None,
    ) -> Stat:
        """Replace or create a file whole, with its missing parents; readers see old or new.

        A str is stored as UTF-8; an iterable of pieces streams content of any size in bounded
        memory. Returns what sys_write returns. Errors: ConflictError when a precondition fails,
        PathIsDirectoryError, PathNotDirectoryError, NoSpaceError.
        """
        condition = _precondition(if_match, if_none_match, lock_token)
        request = WriteRequest(path, _bytes("write", path, buf), precondition=condition)
        return self._write_many((request,), context)[0]

    def append(
        self,
        path: str,
        buf: Buffer | str,
        *,
        lock_token: int | None = None,
        context: OperationContext | None = None,
    ) -> Stat:
        """Add to the end of a file, creating it; concurrent appends lose nothing."""
        condition = _precondition(None, None, lock_token)
        data = _bytes("append", path, buf)
        request = WriteRequest(path, data, append=True, precondition=condition)
        return self._write_many((request,), context)[0]

    def edit(
        self,
        path: str,
        change: Callable[[bytes], Buffer] | Iterable[tuple[str, str]],
        *,
        lock_token: int | None = None,
        context: OperationContext | None = None,
    ) -> Stat:
        """Change a file by a function of its bytes, or by (old, new) text replacements.

        Atomic under concurrency: the change is computed again when another writer came first.
        Each old text must occur exactly once. Errors: InvalidArgumentError when it does not,
        ConflictError when writers kept coming first for 30 seconds, or the lock's token is stale.
        """
        apply = change if callable(change) else _replacer(path, change)
        deadline = time.monotonic() + EDIT_TIMEOUT_S
        pause = 0.0001
        while True:
            stat = self.sys_stat(path, context=context)
            if stat is None:
                raise PathNotFoundError("edit", path, "no such file")
            if stat["entry_type"] in CHANNEL_TYPES:
                # Reading would take a message, or wait for one.
                raise NotSupportedError("edit", path, f"is a {stat['type']}, not a file")
            content = apply(self.sys_read(path, context=context))
            # The stat and the content were read one after the other. An etag may have come back
            # meanwhile, a revision cannot: if it still holds, it held when the content was read.
            # The etag counts behind a path-addressed mount, where others leave no revision.
            etag, revision = stat["etag"], stat["revision"]
            condition = Precondition(
                if_match=etag or None, if_revision=revision, lock_token=lock_token
            )
            request = WriteRequest(path, content, create=False, precondition=condition)
            try:
                return self._write_many((request,), context)[0]
            except ConflictError:
                now = self.sys_stat(path, context=context)
                nobody_came = now is not None and (now["etag"], now["revision"]) == (etag, revision)
                if nobody_came or time.monotonic() > deadline:
                    raise
            from random import uniform  # costs start-up time, and such a conflict is rare

            time.sleep(uniform(0, pause))  # noqa: S311 - jitter, not a secret
            pause = min(pause * 2, 0.05)

    def write_batch(
        self,
        items: Mapping[str, Buffer | str] | Iterable[tuple[str, Buffer | str] | WriteRequest],
        *,
        context: OperationContext | None = None,
    ) -> builtins.list[Stat]:
        """Write many files in one commit: all of them or none. Returns one answer an item.

        Items are (path, bytes) pairs, a mapping, or WriteRequests with their own preconditions.
        Errors: as write, with nothing written; NotSupportedError on a mount whose driver cannot
        take part in a commit.
        """
        pairs = items.items() if isinstance(items, Mapping) else items
        requests = [_request(item) for item in _each("write_batch", "items", pairs)]
        return self._write_many(requests, context)

    def read_batch(
        self,
        paths: Iterable[str],
        *,
        missing_ok: bool = False,
        context: OperationContext | None = None,
    ) -> dict[str, bytes | None]:
        """Return the bytes of many files by path; with ``missing_ok`` a missing one is None.

        Errors: as read, at the first path that fails.
        """
        found: dict[str, bytes | None] = {}
        for path in _each("read_batch", "paths", paths):
            try:
                found[path] = self.sys_read(path, context=context)
            except PathNotFoundError:
                if not missing_ok:
                    raise
                found[path] = None
        return found

    # -- namespace ----------------------------------------------------------------------------

    def mkdir(
        self,
        path: str,
        *,
        parents: bool = True,
        exist_ok: bool = False,
        context: OperationContext | None = None,
    ) -> Stat:
        """Create a directory and its missing parents. Errors: PathExistsError."""
        return self.sys_setattr(
            path, entry_type=DT_DIR, parents=parents, exist_ok=exist_ok, context=context
        )

    def rmdir(
        self, path: str, *, recursive: bool = False, context: OperationContext | None = None
    ) -> Stat:
        """Remove a directory, or unmount what is mounted at the path.

        Errors: PathNotDirectoryError for a file, DirectoryNotEmptyError, BusyError.
        """
        stat = self.sys_stat(path, context=context)
        if stat is not None and not stat["is_directory"]:
            raise PathNotDirectoryError("rmdir", path, "not a directory")
        return self.sys_unlink(path, recursive, context=context)

    def access(self, path: str, *, context: OperationContext | None = None) -> bool:
        """Return whether the caller may see what is at the path; False where nothing is."""
        try:
            return self.sys_stat(path, context=context) is not None
        except AccessDeniedError:
            return False

    def exists(self, path: str, *, context: OperationContext | None = None) -> bool:
        """Return whether anything is at the path."""
        return self.sys_stat(path, context=context) is not None

    def is_directory(self, path: str, *, context: OperationContext | None = None) -> bool:
        """Return whether a directory, or a mount, is at the path."""
        stat = self.sys_stat(path, context=context)
        return stat is not None and bool(stat["is_directory"])

    def list(
        self,
        path: str = "/",
        *,
        recursive: bool = False,
        details: bool = False,
        context: OperationContext | None = None,
    ) -> DirectoryPage:
        """Return every entry of a directory. For large ones, page through sys_readdir."""
        return self.sys_readdir(path, recursive, details=details, context=context)

    def walk(self, path: str = "/", *, context: OperationContext | None = None) -> Iterator[Stat]:
        """Yield the stats of everything beneath a directory, sorted by path, in bounded memory."""
        cursor: str | None = None
        while True:
            page = self.sys_readdir(
                path, recursive=True, limit=WALK_PAGE, cursor=cursor, details=True, context=context
            )
            yield from page
            cursor = page.next_cursor
            if cursor is None:
                return

    def glob(
        self, pattern: str, path: str = "/", *, context: OperationContext | None = None
    ) -> builtins.list[str]:
        """Return the sorted paths beneath ``path`` that match a shell pattern.

        ``*`` and ``?`` match within a component, ``**`` across components, ``[…]`` a set,
        ``{a,b}`` alternatives. A pattern without ``/`` matches names at any depth; one with
        ``/`` matches the path relative to ``path``. Errors: as sys_readdir.
        """
        match = _glob_matcher("glob", path, pattern)
        if not isinstance(path, str):
            raise InvalidArgumentError("glob", None, f"the path is {shown(path)}, not text")
        base = path.rstrip("/")
        by_name = "/" not in pattern.strip("/")
        found: builtins.list[str] = []
        for stat in self.walk(path, context=context):
            entry: str = stat["path"]
            subject = entry.rpartition("/")[2] if by_name else entry[len(base) + 1 :]
            if match(subject):
                found.append(entry)
        return found

    def grep(
        self,
        pattern: str,
        path: str = "/",
        *,
        include: str | None = None,
        ignore_case: bool = False,
        limit: int = 1000,
        context: OperationContext | None = None,
    ) -> GrepResult:
        """Return lines that match a regular expression in the text files beneath ``path``.

        ``path`` may be one file. ``include`` is a glob on names. Files with a NUL byte in their
        first 8 KiB are binary and passed over; files over 64 MiB are named in ``skipped``. At
        most ``limit`` matches; ``truncated`` says that there were more. Errors:
        InvalidArgumentError for a bad pattern.
        """
        if not isinstance(pattern, str):
            raise InvalidArgumentError("grep", path, f"the pattern is {shown(pattern)}, not text")
        _check_number("grep", path, "limit", limit, 1)
        try:
            # Whole files are searched first, so ^ and $ have to mean lines there too.
            flags = re.MULTILINE | (re.IGNORECASE if ignore_case else 0)
            search = re.compile(pattern.encode(), flags).search
        except _BAD_PATTERN as error:
            raise InvalidArgumentError("grep", path, f"bad pattern: {error}") from error
        result = GrepResult()
        for stat in self._grep_candidates(path, include, context):
            if stat["size"] > GREP_MAX_FILE_BYTES:
                result.skipped.append(stat["path"])
                continue
            try:
                content = self.sys_read(stat["path"], context=context)
            except PathNotFoundError:
                continue  # removed since it was listed
            if b"\0" in content[:8192] or not search(content):
                continue
            for number, line in enumerate(content.splitlines(), 1):
                if search(line):
                    if len(result) == limit:
                        result.truncated = True
                        return result
                    text = line.decode("utf-8", "replace")
                    result.append(GrepMatch(stat["path"], number, text))
        return result

    def _grep_candidates(
        self, path: str, include: str | None, context: OperationContext | None
    ) -> Iterator[Stat]:
        match = None if include is None else _glob_matcher("grep", path, include)
        start = self.sys_stat(path, context=context)
        if start is None:
            raise PathNotFoundError("grep", path, "no such file or directory")
        stats = self.walk(path, context=context) if start["is_directory"] else iter((start,))
        for stat in stats:
            if stat["entry_type"] != DT_REG:
                continue
            if match is None or match(stat["path"].rpartition("/")[2]):
                yield stat

    # -- advisory locks -----------------------------------------------------------------------

    def lock(
        self,
        path: str,
        mode: str = EXCLUSIVE,
        ttl: float = DEFAULT_TTL_S,
        max_holders: int | None = None,
        *,
        timeout: float = LOCK_TIMEOUT_S,
        context: OperationContext | None = None,
    ) -> LockId:
        """Wait for the advisory lock of a path and return its id.

        Errors: LockTimeoutError when it was not granted within ``timeout`` seconds.
        """
        lock_id = self.sys_lock(path, mode, ttl, max_holders, timeout=timeout, context=context)
        if lock_id is None:
            raise LockTimeoutError("lock", path, f"no {mode} lock within {timeout:g} s")
        return lock_id

    def unlock(
        self,
        path: str,
        lock_id: str | None = None,
        force: bool = False,
        *,
        context: OperationContext | None = None,
    ) -> bool:
        """End a held lock; False where it has ended already. Errors: as sys_unlock."""
        return self.sys_unlock(path, lock_id, force, context=context)

    @contextmanager
    def locked(
        self,
        path: str,
        mode: str = EXCLUSIVE,
        ttl: float = DEFAULT_TTL_S,
        max_holders: int | None = None,
        *,
        timeout: float = LOCK_TIMEOUT_S,
        context: OperationContext | None = None,
    ) -> Iterator[LockId]:
        """Hold the advisory lock of a path for the length of a block; yields its id.

        Errors: as :meth:`lock`; ConflictError at the end of a block that outlived the lock, so
        that it was not alone all the time.
        """
        lock_id = self.lock(path, mode, ttl, max_holders, timeout=timeout, context=context)
        try:
            yield lock_id
        except BaseException:
            self.sys_unlock(path, lock_id, context=context)
            raise
        if not self.sys_unlock(path, lock_id, context=context):
            raise ConflictError(
                "unlock", path, "the lock ended before the block did", hint="take a longer ttl"
            )

    # -- watching -----------------------------------------------------------------------------

    def watch(
        self,
        path: str = "/",
        recursive: bool = True,
        since: int | str | None = None,
        *,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> Iterator[FileEvent]:
        """Return an iterator of the events that concern a path, each as it comes, none missed.

        Without ``since`` it begins with this call, not with the first step. It ends when nothing
        came for ``timeout`` seconds; None waits on. Errors, while iterating: as sys_watch.
        """
        if since is None:
            since = self._newest_revision()
        return self._events(path, recursive, since, timeout, context)

    def _events(
        self,
        path: str,
        recursive: bool,
        since: int | str,
        timeout: float | None,
        context: OperationContext | None,
    ) -> Iterator[FileEvent]:
        pause = WATCH_TIMEOUT_S if timeout is None else timeout
        while True:
            event = self.sys_watch(path, pause, recursive, since, context=context)
            if event is not None:
                since = event.cursor
                yield event
            elif timeout is not None:
                return

    # -- history ------------------------------------------------------------------------------

    def history(
        self,
        path: str | None = None,
        *,
        limit: int | None = None,
        cursor: str | None = None,
        context: OperationContext | None = None,
    ) -> DirectoryPage:
        """Return what happened, oldest first: to one path (its versions), or to everything.

        Each entry is a dict; for a path: version, revision, size, etag, modified_at, modified_by,
        run_id, deleted. Without a path: the journal's events. Retention bounds both.
        """
        if path is not None and not isinstance(path, str):
            raise InvalidArgumentError("history", None, f"the path is {shown(path)}, not text")
        place = "/__sys__/journal" if path is None else f"/__sys__/versions{path}"
        return self.sys_readdir(place, limit=limit, cursor=cursor, details=True, context=context)

    # -- content by hash ----------------------------------------------------------------------

    def read_content(
        self, etag: str, *, mount: str = "/", context: OperationContext | None = None
    ) -> bytes:
        """Return the content with this id from the store mounted at ``mount``."""
        _check_etag("read_content", mount, etag)
        return self._content_store(mount, context).read_content(etag)

    def write_content(
        self, data: Buffer, *, mount: str = "/", context: OperationContext | None = None
    ) -> str:
        """Store content and return its id. Nothing names it: it lasts for the grace period."""
        return self.write_stream((data,), mount=mount, context=context)

    def stream(
        self,
        etag: str,
        *,
        piece_bytes: int = PIECE_BYTES,
        mount: str = "/",
        context: OperationContext | None = None,
    ) -> Iterator[bytes]:
        """Yield the content with this id in verified pieces, in bounded memory."""
        _check_etag("stream", mount, etag)
        _check_number("stream", mount, "piece_bytes", piece_bytes, 1)
        store = self._content_store(mount, context)
        return store.stream_content(etag, piece_bytes=piece_bytes)

    def stream_range(
        self,
        etag: str,
        offset: int,
        count: int,
        *,
        piece_bytes: int = PIECE_BYTES,
        mount: str = "/",
        context: OperationContext | None = None,
    ) -> Iterator[bytes]:
        """Yield ``count`` bytes from ``offset`` of the content with this id."""
        _check_etag("stream_range", mount, etag)
        _check_number("stream_range", mount, "offset", offset, 0)
        _check_number("stream_range", mount, "count", count, 0)
        _check_number("stream_range", mount, "piece_bytes", piece_bytes, 1)
        store = self._content_store(mount, context)
        return store.stream_content(etag, offset, count, piece_bytes)

    def write_stream(
        self,
        pieces: Iterable[Buffer],
        *,
        mount: str = "/",
        context: OperationContext | None = None,
    ) -> str:
        """Store the concatenation of pieces in bounded memory and return its id."""
        return self._store_content(mount, pieces, context)


def _precondition(
    if_match: str | None, if_none_match: str | None, lock_token: int | None
) -> Precondition | None:
    if if_match is None and if_none_match is None and lock_token is None:
        return None
    return Precondition(if_match, if_none_match, lock_token=lock_token)


def _request(item: tuple[str, Buffer | str] | WriteRequest) -> WriteRequest:
    if isinstance(item, WriteRequest):
        return item
    if not isinstance(item, tuple) or len(item) != 2:
        raise InvalidArgumentError("write_batch", None, f"{shown(item)} is no (path, bytes) pair")
    return WriteRequest(item[0], _bytes("write_batch", item[0], item[1]))


def _bytes(
    operation: str, path: str, buf: Buffer | str | Iterable[Buffer]
) -> Buffer | Iterable[Buffer]:
    if not isinstance(buf, str):
        return buf
    try:
        return buf.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(operation, path, f"the text is not UTF-8: {error}") from error


def _each(operation: str, name: str, items: Iterable[T]) -> Iterable[T]:
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise InvalidArgumentError(operation, None, f"{name} is {type(items).__name__}, not a list")
    return items


def _check_number(operation: str, path: str, name: str, value: object, least: int) -> None:
    if type(value) is not int or not least <= value <= _MAX_NUMBER:
        kind = type(value).__name__
        reason = f"{name} is not a number from {least} to {_MAX_NUMBER} but {kind}"
        raise InvalidArgumentError(operation, path, reason)


def _check_etag(operation: str, mount: str, etag: object) -> None:
    if not isinstance(etag, str):
        raise InvalidArgumentError(operation, mount, f"the etag is {shown(etag)}, not text")


def _glob_matcher(operation: str, path: str, pattern: object) -> Callable[[str], object]:
    if not isinstance(pattern, str):
        raise InvalidArgumentError(operation, path, f"the pattern is {shown(pattern)}, not text")
    try:
        return re.compile(_glob_regex(pattern)).fullmatch
    except _BAD_PATTERN as error:
        raise InvalidArgumentError(operation, path, f"bad pattern: {error}") from error


def _replacer(path: str, change: Iterable[tuple[str, str]]) -> Callable[[bytes], bytes]:
    edits: list[tuple[bytes, bytes]] = []
    for edit in _each("edit", "change", change):
        if not isinstance(edit, tuple | list) or len(edit) != 2 or not edit[0]:
            raise InvalidArgumentError(
                "edit", path, f"{shown(edit)} is no (old, new) pair of texts"
            )
        old, new = (_bytes("edit", path, text) for text in edit)
        if not isinstance(old, bytes) or not isinstance(new, bytes):
            raise InvalidArgumentError(
                "edit", path, f"{shown(edit)} is no (old, new) pair of texts"
            )
        edits.append((old, new))

    def apply(content: bytes) -> bytes:
        for old, new in edits:
            occurrences = content.count(old)
            if occurrences != 1:
                raise InvalidArgumentError(
                    "edit", path, f"the text to replace occurs {occurrences} times, not once"
                )
            content = content.replace(old, new)
        return content

    return apply


def _glob_regex(pattern: str) -> str:
    """Translate a shell pattern into a regular expression for :func:`re.fullmatch`."""
    out: list[str] = []
    position = 0
    depth = 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "*":
            if pattern.startswith("*", position):
                position += 1
                if pattern.startswith("/", position):
                    position += 1
                    out.append("(?:.*/)?")
                else:
                    out.append(".*")
            else:
                out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[" and (end := pattern.find("]", position + 1)) != -1:
            body = pattern[position:end].replace("\\", "\\\\").replace("[", "\\[")
            out.append(f"[^{body[1:]}/]" if body[0] in "!^" else f"[{body}]")
            position = end + 1
        elif char == "{" and "}" in pattern[position:]:
            out.append("(?:")
            depth += 1
        elif char == "}" and depth:
            out.append(")")
            depth -= 1
        elif char == "," and depth:
            out.append("|")
        else:
            out.append(re.escape(char))
    return "(?s:" + "".join(out) + ")"
