"""SegmentObjects: packed objects survive kills, lost indexes and failed syncs."""

import errno
import itertools
import linecache
import logging
import os
import random
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nexus.contracts.errors import (
    ClosedError,
    ContentNotFoundError,
    CorruptionError,
    InvalidArgumentError,
    NexusError,
    NoSpaceError,
    StorageError,
    StorageFailedError,
)
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import ContentStoreABC, Extent
from nexus.lib.block_seals import BLOCK_BYTES, block_seals
from nexus.lib.chunking import Chunk, ChunkingParameters
from nexus.lib.content_id import object_id_of
from nexus.lib.disk import Disk
from nexus.lib.native import Choice
from nexus.storage.object_store import segment_file
from nexus.storage.object_store.cas_store import CasStore
from nexus.storage.object_store.local_transport import LocalTransport
from nexus.storage.object_store.loose_objects import LooseObjects
from nexus.storage.object_store.segment_file import (
    RECORD_HEADER_BYTES,
    UNIT,
    padding,
    record_header,
    records,
)
from nexus.storage.object_store.segment_objects import SegmentObjects
from nexus.testing.content_store import ContentStoreSuite
from nexus.testing.faults import FaultyDisk, KilledError, KillingDisk

BOOT = 7
SEGMENT_BYTES = 4096
LARGEST_BYTES = 2048
TINY = ChunkingParameters(threshold_bytes=1024, min_bytes=256, average_bytes=512, max_bytes=1024)


class Place:
    """A content folder that can be opened again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir(exist_ok=True)
        self.clock = itertools.count(1).__next__

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    def open(
        self,
        *,
        disk: Disk | None = None,
        boot: int = BOOT,
        zeros_ahead: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> SegmentObjects:
        disk = disk or Disk()
        return SegmentObjects(
            str(self.segments),
            LooseObjects(LocalTransport(str(self.root), disk=disk)),
            disk=disk,
            clock_ns=self.clock,
            zeros_ahead=zeros_ahead,
            segment_bytes=segment_bytes,
            largest_bytes=LARGEST_BYTES,
            boot=boot,
        )

    def segment_files(self) -> list[Path]:
        return sorted(self.segments.glob("*.seg"))

    def flip_in(self, data: bytes, position: int) -> None:
        """Flip one bit of an object, found by its bytes; before 0 is its record's header."""
        for path in self.segment_files():
            stored = bytearray(path.read_bytes())
            found = stored.rfind(data)
            if found >= 0:
                stored[found + position] ^= 4
                path.write_bytes(stored)
                return
        raise AssertionError("the object is in no segment")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "content")


@pytest.fixture
def objects(place: Place) -> Iterator[SegmentObjects]:
    objects = place.open()
    yield objects
    objects.close()


def put(objects: SegmentObjects, data: bytes) -> str:
    object_id = object_id_of(data)
    objects.put(object_id, data)
    return object_id


