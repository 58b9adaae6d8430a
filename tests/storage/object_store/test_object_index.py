"""ObjectIndex: a map that survives kills, tells damage, and distrusts a power cut."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.contracts.errors import CorruptionError
from nexus.contracts.metadata import Buffer
from nexus.lib.block_seals import BLOCK_BYTES
from nexus.lib.boot_id import NO_BOOT
from nexus.lib.disk import Disk
from nexus.storage.object_store.entry import End, Entry, IndexLostError, Place
from nexus.storage.object_store.object_index import PAGE_BYTES, ObjectIndex
from nexus.storage.object_store.segment_file import UNIT, packed_record
from nexus.testing.faults import FaultyDisk, KilledError, KillingDisk

BOOT = 7
END = End(3, 640)


def entry(number: int, **changes: int) -> Entry:
    key = number.to_bytes(32, "big")
    return Entry(key, 1, number, 4096, 0, 1_000 + number)._replace(**changes)


def entries(amount: int) -> list[Entry]:
    return [entry(number) for number in range(amount)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "objects.idx")


class InPython:
    def create(self, path: str, amount: int = 0) -> ObjectIndex:
        return ObjectIndex.create(path, filled(amount), disk=Disk(), boot=BOOT)

    def reopen(self, path: str, *, boot: int = BOOT) -> ObjectIndex:
        return ObjectIndex(path, disk=Disk(), boot=boot)


class InRust(InPython):
    def __init__(self) -> None:
        kernel = pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")
        self._native = kernel.ObjectIndex

    def create(self, path: str, amount: int = 0) -> ObjectIndex:
        index: ObjectIndex = self._native.create(path, filled(amount), BOOT)
        return index

    def reopen(self, path: str, *, boot: int = BOOT) -> ObjectIndex:
        index: ObjectIndex = self._native(path, boot)
        return index


@pytest.fixture(params=[InPython, InRust], scope="module")
def kind(request: pytest.FixtureRequest) -> InPython:
    made: InPython = request.param()
    return made


def create_on(disk: Disk, path: str, amount: int = 0) -> ObjectIndex:
    """Make an index on a disk of a test's own, which only the one in Python reaches."""
    return ObjectIndex.create(path, filled(amount), disk=disk, boot=BOOT)


reopen = InPython().reopen


def filled(amount: int) -> Callable[[ObjectIndex], None]:
    return lambda index: index.put_many(entries(amount))


def content(index: ObjectIndex) -> dict[bytes, Entry]:
    pages = range(1, index.page_count)
    return {found.object_id: found for number in pages for found in index.entries_in(number)}


def expected(amount: int) -> dict[bytes, Entry]:
    return {found.object_id: found for found in entries(amount)}


def test_every_entry_is_found_however_many_pages_have_split(kind: InPython, path: str):
    index = kind.create(path, 5_000)
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
    kind: InPython,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[bool, list[int]]],
    clean: bool,
):
    path = str(tmp_path_factory.mktemp("index") / "objects.idx")
    index = kind.create(path)
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
        index = kind.reopen(path)
        assert content(index) == model
        assert all(index.get(key) == found for key, found in model.items())


def test_a_page_that_was_never_read_is_out_of_reach_of_peek(kind: InPython, path: str):
    kind.create(path, 100).close(END)
    index = kind.reopen(path)
    key = entry(5).object_id
    assert index.peek(key) is None
    assert index.get(key) == index.peek(key) == entry(5)


def test_a_missing_index_is_lost(kind: InPython, path: str):
    with pytest.raises(IndexLostError):
        kind.reopen(path)


def test_a_clean_close_is_trusted_after_a_power_cut_and_names_the_end(kind: InPython, path: str):
    kind.create(path, 300).close(END)
    assert kind.reopen(path, boot=BOOT + 1).end == END


def test_an_unclean_end_is_trusted_within_the_boot_only(kind: InPython, path: str):
    kind.create(path, 300).close(None)
    index = kind.reopen(path)
    assert index.end is None
    assert content(index) == expected(300)
    for boot in (BOOT + 1, NO_BOOT):
        with pytest.raises(IndexLostError):
            kind.reopen(path, boot=boot)


