"""The SQLite file beneath a store: its schema, its birth, its connections, its errors.

Layer: storage. It knows the file format and the library; transactions, groups and recovery are
the store's (:mod:`nexus.storage.metastore.sqlite`).

Invariants:

1. A store is born whole: made under a temporary name, synced, renamed, its directory synced. A
   killed creation leaves only the temporary, which the next creation removes.
2. While SQLite has the main file open, nothing here opens it: closing any descriptor of a file
   drops the POSIX locks that the process holds on it.
3. One process at a time has a store open. So SQLite locks the file once and keeps its index of the
   log in memory (its VFS ``unix-excl``), which spares each transaction four system calls.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from contextlib import closing, suppress

from nexus.contracts.errors import (
    AccessDeniedError,
    BusyError,
    CorruptionError,
    NexusError,
    NoSpaceError,
    PathNotFoundError,
    ReadOnlyError,
    StorageError,
)
from nexus.lib.disk import FULL_HINT, Disk, put_in_place, storage_error

APPLICATION_ID = 0x4E58_4D53  # "NXMS"
PAGE_BYTES = 4096

FSCK_HINT = "run `nexus fsck --repair`: it builds the file anew from every record it can read"

_TABLES = {
    "kv": "CREATE TABLE kv(k BLOB PRIMARY KEY, ver INTEGER NOT NULL, v BLOB NOT NULL)"
    " WITHOUT ROWID",
    "meta": "CREATE TABLE meta(k TEXT PRIMARY KEY, v) WITHOUT ROWID",
}
_SETTINGS = (
    "synchronous=NORMAL",  # SQLite syncs at checkpoints; durable commits sync the log themselves
    "wal_autocheckpoint=0",
    "secure_delete=ON",  # a freed page keeps no record that a damaged pointer could resurrect
    "cell_size_check=ON",
)
_HEADER = struct.Struct(">16sHBB48xI")  # magic, page size, write version, read version, app id
_MAGIC = b"SQLite format 3\0"
_WAL_FORMAT = 2
_DAMAGE_CODES = frozenset({sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS})


def create_store(path: str, *, identity: int, disk: Disk) -> None:
    """Make an empty store at the path, whole or not at all. Errors: those of storage_error."""
    _refuse_orphaned_log(path)
    temporary = path + ".new"
    try:
        for suffix in ("", "-wal", "-shm", "-journal"):
            unlink_if_there(temporary + suffix, disk)
            if suffix:
                unlink_if_there(path + suffix, disk)
        disk.close(disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        _fill(temporary, identity)
        put_in_place(temporary, path, disk)
    except OSError as error:
        raise storage_error("create", path, error) from error
    except sqlite3.DatabaseError as error:
        raise database_error("create", path, error) from error


def check_header(path: str, disk: Disk) -> None:
    """Check that the file is a store of ours. Call only while SQLite does not have it open.

    Errors: PathNotFoundError; CorruptionError; AccessDeniedError, ReadOnlyError.
    """
    try:
        fd = disk.open(path, os.O_RDWR)
        try:
            header = disk.pread(fd, _HEADER.size, 0)
        finally:
            disk.close(fd)
    except FileNotFoundError as error:
        raise PathNotFoundError("open", path, "no metastore here") from error
    except OSError as error:
        raise storage_error("open", path, error) from error
    if len(header) < _HEADER.size:
        raise CorruptionError("open", path, "the file is cut short", hint=FSCK_HINT)
    magic, page_bytes, writer, reader, application = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise CorruptionError("open", path, "this is not a SQLite database", hint=FSCK_HINT)
    if application != APPLICATION_ID:
        reason = f"this is another program's SQLite database (application id {application:#010x})"
        raise CorruptionError("open", path, reason, hint="check the path, or " + FSCK_HINT)
    if (page_bytes, writer, reader) != (PAGE_BYTES, _WAL_FORMAT, _WAL_FORMAT):
        raise CorruptionError("open", path, "the file header is damaged", hint=FSCK_HINT)


def connect(path: str, *, query_only: bool = False) -> sqlite3.Connection:
    """Open a connection with the store's settings. Errors: sqlite3.Error."""
    connection = sqlite3.connect(
        _address(path), uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        for setting in (*_SETTINGS, f"query_only={query_only:d}"):
            connection.execute(f"PRAGMA {setting}").fetchall()
    except UnicodeDecodeError as error:
        # SQLite's message quotes what it stumbled over.
        connection.close()
        damage = sqlite3.DatabaseError("damaged text in the schema")
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage from error
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _address(path: str) -> str:
    """Return the URI by which SQLite opens a path for one process alone."""
    path = os.path.abspath(path)
    for mark in "%?#":  # what ends or escapes something there; "%" first
        path = path.replace(mark, f"%{ord(mark):02x}")
    return f"file://{path}?vfs=unix-excl"


def check_schema(connection: sqlite3.Connection, path: str) -> None:
    """Check that the tables are those of a store. Errors: CorruptionError; sqlite3.Error."""
    # As bytes: damaged text would be an error of the library, before anybody could compare it.
    query = "SELECT CAST(name AS BLOB), CAST(sql AS BLOB) FROM sqlite_schema"
    tables = dict(connection.execute(query))
    if tables != {name.encode(): sql.encode() for name, sql in _TABLES.items()}:
        raise CorruptionError("open", path, "the tables are not a metastore's", hint=FSCK_HINT)


def read_number(connection: sqlite3.Connection, path: str, name: str) -> int:
    """Return a number of the ``meta`` table. Errors: CorruptionError; sqlite3.Error."""
    query = "SELECT v FROM meta WHERE k = ? AND typeof(v) = 'integer' AND v >= 0"
    row: tuple[int] | None = connection.execute(query, (name,)).fetchone()
    if row is None:
        raise CorruptionError("open", path, f"the {name} is damaged", hint=FSCK_HINT)
    return row[0]


def read_revision(connection: sqlite3.Connection, path: str) -> tuple[int, bytes]:
    """Return the revision of the store, and its clock: the key whose version it may be.

    Errors: CorruptionError; sqlite3.Error.
    """
    row = connection.execute("SELECT v FROM meta WHERE k = 'clock'").fetchone()
    if row is None or type(row[0]) is not bytes:
        raise CorruptionError("open", path, "the clock is damaged", hint=FSCK_HINT)
    clock: bytes = row[0]
    written = read_number(connection, path, "revision")
    ticked = connection.execute("SELECT ver FROM kv WHERE k = ?", (clock,)).fetchone()
    if ticked is None:
        return written, clock
    if type(ticked[0]) is not int:
        raise CorruptionError("open", path, "the clock is damaged", hint=FSCK_HINT)
    return max(written, ticked[0]), clock


def database_error(operation: str, path: str, error: sqlite3.Error) -> NexusError:
    """Return the NexusError for an error of SQLite.

    An error that SQLite itself did not raise is a caller's mistake and is raised as it is.
    """
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        raise error
    reason = str(error)
    primary = code & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return NoSpaceError(operation, path, reason, hint=FULL_HINT)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        return BusyError(operation, path, reason, hint="another process has the file open")
    if primary == sqlite3.SQLITE_READONLY:
        return ReadOnlyError(operation, path, reason)
    if primary in (sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return AccessDeniedError(operation, path, reason)
    if is_damage(error):
        return CorruptionError(operation, path, reason, hint=FSCK_HINT)
    return StorageError(operation, path, reason)


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether the error means that the file's content is wrong."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    if code in _DAMAGE_CODES:
        return True
    return code & 0xFF not in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL)


def _fill(path: str, identity: int) -> None:
    with closing(connect(path)) as connection:
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        for statement in _TABLES.values():
            connection.execute(statement)
        facts = [("revision", 0), ("identity", identity), ("clock", b"")]
        connection.executemany("INSERT INTO meta VALUES(?, ?)", facts)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _refuse_orphaned_log(path: str) -> None:
    """A log without its store holds commits, and would be replayed into a new store."""
    try:
        size = os.stat(path + "-wal").st_size
    except FileNotFoundError:
        return
    if size:
        reason = "the store is gone but its log (-wal) is there"
        raise CorruptionError("create", path, reason, hint="restore the file, or remove the log")


def new_identity() -> int:
    """Return a random number to tell a store from any other."""
    return int.from_bytes(os.urandom(8), "big") >> 1  # SQLite's integers have a sign


def unlink_if_there(path: str, disk: Disk) -> None:
    """Remove a file; one that is not there is no error. Errors: OSError."""
    with suppress(FileNotFoundError):
        disk.unlink(path)
