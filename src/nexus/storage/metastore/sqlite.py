"""SqliteMetastore: an ordered store in one SQLite file, on the standard library alone.

Layer: storage. One table of keys, versions and values; the revision of the store beside it. It
holds no notion of files, and no seal: SQLite answers a damaged page with wrong or missing rows
as readily as with an error, so its user seals every value.

Beside the file: ``-wal`` is SQLite's log; ``.head`` is the witness against a lost end
of the log; ``.reserve`` is space for deleting on a full disk; ``.new`` a creation cut short.

A commit is one transaction, and its cost is the pages that it changes: each goes to the log whole.
So the revision of the store has no page of its own. It is the version of one key that every
commit puts, the *clock*, where the user has such a key: the last put of a conditional commit that
is one of its own conditions, a counter. A commit without it writes the revision to ``meta``.

Concurrent commits take turns and are not grouped: whoever shares syncs between many writers, as
the kernel does, hands over one batch for all of them.

Invariants (those of :class:`nexus.contracts.metastore.MetastoreABC`, and):

1. Nothing is answered before its transaction is committed and, if asked, synced.
2. The witness never runs ahead of what is committed, nor its synced part of what is synced.
3. After a failed write or sync the store is *failed*: every commit first reopens it and writes
   the whole log back into the file, synced; until that succeeds each raises StorageFailedError.
4. The revision is the greater of the one in ``meta`` and the version of the clock.
5. Our own descriptor is opened on the log only, where SQLite holds no locks.

After a failed sync the commit is in the file but was never acknowledged: a later reader may see
it, and it may be gone after a power cut.

States::

    open --a write or sync fails--> failed --_recover, at the next commit--> open
    open | failed --close--> closed

Locks, in this order: ``_turn`` (one writer: everything but reading), then the pool's own.
Readers wait for one another, for a recovery, and for the moment it takes to restart a log that has
far outgrown its limit. A single look-up that finds no commit waiting or running takes ``_turn`` and
the writer's connection: after each commit every other connection has its pages to read anew, the
writer's has them at hand. Only a commit that begins in that very moment can make it wait.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain, islice
from operator import itemgetter, lt
from typing import NoReturn

from nexus.contracts.errors import (
    ClosedError,
    ConflictError,
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
from nexus.storage.metastore.head_file import HeadFile, lost_commits
from nexus.storage.metastore.ordered import conflict_error, scan_range
from nexus.storage.metastore.space_reserve import SpaceReserve
from nexus.storage.metastore.sqlite_checkpoint import Checkpointer
from nexus.storage.metastore.sqlite_file import (
    FSCK_HINT,
    check_header,
    check_schema,
    connect,
    create_store,
    database_error,
    is_damage,
    new_identity,
    read_number,
    read_revision,
)
from nexus.storage.metastore.sqlite_log import FRAME_BYTES, LogFile
from nexus.storage.metastore.sqlite_readers import ReaderPool

_GET = "SELECT v, ver FROM kv WHERE k = ?"
_VERSION = "SELECT ver FROM kv WHERE k = ?"
_PUT = "INSERT OR REPLACE INTO kv(k, ver, v) VALUES(?, ?, ?)"
_ROWS_AT_ONCE = 50
_PUT_MANY = _PUT + ", (?, ?, ?)" * (_ROWS_AT_ONCE - 1)
_DELETE = "DELETE FROM kv WHERE k = ?"
_SET_REVISION = "UPDATE meta SET v = ? WHERE k = 'revision'"
_SET_CLOCK = "UPDATE meta SET v = ? WHERE k = 'clock'"
_FEW_KEYS = 8
_MANY_SIZES = (64, 500)
"""Sizes of the key lists of ``get_many``: few, so that their statements stay prepared."""
_ROW_TYPES = [{bytes}, {bytes}, {int}]
_MAX_READERS = 8
_WRITER_CACHE_KIB = 8192
_BUSY_TIMEOUT_MS = 1000
"""For the moment in which a reader of ours that met a half-written index of the log locks it."""
_COMMITS_PER_LOG_CHECK = 16
_ARGUMENT_ERRORS = (sqlite3.Error, TypeError, ValueError, OverflowError)


class SqliteMetastore(MetastoreABC):
    """An ordered store in a SQLite file. Shared freely between threads, not between processes."""

    name = "sqlite"
    capabilities = MetastoreCapabilities(persistent=True, exclusive_owner=True, loadable=True)

    def __init__(
        self,
        path: str,
        *,
        disk: Disk,
        create: bool,
        accept_loss: bool = False,
        reserve_bytes: int = 4 << 20,
        log_limit_bytes: int = 32 << 20,
    ) -> None:
        """Open the store, making it first when it is absent and ``create`` is set.

        ``accept_loss`` opens a store whose last commits are missing, and builds one whose structure
        is damaged anew from the rows that are readable. ``log_limit_bytes`` is how long the log
        grows before it is written back into the file beside the commits; at four times that they
        wait for it.

        Errors: PathNotFoundError; CorruptionError for damage, for another program's file and
        for missing commits; BusyError while another process locks it; AccessDeniedError,
        ReadOnlyError, NoSpaceError, StorageError.
        """
        self._path = os.path.abspath(path)
        self._disk = disk
        self._log_limit_frames = max(1, log_limit_bytes // FRAME_BYTES)
        self._turn = threading.Lock()
        self._committing: list[None] = []  # one for each commit that waits or runs; no lock
        self._readers = ReaderPool(self._open_reader, limit=_MAX_READERS)
        self._checkpointer = Checkpointer(self._path)
        self._closed = False  # this and all below: guard _turn
        self._failure: str | None = None
        self._revision = 0
        self._clock = b""
        self._clock_version: int | None = None  # None: to be read
        self._commits_until_check = _COMMITS_PER_LOG_CHECK
        if create and not os.path.lexists(self._path):
            create_store(self._path, identity=new_identity(), disk=disk)
        if accept_loss and os.path.lexists(self._path):
            # Imported here: only a checker needs it, and it costs start-up time.
            from nexus.storage.metastore.sqlite_salvage import rebuild_if_damaged

            rebuild_if_damaged(self._path, disk=disk)
        check_header(self._path, disk)
        with ExitStack() as undo:
            self._open_files(reserve_bytes, undo)
            self._check_witness(accept_loss=accept_loss)
            undo.pop_all()

    # Reading

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """Return ``(value, version)``, or None. Errors: CorruptionError, StorageError."""
        # Both ways stand here at length: the calls would cost more than the locks do. The turn is
        # taken by ``with``, between whose acquiring and releasing no interrupt is lost.
        if not (self._committing or self._turn.locked()):
            with self._turn:
                if self._failure is None and not self._closed:
                    try:
                        return self._answer(self._execute(_GET, (key,)).fetchone())
                    except sqlite3.Error as error:
                        raise database_error("get", self._path, error) from error
        readers = self._readers
        try:
            reader = readers.idle.pop()
        except IndexError:
            reader = readers.take("get")
        try:
            return self._answer(reader.execute(_GET, (key,)).fetchone())
        except sqlite3.Error as error:
            raise database_error("get", self._path, error) from error
        finally:
            readers.give_back(reader)

    def _answer(self, row: tuple[bytes, int] | None) -> tuple[bytes, int] | None:
        if row is None:
            return None
        if row[0].__class__ is not bytes or row[1].__class__ is not int:
            self._raise_damage("get")
        return row

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
        connection.text_factory = _no_text
        return connection.cursor()

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
        self._committing.append(None)
        try:
            with self._turn:
                try:
                    return self._commit_locked(batch, conditions, durable, reclaim)
                except NexusError:
                    raise
                except BaseException:
                    # An interrupt (a signal, no memory): nobody knows what was committed.
                    self._fail_locked("commit", "a commit was interrupted, it may be stored")
                    raise
        finally:
            self._committing.pop()

    def load(self, entries: Sequence[StoredEntry], revision: int) -> None:
        """Store entries with their versions. Errors: NoSpaceError, StorageFailedError."""
        rows = [(entry.key, entry.version, entry.value) for entry in entries]
        with self._turn:
            self._become_ready_locked("load")
            try:
                self._execute("BEGIN IMMEDIATE")
                self._put_locked(rows)
                self._execute(_SET_REVISION, (revision,))
                self._execute("COMMIT")
            except _ARGUMENT_ERRORS as error:
                raise self._undo_locked(error) from error
            except BaseException:
                self._fail_locked("load", "loading was interrupted, it may be stored")
                raise
            self._clock_version = None  # its key may be among them
            self._revision = revision
            self._head.record(revision)
            self._bound_log_locked()

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
                self._checkpointer.reset()
                self._readers.close()
                self._release_files()

    def _commit_locked(
        self, batch: Batch, conditions: Sequence[Condition], durable: bool, reclaim: bool
    ) -> int:
        self._become_ready_locked("commit")
        if not (self._reserve.held or reclaim):
            self._reserve.restore_for(self._path)
        try:
            self._transact_locked(batch, conditions)
        except NoSpaceError:
            self._commit_on_full_disk_locked(batch, conditions, reclaim)
        if durable:
            self._sync_commit_locked()
        self._revision += 1
        self._head.record(self._revision)
        if durable:
            self._head.record_synced(self._revision)
        revision = self._revision
        self._commits_until_check -= 1
        if self._commits_until_check <= 0:
            self._commits_until_check = _COMMITS_PER_LOG_CHECK
            self._bound_log_locked()
        return revision

    def _transact_locked(self, batch: Batch, conditions: Sequence[Condition]) -> None:
        """Commit as the next revision, or raise with nothing applied."""
        revision = self._revision + 1
        clock, clock_version = self._clock, None
        try:
            self._execute("BEGIN IMMEDIATE")
            for condition in conditions:
                self._check_condition_locked(condition)
            if batch.deletes:
                self._executemany(_DELETE, [(key,) for key in batch.deletes])
            self._put_locked([(key, revision, value) for key, value in batch.puts])
            last = batch.puts[-1][0] if batch.puts else None
            if last == clock:
                clock_version = revision
            else:
                self._execute(_SET_REVISION, (revision,))
                if last is not None and any(last == condition.key for condition in conditions):
                    self._execute(_SET_CLOCK, (last,))
                    clock, clock_version = last, revision
            self._execute("COMMIT")
        except (ConflictError, CorruptionError):
            self._roll_back_locked()
            raise
        except _ARGUMENT_ERRORS as error:
            raise self._undo_locked(error) from error
        self._clock, self._clock_version = clock, clock_version

    def _put_locked(self, rows: list[tuple[bytes, int, bytes]]) -> None:
        start = 0
        if len(rows) > _ROWS_AT_ONCE:
            # One run of a statement goes from a key to the next without a descent from the root.
            rows.sort(key=itemgetter(0))
            for start in range(_ROWS_AT_ONCE, len(rows), _ROWS_AT_ONCE):
                some = rows[start - _ROWS_AT_ONCE : start]
                self._execute(_PUT_MANY, list(chain.from_iterable(some)))
        self._executemany(_PUT, rows[start:])

    def _check_condition_locked(self, condition: Condition) -> None:
        found = self._clock_version if condition.key == self._clock else None
        if found is None:
            row = self._execute(_VERSION, (condition.key,)).fetchone()
            found = 0 if row is None else row[0]
            if type(found) is not int:
                self._raise_damage("commit")
        if found != condition.version:
            raise conflict_error(condition, found)

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

    # Syncing, failing and recovering

    def _sync_log_locked(self, operation: str) -> None:
        try:
            self._log.sync()
        except OSError as error:
            raise self._fail_locked(operation, error.strerror or str(error)) from error

    def _sync_commit_locked(self) -> None:
        """Sync the log, and keep room in it for the durable commits to come."""
        try:
            limit = self._log_limit_frames * FRAME_BYTES
            if self._log.outgrows_filling() and not self._reserve.is_scarce(4 * limit):
                self._log.fill_ahead(limit)
        except OSError as error:
            raise self._fail_locked("commit", error.strerror or str(error)) from error
        self._sync_log_locked("commit")

    def _fail_locked(self, operation: str, reason: str) -> StorageFailedError:
        self._failure = reason
        return StorageFailedError(
            operation, self._path, reason, hint="the store reopens by itself; try again"
        )

    def _become_ready_locked(self, operation: str) -> None:
        if self._closed:
            raise ClosedError(operation, self._path, "the metastore is closed")
        error = self._checkpointer.error
        if error is not None and not self._is_full(error):
            self._fail_locked("checkpoint", str(error))
        if self._failure is not None:
            self._recover_locked(operation)

    def _recover_locked(self, operation: str) -> None:
        """Reopen, write the whole log back and prove that a sync works again.

        All connections are closed first, so that SQLite forgets how much of the log it believed
        to have written back: a failed sync may have dropped any of it.
        """
        try:
            self._checkpointer.reset()
            with self._readers.paused():
                self._close_connection()
                self._open_connection()
            stored = self._read_revision_locked()
            if stored < self._revision:
                lost = lost_commits(self._revision - stored)
                raise CorruptionError(operation, self._path, lost, hint=FSCK_HINT)
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

    def _read_revision_locked(self) -> int:
        """Return the revision in the file, which may be past the last acknowledged one."""
        revision, self._clock = read_revision(self._writer, self._path)
        self._clock_version = None
        return revision

    def _prove_writable_locked(self, revision: int) -> None:
        self._execute("PRAGMA synchronous=FULL")
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._execute("BEGIN IMMEDIATE")
        self._execute(_SET_REVISION, (revision,))
        self._execute("COMMIT")
        self._execute("PRAGMA synchronous=NORMAL")
        self._log.sync()
        self._disk.fsync_directory(os.path.dirname(self._path))

    # Space

    def _commit_on_full_disk_locked(
        self, batch: Batch, conditions: Sequence[Condition], reclaim: bool
    ) -> None:
        """Try again with the log's own space, then, to reclaim, with the reserve."""
        self._restart_log_locked()
        try:
            self._transact_locked(batch, conditions)
        except NoSpaceError:
            if not (reclaim and self._reserve.release_for(self._path)):
                raise
            self._restart_log_locked()
            self._transact_locked(batch, conditions)

    def _bound_log_locked(self) -> None:
        """Write the log back into the file when it has passed its limit.

        What was committed is answered already, so a failure here is kept for the next commit.
        """
        try:
            limit_frames = self._log_limit_frames
            if self._reserve.is_scarce(4 * limit_frames * FRAME_BYTES):
                # Writing the log back may take as much space again: keep that below the reserve.
                limit_frames = max(1, self._reserve.size_bytes // (4 * FRAME_BYTES))
                self._commits_until_check = 1
            if self._log.holds_frames(limit_frames):
                self._write_back_locked(limit_frames)
        except sqlite3.Error as error:
            # On a full disk the log goes on in the room it has; commits will tell.
            if not self._is_full(error):
                self._fail_locked("checkpoint", str(error))
        except OSError as error:
            self._fail_locked("checkpoint", error.strerror or str(error))

    def _write_back_locked(self, limit_frames: int) -> None:
        """Have the bulk written back beside the commits, then write back the rest.

        The next commit starts the log anew unless a reader is in it just then. Under steady
        reading that can go on for long; then readers wait for a moment.
        """
        checkpointer = self._checkpointer
        if self._log.holds_frames(4 * limit_frames):
            self._restart_log_locked()
        elif checkpointer.running:
            return
        elif checkpointer.idle or self._log.holds_frames(
            checkpointer.written_frames + max(1, limit_frames // 8)
        ):
            checkpointer.begin()
        else:
            checkpointer.reset()
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _restart_log_locked(self) -> None:
        """Write the log back and have the next commit start it anew, unless the disk is full."""
        self._checkpointer.reset()
        try:
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            with self._readers.paused():
                self._execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.Error as error:
            if not self._is_full(error):
                raise self._fail_locked("checkpoint", str(error)) from error

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
            self._revision = self._read_revision_locked()
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
            check_schema(self._writer, self._path)
            self._writer.execute(f"PRAGMA cache_size=-{_WRITER_CACHE_KIB}")
            self._writer.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}").fetchall()
            self._log = LogFile(self._disk.open(self._path + "-wal", os.O_RDWR), disk=self._disk)
        except (sqlite3.Error, OSError):
            self._writer.close()
            raise
        self._writer.text_factory = _no_text
        self._cursor = self._writer.cursor()
        self._execute = self._cursor.execute
        self._executemany = self._cursor.executemany

    def _check_witness(self, *, accept_loss: bool) -> None:
        missing = self._head.missing(self._revision, self._path, accept_loss=accept_loss)
        if missing:
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
        try:
            self._log.close()
        finally:
            self._cursor.close()  # as the readers' are
            self._writer.close()

    def _release_files(self) -> None:
        try:
            self._close_connection()
        except OSError as error:
            raise storage_error("close", self._path, error) from error
        finally:
            self._head.close()


def _no_text(_data: bytes) -> None:
    """Stand for text, which no column has that is asked for: its row is damaged.

    An error from here would leave the statement, and what it has locked, open.
    """


def _ascends(keys: list[bytes]) -> bool:
    return all(map(lt, keys, islice(keys, 1, None)))