def test_the_first_change_after_a_clean_close_takes_cleanness_back_durably(path: str):
    create_on(Disk(), path, 10).close(END)
    disk = FaultyDisk()
    index = ObjectIndex(path, disk=disk, boot=BOOT)
    before = disk.calls["fdatasync"]
    index.put_many([entry(11)])
    assert disk.calls["fdatasync"] == before + 1
    assert reopen(path).end is None
    with pytest.raises(IndexLostError):
        reopen(path, boot=BOOT + 1)


def test_reading_changes_nothing(kind: InPython, path: str):
    kind.create(path, 10).close(END)
    before = Path(path).read_bytes()
    index = kind.reopen(path)
    index.get(entry(1).object_id)
    index.close(END)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("offset", [0, 4, 8, 16, 24, 28, 32, 40, 47])
def test_a_flipped_bit_in_the_header_loses_the_index(kind: InPython, path: str, offset: int):
    kind.create(path, 10).close(END)
    flip(path, offset)
    with pytest.raises(IndexLostError):
        kind.reopen(path)


@pytest.mark.parametrize("offset", [0, 8, 12, 14, 16, 50, 60, PAGE_BYTES - 1])
def test_a_flipped_bit_in_a_page_is_an_error_not_an_answer(kind: InPython, path: str, offset: int):
    kind.create(path, 10).close(END)
    flip(path, PAGE_BYTES + offset)
    index = kind.reopen(path)
    assert index.damaged_pages() == [1]
    with pytest.raises(CorruptionError):
        index.get(entry(1).object_id)


def test_a_page_in_the_place_of_another_is_damage(kind: InPython, path: str):
    kind.create(path, 1_000).close(END)
    with open(path, "r+b") as file:
        file.seek(PAGE_BYTES)
        page = file.read(PAGE_BYTES)
        file.seek(2 * PAGE_BYTES)
        file.write(page)
    assert kind.reopen(path).damaged_pages() == [2]


@pytest.mark.parametrize("damage", ["gone", "flipped", "stale"])
def test_a_lost_map_is_made_anew_from_the_pages(kind: InPython, path: str, damage: str):
    kind.create(path, 1_000).close(END)
    stale = Path(path + ".map").read_bytes()
    index = kind.reopen(path)
    index.put_many(entries(3_000))
    index.close(END)
    if damage == "gone":
        os.unlink(path + ".map")
    elif damage == "flipped":
        flip(path + ".map", 100)
    else:
        Path(path + ".map").write_bytes(stale)
    assert content(kind.reopen(path)) == expected(3_000)


