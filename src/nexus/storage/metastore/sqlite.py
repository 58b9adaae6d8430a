"""SqliteMetastore: an ordered store in one SQLite file, on the standard library alone.

Layer: storage. One table of keys, versions and values; the revision of the store beside it. It
holds no notion of files, and no seal: SQLite answers a damaged page with wrong or missing rows
as readily as with an error, so its user seals every value.

Beside the file: ``-wal`` and ``-shm`` are SQLite's; ``.head`` is the witness against a lost end
of the log; ``.reserve`` is space for deleting on a full disk; ``.new`` a creation cut short.

Commits are grouped: writers queue their requests and take turns; the one whose turn it is
applies all that are queued in one transaction, syncs the log once if any asked for it, and
answers all. Each request's conditions see the requests before it.

Invariants (those of :class:`nexus.contracts.metastore.MetastoreABC`, and):

1. Nothing is answered before its transaction is committed and, if asked, synced.
2. The witness never runs ahead of what is committed, nor its synced part of what is synced.
3. After a failed write or sync the store is *failed*: every commit first reopens it and writes
   the whole log back into the file, synced; until that succeeds each raises StorageFailedError.
4. A transaction refused for one request's sake is repeated request by request.
5. Our own descriptor is opened on the log only, where SQLite holds no locks.

After a failed sync the commits of that group are in the file but were never acknowledged: a
later reader may see them, and they may be gone after a power cut.

States::

    open --a write or sync fails--> failed --_recover, at the next commit--> open
    open | failed --close--> closed

Locks, in this order: ``_turn`` (one writer: everything but reading), then the pool's own.
Readers take no lock of the store; they wait only for one another, for a recovery, and for the
moment it takes to restart a log that has far outgrown its limit.
"""

from __future__ import annotations

import copy
import operator
import os
import secrets
import sqlite3
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from typing import NoReturn

from nexus.contracts.errors import (
    ClosedError,
    CorruptionError,
    InvalidArgumentError,
    NexusError,
    NoSpaceError,
    StorageFailedError,
)
from nexus.contracts.metastore import (
    Batch,
    Condition,
    MetastoreABC,
    MetastoreCapabilities,
    StoredEntry,
)
from nexus.lib.disk import Disk, storage_error
from nexus.storage.metastore.head_file import HeadFile
from nexus.storage.metastore.ordered import conflict_error, scan_range
from nexus.storage.metastore.space_reserve import SpaceReserve
from nexus.storage.metastore.sqlite_file import (
    FSCK_HINT,
    FULL_HINT,
    PAGE_BYTES,
    check_header,
    check_schema,
    connect,
    create_store,
    database_error,
    is_damage,
    read_number,
)
from nexus.storage.metastore.sqlite_readers import ReaderPool
from nexus.storage.metastore.sqlite_salvage import rebuild_if_damaged

_GET = "SELECT v, ver FROM kv WHERE k = ?"
_VERSION = "SELECT ver FROM kv WHERE k = ?"
_PUT = "INSERT OR REPLACE INTO kv(k, ver, v) VALUES(?, ?, ?)"
_DELETE = "DELETE FROM kv WHERE k = ?"
_SET_REVISION = "UPDATE meta SET v = ? WHERE k = 'revision'"
_FEW_KEYS = 8
_MANY_SIZES = (64, 500)
"""Sizes of the key lists of ``get_many``: few, so that their statements stay prepared."""
_ROW_TYPES = [{bytes}, {bytes}, {int}]
_MAX_READERS = 8
_MAX_GROUP = 256
_LOG_FRAME_BYTES = 24 + PAGE_BYTES
_LOG_HEADER_BYTES = 32
_GROUPS_PER_LOG_CHECK = 16
_ARGUMENT_ERRORS = (sqlite3.Error, TypeError, ValueError, OverflowError)