def sample(number: int, size: int = 600) -> bytes:
    return (f"object {number} " * (size // 8 + 1)).encode()[:size]


def fill(objects: SegmentObjects, amount: int, first: int = 0) -> dict[str, bytes]:
    stored = {object_id_of(data): data for data in map(sample, range(first, first + amount))}
    objects.put_many(list(stored.items()))
    return stored


def assert_holds(objects: SegmentObjects, stored: dict[str, bytes]) -> None:
    assert {object_id: objects.get(object_id) for object_id in stored} == stored


class TestCasOverSegments(ContentStoreSuite):
    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: Path) -> None:
        self.places = (Place(tmp_path / str(number)) for number in itertools.count())
        self.place_of: dict[int, Place] = {}

    def make(self) -> ContentStoreABC:
        place = next(self.places)
        store = CasStore(
            place.open(segment_bytes=1 << 16),
            name="cas",
            volume_id="volume",
            clock_ns=itertools.count(1).__next__,
            chunking=TINY,
        )
        self.place_of[id(store)] = place
        return store

    def damage(self, store: ContentStoreABC, object_id: str, position: int) -> None:
        place = self.place_of[id(store)]
        for path in place.segment_files():
            stored = bytearray(path.read_bytes())
            for record in records(bytes(stored)):
                if record.object_id.hex() == object_id:
                    stored[record.offset * UNIT + RECORD_HEADER_BYTES + position] ^= 1
            path.write_bytes(stored)


class TestCasOverAFullSegmentEach(TestCasOverSegments):
    """Every object ends a segment, so that they are opened and closed all the time."""

    def make(self) -> ContentStoreABC:
        place = next(self.places)
        store = CasStore(
            place.open(segment_bytes=256),
            name="cas",
            volume_id="volume",
            clock_ns=itertools.count(1).__next__,
            chunking=TINY,
        )
        self.place_of[id(store)] = place
        return store


# Storing and reading


def test_small_objects_share_a_segment_and_large_ones_lie_loose(
    objects: SegmentObjects, place: Place
):
    stored = fill(objects, 3)
    large = sample(9, LARGEST_BYTES + 1)
    object_id = put(objects, large)
    assert_holds(objects, stored | {object_id: large})
    assert len(place.segment_files()) == 1
    assert (place.root / object_id[:2] / object_id[2:]).read_bytes() == large


def test_what_lay_loose_before_is_found_and_not_stored_again(place: Place):
    data = sample(1)
    LooseObjects(LocalTransport(str(place.root))).put(object_id_of(data), data)
    objects = place.open()
    assert objects.get(object_id_of(data)) == data
    assert put(objects, data)
    assert place.segment_files() == []
    assert [found.object_id for found in objects.objects()] == [object_id_of(data)]


def test_the_same_bytes_are_stored_once(objects: SegmentObjects, place: Place):
    fill(objects, 3)
    sizes = [path.stat().st_size for path in place.segment_files()]
    fill(objects, 3)
    objects.put_many([(object_id_of(b"twice"), b"twice")] * 2)
    assert len(list(objects.objects())) == 4
    assert [path.stat().st_size for path in place.segment_files()] > sizes
    assert sum(path.read_bytes().count(b"twice") for path in place.segment_files()) == 1


def test_a_segment_takes_no_record_past_its_limit(objects: SegmentObjects, place: Place):
    stored = fill(objects, 40)
    assert_holds(objects, stored)
    assert len(place.segment_files()) > 5
    assert all(path.stat().st_size <= SEGMENT_BYTES for path in place.segment_files())


def test_an_object_larger_than_a_segment_has_one_of_its_own(place: Place):
    objects = place.open(segment_bytes=256)
    assert_holds(objects, fill(objects, 5))
    assert len(place.segment_files()) == 5


def test_more_segments_than_are_kept_open_can_be_read(place: Place):
    objects = place.open(segment_bytes=256)
    stored = fill(objects, 300)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert_holds(objects, stored)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1
    objects.close()
    assert len(os.listdir("/proc/self/fd")) < descriptors - 100


def test_a_closed_store_says_so(objects: SegmentObjects):
    object_id = put(objects, b"abc")
    objects.close()
    for call in (objects.get, objects.contains, objects.verify):
        with pytest.raises(ClosedError):
            call(object_id)
    with pytest.raises(ClosedError):
        objects.put(object_id, b"abc")


# Ends, clean and not


@pytest.mark.parametrize("synced", [True, False])
def test_everything_is_there_after_reopening(place: Place, synced: bool):
    objects = place.open()
    stored = fill(objects, 20)
    if synced:
        objects.sync()
    objects.close()
    assert_holds(place.open(), stored)


def test_a_clean_end_is_appended_to(place: Place):
    for number in range(5):
        objects = place.open()
        put(objects, sample(number, 100))
        objects.sync()
        objects.close()
    assert len(place.segment_files()) == 1
    assert_holds(place.open(), {object_id_of(d): d for d in (sample(n, 100) for n in range(5))})


def test_after_an_end_that_was_not_clean_nothing_is_written_over(place: Place):
    stored = fill(place.open(), 2)  # neither synced nor closed, as a kill leaves it
    before = {path: path.read_bytes() for path in place.segment_files()}
    objects = place.open()
    assert_holds(objects, stored)
    fill(objects, 2, first=50)
    assert {path: path.read_bytes() for path in before} == before


def test_after_a_power_cut_the_index_is_made_anew_from_the_segments(place: Place):
    stored = fill(place.open(), 30)
    objects = place.open(boot=BOOT + 1)
    assert_holds(objects, stored)
    assert {found.object_id for found in objects.objects()} == set(stored)


def test_a_lost_index_is_made_anew_and_the_last_intact_record_counts(place: Place):
    objects = place.open()
    stored = fill(objects, 10)
    place.flip_in(sample(4), 5)
    objects.put_many(list(stored.items()))  # heals it, in another place
    place.flip_in(sample(7), 5)
    objects.sync()
    objects.close()
    os.unlink(place.segments / "objects.idx")
    objects = place.open()
    with pytest.raises(CorruptionError, match=object_id_of(sample(7))):
        objects.get(object_id_of(sample(7)))
    del stored[object_id_of(sample(7))]
    assert_holds(objects, stored)


def test_an_index_that_ends_before_its_segment_is_no_reason_to_write_over_it(place: Place):
    objects = place.open()
    stored = fill(objects, 2)
    objects.sync()
    objects.close()
    (last,) = place.segment_files()
    last.write_bytes(last.read_bytes()[:-100])
    objects = place.open()
    put(objects, b"new")
    assert len(place.segment_files()) == 2
    assert len([i for i in stored if _reads(objects, i)]) == 1


def _reads(objects: SegmentObjects, object_id: str) -> bool:
    try:
        return bool(objects.get(object_id))
    except CorruptionError:
        return False


# Damage


@pytest.mark.parametrize("position", range(-RECORD_HEADER_BYTES, 20))
def test_a_flipped_bit_is_never_returned_and_never_passes_a_check(place: Place, position: int):
    objects = place.open()
    stored = fill(objects, 5)
    place.flip_in(sample(2), position)
    damaged = object_id_of(sample(2))
    if position >= 0:
        with pytest.raises(CorruptionError, match=damaged):
            objects.get(damaged)
    else:  # the bytes themselves still match their hash
        assert objects.get(damaged) == sample(2)
    with pytest.raises(CorruptionError, match=damaged):
        objects.verify(damaged)
    objects.put_many(list(stored.items()))
    assert objects.verify(damaged) == 600


@pytest.mark.parametrize("position", range(-RECORD_HEADER_BYTES, 20, 5))
def test_what_is_damaged_around_whole_bytes_can_be_mended(place: Place, position: int):
    objects = place.open()
    fill(objects, 5)
    place.flip_in(sample(2), position)
    damaged = object_id_of(sample(2))
    if position >= 0:
        with pytest.raises(CorruptionError):
            objects.bring_back(damaged)
        return
    assert objects.bring_back(damaged)
    assert objects.verify(damaged) == 600
    assert not objects.bring_back(damaged)


@pytest.mark.parametrize("position", range(-RECORD_HEADER_BYTES, 600, 37))
def test_what_follows_a_damaged_record_is_found_without_the_index(place: Place, position: int):
    objects = place.open()
    stored = fill(objects, 5)
    place.flip_in(sample(2), position)
    objects.sync()
    objects.close()
    os.unlink(place.segments / "objects.idx")
    objects = place.open()
    assert_holds(objects, {i: d for i, d in stored.items() if d != sample(2)})
    with suppress(ContentNotFoundError, CorruptionError):
        assert objects.get(object_id_of(sample(2))) == sample(2)


def damage_every_page(place: Place) -> None:
    path = place.segments / "objects.idx"
    index = bytearray(path.read_bytes())
    for page in range(1, len(index) // 4096):
        index[page * 4096 + 100] ^= 1
    path.write_bytes(index)


def test_a_damaged_page_of_the_index_is_mended_when_it_is_met(
    place: Place, caplog: pytest.LogCaptureFixture
):
    objects = place.open()
    stored = fill(objects, 200)
    objects.sync()
    objects.close()
    damage_every_page(place)
    objects = place.open()
    findings = objects.check(repair=False)
    assert len(findings) == 1
    assert "index" in findings[0]
    with caplog.at_level(logging.WARNING):
        assert_holds(objects, stored)
    assert "made anew" in caplog.text
    assert objects.check(repair=False) == []


def test_forgetting_mends_a_damaged_index_as_reading_does(place: Place):
    objects = place.open()
    stored = fill(objects, 200)
    forgotten = list(objects._segments.entries())[:3]
    objects.sync()
    objects.close()
    damage_every_page(place)
    objects = place.open()
    with objects._segments.lock:
        objects._segments.forget_locked(forgotten)
    gone = {entry.object_id.hex() for entry in forgotten}
    assert not any(objects.contains(object_id) for object_id in gone)
    assert_holds(objects, {i: data for i, data in stored.items() if i not in gone})
    assert objects.check(repair=False) == []


def test_a_check_with_repair_mends_the_index(place: Place):
    objects = place.open()
    stored = fill(objects, 200)
    objects.sync()
    objects.close()
    path = place.segments / "objects.idx"
    index = bytearray(path.read_bytes())
    index[4096 + 100] ^= 1
    path.write_bytes(index)
    objects = place.open()
    assert objects.check(repair=True)
    assert objects.check(repair=False) == []
    assert_holds(objects, stored)


def test_an_object_whose_segment_is_gone_is_not_found(place: Place):
    objects = place.open()
    object_id = put(objects, b"abc")
    objects.sync()
    objects.close()
    (segment,) = place.segment_files()
    segment.unlink()
    with pytest.raises(ContentNotFoundError, match=object_id):
        place.open().get(object_id)


def record(data: bytes, at_ns: int = 1) -> bytes:
    object_id = bytes.fromhex(object_id_of(data))
    return record_header(object_id, data, at_ns) + data + padding(len(data))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=300), max_size=8),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_segment_yields_no_record_that_is_not_its_id(
    contents: list[bytes], flips: list[tuple[int, int]]
):
    segment = bytearray(64) + b"".join(record(data) for data in contents)
    for position, value in flips:
        if position < len(segment):
            segment[position] = value
    for found in records(bytes(segment)):
        start = found.offset * UNIT + RECORD_HEADER_BYTES
        data = bytes(segment[start : start + found.size])
        assert not found.intact or object_id_of(data) == found.object_id.hex()