@pytest.mark.parametrize(
    ("prefix", "depth", "amount"), [(0, 29, 0), (0, 255, 0), (2, 1, 0), (0, 0, 1000)]
)
def test_2_a_sealed_page_that_no_index_has_is_damage(
    kind: InPython, path: str, prefix: int, depth: int, amount: int
):
    kind.create(path, 3).close(END)
    header = prefix.to_bytes(4, "little") + bytes([depth, 0]) + amount.to_bytes(2, "little")
    body = header.ljust(PAGE_BYTES - 8, b"\0")
    with open(path, "r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(xxhash.xxh3_64_intdigest(body, 1).to_bytes(8, "little") + body)
    index = kind.reopen(path)
    with pytest.raises(CorruptionError, match="page 1"):
        index.get(entry(1).object_id)
    assert index.damaged_pages() == [1]
    index.close(None)
    os.remove(path + ".map")
    with pytest.raises(IndexLostError):
        kind.reopen(path)


@pytest.mark.parametrize("depth", [1, 28])
def test_2_pages_that_do_not_share_all_hashes_are_no_index(kind: InPython, path: str, depth: int):
    kind.create(path, 3).close(None)
    body = (bytes(4) + bytes([depth])).ljust(PAGE_BYTES - 8, b"\0")
    with open(path, "r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(xxhash.xxh3_64_intdigest(body, 1).to_bytes(8, "little") + body)
    with pytest.raises(IndexLostError, match="missing"):
        kind.reopen(path)


@pytest.mark.parametrize("stored", [b"\1\0\0", b"\1\0\0\0" * 3, bytes(4), b"\xff\0\0\0"])
def test_a_sealed_map_that_fits_no_pages_is_made_anew_from_them(
    kind: InPython, path: str, stored: bytes
):
    kind.create(path, 3).close(END)
    with open(path, "rb") as file:
        seed = int.from_bytes(file.read(16)[8:], "little")
    checksum = xxhash.xxh3_64_intdigest(stored, seed ^ 2)  # of a header and one page
    Path(path + ".map").write_bytes(checksum.to_bytes(8, "little") + stored)
    index = kind.reopen(path)
    assert content(index) == expected(3)
    index.close(None)


@pytest.mark.parametrize("nth", range(1, 40))
@pytest.mark.parametrize("bytes_kept", [0, 1, PAGE_BYTES - 1])
def test_a_write_that_fails_loses_nothing_that_was_acknowledged(
    path: str, nth: int, bytes_kept: int
):
    disk = FaultyDisk()
    index = create_on(disk, path, 60)
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


def test_a_kill_between_any_two_writes_loses_nothing_then_or_later(tmp_path: Path):
    for nth in count(1):
        path = str(tmp_path / f"{nth}.idx")
        acknowledged = expected(0)
        disk = KillingDisk()
        index = create_on(disk, path)
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


def put_three(index: ObjectIndex, number: int, acknowledged: dict[bytes, Entry]) -> None:
    batch = [entry(number + more) for more in range(3)]
    index.put_many(batch)
    acknowledged.update((found.object_id, found) for found in batch)


def test_entries_of_new_records_are_found_at_once_and_in_the_file_after_a_flush(
    kind: InPython, path: str
):
    index = kind.create(path)
    index.add(entries(3))
    assert index.get(entry(1).object_id) == index.peek(entry(1).object_id) == entry(1)
    assert content(index) == {}
    assert index.waiting() == content(index) | expected(3)
    index.flush()
    assert content(index) == expected(3)
    assert index.waiting() == {}


def test_the_file_says_up_to_which_record_it_is_complete(kind: InPython, path: str):
    index = kind.create(path)
    start = index.covered
    index.add(entries(3))
    assert index.covered == start
    index.flush()
    index.add([entry(9)])
    index.close(None)
    reopened = kind.reopen(path)
    assert reopened.covered == Place(1, 2)
    assert content(reopened) == expected(3)


def test_a_clean_close_leaves_nothing_to_the_log(kind: InPython, path: str):
    index = kind.create(path)
    index.add(entries(3))
    index.close(END)
    assert content(kind.reopen(path)) == expected(3)


def test_what_waits_is_bounded(kind: InPython, path: str):
    index = kind.create(path)
    for number in range(6_000):
        index.add([entry(number)])
        if number % 100 == 0:
            assert len(index.waiting()) <= 4096
    assert all(index.get(found.object_id) == found for found in entries(6_000))


def test_what_waits_is_bounded_by_the_log_it_takes(kind: InPython, path: str):
    index = kind.create(path)
    for number in range(100):
        index.add([entry(number)._replace(size=1 << 20)])
        assert sum(found.size for found in index.waiting().values()) <= 33 << 20
    assert all(index.get(found.object_id) is not None for found in entries(100))


def test_every_entry_before_the_place_that_is_covered_is_in_a_page(kind: InPython, path: str):
    index = kind.create(path)
    for number in range(6_000):
        index.add([entry(number)])
        if number % 500 == 0:
            index.add([entry(number // 2, offset=10_000 + number)])  # moved to the end of the log
    only_in_pages = content(index).keys() - index.waiting().keys()
    index.close(None)
    reopened = kind.reopen(path)
    in_pages = content(reopened).keys()  # older entries of some that waited as well
    assert only_in_pages <= in_pages
    before = {found.object_id for found in entries(6_000) if found.place < reopened.covered}
    assert before <= in_pages


def test_a_change_of_an_entry_that_waits_is_in_the_file(kind: InPython, path: str):
    index = kind.create(path)
    index.add(entries(2))
    index.put_many([entry(0, aside=1)])
    index.remove_many([entry(1).object_id])
    index.close(None)
    reopened = kind.reopen(path)
    assert content(reopened) == {entry(0).object_id: entry(0, aside=1)}


def test_a_listing_shows_what_waits_instead_of_what_is_older(kind: InPython, path: str):
    index = kind.create(path, 2)
    index.add([entry(0, offset=77)])
    assert content(index) == expected(2) | {entry(0).object_id: entry(0, offset=77)}


def flip(path: str, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


# Appending what is new


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "1.seg", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def new_objects(*numbers: int, size: int = 20) -> list[tuple[str, bytes]]:
    return [(entry(number).object_id.hex(), bytes([number]) * size) for number in numbers]


def test_new_objects_are_appended_and_entered(kind: InPython, path: str, log: int):
    index = kind.create(path)
    objects = new_objects(1, 2)
    assert index.append_new(log, 1, 64, objects, 5)
    ids = [bytes.fromhex(object_id) for object_id, _ in objects]
    written = os.pread(log, 1000, 64)
    assert written == b"".join(
        packed_record(i, d, 5) for i, (_, d) in zip(ids, objects, strict=True)
    )
    length = len(written) // 2 // UNIT
    places = [Entry(ids[0], 1, 8, 20, 0, 5), Entry(ids[1], 1, 8 + length, 20, 0, 5)]
    assert [index.get(object_id) for object_id in ids] == places
    assert list(index.waiting().values()) == places


@pytest.mark.parametrize("buffer", [bytearray, memoryview])
def test_the_bytes_of_any_buffer_are_appended(
    kind: InPython, path: str, log: int, buffer: Callable[[bytes], Buffer]
):
    index = kind.create(path)
    ((object_id, data),) = new_objects(1)
    assert index.append_new(log, 1, 64, [(object_id, buffer(data))], 5)
    assert os.pread(log, 1000, 64) == packed_record(bytes.fromhex(object_id), data, 5)


@pytest.mark.parametrize("present", ["waiting", "in memory", "in a page"])
def test_nothing_is_appended_where_one_object_has_an_entry(
    kind: InPython, path: str, log: int, present: str
):
    index = kind.create(path)
    if present == "waiting":
        index.add([entry(1)])
    else:
        index.put_many([entry(1)])
    if present == "in a page":
        index.close(None)
        index = kind.reopen(path)
    assert not index.append_new(log, 1, 64, new_objects(2, 1), 5)
    assert index.get(entry(2).object_id) is None
    assert os.pread(log, 1000, 0) == b""


def test_nothing_is_appended_of_large_objects_or_of_one_twice(kind: InPython, path: str, log: int):
    index = kind.create(path)
    assert not index.append_new(log, 1, 64, new_objects(1, 2, 1), 5)
    assert not index.append_new(log, 1, 64, new_objects(1, size=BLOCK_BYTES + 1), 5)
    assert os.pread(log, 1000, 0) == b""
    assert index.append_new(log, 1, 64, new_objects(1, size=BLOCK_BYTES), 5)


def test_nothing_is_entered_that_could_not_be_appended(kind: InPython, path: str, log: int):
    index = kind.create(path)
    for_reading = os.open(f"/proc/self/fd/{log}", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        index.append_new(for_reading, 1, 64, new_objects(1), 5)
    os.close(for_reading)
    assert caught.value.errno == errno.EBADF
    assert index.get(entry(1).object_id) is None
    assert index.waiting() == {}


def test_the_place_that_is_covered_is_before_what_was_appended(kind: InPython, path: str, log: int):
    index = kind.create(path)
    index.add(entries(4096))
    assert index.append_new(log, 2, 64, new_objects(100), 5) is False
    assert index.append_new(log, 2, 64, [(b"\xff".hex() * 32, b"new")], 5)
    assert len(index.waiting()) <= 4096
    assert index.covered < Place(2, 8)
    index.close(None)
    assert kind.reopen(path).covered < Place(2, 8)


# Both implementations

AMOUNTS = (0, 1, 3, 10, 100)
STEPS = ("add", "append", "put", "remove", "flush", "kill", "close")
steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 150), st.sampled_from(AMOUNTS)),
    max_size=6,
)


class Modelled:
    """An index beside a dictionary, and beside the log that its records would be in."""

    def __init__(self, folder: Path, kinds: Iterator[InPython]) -> None:
        self.path = str(folder / "objects.idx")
        self.kinds = kinds  # who opens it, in turn
        self.index = next(kinds).create(self.path)
        self.segment = os.open(folder / "1.seg", os.O_RDWR | os.O_CREAT)
        self.end = 8  # in units
        self.model: dict[bytes, Entry] = {}
        self.records: list[Entry] = []

    def run(self, step: str, first: int, amount: int) -> None:
        numbers = range(first, first + amount)
        match step:
            case "add":
                self.record([entry(number) for number in numbers], self.index.add)
            case "append":
                self.append(numbers)
            case "put":
                changed = [entry(number, aside=self.end) for number in numbers]
                self.index.put_many(changed)
                self.model |= {found.object_id: found for found in changed}
            case "remove":
                self.index.remove_many(entry(number).object_id for number in numbers)
                for number in numbers:
                    self.model.pop(entry(number).object_id, None)
            case "flush":
                self.index.flush()
            case _:
                self.reopen(clean=step == "close")

    def record(self, found: list[Entry], enter: Callable[[list[Entry]], object]) -> None:
        placed = [e._replace(offset=self.end + 9 * at, size=1) for at, e in enumerate(found)]
        self.end += 9 * len(placed)
        enter(placed)
        self.records += placed
        self.model |= {found.object_id: found for found in placed}

    def append(self, numbers: range) -> None:
        objects = [(entry(number).object_id.hex(), b"x") for number in numbers]
        start, at_ns = self.end * UNIT, 77
        appended = self.index.append_new(self.segment, 1, start, objects, at_ns)
        assert appended == self.model.keys().isdisjoint(entry(n).object_id for n in numbers)
        if appended:
            self.record([entry(n, at_ns=at_ns) for n in numbers], lambda placed: None)

    def reopen(self, *, clean: bool) -> None:
        self.index.close(End(1, self.end * UNIT) if clean else None)
        self.index = next(self.kinds).reopen(self.path)
        if clean:
            assert self.index.end == End(1, self.end * UNIT)
        elif self.index.end is None:  # else nothing has changed since a clean close
            found = [e for e in self.records if e.place >= self.index.covered]
            self.index.add(found)
            self.model |= {e.object_id: e for e in found}

    def check(self) -> None:
        assert content(self.index) | self.index.waiting() == self.model
        assert all(self.index.get(key) == found for key, found in self.model.items())
        assert self.index.get(b"\xff" * 32) is None

    def close(self) -> None:
        self.index.close(None)
        os.close(self.segment)


@pytest.fixture(scope="module")
def quick_folder() -> Iterator[Path]:
    """A folder in memory where the system has one: ten thousand runs sync often."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def check_as_a_dictionary(
    folder: Path, steps: list[tuple[str, int, int]], *, python_first: bool
) -> None:
    kinds = [InPython(), InRust()]
    modelled = Modelled(folder, cycle(kinds if python_first else kinds[::-1]))
    for step in steps:
        modelled.run(*step)
    modelled.check()
    modelled.close()


@settings(deadline=None)
@given(steps, st.booleans())
def test_either_implementation_goes_on_with_the_file_of_the_other_as_a_dictionary(
    quick_folder: Path, steps: list[tuple[str, int, int]], python_first: bool
):
    check_as_a_dictionary(quick_folder, steps, python_first=python_first)


def test_either_goes_on_with_the_file_of_the_other_in_10000_runs(quick_folder: Path):
    rng = random.Random(1)
    for run in range(10_000):
        steps = [
            (rng.choice(STEPS), rng.randrange(150), rng.choice(AMOUNTS))
            for _ in range(rng.randrange(7))
        ]
        check_as_a_dictionary(quick_folder, steps, python_first=run % 2 == 0)