class _Request:
    """One commit that waits for its turn; it is answered once ``revision`` or ``error`` is set."""

    __slots__ = ("batch", "conditions", "durable", "error", "reclaim", "revision")

    def __init__(
        self, batch: Batch, conditions: Sequence[Condition], durable: bool, reclaim: bool
    ) -> None:
        self.batch = batch
        self.conditions = conditions
        self.durable = durable
        self.reclaim = reclaim
        self.revision = 0
        self.error: NexusError | None = None


class SqliteMetastore(MetastoreABC):
    """An ordered store in a SQLite file. Shared freely between threads, not between processes."""

    name = "sqlite"
    capabilities = MetastoreCapabilities(persistent=True, exclusive_owner=True)

    def __init__(
        self,
        path: str,
        *,
        disk: Disk,
        create: bool,
        accept_loss: bool = False,
        reserve_bytes: int = 4 << 20,
        log_limit_bytes: int = 16 << 20,
    ) -> None:
        """Open the store, making it first when it is absent and ``create`` is set.

        ``accept_loss`` opens a store whose last commits are missing, and builds one whose structure
        is damaged anew from the rows that are readable. ``log_limit_bytes`` is how
        long the log grows before it is written back into the file.

        Errors: PathNotFoundError; CorruptionError for damage, for another program's file and
        for missing commits; BusyError while another process locks it; AccessDeniedError,
        ReadOnlyError, NoSpaceError, StorageError.
        """
        self._path = os.path.abspath(path)
        self._disk = disk
        self._log_limit_frames = max(1, log_limit_bytes // _LOG_FRAME_BYTES)
        self._turn = threading.Lock()
        self._queue: deque[_Request] = deque()
        self._readers = ReaderPool(self._open_reader, limit=_MAX_READERS)
        self._closed = False  # this and all below: guard _turn
        self._failure: str | None = None
        self._log_fd = -1
        self._revision = 0
        self._groups_until_check = _GROUPS_PER_LOG_CHECK
        if create and not os.path.lexists(self._path):
            create_store(self._path, identity=secrets.randbits(63), disk=disk)
        if accept_loss and os.path.lexists(self._path):
            rebuild_if_damaged(self._path, disk=disk)
        check_header(self._path, disk)
        with ExitStack() as undo:
            self._open_files(reserve_bytes, undo)
            self._check_witness(accept_loss=accept_loss)
            undo.pop_all()

    # Reading

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """Return ``(value, version)``, or None. Errors: CorruptionError, StorageError."""
        # The pool's fast paths, in place: two calls are a quarter of the cost of a get.
        readers = self._readers
        try:
            reader = readers.idle.pop()
        except IndexError:
            reader = readers.take("get")
        try:
            row = reader.execute(_GET, (key,)).fetchone()
        except sqlite3.Error as error:
            raise database_error("get", self._path, error) from error
        finally:
            readers.give_back(reader)
        if row is None:
            return None
        if row[0].__class__ is not bytes or row[1].__class__ is not int:
            self._raise_damage("get")
        answer: tuple[bytes, int] = row
        return answer

    def get_many(self, keys: Sequence[bytes]) -> list[tuple[bytes, int] | None]:
        """Return one answer a key, in the order of ``keys``. Errors: as :meth:`get`."""
        if len(keys) <= _FEW_KEYS:
            return [self.get(key) for key in keys]
        found: dict[bytes, tuple[bytes, int]] = {}
        for start in range(0, len(keys), _MANY_SIZES[-1]):
            part = list(keys[start : start + _MANY_SIZES[-1]])
            size = next(size for size in _MANY_SIZES if size >= len(part))
            # The last key, repeated, fills the list up to a size that has a prepared statement.
            part += part[-1:] * (size - len(part))
            query = f"SELECT k, v, ver FROM kv WHERE k IN ({', '.join('?' * size)})"  # noqa: S608
            for entry in self._query("get_many", query, part):
                found[entry.key] = entry.value, entry.version
        return [found.get(key) for key in keys]

    def scan(
        self, prefix: bytes, after: bytes = b"", limit: int = 1000, before: bytes | None = None
    ) -> list[StoredEntry]:
        """Return up to ``limit`` entries in key order. Errors: as :meth:`get`."""
        lower, includes_lower, upper = scan_range(prefix, after, before)
        where = "k >= ?" if includes_lower else "k > ?"
        arguments: list[bytes | int] = [lower]
        if upper is not None:
            where += " AND k < ?"
            arguments.append(upper)
        arguments.append(max(limit, 0))
        query = f"SELECT k, v, ver FROM kv WHERE {where} ORDER BY k LIMIT ?"  # noqa: S608 - only placeholders
        entries = self._query("scan", query, arguments)
        # A damaged tree can lead out of the range or back, and a caller who resumes by the last
        # key would then never come to an end.
        if entries and not (
            entries[0].key >= lower
            and (upper is None or entries[-1].key < upper)
            and _ascends([entry.key for entry in entries])
        ):
            self._raise_damage("scan")
        return entries

    def revision(self) -> int:
        """Return the revision of the last acknowledged commit. Errors: ClosedError."""
        if self._closed:
            raise ClosedError("revision", self._path, "the metastore is closed")
        return self._revision

    def _query(
        self, operation: str, query: str, arguments: Sequence[bytes | int]
    ) -> list[StoredEntry]:
        reader = self._readers.take(operation)
        try:
            rows = reader.execute(query, arguments).fetchall()
        except sqlite3.Error as error:
            raise database_error(operation, self._path, error) from error
        finally:
            self._readers.give_back(reader)
        if not rows:
            return []
        if [set(map(type, column)) for column in zip(*rows, strict=True)] != _ROW_TYPES:
            self._raise_damage(operation)
        return list(map(StoredEntry._make, rows))

    def _open_reader(self) -> sqlite3.Cursor:
        try:
            connection = connect(self._path, query_only=True)
        except sqlite3.Error as error:
            raise database_error("open", self._path, error) from error
        connection.text_factory = self._refuse_text
        return connection.cursor()

    def _refuse_text(self, _data: bytes) -> NoReturn:
        # Every column that a reader asks for is bytes or a number.
        self._raise_damage("read")

    def _raise_damage(self, operation: str) -> NoReturn:
        raise CorruptionError(operation, self._path, "a record is damaged", hint=FSCK_HINT)

    # Writing

    def commit(
        self,
        batch: Batch,
        conditions: Sequence[Condition] = (),
        *,
        durable: bool = False,
        reclaim: bool = False,
    ) -> int:
        """Apply the batch; return the new revision.

        Errors: ConflictError, NoSpaceError, StorageFailedError, CorruptionError, BusyError,
        InvalidArgumentError for keys or values that are not bytes, ClosedError.
        """
        request = _Request(batch, conditions, durable, reclaim)
        self._queue.append(request)
        with self._turn:
            while not request.revision and request.error is None:
                self._serve_group_locked()
        if request.error is not None:
            raise request.error
        return request.revision

    def check(self) -> list[str]:
        """Return what SQLite's own check finds, at most 20 lines. Errors: as :meth:`get`."""
        connection = connect(self._path, query_only=True)
        try:
            rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
        except sqlite3.Error as error:
            if is_damage(error):
                return [str(error)]
            raise database_error("check", self._path, error) from error
        finally:
            connection.close()
        return [str(row[0]) for row in rows if row != ("ok",)]

    def sync(self) -> None:
        """Make every acknowledged commit survive a power cut. Errors: StorageFailedError."""
        with self._turn:
            self._become_ready_locked("sync")
            self._sync_log_locked("sync")
            self._head.record_synced(self._revision)

    def close(self) -> None:
        """Write the log back, sync and release everything. Idempotent.

        Errors: StorageFailedError when the last commits may not survive a power cut.
        """
        with self._turn:
            if self._closed:
                return
            try:
                self._become_ready_locked("close")
                self._sync_log_locked("close")
                self._head.record_synced(self._revision)
            finally:
                self._closed = True
                self._readers.close()
                self._release_files()

    def _serve_group_locked(self) -> None:
        """Take the requests that are queued and answer all of them."""
        group: list[_Request] = []
        while self._queue and len(group) < _MAX_GROUP:
            group.append(self._queue.popleft())
        try:
            self._become_ready_locked("commit")
            self._commit_together_locked(self._admit_locked(group))
        except NexusError as error:
            _refuse(group, error)
        finally:
            self._abandon_unanswered_locked(group)
        self._groups_until_check -= 1
        if self._groups_until_check <= 0:
            self._groups_until_check = _GROUPS_PER_LOG_CHECK
            self._bound_log_locked()

    def _admit_locked(self, group: list[_Request]) -> list[_Request]:
        """Refuse what may not take space while the reserve is used up; return the rest."""
        if self._reserve.held or all(request.reclaim for request in group):
            return group
        try:
            if self._reserve.restore():
                return group
        except OSError as error:
            raise storage_error("commit", self._path, error) from error
        refused = [request for request in group if not request.reclaim]
        _refuse(refused, NoSpaceError("commit", self._path, "the disk is full", hint=FULL_HINT))
        return [request for request in group if request.reclaim]

    def _commit_together_locked(self, group: list[_Request]) -> None:
        try:
            self._transact_locked(group)
        except StorageFailedError as error:
            _refuse(group, error)
        except NexusError as error:
            if len(group) > 1:
                for request in group:
                    self._commit_together_locked([request])
            elif isinstance(error, NoSpaceError):
                self._commit_on_full_disk_locked(group[0], error)
            else:
                _refuse(group, error)

    def _transact_locked(self, group: list[_Request]) -> None:
        """Apply the requests in one transaction and answer them, or raise and answer none."""
        execute = self._execute
        answers: list[tuple[int, NexusError | None]] = []
        revision = self._revision
        durable = False
        try:
            execute("BEGIN IMMEDIATE")
            for request in group:
                conflict = self._failed_condition(request.conditions)
                if conflict is None:
                    revision += 1
                    self._apply(request.batch, revision)
                    durable = durable or request.durable
                    answers.append((revision, None))
                else:
                    answers.append((0, conflict))
            if revision != self._revision:
                execute(_SET_REVISION, (revision,))
            execute("COMMIT")
        except _ARGUMENT_ERRORS as error:
            raise self._undo_locked(error) from error
        if durable:
            self._sync_log_locked("commit")
        if revision != self._revision:
            self._revision = revision
            self._head.record(revision)
            if durable:
                self._head.record_synced(revision)
        for request, (given, conflict) in zip(group, answers, strict=True):
            request.revision = given
            request.error = conflict

    def _failed_condition(self, conditions: Sequence[Condition]) -> NexusError | None:
        for condition in conditions:
            row = self._execute(_VERSION, (condition[0],)).fetchone()
            found = 0 if row is None else row[0]
            if found != condition[1]:
                return conflict_error(condition, found)
        return None

    def _apply(self, batch: Batch, revision: int) -> None:
        if batch.deletes:
            self._executemany(_DELETE, [(key,) for key in batch.deletes])
        self._executemany(_PUT, [(key, revision, value) for key, value in batch.puts])

    def _undo_locked(self, error: Exception) -> NexusError:
        """Roll the transaction back; return the error to answer, failing the store if it must."""
        if getattr(error, "sqlite_errorcode", None) is None:
            self._roll_back_locked()
            return InvalidArgumentError("commit", None, str(error))
        assert isinstance(error, sqlite3.Error)
        answer = database_error("commit", self._path, error)
        if isinstance(answer, NoSpaceError) or is_damage(error):
            self._roll_back_locked()
            return answer
        return self._fail_locked("commit", str(error))

    def _roll_back_locked(self) -> None:
        # SQLite rolls back by itself after some errors.
        if self._writer.in_transaction:
            try:
                self._execute("ROLLBACK")
            except sqlite3.Error as error:
                raise self._fail_locked("commit", str(error)) from error

    def _abandon_unanswered_locked(self, group: list[_Request]) -> None:
        """After an interrupt (a signal, no memory) nobody knows what was committed."""
        unanswered = [r for r in group if not r.revision and r.error is None]
        if unanswered:
            error = self._fail_locked("commit", "the commit was interrupted, it may be stored")
            _refuse(unanswered, error)

    # Syncing, failing and recovering

    def _sync_log_locked(self, operation: str) -> None:
        try:
            self._disk.fsync(self._log_fd)
        except OSError as error:
            raise self._fail_locked(operation, error.strerror or str(error)) from error

    def _fail_locked(self, operation: str, reason: str) -> StorageFailedError:
        self._failure = reason
        return StorageFailedError(
            operation, self._path, reason, hint="the store reopens by itself; try again"
        )

    def _become_ready_locked(self, operation: str) -> None:
        if self._closed:
            raise ClosedError(operation, self._path, "the metastore is closed")
        if self._failure is not None:
            self._recover_locked(operation)

    def _recover_locked(self, operation: str) -> None:
        """Reopen, write the whole log back and prove that a sync works again.

        All connections are closed first, so that SQLite forgets how much of the log it believed
        to have written back: a failed sync may have dropped any of it.
        """
        try:
            with self._readers.paused():
                self._close_connection()
                self._open_connection()
            stored = self._stored_revision_locked()
            self._prove_writable_locked(stored)
        except NexusError:
            raise  # an OSError too, and already says what is wrong
        except sqlite3.Error as error:
            if self._is_full(error):
                self._reserve.release()
            raise self._fail_locked(operation, str(error)) from error
        except OSError as error:
            raise self._fail_locked(operation, error.strerror or str(error)) from error
        self._failure = None
        self._revision = stored
        self._head.record(self._revision)
        self._head.record_synced(self._revision)

    def _stored_revision_locked(self) -> int:
        """Return the revision in the file, which may be past the last acknowledged one."""
        stored = read_number(self._writer, self._path, "revision")
        if stored < self._revision:
            lost = self._revision - stored
            raise CorruptionError("commit", self._path, _lost(lost), hint=FSCK_HINT)
        return stored

    def _prove_writable_locked(self, revision: int) -> None:
        self._execute("PRAGMA synchronous=FULL")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._execute("BEGIN IMMEDIATE")
        self._execute(_SET_REVISION, (revision,))
        self._execute("COMMIT")
        self._execute("PRAGMA synchronous=NORMAL")
        self._disk.fsync(self._log_fd)
        self._disk.fsync_directory(os.path.dirname(self._path))

    # Space

    def _commit_on_full_disk_locked(self, request: _Request, full: NexusError) -> None:
        """Try again with the log's own space, then, to reclaim, with the reserve."""
        may_release = request.reclaim
        while True:
            try:
                self._restart_log_locked()
                self._transact_locked([request])
            except NoSpaceError as error:
                full = error
            except NexusError as error:
                full = error
                break
            else:
                return
            if not (may_release and self._release_reserve()):
                break
            may_release = False
        _refuse([request], full)

    def _release_reserve(self) -> bool:
        try:
            return self._reserve.release()
        except OSError as error:
            raise storage_error("commit", self._path, error) from error

    def _bound_log_locked(self) -> None:
        """Write the log back into the file when it has passed its limit.

        What was committed is answered already, so a failure here is kept for the next commit.
        """
        try:
            limit_frames = self._log_limit_frames
            if self._reserve.is_scarce(4 * limit_frames * _LOG_FRAME_BYTES):
                # Writing the log back may take as much space again: keep that below the reserve.
                limit_frames = max(1, self._reserve.size_bytes // (4 * _LOG_FRAME_BYTES))
                self._groups_until_check = 1
            if not self._log_reaches_locked(limit_frames):
                return
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            # The next commit starts the log anew unless a reader is in it just then. Under
            # steady reading that can go on for long; then readers wait for a moment.
            if self._log_reaches_locked(4 * limit_frames):
                self._restart_log_locked()
        except sqlite3.Error as error:
            # On a full disk the log goes on in the room it has; commits will tell.
            if not self._is_full(error):
                self._fail_locked("checkpoint", str(error))
        except OSError as error:
            self._fail_locked("checkpoint", error.strerror or str(error))

    def _restart_log_locked(self) -> None:
        """Write the log back and have the next commit start it anew, unless the disk is full."""
        try:
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            with self._readers.paused():
                self._execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.Error as error:
            if not self._is_full(error):
                raise self._fail_locked("checkpoint", str(error)) from error

    def _log_reaches_locked(self, frames: int) -> bool:
        """Return whether the log holds that many pages.

        Its file is overwritten from the start, so the size says nothing; a frame is of the
        present log when it carries the salt of the log's header.
        """
        at = _LOG_HEADER_BYTES + (frames - 1) * _LOG_FRAME_BYTES
        salt = self._disk.pread(self._log_fd, 8, at + 8)
        return len(salt) == 8 and salt == self._disk.pread(self._log_fd, 8, 16)

    def _is_full(self, error: sqlite3.Error) -> bool:
        return isinstance(database_error("commit", self._path, error), NoSpaceError)

    # Files

    def _open_files(self, reserve_bytes: int, undo: ExitStack) -> None:
        try:
            self._reserve = SpaceReserve(
                self._path + ".reserve", size_bytes=reserve_bytes, disk=self._disk
            )
            try:
                self._open_connection()
            except sqlite3.Error as error:
                # Opening makes two small files; on a full disk the reserve gives their room.
                if not (self._is_full(error) and self._reserve.release()):
                    raise
                self._open_connection()
            undo.callback(self._close_connection)
            check_schema(self._writer, self._path)
            self._revision = read_number(self._writer, self._path, "revision")
            identity = read_number(self._writer, self._path, "identity")
            self._head = HeadFile(self._path + ".head", identity=identity, disk=self._disk)
            undo.callback(self._head.close)
            self._reserve.restore()
            self._disk.fsync_directory(os.path.dirname(self._path))
        except NexusError:
            raise  # an OSError too, and already says what is wrong
        except sqlite3.Error as error:
            raise database_error("open", self._path, error) from error
        except OSError as error:
            raise storage_error("open", self._path, error) from error

    def _open_connection(self) -> None:
        self._writer = connect(self._path)
        try:
            # The first look at the file replays the log, or makes it.
            self._writer.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            self._log_fd = self._disk.open(self._path + "-wal", os.O_RDWR)
        except (sqlite3.Error, OSError):
            self._writer.close()
            raise
        cursor = self._writer.cursor()
        self._execute = cursor.execute
        self._executemany = cursor.executemany

    def _check_witness(self, *, accept_loss: bool) -> None:
        missing = self._head.newest() - self._revision
        if missing > 0 and not accept_loss:
            hint = "`nexus fsck --repair` accepts the loss"
            raise CorruptionError("open", self._path, _lost(missing), hint=hint)
        if missing > 0:
            # Revisions of lost commits were given out and must not come back.
            self._revision += missing
            try:
                self._execute(_SET_REVISION, (self._revision,))
            except sqlite3.Error as error:
                raise database_error("open", self._path, error) from error
            self._head.restart(self._revision)
        self._head.record(self._revision)

    def _close_connection(self) -> None:
        """Close the writer and the log; the last connection writes the log back and removes it."""
        if self._log_fd >= 0:
            fd, self._log_fd = self._log_fd, -1
            self._disk.close(fd)
        self._writer.close()

    def _release_files(self) -> None:
        self._close_connection()
        self._head.close()


def _refuse(requests: list[_Request], error: NexusError) -> None:
    for request in requests:
        if not request.revision and request.error is None:
            # An instance each: they are raised in different threads.
            request.error = copy.copy(error)


def _ascends(keys: list[bytes]) -> bool:
    return all(map(operator.lt, keys, islice(keys, 1, None)))


def _lost(count: int) -> str:
    return f"the last {count} commits are missing: the end of the log is damaged or gone"
