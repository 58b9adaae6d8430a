"""StreamBackendSuite: what every place for streams must hold. Layer: testing.

A driver's own test is a subclass with :meth:`StreamBackendSuite.make`::

    class TestMyStreams(StreamBackendSuite):
        persistent = True

        def make(self, folder):
            return MyStreams(...)

Streams are tried through the kernel's :class:`~nexus.core.stream_manager.Stream`, which waits for
what a backend announces or has to be asked for. What a driver lacks it says by the flags.
"""

from __future__ import annotations

import asyncio
import errno
import pickle
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nexus.contracts.errors import (
    ClosedError,
    InvalidArgumentError,
    StreamOffsetError,
    WaitTimeoutError,
    WouldBlock,
)
from nexus.contracts.stream_backend import RECORD_BYTES, StreamStore
from nexus.core.stream_manager import Stream
from nexus.lib.steps import run_async

PATH = "/s"
PATIENT_S = 60.0
_CAPACITY_BYTES = 4096
_A_MOMENT_S = 0.001
_ID = "5f" * 8


class StreamBackendSuite:
    """Conformance of a :class:`~nexus.contracts.stream_backend.StreamStore` and its backends."""

    persistent: ClassVar[bool] = False
    """What was appended is there when the stream is opened again."""
    numbered: ClassVar[bool] = True
    """An append returns the offset of its message, however many append at once."""
    binary: ClassVar[bool] = True
    """A message may hold any bytes."""

    strict: ClassVar[bool] = False
    """Streams are opened so that each message is synced."""

    @abstractmethod
    def make(self, folder: Path) -> StreamStore:
        """Return a place for streams beneath an empty folder, or the one that is there."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> StreamStore:
        return self.make(tmp_path)

    @pytest.fixture
    def stream(self, store: StreamStore) -> Iterator[Stream]:
        stream = self._open(store)
        yield stream
        _close(stream)

    def _open(self, store: StreamStore) -> Stream:
        return Stream(store.open(_ID, _CAPACITY_BYTES, strict=self.strict))

    # -- reading at offsets -------------------------------------------------------------------

    def test_a_read_returns_the_message_and_the_next_offset(self, stream: Stream) -> None:
        assert _append(stream, b"zero", b"one") == [0, 1]
        message = stream.read(PATH, 0, 0)
        assert (message, message.offset, message.next_offset) == (b"zero", 0, 1)
        assert stream.read(PATH, message.next_offset, 0) == b"one"

    def test_a_read_takes_nothing_away(self, stream: Stream) -> None:
        _append(stream, b"stays")
        assert [stream.read(PATH, 0, 0) for _ in range(3)] == [b"stays"] * 3

    def test_an_empty_message_is_a_message(self, stream: Stream) -> None:
        _append(stream, b"", b"after")
        assert _all(stream) == [b"", b"after"]

    def test_any_bytes_come_back(self, stream: Stream) -> None:
        messages = [bytes(range(256)), b"\n", b"\0" * 100, b"NXSR" * 20]
        if not self.binary:
            messages = [message.replace(b"\n", b"") for message in messages]
        _append(stream, *messages)
        assert _all(stream) == messages

    def test_an_offset_that_never_was_is_an_error(self, stream: Stream) -> None:
        _append(stream, b"only")
        for offset in (2, -1):
            with pytest.raises(StreamOffsetError) as caught:
                stream.read(PATH, offset, 0)
            assert (caught.value.begin, caught.value.end) == (0, 1)
            assert caught.value.errno == errno.ERANGE

    # -- retention ----------------------------------------------------------------------------

    def test_the_oldest_go_and_the_rest_stays_in_place(self, stream: Stream) -> None:
        messages = [b"%03d" % number * 30 for number in range(200)]
        _append(stream, *messages)
        info = stream.info()
        assert 0 < info.begin < 190
        assert info.end == 200
        assert info.used_bytes <= info.capacity_bytes == _CAPACITY_BYTES
        assert _all(stream) == messages[info.begin :]

    def test_a_reader_whose_offset_is_gone_learns_where_the_stream_begins(
        self, stream: Stream
    ) -> None:
        _append(stream, *[b"x" * 100] * 200)
        with pytest.raises(StreamOffsetError) as caught:
            stream.read(PATH, 0)
        begin = stream.info().begin
        error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - it was made here
        assert (error.begin, error.end, error.offset) == (begin, 200, 0)
        assert f"offset {begin}" in str(error)
        assert stream.read(PATH, error.begin, 0) == b"x" * 100

    def test_empty_messages_are_bounded_too(self, stream: Stream) -> None:
        _append(stream, *[b""] * (_CAPACITY_BYTES // RECORD_BYTES + 50))
        assert stream.info().begin > 0

    def test_a_message_as_large_as_the_stream_fits_and_a_larger_one_does_not(
        self, stream: Stream
    ) -> None:
        largest = b"x" * (_CAPACITY_BYTES - RECORD_BYTES)
        _append(stream, b"before", largest)
        assert stream.read(PATH, 1, 0) == largest
        with pytest.raises(InvalidArgumentError, match="keeps 4096"):
            stream.append(PATH, largest + b"x")
        _append(stream, b"after")
        assert stream.read(PATH, 2, 0) == b"after"

    def test_many_rounds_through_the_capacity_lose_nothing_that_is_kept(
        self, stream: Stream
    ) -> None:
        for number in range(300):
            message = b"%d " % number * (number % 37)
            _append(stream, message)
            assert stream.read(PATH, number, 0) == message

    # -- waiting ------------------------------------------------------------------------------

    def test_the_end_does_not_wait_where_asked_not_to(self, stream: Stream) -> None:
        with pytest.raises(WouldBlock, match="ends at offset 0"):
            stream.read(PATH, 0, 0)
        with pytest.raises(WouldBlock):
            asyncio.run(run_async(stream.reading(PATH, 0, 0)))

    def test_waiting_at_the_end_has_a_timeout(self, stream: Stream) -> None:
        with pytest.raises(WaitTimeoutError):
            stream.read(PATH, 0, _A_MOMENT_S)
        with pytest.raises(WaitTimeoutError):
            asyncio.run(run_async(stream.reading(PATH, 0, _A_MOMENT_S)))
        assert stream.waiting() == 0

    def test_an_append_wakes_every_reader(self, stream: Stream) -> None:
        async def scenario(blocked: Future[Any]) -> list[Any]:
            tasks = [
                asyncio.ensure_future(run_async(stream.reading(PATH, 0, PATIENT_S))) for _ in "ab"
            ]
            while stream.waiting() < 3:
                await asyncio.wait(tasks, timeout=0)
            stream.append(PATH, b"news")
            return [*await asyncio.gather(*tasks), blocked.result()]

        with ThreadPoolExecutor(1) as pool:
            blocked = pool.submit(stream.read, PATH, 0, PATIENT_S)
            assert asyncio.run(scenario(blocked)) == [b"news"] * 3

    def test_readers_at_their_own_pace_see_everything(self, stream: Stream) -> None:
        messages = [b"%d" % number for number in range(100)]

        def follow() -> list[bytes]:
            found: list[bytes] = []
            while len(found) < len(messages):
                found.append(stream.read(PATH, len(found), PATIENT_S))
            return found

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(follow) for _ in range(4)]
            for message in messages:
                stream.append(PATH, message)
            assert [reader.result() for reader in readers] == [messages] * 4

    def test_writers_at_once_each_get_the_offsets_of_their_messages(self, stream: Stream) -> None:
        if not self.numbered:
            pytest.skip("offsets are given by the other end")

        def write(number: int) -> list[tuple[int, bytes]]:
            messages = [b"%d %d" % (number, index) for index in range(25)]
            return [(stream.append(PATH, message), message) for message in messages]

        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(write, number) for number in range(4)]
            written = [answer.result() for answer in answers]
        assert sorted(offset for mine in written for offset, _ in mine) == list(range(100))
        for mine in written:
            assert [offset for offset, _ in mine] == sorted(offset for offset, _ in mine)
            assert all(stream.read(PATH, offset, 0) == message for offset, message in mine)

    # -- the end of a stream ------------------------------------------------------------------

    def test_closing_ends_every_wait_and_every_later_call(self, stream: Stream) -> None:
        _append(stream, b"x")
        with ThreadPoolExecutor(2) as pool:
            waits = [pool.submit(stream.read, PATH, 1, PATIENT_S) for _ in range(2)]
            while stream.waiting() < 2:
                assert not any(wait.done() for wait in waits)
            _close(stream)
            _close(stream)
            for wait in waits:
                with pytest.raises(ClosedError):
                    wait.result()
        calls: list[Callable[[], object]] = [
            lambda: stream.read(PATH, 1),
            lambda: stream.append(PATH, b"x"),
            stream.info,
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    def test_a_backend_is_closed_more_than_once_without_harm(self, store: StreamStore) -> None:
        backend = store.open(_ID, _CAPACITY_BYTES)
        backend.sync()
        backend.close()
        backend.close()
        with pytest.raises(ClosedError):
            backend.append(PATH, b"x")
        with pytest.raises(ClosedError):
            backend.info()

    def test_a_removed_stream_is_empty_when_made_again(self, store: StreamStore) -> None:
        store.remove(_ID)
        stream = self._open(store)
        _append(stream, b"old")
        _close(stream)
        store.remove(_ID)
        again = self._open(store)
        assert again.info()[:3] == (0, 0, 0)
        _close(again)

    def test_opened_again_it_has_what_it_promises(self, store: StreamStore, tmp_path: Path) -> None:
        messages = [b"%d" % number * 40 for number in range(200)]
        stream = self._open(store)
        _append(stream, *messages)
        kept = stream.info()
        _close(stream)
        again = self._open(self.make(tmp_path))
        if self.persistent:
            assert again.info() == kept
            assert _all(again) == messages[kept.begin :]
            assert _append(again, b"more") == [200]
            assert again.read(PATH, 200, 0) == b"more"
        else:
            assert again.info()[:2] == (0, 0)
        _close(again)

    def test_streams_are_apart(self, store: StreamStore, stream: Stream) -> None:
        other = Stream(store.open("a0" * 8, _CAPACITY_BYTES))
        _append(other, b"theirs")
        assert stream.info().end == 0
        _close(other)


def _append(stream: Stream, *messages: bytes) -> list[int]:
    """Append one by one, each once the last one can be read; return the offsets."""
    offsets = []
    for message in messages:
        offsets.append(stream.append(PATH, message))
        stream.read(PATH, offsets[-1], PATIENT_S)
    return offsets


def _all(stream: Stream) -> list[bytes]:
    info = stream.info()
    return [stream.read(PATH, offset, 0) for offset in range(info.begin, info.end)]


def _close(stream: Stream) -> None:
    stream.close(ClosedError, PATH, "the test is over")
