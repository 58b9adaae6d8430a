"""StreamManager by the number of its invariant; backends have a suite of their own."""

import asyncio
from collections.abc import Callable

import pytest

from nexus.contracts.errors import ClosedError, EndOfStreamError, PathNotFoundError
from nexus.contracts.stream_backend import StreamBackend, StreamInfo, StreamStore
from nexus.core.stream_manager import Stream, StreamManager
from nexus.lib.steps import run_async

PATH = "/s"
PATIENT_S = 60.0


class FakeBackend(StreamBackend):
    """Messages that appear when a test says so: at a chosen call, from anywhere."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.at_read: Callable[[], None] = lambda: None
        self.at_info: Callable[[], None] = lambda: None
        self.notify: Callable[[], None] = lambda: None
        self.ended = self.closed = False
        self.syncs = 0

    def attach(self, notify: Callable[[], None]) -> None:
        self.notify = notify

    def append(self, path: str, message: bytes) -> int:
        self.messages.append(message)
        return len(self.messages) - 1

    def read(self, path: str, offset: int) -> bytes | None:
        found = self.messages[offset] if offset < len(self.messages) else None
        self.at_read()
        if found is None and self.ended:
            raise EndOfStreamError("read", path, "that was all")
        return found

    def info(self) -> StreamInfo:
        self.at_info()
        return StreamInfo(0, len(self.messages), 0, 1 << 20, self.ended)

    def sync(self) -> None:
        self.syncs += 1

    def close(self) -> None:
        self.closed = True


class FakeStore(StreamStore):
    name = "fake"

    def __init__(self) -> None:
        self.opened: dict[str, FakeBackend] = {}
        self.removed: list[str] = []
        self.strict = False

    def open(self, stream_id: str, capacity_bytes: int, *, strict: bool = False) -> StreamBackend:
        self.strict = strict
        self.opened[stream_id] = FakeBackend()
        return self.opened[stream_id]

    def remove(self, stream_id: str) -> None:
        assert stream_id not in self.opened or self.opened[stream_id].closed
        self.removed.append(stream_id)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def test_4_a_message_that_comes_right_after_the_look_is_not_missed(backend: FakeBackend):
    stream = Stream(backend)

    def append_once() -> None:
        backend.at_read = lambda: None
        stream.append(PATH, b"between")

    backend.at_read = append_once
    assert stream.read(PATH, 0, PATIENT_S) == b"between"


def test_4_what_a_backend_announces_wakes_the_reader(backend: FakeBackend):
    stream = Stream(backend)

    async def scenario() -> bytes:
        reader = asyncio.ensure_future(run_async(stream.reading(PATH, 0, PATIENT_S)))
        while not stream.waiting():
            await asyncio.wait([reader], timeout=0)
        backend.messages.append(b"from elsewhere")
        backend.notify()
        return await reader

    assert asyncio.run(scenario()) == b"from elsewhere"


def test_4_what_a_backend_does_not_announce_is_looked_for(backend: FakeBackend):
    backend.poll_s = (0.0, 0.0)
    looks = []

    def look() -> None:
        looks.append(None)
        if len(looks) == 5:
            backend.messages.append(b"late")

    backend.at_info = look
    assert Stream(backend).read(PATH, 0, PATIENT_S) == b"late"


def test_4_the_end_of_a_stream_ends_the_wait(backend: FakeBackend):
    stream = Stream(backend)

    async def scenario() -> None:
        reader = asyncio.ensure_future(run_async(stream.reading(PATH, 0, PATIENT_S)))
        while not stream.waiting():
            await asyncio.wait([reader], timeout=0)
        backend.ended = True
        backend.notify()
        with pytest.raises(EndOfStreamError):
            await reader

    asyncio.run(scenario())


def test_5_a_removed_stream_is_closed_before_what_is_stored_goes(store: FakeStore):
    manager = StreamManager(store, strict=True)
    stream = manager.open("id", 100)
    assert manager.open("id", 999) is stream
    assert store.strict
    manager.remove("id", "/gone")
    assert store.removed == ["id"]
    stream.close(ClosedError, PATH, "not this error")
    with pytest.raises(PathNotFoundError):
        stream.read(PATH, 0, PATIENT_S)
    assert manager.open("id", 100) is not stream
    manager.remove("never opened", PATH)


def test_5_closing_closes_every_backend_and_removes_nothing(store: FakeStore):
    manager = StreamManager(store, strict=False)
    for stream_id in "ab":
        manager.open(stream_id, 100)
    manager.sync()
    manager.close("the filesystem is closed")
    assert all(backend.closed and backend.syncs == 1 for backend in store.opened.values())
    assert store.removed == []
    with pytest.raises(ClosedError, match="the filesystem is closed"):
        manager.open("c", 100)
