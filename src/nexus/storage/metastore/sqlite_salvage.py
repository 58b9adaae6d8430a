"""Builds a damaged SQLite store anew from every row that its pages still hold.

Layer: storage. For a checker that was told to accept losses: one damaged byte in a page of the tree
hides whatever lies beneath it from SQLite, though the rows are there. So pages are read one by one,
without the tree. It knows SQLite's file format and not what a row means: whoever put the rows
there has sealed them. Unix counterpart: ``.recover`` of sqlite3(1), restricted to our two tables.

Invariants:

1. The store is replaced in one rename, after its replacement is complete and synced; the damaged
   file stays beside it as ``.damaged``.
2. Rows are taken from pages of an index tree only, never from overflow pages: those hold bytes that
   a caller chose, which could be made to look like rows.

Locks: none; nobody else has the file open.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing

from nexus.contracts.errors import CorruptionError, NexusError
from nexus.lib.disk import Disk, put_in_place, storage_error
from nexus.storage.metastore.sqlite_file import (
    PAGE_BYTES,
    check_header,
    check_schema,
    connect,
    create_store,
    database_error,
    is_damage,
    new_identity,
    read_number,
    read_revision,
    unlink_if_there,
)

_INTERIOR, _LEAF = 0x02, 0x0A
_FIRST_POINTER = {_INTERIOR: 12, _LEAF: 8}
_CHILD_BYTES = {_INTERIOR: 4, _LEAF: 0}
_FILE_HEADER_BYTES = 100
# From "Payload overflow" in SQLite's description of its file format, for pages without reserve.
_MAX_LOCAL = (PAGE_BYTES - 12) * 64 // 255 - 23
_MIN_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
# No fault to SQLite, which lets any column hold any type; the store refuses to read such a row.
_MISTYPED = (
    "SELECT 1 FROM kv WHERE typeof(k) <> 'blob' OR typeof(ver) <> 'integer' OR typeof(v) <> 'blob'"
)
_MAX_OVERFLOW_PAGES = 1 << 12

_log = logging.getLogger(__name__)
_Value = bytes | str | int | None


def rebuild_if_damaged(path: str, *, disk: Disk) -> bool:
    """Build the store at ``path`` anew if SQLite finds its structure damaged; return whether.

    Errors: CorruptionError where the log cannot be merged first; NoSpaceError, StorageError.
    """
    if _is_whole(path, disk):
        return False
    try:
        _merge_log(path)
        rows, numbers = _read_rows(path, disk)
        _replace(path, rows, numbers, disk)
    except NexusError:
        raise  # an OSError too, and already says what is wrong
    except OSError as error:
        raise storage_error("rebuild", path, error) from error
    except sqlite3.Error as error:
        raise database_error("rebuild", path, error) from error
    message = "%s was damaged: built anew from %d rows; the damaged file is now %s.damaged"
    _log.warning(message, path, len(rows), path)
    return True


def _is_whole(path: str, disk: Disk) -> bool:
    try:
        check_header(path, disk)
        with closing(connect(path)) as connection:
            check_schema(connection, path)
            read_number(connection, path, "identity")
            read_revision(connection, path)
            if connection.execute(_MISTYPED).fetchone() is not None:
                return False
            return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
    except CorruptionError:
        return False
    except sqlite3.Error as error:
        if is_damage(error) and not isinstance(error, sqlite3.OperationalError):
            return False
        answer = database_error("open", path, error)
        if isinstance(answer, CorruptionError):
            return False
        raise answer from error


def _merge_log(path: str) -> None:
    """Write the log back into the file: that moves pages, and needs no tree."""
    log = path + "-wal"
    if not os.path.exists(log) or os.path.getsize(log) == 0:
        return
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    if os.path.exists(log) and os.path.getsize(log):
        raise CorruptionError(
            "rebuild", path, "its log cannot be merged", hint="restore it from a backup"
        )


# -- reading pages --------------------------------------------------------------------------------


def _read_rows(path: str, disk: Disk) -> tuple[dict[bytes, tuple[int, bytes]], dict[str, int]]:
    """Return version and value by key, and the numbers of the ``meta`` table."""
    rows: dict[bytes, tuple[int, bytes]] = {}
    numbers: dict[str, int] = {}
    fd = disk.open(path, os.O_RDONLY)
    try:
        for payload in _payloads(fd, disk):
            values = _values(payload)
            match values:
                case [bytes() as key, int() as version, bytes() as value]:
                    if version > rows.get(key, (-1, b""))[0]:
                        rows[key] = (version, value)
                case [str() as name, int() as number]:
                    numbers[name] = number
    finally:
        disk.close(fd)
    return rows, numbers


def _payloads(fd: int, disk: Disk) -> Iterator[bytes]:
    for number in range(1, os.fstat(fd).st_size // PAGE_BYTES + 1):
        page = _page(fd, number, disk)
        for size, start in _cells(page, _FILE_HEADER_BYTES if number == 1 else 0):
            payload = _whole_payload(fd, page, size, start, disk)
            if payload is not None:
                yield payload


def _page(fd: int, number: int, disk: Disk) -> bytes:
    return disk.pread(fd, PAGE_BYTES, (number - 1) * PAGE_BYTES)


def _kind_of(page: bytes, header: int) -> int | None:
    """Return the kind of an index page, one flipped bit forgiven; None for any other page."""
    stored = page[header]
    for kind in (_LEAF, _INTERIOR):
        if stored == kind:
            return kind
    if stored:
        for kind in (_LEAF, _INTERIOR):
            if (stored ^ kind).bit_count() == 1:
                return kind
    return None


def _cells(page: bytes, header: int) -> Iterator[tuple[int, int]]:
    """Yield (payload size, its offset) of the cells of an index page.

    The array of pointers is followed up to the first cell, since the count may be what is damaged.
    """
    kind = _kind_of(page, header) if len(page) == PAGE_BYTES else None
    if kind is None:
        return
    at = header + _FIRST_POINTER[kind]
    end = PAGE_BYTES
    while at + 2 <= end:
        # SQLite leaves out the bits that no offset in a page has, so they may be damaged unseen.
        pointer = int.from_bytes(page[at : at + 2], "big") % PAGE_BYTES
        at += 2
        if at <= pointer < PAGE_BYTES - 4:
            end = min(end, pointer)
            size, start = _varint(page, pointer + _CHILD_BYTES[kind])
            yield size, start


def _whole_payload(fd: int, page: bytes, size: int, start: int, disk: Disk) -> bytes | None:
    local = size
    if size > _MAX_LOCAL:
        local = _MIN_LOCAL + (size - _MIN_LOCAL) % (PAGE_BYTES - 4)
        if local > _MAX_LOCAL:
            local = _MIN_LOCAL
    payload = bytearray(page[start : start + local])
    following = int.from_bytes(page[start + local : start + local + 4], "big")
    for _ in range(_MAX_OVERFLOW_PAGES):
        if len(payload) >= size:
            break
        overflow = _page(fd, following, disk) if following else b""
        if len(overflow) < PAGE_BYTES:
            return None
        payload += overflow[4 : 4 + size - len(payload)]
        following = int.from_bytes(overflow[:4], "big")
    return bytes(payload) if len(payload) == size else None


def _values(payload: bytes) -> list[_Value]:
    """Return the values of a record; those from the first that makes no sense on are left out."""
    header_bytes, at = _varint(payload, 0)
    body = header_bytes
    values: list[_Value] = []
    while at < header_bytes <= len(payload) and len(values) < 4:
        kind, at = _varint(payload, at)
        size = _INTEGER_BYTES.get(kind, (kind - 12) // 2 if kind >= 12 else 0)
        if body + size > len(payload):
            break
        values.append(_value(kind, payload[body : body + size]))
        body += size
    return values


def _value(kind: int, data: bytes) -> _Value:
    if kind in _INTEGER_BYTES:
        return int.from_bytes(data, "big", signed=True)
    if kind in (8, 9):
        return kind - 8
    if kind >= 12:
        return data.decode("utf-8", "replace") if kind % 2 else data
    return None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a variable-length integer and the offset after it; data that ends counts as zeros."""
    value = 0
    for index in range(at, at + 8):
        byte = data[index] if index < len(data) else 0
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, index + 1
    last = data[at + 8] if at + 8 < len(data) else 0
    return value << 8 | last, at + 9


# -- writing --------------------------------------------------------------------------------------


def _replace(
    path: str, rows: dict[bytes, tuple[int, bytes]], numbers: dict[str, int], disk: Disk
) -> None:
    rebuilt = path + ".rebuilt"
    for suffix in ("", "-wal", "-shm"):
        unlink_if_there(rebuilt + suffix, disk)
    identity = numbers.get("identity", -1)
    create_store(
        rebuilt,
        identity=identity if identity >= 0 else new_identity(),
        disk=disk,
    )
    newest = max((version for version, _ in rows.values()), default=0)
    revision = max(numbers.get("revision", 0), newest)
    with closing(connect(rebuilt)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        ordered = ((key, *rows[key]) for key in sorted(rows))
        connection.executemany("INSERT INTO kv(k, ver, v) VALUES(?, ?, ?)", ordered)
        connection.execute("UPDATE meta SET v = ? WHERE k = 'revision'", (revision,))
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for suffix in ("-wal", "-shm"):
        unlink_if_there(path + suffix, disk)
    unlink_if_there(path + ".damaged", disk)
    os.link(path, path + ".damaged")
    put_in_place(rebuilt, path, disk)