def test_bytes_that_look_like_a_record_are_taken_for_one_only_if_they_are_one():
    hidden = b"a record within a record"
    forged = record_header(bytes(32), b"forged", 1) + b"forged  "
    outer = record(forged + record(hidden))
    segment = bytearray(64) + outer + record(b"last")
    assert [found.size for found in records(bytes(segment))] == [len(outer) - 64, 4]
    segment[64] ^= 1  # the outer one's magic
    found = [item.object_id.hex() for item in records(bytes(segment))]
    assert found == [object_id_of(hidden), object_id_of(b"last")]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_can_be_scanned(segment: bytes):
    assert list(records(segment)) == []


# Failing disks


def test_a_failed_append_stores_nothing_and_the_next_one_succeeds(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    stored = fill(objects, 2)
    for bytes_kept in (0, 1, 100, 700):
        disk.cut_write(bytes_kept, operation="pwrite_all")
        with pytest.raises(NoSpaceError):
            fill(objects, 3, first=50)
        stored |= fill(objects, 1, first=100 + bytes_kept)
    assert_holds(objects, stored)
    assert_holds(place.open(), stored)
    assert_holds(place.open(boot=BOOT + 1), stored)


@pytest.mark.parametrize("operation", ["open", "pwrite_all"])
def test_a_segment_that_cannot_be_started_loses_nothing(place: Place, operation: str):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    disk.fail(operation, errno.ENOSPC)
    with pytest.raises(NoSpaceError):
        fill(objects, 1)
    stored = fill(objects, 1)
    assert_holds(objects, stored)
    assert_holds(place.open(boot=BOOT + 1), stored)


def test_an_error_of_reading_is_a_storage_error(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    object_id = put(objects, b"abc")
    disk.fail("pread")
    with pytest.raises(StorageError, match=object_id):
        objects.get(object_id)
    assert objects.get(object_id) == b"abc"


def test_after_a_failed_sync_the_bytes_are_written_again_before_a_sync_succeeds(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    safe = fill(objects, 2)
    objects.sync()
    stored = fill(objects, 3, first=10)
    disk.fail("fdatasync")
    with pytest.raises(StorageFailedError):
        objects.sync()
    later = fill(objects, 1, first=20)
    objects.sync()
    # The system may have dropped what the failed sync covered: all of it lies elsewhere now.
    first = place.segment_files()[0]
    os.truncate(first, first.read_bytes().find(sample(10)) - RECORD_HEADER_BYTES)
    assert_holds(place.open(), safe | stored | later)


def test_a_sync_that_keeps_failing_never_succeeds(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    stored = fill(objects, 3)
    with disk.failing("fdatasync"):
        for _ in range(3):
            with pytest.raises(StorageFailedError):
                objects.sync()
    objects.sync()
    assert_holds(objects, stored)


def test_a_close_after_a_failed_sync_is_not_clean(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    stored = fill(objects, 3)
    with disk.failing("fsync_directory"), pytest.raises(StorageFailedError):
        objects.sync()
    objects.close()
    objects = place.open(boot=BOOT + 1)
    assert_holds(objects, stored)


def test_callers_at_the_same_time_share_a_sync(place: Place):
    entered, go_on = threading.Event(), threading.Event()

    class SlowDisk(FaultyDisk):
        def fdatasync(self, fd: int) -> None:
            entered.set()
            go_on.wait(10)
            super().fdatasync(fd)

    disk = SlowDisk()
    go_on.set()
    objects = place.open(disk=disk)
    put(objects, b"first")
    entered.clear()
    go_on.clear()
    before = disk.calls["fdatasync"]
    threads = [threading.Thread(target=objects.sync)]
    threads[0].start()
    assert entered.wait(10)
    put(objects, b"second")
    threads += [threading.Thread(target=objects.sync) for _ in range(8)]
    for thread in threads[1:]:
        thread.start()
    while objects._rounds.turn.locked() and disk.calls["fdatasync"] == before:
        go_on.set()
    for thread in threads:
        thread.join()
    assert disk.calls["fdatasync"] - before <= 3


def test_with_zeros_ahead_a_file_does_not_grow_at_each_append(place: Place):
    objects = place.open(zeros_ahead=True, segment_bytes=4 << 20)
    stored = fill(objects, 1)
    (segment,) = place.segment_files()
    size = segment.stat().st_size
    stored |= fill(objects, 10, first=5)
    assert segment.stat().st_size == size
    objects.sync()
    objects.close()
    objects = place.open()
    stored |= fill(objects, 10, first=50)
    assert_holds(objects, stored)
    assert_holds(place.open(boot=BOOT + 1), stored)


def test_a_disk_without_room_for_zeros_may_have_room_for_the_record(place: Place):
    class NarrowDisk(Disk):
        def pwrite_all(self, fd: int, data: bytes, offset: int) -> None:  # type: ignore[override]
            if len(data) >= 1 << 20:
                raise OSError(errno.ENOSPC, "no room for that much")
            super().pwrite_all(fd, data, offset)

    objects = place.open(disk=NarrowDisk(), zeros_ahead=True, segment_bytes=4 << 20)
    assert_holds(objects, fill(objects, 20))


def test_storing_what_is_there_leaves_nothing_to_sync_and_a_clean_end(place: Place):
    objects = place.open()
    stored = fill(objects, 3)
    objects.sync()
    assert fill(objects, 3) == stored
    objects.close()
    objects = place.open(boot=BOOT + 1)
    assert objects._segments.index.end is not None
    assert_holds(objects, stored | fill(objects, 1, first=9))
    assert len(place.segment_files()) == 1


def test_a_file_that_may_not_grow_stores_nothing_and_the_next_append_succeeds(place: Place):
    objects = place.open(segment_bytes=1 << 20)
    stored = fill(objects, 60)
    (segment,) = place.segment_files()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1, 100, 700):
        resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + room, limits[1]))
        try:
            with pytest.raises(StorageError, match="File too large"):
                fill(objects, 3, first=100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not any(objects.contains(object_id_of(sample(number))) for number in (100, 102))
        stored |= fill(objects, 1, first=200 + room)
    assert_holds(objects, stored)
    assert_holds(place.open(), stored)
    assert_holds(place.open(boot=BOOT + 1), stored)


OBJECT_STORE = str(Path(segment_file.__file__).parent)


def interrupted_at(step: int, call: Callable[[], object]) -> bool:
    """Run a call, raising at its ``step``-th line within the drivers; False where it has fewer."""
    left = step

    def each_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        # A tracer sees two lines where the interpreter looks at no signal: that of a with once
        # more on the way out of its block, and that of a try.
        if event == "line" and not line.startswith(("with ", "try:")):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return each_line

    def each_frame(frame: FrameType, _event: str, _: Any) -> Any:
        watched = frame.f_code.co_filename.startswith(OBJECT_STORE)
        return each_line if left > 0 and watched else None

    before = sys.gettrace()
    sys.settrace(each_frame)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


@pytest.mark.parametrize("amount", [1, 3])
def test_a_put_that_is_interrupted_at_any_line_costs_no_object_its_record(
    place: Place, amount: int
):
    objects = place.open(segment_bytes=1 << 20)
    stored = fill(objects, 1)
    for step in itertools.count(1):
        if not interrupted_at(step, lambda n=10 * step: fill(objects, amount, n)):  # type: ignore[misc]
            break
        stored |= fill(objects, 1, first=10 * step + 5)
        assert_holds(objects, stored)
        listed = [found.object_id for found in objects.objects()]
        assert all(objects.get(object_id) for object_id in listed)
    assert step > 20
    assert_holds(place.open(boot=BOOT + 1), stored)


# Reading parts


LARGE = random.Random(5).randbytes(3 * BLOCK_BYTES + 1_000)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[SegmentObjects]:
    place = Place(tmp_path / "large")
    disk = Disk()
    objects = SegmentObjects(
        str(place.segments),
        LooseObjects(LocalTransport(str(place.root), disk=disk)),
        disk=disk,
        clock_ns=place.clock,
        boot=BOOT,
    )
    objects.put(object_id_of(LARGE), LARGE, block_seals(LARGE))
    yield objects
    objects.close()


def read_part(objects: SegmentObjects, start: int, count: int) -> bytes | None:
    return objects.read_parts(count, [(object_id_of(LARGE), start, count, block_seals(LARGE))])


@pytest.mark.parametrize("start", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7])
@pytest.mark.parametrize("count", [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 900])
def test_any_part_of_a_large_object_can_be_read(large: SegmentObjects, start: int, count: int):
    assert read_part(large, start, count) == LARGE[start : start + count]


def test_the_record_of_a_large_object_is_sealed_by_its_block_seals(large: SegmentObjects):
    object_id = object_id_of(LARGE)
    assert large.get(object_id) == LARGE
    assert large.verify(object_id) == len(LARGE)
    derived, known = (
        record_header(bytes.fromhex(object_id), LARGE, 1, seals)
        for seals in (None, block_seals(LARGE))
    )
    assert derived == known


def in_parts(data: bytes, part_bytes: int) -> Chunk:
    view = memoryview(data)
    parts = tuple(view[at : at + part_bytes] for at in range(0, len(data), part_bytes))
    return Chunk(object_id_of(data), len(data), block_seals(data), parts)


def test_chunks_in_parts_are_stored_as_their_joined_bytes(large: SegmentObjects):
    source = random.Random(7)
    stored = [source.randbytes(size) for size in (1, BLOCK_BYTES, BLOCK_BYTES + 1, 300_003)]
    chunks = [in_parts(data, 50_001) for data in stored]
    large.put_chunks([*chunks, chunks[0]])
    for data in stored:
        assert large.get(object_id_of(data)) == data
        assert large.verify(object_id_of(data)) == len(data)


def test_a_run_of_chunks_longer_than_a_segment_fills_several(place: Place):
    objects = place.open()
    stored = [sample(number, 1_500) for number in range(7)]
    objects.put_chunks([in_parts(data, 700) for data in stored])
    assert_holds(objects, {object_id_of(data): data for data in stored})
    assert len(place.segment_files()) == 4
    objects.close()
    assert_holds(place.open(), {object_id_of(data): data for data in stored})


def test_a_chunk_too_large_for_a_segment_lies_loose(place: Place):
    objects = place.open()
    data = sample(0, LARGEST_BYTES + 1)
    objects.put_chunks([in_parts(data, 700)])
    assert objects.get(object_id_of(data)) == data
    assert place.segment_files() == []


def test_a_chunk_that_is_stored_already_is_healed_and_brought_back(
    large: SegmentObjects, tmp_path: Path
):
    Place(tmp_path / "large").flip_in(LARGE, BLOCK_BYTES + 5)
    large.put_chunks([in_parts(LARGE, 70_000)])
    assert large.get(object_id_of(LARGE)) == LARGE
    large.set_aside(object_id_of(LARGE), 1)
    large.put_chunks([in_parts(LARGE, 70_000)])
    assert large.get(object_id_of(LARGE)) == LARGE


def test_a_run_of_chunks_that_meets_a_full_disk_can_be_stored_again(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    put(objects, sample(99))
    chunks = [in_parts(sample(number), 250) for number in range(3)]
    disk.cut_write(900, operation="pwrite_all")
    with pytest.raises(NoSpaceError):
        objects.put_chunks(chunks)
    objects.put_chunks(chunks)
    assert_holds(objects, {object_id_of(sample(number)): sample(number) for number in range(3)})


def test_a_part_is_not_handed_out_from_a_damaged_block_nor_refused_from_a_whole_one(
    large: SegmentObjects, tmp_path: Path
):
    Place(tmp_path / "large").flip_in(LARGE, BLOCK_BYTES + 5)
    assert read_part(large, 100, BLOCK_BYTES) is None
    assert read_part(large, BLOCK_BYTES, 10) is None
    assert read_part(large, 0, BLOCK_BYTES) == LARGE[:BLOCK_BYTES]
    assert read_part(large, 2 * BLOCK_BYTES, BLOCK_BYTES) == LARGE[2 * BLOCK_BYTES :][:BLOCK_BYTES]


def test_a_part_past_the_end_or_of_what_is_set_aside_is_not_read(large: SegmentObjects):
    assert read_part(large, len(LARGE) - 5, 6) is None
    large.set_aside(object_id_of(LARGE), 1)
    assert read_part(large, 0, 10) is None


def test_a_read_across_chunks_gives_their_bytes_and_tells_damage(
    large: SegmentObjects, tmp_path: Path
):
    store = CasStore(large, name="cas", volume_id="volume", clock_ns=itertools.count(1).__next__)
    data = random.Random(6).randbytes(3 << 20)
    etag = store.write_content(data).etag
    for start in range(0, len(data), 300_007):
        for count in (BLOCK_BYTES, 700_000, 4 << 20):
            assert store.read_content(etag, start, count) == data[start : start + count]
    damaged = next(iter(store.objects_of(etag)))
    chunk = [object_id for object_id in store.objects_of(etag) if object_id != damaged][2]
    Place(tmp_path / "large").flip_in(large.get(chunk), 9)
    with pytest.raises(CorruptionError, match=chunk):
        store.read_content(etag, 0, len(data))


# Writing again what is stored


def large_store(objects: SegmentObjects) -> CasStore:
    return CasStore(objects, name="cas", volume_id="volume", clock_ns=itertools.count(1).__next__)


def test_an_object_is_held_only_with_the_bytes_and_the_seals_that_it_has(
    large: SegmentObjects, tmp_path: Path
):
    object_id, seals = object_id_of(LARGE), block_seals(LARGE)
    assert large.holds(object_id, LARGE, seals)
    assert large.holds(object_id, memoryview(LARGE), seals)
    assert not large.holds(object_id, LARGE[:-1] + b"x", seals)
    assert not large.holds(object_id, LARGE[:-1], seals)
    assert not large.holds(object_id_of(b"another"), LARGE, seals)
    large.set_aside(object_id, 1)
    assert not large.holds(object_id, LARGE, seals)
    large.bring_back(object_id)
    Place(tmp_path / "large").flip_in(LARGE, -1)  # the seal in the record's header
    assert not large.holds(object_id, LARGE, seals)


def test_a_blob_that_was_written_lately_is_not_hashed_again(
    large: SegmentObjects, monkeypatch: pytest.MonkeyPatch
):
    store = large_store(large)
    first = store.write_content(LARGE)

    def unexpected(data: Buffer) -> str:
        raise AssertionError("hashed")

    with monkeypatch.context() as patched:
        patched.setattr("nexus.storage.object_store.cas_store.object_id_of", unexpected)
        assert store.write_content(LARGE) == first
        assert store.write_content(bytearray(LARGE)) == first
    assert store.read_content(first.etag) == LARGE


def test_a_blob_that_is_written_again_is_pinned_once_more(large: SegmentObjects):
    store = large_store(large)
    etag = store.write_content(LARGE).etag
    store.write_content(LARGE)
    store.unpin(etag)
    store.begin_collection()
    assert not store.quarantine_object(object_id_of(LARGE))
    store.end_collection()
    store.unpin(etag)
    with pytest.raises(InvalidArgumentError):
        store.unpin(etag)


def test_a_blob_that_is_written_again_while_collecting_is_protected(large: SegmentObjects):
    store = large_store(large)
    store.unpin(store.write_content(LARGE).etag)
    store.begin_collection()
    store.unpin(store.write_content(LARGE).etag)
    assert not store.quarantine_object(object_id_of(LARGE))


@pytest.mark.parametrize("position", [-1, 9, BLOCK_BYTES + 5])
def test_a_damaged_blob_that_is_written_again_is_healed(
    large: SegmentObjects, tmp_path: Path, position: int
):
    store = large_store(large)
    content = store.write_content(LARGE)
    Place(tmp_path / "large").flip_in(LARGE, position)
    assert store.write_content(LARGE) == content
    assert large.verify(object_id_of(LARGE)) == len(LARGE)
    store.unpin(content.etag)
    store.unpin(content.etag)


def test_a_blob_that_was_taken_is_stored_when_it_is_written_again(large: SegmentObjects):
    store = large_store(large)
    etag = store.write_content(LARGE).etag
    store.unpin(etag)
    for taken in (
        lambda: store.quarantine_object(object_id_of(LARGE)),
        lambda: store.quarantine_object(object_id_of(LARGE)) and store.purge_quarantine(1 << 62),
    ):
        store.begin_collection()
        assert taken()
        store.end_collection()
        store.unpin(store.write_content(LARGE).etag)
        assert store.read_content(etag) == LARGE


# Setting aside and compaction


def set_aside_and_purge(objects: SegmentObjects, object_ids: list[str]) -> None:
    assert all(objects.set_aside(object_id, 5) for object_id in object_ids)
    objects.purge(6)


def disk_bytes(place: Place) -> int:
    return sum(path.stat().st_size for path in place.segment_files())


@settings(max_examples=10_000)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=100), st.integers(0, 2**64 - 1))
def test_both_implementations_pack_a_record_alike(object_id: bytes, data: bytes, at_ns: int):
    native = pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")
    record = segment_file.packed_record(object_id, data, at_ns)
    assert native.packed_record(object_id, data, at_ns) == record
    found = next(records(record, 0))
    assert (found.object_id, found.size, found.intact) == (object_id, len(data), True)


@pytest.fixture(params=["python", "rust"])
def extents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each implementation of extents the chosen one in turn."""
    if request.param == "python":
        monkeypatch.setattr(segment_file, "chosen", lambda: Choice(None, "a test wants it"))
    else:
        pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")


def extent_of(objects: SegmentObjects, object_id: str) -> Extent:
    extent = objects.extent(object_id)
    assert extent is not None
    return extent


@pytest.mark.usefixtures("extents")
class TestExtents:
    @pytest.mark.parametrize("size", [0, 1, 7, 600, 2048])
    def test_an_extent_reads_its_object(self, objects: SegmentObjects, size: int):
        data = sample(1, size)
        extent = extent_of(objects, put(objects, data))
        fill(objects, 20, first=100)  # other segments are appended to meanwhile
        assert extent.read() == data

    def test_an_object_that_is_read_in_parts_has_none(self, place: Place):
        objects = SegmentObjects(
            str(place.segments),
            LooseObjects(LocalTransport(str(place.root))),
            disk=Disk(),
            clock_ns=place.clock,
        )
        with closing(objects):
            assert objects.extent(put(objects, sample(1, 64 << 10))) is not None
            assert objects.extent(put(objects, sample(1, (64 << 10) + 1))) is None

    def test_no_extent_is_known_of_what_is_not_packed(self, objects: SegmentObjects):
        assert objects.extent(object_id_of(b"never stored")) is None
        large = put(objects, sample(1, LARGEST_BYTES + 1))
        assert objects.extent(large) is None
        assert objects.set_aside(put(objects, sample(2)), 1)
        assert objects.extent(object_id_of(sample(2))) is None

    @pytest.mark.parametrize("position", [-48, -1, 0, 599])
    def test_a_damaged_record_reads_as_nothing(
        self, objects: SegmentObjects, place: Place, position: int
    ):
        extent = extent_of(objects, put(objects, sample(1)))
        place.flip_in(sample(1), position)
        assert extent.read() is None

    def test_an_extent_neither_keeps_a_closed_segment_open_nor_reads_another(self, place: Place):
        objects = place.open()
        extent = extent_of(objects, put(objects, sample(1)))
        objects.close()
        with closing(place.open()):  # its descriptors may have the numbers of those closed
            assert extent.read() is None

    def test_an_extent_of_a_segment_that_compaction_removed_reads_as_nothing(
        self, objects: SegmentObjects
    ):
        stored = fill(objects, 12)
        extents = {object_id: extent_of(objects, object_id) for object_id in stored}
        kept = next(iter(stored))
        for object_id in stored:
            if object_id != kept:
                objects.set_aside(object_id, 1)
        objects.purge(2)
        objects.compact()
        answers = {object_id: extent.read() for object_id, extent in extents.items()}
        assert set(answers.values()) <= {None, *stored.values()}
        assert None in answers.values()
        assert objects.get(kept) == stored[kept]


def test_compaction_gives_the_space_of_forgotten_objects_back(
    objects: SegmentObjects, place: Place
):
    stored = fill(objects, 60)
    forgotten = [i for number, i in enumerate(stored) if number % 3]
    before = disk_bytes(place)
    set_aside_and_purge(objects, forgotten)
    assert disk_bytes(place) == before
    assert objects.compact() > 0
    assert disk_bytes(place) < before / 2
    kept = {i: data for i, data in stored.items() if i not in forgotten}
    assert_holds(objects, kept)
    assert {found.object_id for found in objects.objects()} == set(kept)
    assert_holds(place.open(boot=BOOT + 1), kept)
    assert objects.compact() == 0


def test_segments_in_which_nothing_is_left_go_without_any_space(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk)
    stored = fill(objects, 60)
    last = list(stored)[-6:]
    set_aside_and_purge(objects, [i for i in stored if i not in last])
    with disk.failing("write_all", errno.ENOSPC), disk.failing("pwrite_all", errno.ENOSPC):
        assert objects.compact() > 0
    assert_holds(objects, {i: stored[i] for i in last})


def test_on_a_full_disk_the_gaps_between_objects_are_given_back(place: Place):
    disk = FaultyDisk()
    objects = place.open(disk=disk, segment_bytes=1 << 20)
    stored = {object_id_of(data): data for data in (sample(n, 2000) for n in range(60))}
    objects.put_many(list(stored.items()))
    last = list(stored)[-6:]
    set_aside_and_purge(objects, [i for i in stored if i not in last])
    with disk.failing("pwrite_all", errno.ENOSPC):
        assert objects.compact() > 90_000
    kept = {i: stored[i] for i in last}
    assert_holds(objects, kept)
    assert_holds(place.open(boot=BOOT + 1), kept)
    objects.compact()
    assert_holds(objects, kept)


def test_a_segment_that_is_appended_to_is_emptied_too_once_it_is_mostly_forgotten(place: Place):
    objects = place.open(segment_bytes=1 << 20)
    stored = fill(objects, 60)
    set_aside_and_purge(objects, list(stored)[:-2])
    assert objects.compact() > 0
    assert disk_bytes(place) < 5_000
    assert_holds(objects, {i: stored[i] for i in list(stored)[-2:]})


def test_a_segment_that_is_removed_keeps_no_space_whoever_has_it_open(place: Place):
    objects = place.open()
    stored = fill(objects, 12)
    held = [os.open(path, os.O_RDONLY) for path in place.segment_files()]
    set_aside_and_purge(objects, list(stored))
    objects.compact()
    assert place.segment_files() == []
    assert [os.fstat(fd).st_blocks for fd in held] == [0] * len(held)
    for fd in held:
        os.close(fd)


def test_small_segments_are_joined(place: Place):
    stored: dict[str, bytes] = {}
    for number in range(12):  # a process that is killed again and again
        stored |= fill(place.open(), 1, first=number)
    assert len(place.segment_files()) == 12
    objects = place.open()
    objects.compact()
    assert len(place.segment_files()) <= 3
    assert_holds(objects, stored)


def test_what_is_set_aside_moves_along_and_can_come_back(objects: SegmentObjects):
    stored = fill(objects, 30)
    ids = list(stored)
    set_aside_and_purge(objects, ids[:20])
    assert objects.set_aside(ids[25], 100)
    objects.compact()
    with pytest.raises(ContentNotFoundError):
        objects.get(ids[25])
    assert not objects.contains(ids[25])
    assert objects.bring_back(ids[25])
    assert objects.get(ids[25]) == stored[ids[25]]


def test_a_segment_with_a_damaged_object_stays(objects: SegmentObjects, place: Place):
    stored = fill(objects, 12)
    ids = list(stored)
    place.flip_in(stored[ids[0]], 3)
    set_aside_and_purge(objects, ids[1:6])
    fill(objects, 20, first=100)
    objects.compact()
    with pytest.raises(CorruptionError):
        objects.get(ids[0])
    assert_holds(objects, {i: stored[i] for i in ids[6:]})


def test_readers_and_writers_go_on_while_segments_are_emptied(place: Place):
    objects = place.open(segment_bytes=1 << 14)
    kept = fill(objects, 100)
    stop = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                while not stop.is_set():
                    work()
            except (AssertionError, NexusError) as error:
                failures.append(error)

        return run

    numbers = itertools.count(1_000)

    def churn() -> None:
        stored = fill(objects, 10, first=next(numbers) * 10)
        assert_holds(objects, stored)
        set_aside_and_purge(objects, list(stored))

    threads = [
        threading.Thread(target=guarded(lambda: assert_holds(objects, kept))),
        threading.Thread(target=guarded(churn)),
    ]
    for thread in threads:
        thread.start()
    for _ in range(30):
        objects.compact()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert_holds(objects, kept)


def test_a_kill_at_any_call_of_a_compaction_loses_nothing(tmp_path: Path):
    for nth in itertools.count(1):
        place = Place(tmp_path / str(nth))
        disk = KillingDisk()
        objects = place.open(disk=disk)
        stored = fill(objects, 24)
        forgotten = [i for number, i in enumerate(stored) if number % 3]
        kept = {i: data for i, data in stored.items() if i not in forgotten}
        set_aside_and_purge(objects, forgotten)
        disk.left = nth
        try:
            objects.compact()
        except KilledError:
            assert_holds(place.open(), kept)
            reopened = place.open(boot=BOOT + 1)
            assert_holds(reopened, kept)
            reopened.compact()
            assert_holds(reopened, kept)
        else:
            assert nth > 10
            return


def test_a_kill_loses_no_entry_that_was_not_written_to_the_index_yet(place: Place):
    stored: dict[str, bytes] = {}
    for first in range(0, 60, 10):
        objects = place.open()
        stored |= fill(objects, 10, first)
        assert_holds(objects, stored)
    assert_holds(place.open(), stored)


class ObjectsUnderKills(RuleBasedStateMachine):
    """Whatever happens, an object that was stored and not set aside since is there, whole."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.place = Place(Path(self.folder.name) / "content")
        self.disk = KillingDisk()
        self.objects = self.place.open(disk=self.disk)
        self.needed: dict[str, bytes] = {}
        self.forgotten: list[str] = []

    def teardown(self) -> None:
        self.start()
        self.objects.close()
        self.folder.cleanup()

    @rule(first=st.integers(0, 300), amount=st.integers(1, 60))
    def store(self, first: int, amount: int) -> None:
        stored = {object_id_of(data): data for data in map(sample, range(first, first + amount))}
        self.unless_killed(lambda: self.objects.put_many(list(stored.items())))
        if self.disk.left != 0:
            self.needed |= stored

    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        if self.needed:
            some = data.draw(st.lists(st.sampled_from(list(self.needed)), unique=True))
            for object_id in some:
                del self.needed[object_id]
                self.unless_killed(partial(self.objects.set_aside, object_id, 0))

    @rule()
    def purge(self) -> None:
        self.unless_killed(lambda: self.objects.purge(1))

    @rule()
    def compact(self) -> None:
        self.unless_killed(self.objects.compact)

    @rule()
    def sync(self) -> None:
        self.unless_killed(self.objects.sync)

    @rule()
    def reopen(self) -> None:
        self.unless_killed(self.objects.close)
        self.start()

    @rule(calls=st.integers(1, 30))
    def kill_soon(self, calls: int) -> None:
        self.disk.left = calls

    @rule(boot=st.booleans())
    def kill(self, boot: bool) -> None:
        if boot:
            # What is not synced may be gone; here all of it has reached the disk.
            self.boot += 1
        self.start()

    boot = BOOT

    def start(self) -> None:
        self.disk.left = 0
        with suppress(KilledError):
            self.objects.close()  # gives back what the system would have taken from the dead
        self.disk = KillingDisk()
        self.objects = self.place.open(disk=self.disk, boot=self.boot)

    def unless_killed(self, call: Callable[[], object]) -> None:
        if self.disk.left != 0:
            with suppress(KilledError):
                call()

    @invariant()
    def all_is_there(self) -> None:
        if self.disk.left == 0:
            self.start()
        assert_holds(self.objects, self.needed)


TestObjectsUnderKills = ObjectsUnderKills.TestCase
TestObjectsUnderKills.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
