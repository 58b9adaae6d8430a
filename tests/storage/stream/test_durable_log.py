"""The durable log by the number of its invariant: kills, torn ends, flipped bits, failing disks."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.contracts.errors import CorruptionError, NoSpaceError, StorageError, StorageFailedError
from nexus.contracts.metadata import Buffer
from nexus.contracts.stream_backend import RECORD_BYTES, StreamStore
from nexus.lib.disk import Disk
from nexus.storage.stream.durable_log import DurableLog, DurableStreams
from nexus.storage.stream.log_record import DAMAGED, decode, encode, identity_of, scan
from nexus.testing.faults import FaultyDisk
from nexus.testing.stream_backend import PATH, PATIENT_S, StreamBackendSuite

ID = "5f" * 8
CAPACITY = 1 << 16
KILLS = 52
WRITER = """
import sys
from nexus.lib.disk import Disk
from nexus.storage.stream.durable_log import DurableLog
folder, stream_id, capacity, strict = sys.argv[1:]
log = DurableLog(folder, stream_id, int(capacity), disk=Disk(), strict=strict == "strict")
for number in range(log.info().end, 1 << 30):
    log.append("/s", b"%d " % number * (number % 50))
    print(number, flush=True)
"""


class GatedDisk(FaultyDisk):
    """A disk whose syncs of messages wait to be let through."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Semaphore(0)
        self.entered = threading.Event()
        self.opened = threading.Event()

    def pwrite_all(self, fd: int, data: Buffer, offset: int) -> None:
        super().pwrite_all(fd, data, offset)
        self.written.release()

    def fdatasync(self, fd: int) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENT_S)
        super().fdatasync(fd)

    def wait_for_writes(self, count: int) -> None:
        for _ in range(count):
            assert self.written.acquire(timeout=PATIENT_S)


class TestDurableStreams(StreamBackendSuite):
    persistent = True

    def make(self, folder: Path) -> StreamStore:
        return DurableStreams(f"{folder}/streams", disk=Disk())


class TestStrictStreams(TestDurableStreams):
    strict = True


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / ID)


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def log(folder: str, disk: FaultyDisk) -> Iterator[DurableLog]:
    log = opened(folder, disk)
    yield log
    log.close()


def opened(folder: str, disk: Disk | None = None, *, strict: bool = False) -> DurableLog:
    return DurableLog(folder, ID, CAPACITY, disk=disk or Disk(), strict=strict)


def files(folder: str) -> list[Path]:
    return sorted(Path(folder).iterdir())


def append_until_it_fails(log: DurableLog) -> None:
    for _ in range(10_000):
        log.append(PATH, b"x" * 1000)


def message(number: int) -> bytes:
    return b"%d " % number * (number % 50)


def kept(log: DurableLog) -> dict[int, bytes | None]:
    """Return what can be read, None for a message that is damaged."""
    info = log.info()
    found: dict[int, bytes | None] = {}
    for offset in range(info.begin, info.end):
        try:
            found[offset] = log.read(PATH, offset)
        except CorruptionError:
            found[offset] = None
    return found


