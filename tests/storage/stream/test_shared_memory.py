"""Streams in shared memory by the number of their invariant: two openers, kills, damage."""

import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nexus.contracts.errors import ClosedError, CorruptionError, StreamOffsetError
from nexus.contracts.stream_backend import StreamStore
from nexus.core.stream_manager import Stream
from nexus.lib.disk import Disk
from nexus.storage.stream.shared_memory import (
    HEADER_BYTES,
    SharedMemoryStream,
    SharedMemoryStreams,
)
from nexus.testing.stream_backend import PATH, PATIENT_S, StreamBackendSuite

ID = "5f" * 8
CAPACITY = 4096
KILLS = 20
WRITER = """
import sys
from nexus.lib.disk import Disk
from nexus.storage.stream.shared_memory import SharedMemoryStream
path, stream_id, capacity = sys.argv[1:]
stream = SharedMemoryStream(path, stream_id, int(capacity), disk=Disk())
print("ready", flush=True)
number = stream.info().end
while True:
    stream.append("/s", b"%d " % number * (number % 50))
    number += 1
"""


class TestSharedMemoryStreams(StreamBackendSuite):
    persistent = True

    def make(self, folder: Path) -> StreamStore:
        return SharedMemoryStreams(str(folder), disk=Disk())


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "stream")


def opened(path: str) -> SharedMemoryStream:
    return SharedMemoryStream(path, ID, CAPACITY, disk=Disk())


def message(number: int) -> bytes:
    return b"%d " % number * (number % 50)


def test_a_reader_in_another_mapping_waits_for_what_is_appended(path: str):
    ours, theirs = opened(path), opened(path)
    stream = Stream(theirs)
    with ThreadPoolExecutor(1) as pool:
        wait = pool.submit(stream.read, PATH, 0, PATIENT_S)
        while not stream.waiting():
            assert not wait.done()
        ours.append(PATH, b"across")
        assert wait.result() == b"across"
    ours.close()
    theirs.close()


def test_the_capacity_of_a_stream_that_exists_stays(path: str):
    opened(path).close()
    again = SharedMemoryStream(path, ID, CAPACITY * 2, disk=Disk())
    assert again.info().capacity_bytes == CAPACITY
    again.close()


def test_1_2_3_a_killed_writer_leaves_a_readable_prefix_and_no_lock(path: str):
    rng = random.Random(11)
    reader = opened(path)
    for _ in range(KILLS):
        command = [sys.executable, "-c", WRITER, path, ID, str(CAPACITY)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        before = reader.info().end
        more = rng.randrange(2000)
        while reader.info().end < before + more:
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()
        info = reader.info()
        for offset in range(info.begin, info.end):
            assert reader.read(PATH, offset) == message(offset)
        assert reader.append(PATH, message(info.end)) == info.end
    reader.close()


def test_3_writers_of_several_mappings_take_turns(path: str):
    ours, theirs = opened(path), opened(path)
    with ThreadPoolExecutor(2) as pool:
        sides = [
            pool.submit(lambda stream: [stream.append(PATH, b"x") for _ in range(500)], stream)
            for stream in (ours, theirs)
        ]
        offsets = [offset for side in sides for offset in side.result()]
    assert sorted(offsets) == list(range(1000))
    ours.close()
    theirs.close()


def test_4_a_reader_that_is_overtaken_gets_its_message_or_learns_where_the_stream_begins(path: str):
    ours, theirs = opened(path), opened(path)
    done = False
    jumps: list[tuple[int, int]] = []

    def write() -> None:
        nonlocal done
        for number in range(3000):
            ours.append(PATH, message(number))
        done = True

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        offset = 0
        while not done:
            try:
                found = theirs.read(PATH, offset)
            except StreamOffsetError as error:
                jumps.append((offset, error.begin))
                offset = error.begin
                continue
            if found is not None:
                assert found == message(offset)
                offset += 1
        writer.result()
    assert all(behind < begin for behind, begin in jumps)
    ours.close()
    theirs.close()


def test_4_a_flipped_bit_is_never_returned(path: str):
    stream = opened(path)
    messages = [message(number) for number in range(1, 25)]
    for each in messages:
        stream.append(PATH, each)
    used = stream.info().used_bytes
    stream.close()
    whole = Path(path).read_bytes()
    rng = random.Random(3)
    for bit in rng.sample(range(used * 8), 200):
        damaged = bytearray(whole)
        damaged[HEADER_BYTES + bit // 8] ^= 1 << bit % 8
        Path(path).write_bytes(damaged)
        again = opened(path)
        found = []
        for offset in range(len(messages)):
            try:
                found.append(again.read(PATH, offset))
            except CorruptionError:
                found.append(None)
        again.close()
        assert None in found
        assert all(m in (None, messages[offset]) for offset, m in enumerate(found))


def test_1_one_damaged_copy_of_the_state_is_stood_in_for_by_the_other(path: str):
    stream = opened(path)
    stream.append(PATH, b"first")
    stream.append(PATH, b"second")
    stream.close()
    whole = Path(path).read_bytes()
    ends = set()
    for slot in (0, 512):
        damaged = bytearray(whole)
        damaged[slot + 20] ^= 1
        Path(path).write_bytes(damaged)
        again = opened(path)
        ends.add(again.info().end)
        assert again.read(PATH, 0) == b"first"
        again.close()
    assert ends == {1, 2}


def test_appending_over_a_damaged_message_goes_on(path: str):
    stream = opened(path)
    for _ in range(10):
        stream.append(PATH, b"x" * 100)
    with Path(path).open("r+b") as file:
        file.seek(HEADER_BYTES + 4)
        file.write(b"\xff")
    for number in range(10, 200):
        assert stream.append(PATH, b"y" * 100) == number
    assert stream.read(PATH, 199) == b"y" * 100
    stream.close()


def test_a_file_of_something_else_is_refused_and_left_alone(path: str):
    Path(path).write_bytes(b"precious")
    with pytest.raises(CorruptionError, match="is not this stream"):
        opened(path)
    assert Path(path).read_bytes() == b"precious"


def test_a_file_that_lost_its_end_is_refused(path: str):
    opened(path).close()
    os.truncate(path, HEADER_BYTES + 10)
    with pytest.raises(CorruptionError, match="lost its end"):
        opened(path)


def test_a_creation_that_was_cut_short_is_done_again(path: str):
    Path(path).write_bytes(bytes(HEADER_BYTES // 2))
    stream = opened(path)
    assert stream.append(PATH, b"first") == 0
    stream.close()
    with pytest.raises(ClosedError):
        stream.read(PATH, 0)
