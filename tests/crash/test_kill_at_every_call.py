"""A redb store killed at each of its first system calls keeps every acknowledged commit whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from nexus.contracts.metastore import Batch
from nexus.lib import native
from nexus.lib.disk import Disk
from nexus.storage.metastore.redb import RedbMetastore
from nexus.testing.call_killer import can_trace, run_killed_at

pytestmark = [
    pytest.mark.skipif(not can_trace(), reason="traces the system calls of Linux"),
    pytest.mark.skipif(native.chosen().module is None, reason="the Rust kernel is not built"),
]
CALLS = 200
COMMITS = 150
ROWS = 7


def open_store(path: str, *, create: bool) -> RedbMetastore:
    # A checkpoint every five commits.
    return RedbMetastore(
        path, disk=Disk(), create=create, reserve_bytes=64 << 10, log_limit_bytes=1500
    )


def work(path: str) -> Callable[[int], None]:
    """Return a body that commits and reports each number once it is acknowledged."""

    def body(reports: int) -> None:
        store = open_store(path, create=True)
        first = newest(store) + 1
        for number in range(first, first + COMMITS):
            text = b"%d" % number
            rows = [(b"row%d" % (number % ROWS), text * 20), (b"newest", text)]
            store.commit(Batch(rows, [b"gone%d" % (number - 1)]), durable=number % 7 == 0)
            os.write(reports, text + b"\n")
        store.close()

    return body


def newest(store: RedbMetastore) -> int:
    found = store.get(b"newest")
    return int(found[0]) if found else 0


def check(path: str, acknowledged: int) -> None:
    with closing(open_store(path, create=False)) as store:
        number = newest(store)
        assert number in (acknowledged, acknowledged + 1)
        for back in range(min(number, ROWS)):
            text = b"%d" % (number - back)
            assert store.get(b"row%d" % ((number - back) % ROWS)) == (text * 20, number - back)
        assert store.revision() == number
        assert store.commit(Batch([(b"newest", b"%d" % number)])) == number + 1
    with closing(open_store(path, create=False)) as store:
        assert store.revision() == number + 1


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: a kill, unlike a power cut, knows no disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


@pytest.mark.parametrize("place", ["new", "existing", "killed before"])
def test_whatever_call_a_kill_meets_the_acknowledged_is_there(folder: Path, place: str) -> None:
    base, first = folder / "base", 0
    base.mkdir()
    if place != "new":
        end = 10_000 if place == "existing" else 150
        reports, killed_at = run_killed_at(work(str(base / "m.db")), end)
        assert (killed_at is None) == (place == "existing")
        first = int(reports.split()[-1])
    met = set()
    for number in range(CALLS):
        copy = folder / str(number)
        shutil.copytree(base, copy)
        path = str(copy / "m.db")
        reports, killed_at = run_killed_at(work(path), number)
        met.add(killed_at)
        if place == "new" and not os.path.lexists(path):
            assert not reports
            with closing(open_store(path, create=True)) as store:
                assert store.revision() == 0
        else:
            check(path, int(reports.split()[-1]) if reports else first)
        shutil.rmtree(copy)
    assert {"pwrite64", "fdatasync"} <= met
    assert None not in met, "the work is too short"