@pytest.mark.parametrize("durability", ["ordered", "strict"])
def test_1_kills_at_any_moment_lose_nothing_acknowledged(folder: str, durability: str):
    rng = random.Random(7)
    for _ in range(KILLS // 2):
        command = [sys.executable, "-c", WRITER, folder, ID, str(CAPACITY), durability]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout
        lines = [child.stdout.readline() for _ in range(rng.randrange(1, 120))]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.stdout.close()
        child.wait()
        assert lines[0]
        acknowledged = int([line for line in lines if line.endswith(b"\n")][-1])
        log = opened(folder)
        info = log.info()
        assert info.end in (acknowledged + 1, acknowledged + 2)
        assert info.used_bytes <= CAPACITY
        assert all(found == message(offset) for offset, found in kept(log).items())
        log.close()


def test_1_strict_syncs_each_message_before_a_reader_sees_it(folder: str, disk: FaultyDisk):
    log = opened(folder, disk, strict=True)
    log.append(PATH, b"first")
    assert disk.calls["fdatasync"] == 1
    disk.fail("fdatasync")
    with pytest.raises(StorageError):
        log.append(PATH, b"second")
    assert log.read(PATH, 1) is None
    assert log.append(PATH, b"second, again") == 1
    log.close()
    assert list(kept(opened(folder)).values()) == [b"first", b"second, again"]


def test_1_appends_at_the_same_time_share_a_sync_and_no_reader_sees_them_before(folder: str):
    disk = GatedDisk()
    log = opened(folder, disk, strict=True)
    with ThreadPoolExecutor(9) as pool:
        appends = [pool.submit(log.append, PATH, b"0")]
        assert disk.entered.wait(PATIENT_S)
        appends += [pool.submit(log.append, PATH, b"%d" % number) for number in range(1, 9)]
        disk.wait_for_writes(9)
        assert log.info().end == 0
        assert log.read(PATH, 0) is None
        disk.opened.set()
        offsets = [append.result() for append in appends]
    assert disk.calls["fdatasync"] == 2
    found = kept(log)
    assert [found[offset] for offset in offsets] == [b"%d" % number for number in range(9)]
    log.close()
    assert kept(opened(folder)) == found


def test_1_closing_waits_for_the_sync_of_what_is_being_appended(folder: str):
    disk = GatedDisk()
    log = opened(folder, disk, strict=True)
    with ThreadPoolExecutor(3) as pool:
        appends = [pool.submit(log.append, PATH, b"first")]
        assert disk.entered.wait(PATIENT_S)
        appends.append(pool.submit(log.append, PATH, b"second"))
        disk.wait_for_writes(2)
        closing = pool.submit(log.close)
        disk.opened.set()
        assert [append.result() for append in appends] == [0, 1]
        closing.result()
    assert disk.calls["fdatasync"] == 2
    assert list(kept(opened(folder)).values()) == [b"first", b"second"]


def test_2_a_flipped_bit_is_never_returned_and_hides_nothing_else(folder: str, log: DurableLog):
    messages = [message(number) for number in range(1, 30)]
    for each in messages:
        log.append(PATH, each)
    log.close()
    file = files(folder)[0]
    whole = file.read_bytes()
    rng = random.Random(3)
    for bit in rng.sample(range(len(whole) * 8), 400):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        again = opened(folder)
        found = kept(again)
        again.close()
        assert len(found) == len(messages)
        assert [m for m in found.values() if m is None] == [None]
        assert all(m in (None, messages[offset]) for offset, m in found.items())


def test_2_damage_under_an_open_stream_is_found_by_the_read(folder: str, log: DurableLog):
    log.append(PATH, b"0123456789")
    log.append(PATH, b"other")
    file = files(folder)[0]
    file.write_bytes(file.read_bytes().replace(b"345", b"346"))
    with pytest.raises(CorruptionError, match="message at offset 0 is damaged"):
        log.read(PATH, 0)
    assert log.read(PATH, 1) == b"other"


def test_2_after_damage_at_the_end_appending_goes_on(folder: str, log: DurableLog):
    log.append(PATH, b"first")
    log.append(PATH, b"second")
    log.close()
    file = files(folder)[0]
    damaged = bytearray(file.read_bytes())
    damaged[RECORD_BYTES + len(b"first") + 5] ^= 1
    file.write_bytes(damaged)
    again = opened(folder)
    assert again.append(PATH, b"third") == 2
    again.close()
    assert kept(opened(folder)) == {0: b"first", 1: None, 2: b"third"}


def test_2_a_segment_that_lost_its_end_is_damage_not_silence(folder: str):
    log = opened(folder)
    for number in range(400):
        log.append(PATH, message(number))
    log.close()
    first = files(folder)[1]
    os.truncate(first, first.stat().st_size // 2)
    again = opened(folder)
    assert again.info().end == 400
    found = kept(again)
    assert None in found.values()
    assert all(m in (None, message(offset)) for offset, m in found.items())


def test_3_a_torn_end_is_cut_off_at_every_length(folder: str, log: DurableLog):
    log.append(PATH, b"whole")
    log.append(PATH, b"torn apart")
    log.close()
    file = files(folder)[0]
    data = file.read_bytes()
    whole = RECORD_BYTES + len(b"whole")
    for length in range(whole, len(data)):
        file.write_bytes(data[:length])
        again = opened(folder)
        assert (again.info().end, again.info().cut_bytes) == (1, length - whole)
        assert again.append(PATH, b"next") == 1
        again.close()
        assert list(kept(opened(folder)).values()) == [b"whole", b"next"]


def test_3_zeros_that_a_power_cut_left_are_cut_off(folder: str, log: DurableLog):
    log.append(PATH, b"whole")
    log.close()
    with files(folder)[0].open("ab") as file:
        file.write(bytes(500))
    again = opened(folder)
    assert (again.info().end, again.info().cut_bytes) == (1, 500)


def test_4_a_write_cut_short_appends_nothing_and_the_next_one_succeeds(
    folder: str, log: DurableLog, disk: FaultyDisk
):
    log.append(PATH, b"first")
    disk.cut_write(10, errno.ENOSPC, operation="pwrite_all")
    with pytest.raises(NoSpaceError):
        log.append(PATH, b"second")
    assert log.info().end == 1
    assert log.append(PATH, b"third") == 1
    log.close()
    assert list(kept(opened(folder)).values()) == [b"first", b"third"]


def test_4_a_failed_sync_fails_every_append_whose_message_it_left_in_doubt(folder: str):
    disk = GatedDisk()
    log = opened(folder, disk, strict=True)
    disk.fail("fdatasync")
    with ThreadPoolExecutor(4) as pool:
        appends = [pool.submit(log.append, PATH, b"0")]
        assert disk.entered.wait(PATIENT_S)
        appends += [pool.submit(log.append, PATH, b"%d" % number) for number in (1, 2, 3)]
        disk.wait_for_writes(4)
        disk.opened.set()
        errors = [append.exception() for append in appends]
    assert all(isinstance(error, StorageError) for error in errors)
    assert log.info().end == 0
    assert log.append(PATH, b"again") == 0
    log.close()
    assert kept(opened(folder)) == {0: b"again"}


def test_4_a_write_that_fails_does_not_take_those_before_it_along(folder: str):
    disk = GatedDisk()
    log = opened(folder, disk, strict=True)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(log.append, PATH, b"first")
        assert disk.entered.wait(PATIENT_S)
        disk.cut_write(10, errno.ENOSPC, operation="pwrite_all")
        with pytest.raises(NoSpaceError):
            log.append(PATH, b"second")
        disk.opened.set()
        assert first.result() == 0
    assert log.append(PATH, b"third") == 1
    log.close()
    assert list(kept(opened(folder)).values()) == [b"first", b"third"]


def test_4_nothing_is_acknowledged_until_the_disk_recovers(log: DurableLog, disk: FaultyDisk):
    disk.fail("pwrite_all")
    with pytest.raises(StorageError):
        log.append(PATH, b"first")
    with disk.failing("truncate"), pytest.raises(StorageFailedError):
        log.append(PATH, b"second")
    assert log.append(PATH, b"third") == 0


def test_4_a_segment_that_cannot_be_removed_is_kept_in_the_index(log: DurableLog, disk: FaultyDisk):
    disk.fail("unlink")
    with pytest.raises(StorageError):
        append_until_it_fails(log)
    info = log.info()
    assert all(m == b"x" * 1000 for m in kept(log).values())
    assert log.append(PATH, b"y") == info.end


def test_5_a_full_segment_is_synced(log: DurableLog, disk: FaultyDisk):
    for number in range(400):
        log.append(PATH, message(number))
    assert disk.calls["fsync"] >= 2


def test_a_barrier_syncs_what_was_appended_and_the_names_of_new_files_once(
    log: DurableLog, disk: FaultyDisk
):
    log.append(PATH, b"first")
    log.sync()
    assert (disk.calls["fsync_directory"], disk.calls["fdatasync"]) == (2, 0)
    log.sync()
    assert disk.calls["fsync_directory"] == 2
    log.append(PATH, b"second")
    with disk.failing("fsync"), pytest.raises(StorageError):
        log.sync()
    with disk.failing("fsync"), pytest.raises(StorageFailedError):
        log.sync()
    log.sync()
    assert disk.calls["fsync_directory"] == 3
    assert list(kept(log).values()) == [b"first", b"second"]


def test_the_file_of_another_stream_has_no_records_here(folder: str, log: DurableLog):
    log.append(PATH, b"mine")
    other = DurableLog(folder, "other", CAPACITY, disk=Disk(), strict=False)
    assert kept(other) == {0: None}
    other.close()


def test_an_unknown_file_among_the_segments_is_an_error(folder: str, log: DurableLog):
    (Path(folder) / "notes.txt").touch()
    with pytest.raises(CorruptionError, match=r"notes\.txt"):
        opened(folder)


def test_a_log_holds_no_more_messages_than_headers_fit_into_it():
    identity = identity_of(ID)
    log, offset = b"\0" * RECORD_BYTES, 5
    for _ in range(40):
        offset += len(log) // RECORD_BYTES + 1
        log += encode(b"", offset, identity) + b"\0" * RECORD_BYTES
    assert len(scan(log, 5, identity).positions) <= len(log) // RECORD_BYTES + 1


@given(st.lists(st.binary(max_size=80), max_size=8), st.data())
def test_scanning_any_prefix_finds_the_whole_records(messages: list[bytes], data: st.DataObject):
    identity = identity_of(ID)
    records = [encode(m, 5 + number, identity) for number, m in enumerate(messages)]
    log = b"".join(records)
    length = data.draw(st.integers(0, len(log)))
    found = scan(log[:length], 5, identity)
    whole = 0
    while whole < len(records) and sum(map(len, records[: whole + 1])) <= length:
        whole += 1
    assert len(found.positions) == whole
    assert found.size == sum(map(len, records[:whole]))
    assert DAMAGED not in found.positions
    assert [decode(r, 5 + n, identity) for n, r in enumerate(records)] == messages
