"""ObjectIndex: a map that survives kills, tells damage, and distrusts a power cut.

On a plain disk both implementations are tried; one that fails at a chosen call is Python's.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.contracts.errors import CorruptionError
from nexus.lib.boot_id import NO_BOOT
from nexus.lib.disk import Disk
from nexus.storage.object_store.entry import Entry, Place
from nexus.storage.object_store.object_index import (
    PAGE_BYTES,
    End,
    IndexLostError,
    ObjectIndex,
)
from nexus.storage.object_store.segment_file import SegmentFile, record_bytes
from nexus.testing.faults import FaultyDisk, KilledError, KillingDisk

BOOT = 7
END = End(3, 640)
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


def entry(number: int, **changes: int) -> Entry:
    key = number.to_bytes(32, "big")
    return Entry(key, 1, number, 4096, 0, 1_000 + number)._replace(**changes)


def entries(amount: int) -> list[Entry]:
    return [entry(number) for number in range(amount)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "objects.idx")


class Twin:
    """Which implementation the test in hand opens."""

    native: Any = None


@pytest.fixture(autouse=True, params=["python", "rust"])
def twin(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "rust":
        reason = "the Rust kernel is not built"
        Twin.native = pytest.importorskip("nexus._kernel", reason=reason).ObjectIndex
    yield
    Twin.native = None


of_python = pytest.mark.parametrize("twin", ["python"], indirect=True)


def create(path: str, amount: int = 0, *, disk: Disk | None = None, boot: int = BOOT) -> Any:
    def fill(index: Any) -> None:
        index.put_many(entries(amount))

    if Twin.native is not None:
        return Twin.native.create(path, fill, boot=boot)
    return ObjectIndex.create(path, fill, disk=disk or Disk(), boot=boot)


def reopen(path: str, *, boot: int = BOOT) -> Any:
    if Twin.native is not None:
        return Twin.native(path, boot=boot)
    return ObjectIndex(path, disk=Disk(), boot=boot)


def content(index: Any) -> dict[bytes, Entry]:
    pages = range(1, index.page_count)
    return {found.object_id: found for number in pages for found in index.entries_in(number)}


def expected(amount: int) -> dict[bytes, Entry]:
    return {found.object_id: found for found in entries(amount)}


def test_every_entry_is_found_however_many_pages_have_split(path: str):
    index = create(path, 5_000)
    assert index.page_count > 70
    assert all(index.get(found.object_id) == found for found in entries(5_000))
    assert index.get(b"\xff" * 32) is None
    assert content(index) == expected(5_000)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 400), max_size=200)), max_size=8),
    st.booleans(),
)
def test_it_behaves_as_a_dictionary_across_reopening(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, list[int]]], clean: bool
):
    path = str(tmp_path_factory.mktemp("index") / "objects.idx")
    index = create(path)
    model: dict[bytes, Entry] = {}
    for serial, (puts, numbers) in enumerate(steps):
        changed = [entry(number, at_ns=serial) for number in numbers]
        if puts:
            index.put_many(changed)
            model.update((found.object_id, found) for found in changed)
        else:
            index.remove_many(found.object_id for found in changed)
            for found in changed:
                model.pop(found.object_id, None)
        index.close(END if clean else None)
        index = reopen(path)
        assert content(index) == model
        assert all(index.get(key) == found for key, found in model.items())


def test_a_page_that_was_never_read_is_out_of_reach_of_peek(path: str):
    create(path, 100).close(END)
    index = reopen(path)
    key = entry(5).object_id
    assert index.peek(key) is None
    assert index.get(key) == index.peek(key) == entry(5)


def test_a_missing_index_is_lost(path: str):
    with pytest.raises(IndexLostError):
        reopen(path)


def test_a_clean_close_is_trusted_after_a_power_cut_and_names_the_end(path: str):
    create(path, 300).close(END)
    assert reopen(path, boot=BOOT + 1).end == END


def test_an_unclean_end_is_trusted_within_the_boot_only(path: str):
    create(path, 300).close(None)
    index = reopen(path)
    assert index.end is None
    assert content(index) == expected(300)
    for boot in (BOOT + 1, NO_BOOT):
        with pytest.raises(IndexLostError):
            reopen(path, boot=boot)


@of_python
def test_the_first_change_after_a_clean_close_takes_cleanness_back_durably(path: str):
    create(path, 10).close(END)
    disk = FaultyDisk()
    index = ObjectIndex(path, disk=disk, boot=BOOT)
    before = disk.calls["fdatasync"]
    index.put_many([entry(11)])
    assert disk.calls["fdatasync"] == before + 1
    assert reopen(path).end is None
    with pytest.raises(IndexLostError):
        reopen(path, boot=BOOT + 1)


def test_reading_changes_nothing(path: str):
    create(path, 10).close(END)
    before = Path(path).read_bytes()
    index = reopen(path)
    index.get(entry(1).object_id)
    index.close(END)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("offset", [0, 4, 8, 16, 24, 28, 32, 40, 47])
def test_a_flipped_bit_in_the_header_loses_the_index(path: str, offset: int):
    create(path, 10).close(END)
    flip(path, offset)
    with pytest.raises(IndexLostError):
        reopen(path)


@pytest.mark.parametrize("offset", [0, 8, 12, 14, 16, 50, 60, PAGE_BYTES - 1])
def test_a_flipped_bit_in_a_page_is_an_error_not_an_answer(path: str, offset: int):
    create(path, 10).close(END)
    flip(path, PAGE_BYTES + offset)
    index = reopen(path)
    assert index.damaged_pages() == [1]
    with pytest.raises(CorruptionError):
        index.get(entry(1).object_id)


def test_a_page_in_the_place_of_another_is_damage(path: str):
    create(path, 1_000).close(END)
    with open(path, "r+b") as file:
        file.seek(PAGE_BYTES)
        page = file.read(PAGE_BYTES)
        file.seek(2 * PAGE_BYTES)
        file.write(page)
    assert reopen(path).damaged_pages() == [2]


@pytest.mark.parametrize("damage", ["gone", "flipped", "stale"])
def test_a_lost_map_is_made_anew_from_the_pages(path: str, damage: str):
    create(path, 1_000).close(END)
    stale = Path(path + ".map").read_bytes()
    index = reopen(path)
    index.put_many(entries(3_000))
    index.close(END)
    if damage == "gone":
        os.unlink(path + ".map")
    elif damage == "flipped":
        flip(path + ".map", 100)
    else:
        Path(path + ".map").write_bytes(stale)
    assert content(reopen(path)) == expected(3_000)


@pytest.mark.parametrize(
    ("prefix", "depth", "amount"), [(0, 29, 0), (0, 255, 0), (2, 1, 0), (0, 0, 1000)]
)
def test_2_a_sealed_page_that_no_index_has_is_damage(
    path: str, prefix: int, depth: int, amount: int
):
    create(path, 3).close(END)
    header = prefix.to_bytes(4, "little") + bytes([depth, 0]) + amount.to_bytes(2, "little")
    body = header.ljust(PAGE_BYTES - 8, b"\0")
    with open(path, "r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(xxhash.xxh3_64_intdigest(body, 1).to_bytes(8, "little") + body)
    index = reopen(path)
    with pytest.raises(CorruptionError, match="page 1"):
        index.get(entry(1).object_id)
    assert index.damaged_pages() == [1]
    index.close(None)
    os.remove(path + ".map")
    with pytest.raises(IndexLostError):
        reopen(path)


@pytest.mark.parametrize("depth", [1, 28])
def test_2_pages_that_do_not_share_all_hashes_are_no_index(path: str, depth: int):
    create(path, 3).close(None)
    body = (bytes(4) + bytes([depth])).ljust(PAGE_BYTES - 8, b"\0")
    with open(path, "r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(xxhash.xxh3_64_intdigest(body, 1).to_bytes(8, "little") + body)
    with pytest.raises(IndexLostError, match="missing"):
        reopen(path)


@pytest.mark.parametrize("stored", [b"\1\0\0", b"\1\0\0\0" * 3, bytes(4), b"\xff\0\0\0"])
def test_a_sealed_map_that_fits_no_pages_is_made_anew_from_them(path: str, stored: bytes):
    create(path, 3).close(END)
    with open(path, "rb") as file:
        seed = int.from_bytes(file.read(16)[8:], "little")
    checksum = xxhash.xxh3_64_intdigest(stored, seed ^ 2)  # of a header and one page
    Path(path + ".map").write_bytes(checksum.to_bytes(8, "little") + stored)
    index = reopen(path)
    assert content(index) == expected(3)
    index.close(None)


@of_python
@pytest.mark.parametrize("nth", range(1, 40))
@pytest.mark.parametrize("bytes_kept", [0, 1, PAGE_BYTES - 1])
def test_a_write_that_fails_loses_nothing_that_was_acknowledged(
    path: str, nth: int, bytes_kept: int
):
    disk = FaultyDisk()
    index = create(path, 60, disk=disk)
    model = expected(60)
    disk.cut_write(bytes_kept, nth=nth, operation="pwrite_all")
    for number in range(60, 400):
        try:
            index.put_many([entry(number)])
        except OSError:
            index.put_many([entry(number)])  # the disk has room again
        model[entry(number).object_id] = entry(number)
    disk.heal()
    assert content(index) == model
    index.close(None)
    try:
        reopened = reopen(path)
    except IndexLostError:
        assert bytes_kept  # a torn page: the index is made anew from the segments
    else:
        assert content(reopened) == model


@of_python
def test_a_kill_between_any_two_writes_loses_nothing_then_or_later(tmp_path: Path):
    for nth in count(1):
        path = str(tmp_path / f"{nth}.idx")
        acknowledged = expected(0)
        disk = KillingDisk()
        index = create(path, disk=disk)
        disk.left = nth
        try:
            for number in range(0, 300, 3):
                put_three(index, number, acknowledged)
        except KilledError:
            index = reopen(path)
            assert acknowledged.items() <= content(index).items()
            for number in range(300, 600, 3):
                put_three(index, number, acknowledged)
            assert acknowledged.items() <= content(index).items()
            index.close(None)
            assert acknowledged.items() <= content(reopen(path)).items()
        else:
            return


def put_three(index: Any, number: int, acknowledged: dict[bytes, Entry]) -> None:
    batch = [entry(number + more) for more in range(3)]
    index.put_many(batch)
    acknowledged.update((found.object_id, found) for found in batch)


def test_entries_of_new_records_are_found_at_once_and_in_the_file_after_a_flush(path: str):
    index = create(path)
    index.add(entries(3))
    assert index.get(entry(1).object_id) == index.peek(entry(1).object_id) == entry(1)
    assert content(index) == {}
    assert index.waiting() == content(index) | expected(3)
    index.flush()
    assert content(index) == expected(3)
    assert index.waiting() == {}


def test_the_file_says_up_to_which_record_it_is_complete(path: str):
    index = create(path)
    start = index.covered
    index.add(entries(3))
    assert index.covered == start
    index.flush()
    index.add([entry(9)])
    index.close(None)
    reopened = reopen(path)
    assert reopened.covered == Place(1, 2)
    assert content(reopened) == expected(3)


def test_a_clean_close_leaves_nothing_to_the_log(path: str):
    index = create(path)
    index.add(entries(3))
    index.close(END)
    assert content(reopen(path)) == expected(3)


def test_what_waits_is_bounded(path: str):
    index = create(path)
    for number in range(6_000):
        index.add([entry(number)])
        assert len(index.waiting()) <= 4096
    assert all(index.get(found.object_id) == found for found in entries(6_000))


def test_what_waits_is_bounded_by_the_log_it_takes(path: str):
    index = create(path)
    for number in range(100):
        index.add([entry(number)._replace(size=1 << 20)])
        assert sum(found.size for found in index.waiting().values()) <= 33 << 20
    assert all(index.get(found.object_id) is not None for found in entries(100))


def test_every_entry_before_the_place_that_is_covered_is_in_a_page(path: str):
    index = create(path)
    for number in range(6_000):
        index.add([entry(number)])
        if number % 500 == 0:
            index.add([entry(number // 2, offset=10_000 + number)])  # moved to the end of the log
    only_in_pages = content(index).keys() - index.waiting().keys()
    index.close(None)
    reopened = reopen(path)
    in_pages = content(reopened).keys()  # older entries of some that waited as well
    assert only_in_pages <= in_pages
    before = {found.object_id for found in entries(6_000) if found.place < reopened.covered}
    assert before <= in_pages


def test_a_change_of_an_entry_that_waits_is_in_the_file(path: str):
    index = create(path)
    index.add(entries(2))
    index.put_many([entry(0, aside=1)])
    index.remove_many([entry(1).object_id])
    index.close(None)
    reopened = reopen(path)
    assert content(reopened) == {entry(0).object_id: entry(0, aside=1)}


def test_a_listing_shows_what_waits_instead_of_what_is_older(path: str):
    index = create(path, 2)
    index.add([entry(0, offset=77)])
    assert content(index) == expected(2) | {entry(0).object_id: entry(0, offset=77)}


@pytest.fixture
def segment(tmp_path: Path) -> SegmentFile:
    return SegmentFile(Disk(), str(tmp_path / "1.seg"), 1, create=True)


def objects(*numbers: int) -> list[tuple[bytes, bytes]]:
    return [(entry(number).object_id, b"object %d" % number) for number in numbers]


def test_new_objects_are_appended_and_found_where_they_lie(path: str, segment: SegmentFile):
    index = create(path)
    end = index.append_new(segment, 64, 1000, objects(1, 2), 7)
    assert end == 64 + 2 * record_bytes(8) == segment.size()
    for object_id, data in objects(1, 2):
        found = Entry._make(index.get(object_id))
        assert segment.read(found) == data
        assert (found.segment, found.size, found.aside, found.at_ns) == (1, 8, 0, 7)
    assert index.append_new(segment, end, 1000, objects(3), 8) == segment.size()
    assert [found.object_id for found in segment.records(64)] == [k for k, _ in objects(1, 2, 3)]


@pytest.mark.parametrize("already", ["waiting", "in a page"])
@pytest.mark.parametrize(("numbers", "limit"), [((5, 1), 1000), ((5, 5), 1000), ((5, 6), 200)])
def test_nothing_is_appended_of_what_is_there_comes_twice_or_has_no_room(
    path: str, segment: SegmentFile, numbers: tuple[int, ...], limit: int, already: str
):
    index = create(path)
    (index.add if already == "waiting" else index.put_many)([entry(1)])
    assert index.append_new(segment, 64, limit, objects(*numbers), 7) is None
    assert segment.size() == 64
    assert index.get(entry(5).object_id) is None


steps = st.one_of(
    st.tuples(st.sampled_from(["add", "put_many", "remove_many"]), st.lists(st.integers(0, 150))),
    st.tuples(st.sampled_from(["flush", "reopen", "close"])),
)


@of_python
@settings(max_examples=10_000, deadline=None)
@given(st.lists(steps, max_size=6))
def test_both_implementations_make_the_same_of_the_same_changes(
    done: list[tuple[Any, ...]],
):
    native = pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built").ObjectIndex
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        paths = [f"{folder}/python", f"{folder}/rust"]
        openers: list[Callable[[str], Any]] = [
            lambda path: ObjectIndex(path, disk=Disk(), boot=BOOT),
            lambda path: native(path, boot=BOOT),
        ]
        create(paths[0]).close(None)
        Path(paths[1]).write_bytes(Path(paths[0]).read_bytes())
        indexes = [opened(path) for opened, path in zip(openers, paths, strict=True)]
        for serial, (what, *numbers) in enumerate(done):
            changed = [
                entry(number, offset=1000 * serial + number) for number in (numbers or [[]])[0]
            ]
            if what == "remove_many":
                changed = [found.object_id for found in changed]  # type: ignore[misc]
            for position, index in enumerate(indexes):
                if what in ("reopen", "close"):
                    index.close(None if what == "reopen" else END)
                    indexes[position] = openers[position](paths[position])
                elif what == "flush":
                    index.flush()
                else:
                    getattr(index, what)(changed)
        one, other = indexes
        assert one.page_count == other.page_count
        assert one.waiting() == other.waiting()
        assert content(one) == content(other)
        assert (one.end, one.covered) == (other.end, other.covered)
        one.close(END)
        other.close(END)
        assert Path(paths[0]).read_bytes()[:PAGE_BYTES] == Path(paths[1]).read_bytes()[:PAGE_BYTES]
        assert content(openers[1](paths[0])) == content(openers[0](paths[1]))


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))
