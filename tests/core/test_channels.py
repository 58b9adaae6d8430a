"""Pipes and streams through the system calls."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.errors import (
    ClosedError,
    ConfigError,
    InvalidArgumentError,
    NotSupportedError,
    PathExistsError,
    PathIsDirectoryError,
    PathNotFoundError,
    StreamOffsetError,
    WaitTimeoutError,
    WouldBlock,
)
from nexus.contracts.metadata import StreamMessage
from nexus.sdk import (
    DT_DIR,
    DT_MOUNT,
    DT_PIPE,
    DT_STREAM,
    NexusFilesystem,
    OperationContext,
    Precondition,
    collect,
    connect,
    fsck,
)

PATIENT_S = 60.0
KINDS = {DT_PIPE: "pipe", DT_STREAM: "stream"}


@pytest.fixture
def nx() -> Iterator[NexusFilesystem]:
    with connect({"data_dir": ":memory:"}) as filesystem:
        filesystem.mkdir("/d")
        yield filesystem


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def on_disk(folder: Path, **config: Any) -> NexusFilesystem:
    return connect({"data_dir": str(folder / "data"), **config})


def stat(nx: NexusFilesystem, path: str) -> dict[str, Any]:
    found = nx.sys_stat(path)
    assert found is not None
    return found


def pipe(nx: NexusFilesystem, path: str = "/d/p", **attrs: Any) -> str:
    nx.sys_setattr(path, entry_type=DT_PIPE, **attrs)
    return path


def stream(nx: NexusFilesystem, path: str = "/d/s", **attrs: Any) -> str:
    nx.sys_setattr(path, entry_type=DT_STREAM, **attrs)
    return path


def start(
    pool: ThreadPoolExecutor, nx: NexusFilesystem, path: str, call: Callable[[], Any]
) -> Future[Any]:
    """Start a call that waits at a path; return once it does."""
    future = pool.submit(call)
    while not stat(nx, path)["waiting_readers"] + stat(nx, path).get("waiting_writers", 0):
        assert not future.done()
    return future


# -- pipes ------------------------------------------------------------------------------------


def test_a_pipe_carries_messages_in_order(nx: NexusFilesystem):
    path = pipe(nx)
    assert nx.sys_write(path, b"one") == {"path": path, "bytes_written": 3}
    nx.sys_write(path, bytearray(b"two"))
    nx.sys_write(path, b"three!", 5)
    assert [nx.sys_read(path) for _ in range(3)] == [b"one", b"two", b"three"]


def test_the_stat_of_a_pipe_shows_what_is_queued(nx: NexusFilesystem):
    path = pipe(nx, capacity_bytes=1000)
    nx.sys_write(path, b"12345")
    nx.sys_write(path, b"67")
    shown = stat(nx, path)
    assert (shown["type"], shown["entry_type"], shown["is_directory"]) == ("pipe", DT_PIPE, False)
    assert (shown["size"], shown["queued_bytes"], shown["queued_messages"]) == (7, 7, 2)
    assert shown["capacity_bytes"] == 1000


def test_a_blocked_read_holds_no_lock_of_the_tree(nx: NexusFilesystem, pool: ThreadPoolExecutor):
    path = pipe(nx)
    reader = start(pool, nx, path, lambda: nx.sys_read(path, timeout=PATIENT_S))
    nx.write("/d/beside", b"x")
    nx.sys_rename("/d", "/moved")
    nx.sys_write("/moved/p", b"news")
    assert reader.result() == b"news"


def test_waiting_ends_as_asked(nx: NexusFilesystem):
    path = pipe(nx, capacity_bytes=64)
    with pytest.raises(WouldBlock):
        nx.sys_read(path, timeout=0)
    with pytest.raises(WaitTimeoutError):
        nx.sys_read(path, timeout=0.001)
    nx.sys_write(path, b"x" * 64)
    with pytest.raises(WouldBlock):
        nx.sys_write(path, b"y", timeout=0)
    with pytest.raises(WaitTimeoutError):
        nx.sys_write(path, b"y", timeout=0.001)


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(nx: NexusFilesystem, timeout: Any):
    path = pipe(nx)
    with pytest.raises(InvalidArgumentError, match="timeout"):
        nx.sys_read(path, timeout=timeout)


def test_unlinking_wakes_who_waits(nx: NexusFilesystem, pool: ThreadPoolExecutor):
    path = pipe(nx)
    reader = start(pool, nx, path, lambda: nx.sys_read(path, timeout=PATIENT_S))
    nx.sys_unlink("/d", recursive=True)
    with pytest.raises(PathNotFoundError, match="/d/p"):
        reader.result()
    assert nx.sys_stat(path) is None
    with pytest.raises(PathNotFoundError):
        nx.sys_read(path)


def test_a_pipe_made_again_is_another(nx: NexusFilesystem):
    path = pipe(nx)
    nx.sys_write(path, b"old")
    nx.sys_unlink(path)
    pipe(nx)
    with pytest.raises(WouldBlock):
        nx.sys_read(path, timeout=0)


def test_closing_the_filesystem_wakes_who_waits(pool: ThreadPoolExecutor):
    nx = connect({"data_dir": ":memory:"})
    waits = [
        start(pool, nx, path, lambda path=path: nx.sys_read(path, timeout=PATIENT_S))
        for path in (pipe(nx, "/p"), stream(nx, "/s"))
    ]
    nx.close()
    for wait in waits:
        with pytest.raises(ClosedError):
            wait.result()


def test_unmounting_wakes_who_waits(nx: NexusFilesystem, pool: ThreadPoolExecutor):
    nx.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})
    path = pipe(nx, "/m/p")
    reader = start(pool, nx, path, lambda: nx.sys_read(path, timeout=PATIENT_S))
    nx.sys_unlink("/m")
    with pytest.raises(ClosedError):
        reader.result()


# -- streams ----------------------------------------------------------------------------------


def test_a_stream_keeps_its_messages(nx: NexusFilesystem):
    path = stream(nx)
    assert nx.sys_write(path, b"zero") == {"path": path, "bytes_written": 4, "offset": 0}
    assert nx.sys_write(path, b"one")["offset"] == 1
    message = nx.sys_read(path)
    assert isinstance(message, StreamMessage)
    assert (message, message.next_offset) == (b"zero", 1)
    assert nx.sys_read(path, offset=message.next_offset) == b"one"
    assert nx.sys_read(path, offset=0) == b"zero"
    with pytest.raises(WouldBlock):
        nx.sys_read(path, offset=2, timeout=0)


def test_the_stat_of_a_stream_shows_what_it_keeps(nx: NexusFilesystem):
    path = stream(nx, capacity_bytes=500)
    for _ in range(20):
        nx.sys_write(path, b"x" * 30)
    shown = stat(nx, path)
    assert (shown["type"], shown["stream"], shown["end"]) == ("stream", "memory", 20)
    assert 0 < shown["begin"] < 20
    assert shown["size"] <= shown["capacity_bytes"] == 500
    with pytest.raises(StreamOffsetError) as caught:
        nx.sys_read(path, offset=0)
    assert caught.value.begin == shown["begin"]


def test_a_reader_at_the_end_waits_for_the_next_message(
    nx: NexusFilesystem, pool: ThreadPoolExecutor
):
    path = stream(nx)
    reader = start(pool, nx, path, lambda: nx.sys_read(path, timeout=PATIENT_S))
    nx.sys_write(path, b"news")
    assert reader.result() == b"news"


def test_unlinking_a_stream_wakes_who_waits(nx: NexusFilesystem, pool: ThreadPoolExecutor):
    path = stream(nx)
    reader = start(pool, nx, path, lambda: nx.sys_read(path, timeout=PATIENT_S))
    nx.sys_unlink(path)
    with pytest.raises(PathNotFoundError, match="the stream was removed"):
        reader.result()


# -- both -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_creating_again_opens_what_is_there(nx: NexusFilesystem, kind: int):
    first = nx.sys_setattr("/d/c", entry_type=kind, capacity_bytes=5000)
    nx.sys_write("/d/c", b"kept")
    for attrs in ({}, {"capacity_bytes": 5000}):
        again = nx.sys_setattr("/d/c", entry_type=kind, **attrs)
        assert again["revision"] == first["revision"]
        assert again["size"] > 0
    with pytest.raises(InvalidArgumentError, match="it exists and has 5000"):
        nx.sys_setattr("/d/c", entry_type=kind, capacity_bytes=6000)


@pytest.mark.parametrize("kind", KINDS)
def test_creating_is_refused_where_something_else_is(nx: NexusFilesystem, kind: int):
    nx.write("/d/f", b"file")
    other = DT_PIPE + DT_STREAM - kind
    nx.sys_setattr("/d/o", entry_type=other)
    for path in ("/d/f", "/d", "/d/o"):
        with pytest.raises(PathExistsError):
            nx.sys_setattr(path, entry_type=kind)
    nx.sys_setattr("/d/c", entry_type=kind)
    with pytest.raises(PathExistsError):
        nx.sys_setattr("/d/c", entry_type=DT_DIR, exist_ok=True)
    with pytest.raises(PathNotFoundError):
        nx.sys_setattr("/missing/c", entry_type=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", [0, 63, 1 << 31, "64", 64.0, True])
def test_odd_capacities_are_refused(nx: NexusFilesystem, kind: int, capacity: Any):
    with pytest.raises(InvalidArgumentError, match="capacity_bytes"):
        nx.sys_setattr("/d/c", entry_type=kind, capacity_bytes=capacity)
    with pytest.raises(InvalidArgumentError, match="mood"):
        nx.sys_setattr("/d/c", entry_type=kind, mood="good")


@pytest.mark.parametrize("kind", KINDS)
def test_a_rename_moves_the_channel_with_its_messages(nx: NexusFilesystem, kind: int):
    nx.sys_setattr("/d/c", entry_type=kind)
    nx.sys_write("/d/c", b"inside")
    nx.sys_rename("/d/c", "/d/new")
    nx.sys_rename("/d", "/e")
    assert nx.sys_read("/e/new", timeout=0) == b"inside"
    nx.sys_setattr("/e/c", entry_type=kind)
    with pytest.raises(WouldBlock):
        nx.sys_read("/e/c", timeout=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_renamed_onto_a_channel_nor_a_channel_onto_anything(
    nx: NexusFilesystem, kind: int
):
    nx.sys_setattr("/d/c", entry_type=kind)
    nx.write("/d/f", b"file")
    for source, target in (("/d/f", "/d/c"), ("/d/c", "/d/f")):
        with pytest.raises(PathExistsError):
            nx.sys_rename(source, target)
        with pytest.raises((PathExistsError, NotSupportedError)):
            nx.sys_copy(source, target)
    with pytest.raises(PathIsDirectoryError):
        nx.sys_rename("/d/c", "/d")


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_is_neither_copied_nor_moved_to_another_mount(nx: NexusFilesystem, kind: int):
    nx.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})
    nx.sys_setattr("/d/c", entry_type=kind)
    for call in (
        lambda: nx.sys_copy("/d/c", "/d/copy"),
        lambda: nx.sys_copy("/d", "/copy"),
        lambda: nx.sys_copy("/d", "/m/copy"),
        lambda: nx.sys_rename("/d", "/m/moved"),
        lambda: nx.sys_rename("/d/c", "/m/moved"),
    ):
        with pytest.raises(NotSupportedError, match=rf"/d/c: a {KINDS[kind]} can neither"):
            call()
    assert [nx.exists(path) for path in ("/d/copy", "/copy", "/m/copy", "/m/moved")] == [False] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_for_files_is_refused_without_taking_a_message(nx: NexusFilesystem, kind: int):
    nx.sys_setattr("/d/c", entry_type=kind)
    nx.sys_write("/d/c", b"inside")
    for call in (
        lambda: nx.write("/d/c", b"x"),
        lambda: nx.append("/d/c", b"x"),
        lambda: nx.edit("/d/c", lambda content: content),
        lambda: nx.write_batch({"/d/c": b"x"}),
    ):
        with pytest.raises(NotSupportedError, match=f"is a {KINDS[kind]}"):
            call()
    for call in (
        lambda: nx.sys_read("/d/c", count=1),
        lambda: nx.sys_read("/d/c", version=1),
        lambda: nx.sys_write("/d/c", b"x", offset=1),
        lambda: nx.sys_write("/d/c", b"x", precondition=Precondition(if_match="b3:0")),
    ):
        with pytest.raises(InvalidArgumentError):
            call()
    assert nx.grep("inside", "/") == []
    assert nx.sys_read("/d/c", timeout=0) == b"inside"


def test_a_pipe_has_no_offsets(nx: NexusFilesystem):
    path = pipe(nx)
    with pytest.raises(InvalidArgumentError, match="offset 1"):
        nx.sys_read(path, offset=1)


@pytest.mark.parametrize("kind", KINDS)
def test_listings_show_the_kind(nx: NexusFilesystem, kind: int):
    nx.sys_setattr("/d/c", entry_type=kind, capacity_bytes=777)
    [shown] = nx.sys_readdir("/d", details=True)
    assert (shown["type"], shown["size"], shown["capacity_bytes"]) == (KINDS[kind], 0, 777)
    assert nx.sys_readdir("/", recursive=True) == ["/d", "/d/c"]


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_of_a_channel_can_be_set(nx: NexusFilesystem, kind: int):
    nx.sys_setattr("/d/c", entry_type=kind)
    nx.sys_write("/d/c", b"inside")
    nx.sys_setattr("/d/c", mode=0o600, attributes={"for": "tests"})
    assert stat(nx, "/d/c")["attributes"] == {"for": "tests"}
    assert nx.sys_read("/d/c", timeout=0) == b"inside"


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_addressed_mount_holds_none(nx: NexusFilesystem, tmp_path: Path, kind: int):
    backend = {"driver": "path_local", "root": str(tmp_path)}
    nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
    with pytest.raises(NotSupportedError, match=f"this mount cannot hold a {KINDS[kind]}"):
        nx.sys_setattr("/m/c", entry_type=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_awaited_calls_hold_no_thread(nx: NexusFilesystem, kind: int):
    nx.sys_setattr("/d/c", entry_type=kind)

    async def scenario() -> bytes:
        reader = asyncio.ensure_future(nx._read_async("/d/c", 0, PATIENT_S, None))
        while not stat(nx, "/d/c")["waiting_readers"]:
            await asyncio.wait([reader], timeout=0)
        await nx._write_async("/d/c", b"news", PATIENT_S, None)
        return await reader

    assert asyncio.run(scenario()) == b"news"
    nx.write("/d/f", b"file")
    with pytest.raises(NotSupportedError, match="nothing to wait for"):
        asyncio.run(nx._read_async("/d/f", 0, 0, None))
    with pytest.raises(PathNotFoundError):
        asyncio.run(nx._write_async("/d/missing", b"x", 0, None))


def test_a_view_with_another_identity_reads_and_writes(nx: NexusFilesystem):
    view = nx.bind(OperationContext("ann", agent_id="reader"))
    view.sys_write(pipe(nx), b"news", timeout=1)
    assert view.sys_read("/d/p", timeout=1) == b"news"
    assert stat(view, "/d/p")["owner_id"] != "ann"


# -- across restarts --------------------------------------------------------------------------


def test_a_pipe_is_there_and_empty_after_a_restart(tmp_path: Path):
    with on_disk(tmp_path) as nx:
        nx.sys_write(pipe(nx, "/p", capacity_bytes=999), b"gone with the process")
    with on_disk(tmp_path) as nx:
        assert stat(nx, "/p")["capacity_bytes"] == 999
        assert stat(nx, "/p")["queued_messages"] == 0
        nx.sys_write("/p", b"new")
        assert nx.sys_read("/p", timeout=0) == b"new"


def test_a_stream_in_memory_begins_anew_after_a_restart(tmp_path: Path):
    with on_disk(tmp_path) as nx:
        nx.sys_write(stream(nx, "/s"), b"gone with the process")
    with on_disk(tmp_path) as nx:
        assert (stat(nx, "/s")["begin"], stat(nx, "/s")["end"]) == (0, 0)
        with pytest.raises(StreamOffsetError):
            nx.sys_read("/s", offset=1)


@pytest.mark.parametrize("durability", ["ordered", "strict"])
def test_a_durable_stream_has_its_messages_after_a_restart(tmp_path: Path, durability: str):
    config = {"stream": "durable_log", "durability": durability}
    with on_disk(tmp_path, **config) as nx:
        nx.sys_write(stream(nx, "/s"), b"zero")
        nx.sys_write("/s", b"one")
        nx.sys_rename("/s", "/t")
    with on_disk(tmp_path, **config) as nx:
        assert stat(nx, "/t")["stream"] == "durable_log"
        assert nx.sys_read("/t", offset=1, timeout=0) == b"one"
        assert nx.sys_write("/t", b"two")["offset"] == 2
        nx.sync()
        assert not fsck(nx).problems
        collect(nx, retention_s=0, grace_s=0)
        assert nx.sys_read("/t", offset=0) == b"zero"
        nx.sys_unlink("/t")
    assert list((tmp_path / "data" / "content" / "streams").iterdir()) == []


def test_a_collection_removes_the_stream_of_a_record_that_is_gone(tmp_path: Path):
    with on_disk(tmp_path, stream="durable_log") as nx:
        nx.sys_write(stream(nx, "/kept"), b"kept")
        nx.sys_write(stream(nx, "/renamed"), b"kept too")
        nx.sys_rename("/renamed", "/also")
        left = tmp_path / "data" / "content" / "streams" / ("0" * 32)
        left.mkdir()
        (left / ("0" * 20 + ".log")).write_bytes(b"12345")
        for dry_run in (True, False):
            report = collect(nx, retention_s=0, grace_s=0, dry_run=dry_run)
            assert (report.leftovers_removed, report.leftover_bytes) == (1, 5)
            assert left.exists() == dry_run
        assert (nx.sys_read("/kept", timeout=0), nx.sys_read("/also", timeout=0)) == (
            b"kept",
            b"kept too",
        )


def test_the_mount_chooses_where_its_streams_are(tmp_path: Path):
    backend = {"driver": "cas_local", "root": str(tmp_path / "store"), "stream": "durable_log"}
    with on_disk(tmp_path) as nx:
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
        nx.sys_write(stream(nx, "/m/s"), b"kept")
        nx.sys_write(stream(nx, "/s"), b"not kept")
    with on_disk(tmp_path) as nx:
        assert nx.sys_read("/m/s", timeout=0) == b"kept"
        assert stat(nx, "/s")["end"] == 0


def test_a_stream_in_shared_memory_is_read_after_a_restart(tmp_path: Path):
    streams = {"backend": "shared_memory", "folder": str(tmp_path / "shared")}
    backend = {"driver": "cas_local", "root": str(tmp_path / "store"), "stream": streams}
    with on_disk(tmp_path) as nx:
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
        nx.sys_write(stream(nx, "/m/s"), b"kept")
    with on_disk(tmp_path) as nx:
        assert nx.sys_read("/m/s", timeout=0) == b"kept"
        assert stat(nx, "/m/s")["stream"] == "shared_memory"
        nx.sys_unlink("/m/s")
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_stream_can_be_a_child_process(nx: NexusFilesystem):
    echo = "for line in open(0): print(line.strip().upper(), flush=True)"
    streams = {"backend": "stdio", "command": [sys.executable, "-c", echo]}
    backend = {"driver": "cas_memory", "stream": streams}
    nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
    path = stream(nx, "/m/agent")
    answer_at = nx.sys_write(path, b"hello")["offset"]
    assert nx.sys_read(path, offset=answer_at, timeout=PATIENT_S) == b"HELLO"
    nx.sys_unlink(path)


@pytest.mark.parametrize(
    ("streams", "reason"),
    [
        ("nowhere", "no backend 'nowhere'"),
        (7, "neither a name nor a mapping"),
        ("durable_log", "keeps nothing durable"),
        ({"backend": "memory", "size": 1}, "unknown option 'size'"),
        ({"backend": "stdio"}, "command is None"),
        ({"backend": "stdio", "command": "rm -rf /"}, "not a list"),
        ({"backend": "stdio", "command": []}, "not a list"),
        ({"backend": "shared_memory", "folder": 3}, "folder is 3"),
    ],
)
def test_a_mount_that_asks_for_no_such_place_is_refused(
    nx: NexusFilesystem, streams: Any, reason: str
):
    backend = {"driver": "cas_memory", "stream": streams}
    with pytest.raises(ConfigError, match=reason):
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
    assert nx.sys_stat("/m") is None
