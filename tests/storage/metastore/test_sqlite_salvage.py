"""A store with a damaged structure is built anew from the rows that its pages hold."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nexus.contracts.errors import CorruptionError
from nexus.contracts.metastore import Batch
from nexus.lib.disk import Disk
from nexus.storage.metastore.sqlite import SqliteMetastore
from nexus.storage.metastore.sqlite_file import PAGE_BYTES
from nexus.storage.metastore.sqlite_salvage import rebuild_if_damaged

ROWS = 400
INTERIOR, LEAF = 0x02, 0x0A
Rows = dict[bytes, tuple[bytes, int]]


def opened(path: Path, *, create: bool = False, accept_loss: bool = False) -> SqliteMetastore:
    return SqliteMetastore(
        str(path), disk=Disk(), create=create, accept_loss=accept_loss, reserve_bytes=4096
    )


def rows_of(path: Path, *, accept_loss: bool = False) -> Rows:
    with closing(opened(path, accept_loss=accept_loss)) as store:
        return {entry.key: (entry.value, entry.version) for entry in store.scan(b"", limit=10_000)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with leaves, a root above them, short values and values on overflow pages."""
    rng = random.Random(1)
    path = tmp_path / "meta.db"
    with closing(opened(path, create=True)) as store:
        for number in range(ROWS):
            size = rng.choice((0, 20, 300, 1100, 6000, 20_000))
            store.commit(Batch([(b"key%05d" % number, rng.randbytes(size))]))
        store.commit(Batch([], [b"key%05d" % number for number in range(0, ROWS, 7)]))
    return path


def pages(path: Path, kind: int) -> Iterator[int]:
    """Yield the offsets of the pages of a kind, but for the first page."""
    data = path.read_bytes()
    for offset in range(PAGE_BYTES, len(data), PAGE_BYTES):
        if data[offset] == kind:
            yield offset


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_store_that_is_whole_is_left_alone(path: Path) -> None:
    before = path.read_bytes()
    assert not rebuild_if_damaged(str(path), disk=Disk())
    assert path.read_bytes() == before
    assert not path.with_name("meta.db.damaged").exists()


def test_a_damaged_pointer_in_the_tree_loses_no_row(path: Path) -> None:
    rows = rows_of(path)
    offset = max(pages(path, INTERIOR))
    overwrite(path, offset + 8, b"\xff\xff\xff\xff")  # the rightmost child
    with pytest.raises(CorruptionError):
        rows_of(path)
    damaged = path.read_bytes()
    assert rows_of(path, accept_loss=True) == rows
    assert rows_of(path) == rows
    assert path.with_name("meta.db.damaged").read_bytes() == damaged
    with closing(opened(path)) as store:
        assert store.check() == []
        assert store.revision() == ROWS + 1
        assert store.commit(Batch([(b"new", b"row")])) == ROWS + 2


@pytest.mark.parametrize("kind", [INTERIOR, LEAF])
def test_a_zeroed_page_loses_its_own_rows_and_no_other(path: Path, kind: int) -> None:
    rows = rows_of(path)
    offset = list(pages(path, kind))[-1]
    overwrite(path, offset, bytes(PAGE_BYTES))
    found = rows_of(path, accept_loss=True)
    assert found.items() < rows.items()
    assert len(found) > len(rows) - 40


@pytest.mark.parametrize(("at", "value"), [(0, 0x0B), (3, 0x80), (5, 0x7F)])
def test_a_damaged_page_header_loses_no_row(path: Path, at: int, value: int) -> None:
    rows = rows_of(path)
    overwrite(path, list(pages(path, LEAF))[-1] + at, bytes([value]))
    assert rows_of(path, accept_loss=True) == rows


@pytest.mark.parametrize(("kind", "at"), [(INTERIOR, 12), (LEAF, 8)])
def test_the_bits_of_a_pointer_that_mean_nothing_lose_no_row(
    path: Path, kind: int, at: int
) -> None:
    rows = rows_of(path)
    offset = list(pages(path, kind))[-1] + at
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ 0x40]))
    assert rebuild_if_damaged(str(path), disk=Disk())
    assert rows_of(path) == rows


def test_a_damaged_schema_loses_no_row(path: Path) -> None:
    rows = rows_of(path)
    at = path.read_bytes().index(b"CREATE TABLE kv")
    overwrite(path, at, b"DELETE")
    with pytest.raises(CorruptionError):
        rows_of(path)
    assert rows_of(path, accept_loss=True) == rows


def test_schema_text_that_is_not_utf8_loses_no_row(path: Path) -> None:
    rows = rows_of(path)
    at = path.read_bytes().index(b"CREATE TABLE kv")
    overwrite(path, at + 3, b"\xc1")
    with pytest.raises(CorruptionError):
        rows_of(path)
    assert rows_of(path, accept_loss=True) == rows


def test_a_row_of_another_type_is_the_only_one_lost(path: Path) -> None:
    rows = rows_of(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE kv SET v = CAST(v AS TEXT) WHERE k = ?", (b"key00010",))
        connection.commit()
    with pytest.raises(CorruptionError):
        rows_of(path)
    del rows[b"key00010"]
    assert rows_of(path, accept_loss=True) == rows


def test_commits_that_are_still_in_the_log_are_kept(path: Path, tmp_path: Path) -> None:
    rows = rows_of(path)
    killed = tmp_path / "killed.db"
    with closing(opened(path)) as store:
        store.commit(Batch([(b"late", b"row")]))
        for suffix in ("", "-wal"):
            Path(f"{killed}{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    overwrite(killed, list(pages(killed, INTERIOR))[-1] + 12, b"\xff\xff")
    found = rows_of(killed, accept_loss=True)
    assert found.pop(b"late") == (b"row", ROWS + 2)
    assert found.items() <= rows.items()
    assert len(found) > len(rows) - 3


def test_bytes_of_a_value_that_look_like_a_page_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    forged = tmp_path / "forged.db"
    with closing(opened(forged, create=True)) as store:
        store.commit(Batch([(b"forged", b"row")]))
    page = forged.read_bytes()[next(pages(forged, LEAF)) :][:PAGE_BYTES]
    with closing(opened(path, create=True)) as store:
        store.commit(Batch([(b"honest", (page + page[4:]) * 3)]))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_schema SET sql = sql || ' '")
        connection.commit()
    rows = rows_of(path, accept_loss=True)
    assert list(rows) == [b"honest"]


def test_a_rebuilding_that_was_cut_short_is_done_again(path: Path) -> None:
    rows = rows_of(path)
    path.with_name("meta.db.rebuilt").write_bytes(b"half of it")
    path.with_name("meta.db.rebuilt.new").write_bytes(b"half of it")
    overwrite(path, max(pages(path, INTERIOR)) + 8, b"\xff\xff\xff\xff")
    assert rows_of(path, accept_loss=True) == rows
    assert not path.with_name("meta.db.rebuilt").exists()
