"""Metrics: every call counted with its latency, for other processes to see; nothing when off."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.metadata import DT_PIPE
from nexus.contracts.protocols.metrics import STATISTICS_FILE
from nexus.contracts.vfs_hooks import READ, WRITE, HookSpec, ReadContext, pre
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.sdk.aio import AsyncView
from nexus.services.metrics.counters import Count, Counters, described
from nexus.services.metrics.metrics import Metrics

PATIENT_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_700_000_000 * 10**9

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


def enlisted(nx: NexusFS, **terms: Any) -> Metrics:
    metrics = Metrics(nx, Clock(), None, **terms)
    nx.sys_setattr("/__sys__/services/metrics", service=metrics)
    return metrics


def totals(metrics: Metrics) -> dict[str, tuple[int, int]]:
    return {n: (row["total"], row["failed"]) for n, row in metrics.sample()["calls"].items()}


# -- counting ---------------------------------------------------------------------------------


def test_every_call_is_counted_at_its_point_and_those_that_fail_too(nx: NexusFS) -> None:
    metrics = enlisted(nx)
    nx.write("/a", b"1")
    nx.write_batch({"/b": b"", "/c": b""})
    nx.read("/a")
    with pytest.raises(FileNotFoundError):
        nx.read("/none")
    nx.sys_unlink("/c")
    nx.sys_rename("/b", "/d")
    assert nx.lock("/a")
    assert totals(metrics) == {
        "write": (1, 0),
        "batch": (1, 0),
        "read": (2, 1),
        "delete": (1, 0),
        "rename": (1, 0),
        "lock": (1, 0),
    }


def test_a_call_that_a_hook_refuses_is_counted_as_failed(nx: NexusFS) -> None:
    def refuse(ctx: ReadContext) -> None:
        raise PermissionError("no")

    metrics = enlisted(nx)
    nx.dispatch.register("strict", HookSpec(interceptors=(pre(READ, refuse),)))
    with pytest.raises(PermissionError):
        nx.read("/a")
    assert totals(metrics) == {"read": (1, 1)}


def test_calls_of_many_threads_are_all_counted(nx: NexusFS) -> None:
    metrics = enlisted(nx)
    nx.write("/a", b"1")
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda _: nx.read("/a"), range(400))]
    assert totals(metrics)["read"] == (400, 0)


def test_a_call_that_waits_without_a_thread_is_counted(nx: NexusFS) -> None:
    metrics = enlisted(nx)
    nx.sys_setattr("/p", entry_type=DT_PIPE)

    async def scenario() -> bytes:
        aio = AsyncView(nx)
        reading = asyncio.create_task(aio.sys_read("/p", timeout=PATIENT_S))
        await asyncio.wait([reading], timeout=0)
        await aio.sys_write("/p", b"x")
        return await reading

    assert asyncio.run(scenario()) == b"x"
    assert totals(metrics)["read"] == (1, 0)
    assert totals(metrics)["write"] == (1, 0)


def test_without_the_service_no_call_enters_dispatch(nx: NexusFS) -> None:
    assert not nx.dispatch.live
    enlisted(nx)
    assert nx.dispatch.live
    nx.sys_unlink("/__sys__/services/metrics")
    assert not nx.dispatch.live


def test_latencies_are_those_of_the_interval() -> None:
    counters = Counters()
    for _ in range(100):
        counters.add("read", 0.5, False)
    before = counters.snapshot()["read"]
    for _ in range(98):
        counters.add("read", 100e-6, False)
    counters.add("read", 3e-3, False)
    counters.add("read", 3e-3, True)
    row = described(counters.snapshot()["read"], before, 2.0)
    assert (row["total"], row["failed"], row["per_s"]) == (200, 1, 50.0)
    assert (row["p50_us"], row["p99_us"]) == (128, 4096)
    assert row["mean_us"] == pytest.approx(158)


def test_where_nothing_was_called_there_is_no_latency() -> None:
    count = Count(total=5, buckets=[5] + [0] * 31)
    row = described(count, count, 1.0)
    assert (row["per_s"], row["mean_us"], row["p50_us"], row["p99_us"]) == (0.0, None, None, None)


def test_a_latency_beyond_all_bounds_is_counted() -> None:
    counters = Counters()
    counters.add("lock", 1e9, False)
    assert described(counters.snapshot()["lock"], None, 1.0)["p99_us"] == 1 << 31


# -- what a sample shows ----------------------------------------------------------------------


def test_a_sample_shows_locks_watches_queues_services_and_events(nx: NexusFS) -> None:
    metrics = enlisted(nx)
    nx.bind(OperationContext("ada", agent_id="a1", is_admin=True)).lock("/locked", ttl=60)
    nx.sys_setattr("/pipe", entry_type=DT_PIPE)
    nx.sys_write("/pipe", b"waiting")
    nx.write("/new", b"1")

    async def scenario() -> dict[str, Any]:
        watching = asyncio.create_task(AsyncView(nx).sys_watch("/w", PATIENT_S, True))
        await asyncio.wait([watching], timeout=0)
        sample = metrics.sample()
        watching.cancel()
        return sample

    sample = asyncio.run(scenario())
    (lock,) = sample["locks"]["rows"]
    assert (lock["path"], lock["user_id"], lock["agent_id"]) == ("/locked", "ada", "a1")
    assert "lock_id" not in lock
    assert sample["watches"]["rows"] == [{"path": "/w", "recursive": True, "waiting": 1}]
    assert [row["name"] for row in sample["queues"]["rows"]] == ["/pipe"]
    assert sample["queues"]["rows"][0]["waiting"] >= len(b"waiting")
    assert [row["name"] for row in sample["services"]["rows"]] == ["metrics"]
    assert sample["events"]["rows"][-1]["path"] == "/new"
    json.dumps(sample)


def test_a_sample_is_bounded_whatever_there_is(nx: NexusFS) -> None:
    metrics = enlisted(nx)
    for number in range(200):
        nx.lock(f"/{number}", ttl=60)
        nx.write(f"/{number}", b"")
    sample = metrics.sample()
    assert (sample["locks"]["count"], len(sample["locks"]["rows"])) == (200, 10)
    assert [row["path"] for row in sample["events"]["rows"]] == [f"/{n}" for n in range(190, 200)]


def test_its_own_calls_are_not_counted(nx: NexusFS) -> None:
    metrics = enlisted(nx)
    for _ in range(3):
        metrics.publish()
    assert totals(metrics) == {}


# -- publishing -------------------------------------------------------------------------------


def test_the_file_is_there_while_the_service_runs(tmp_path: Path) -> None:
    file = tmp_path / "data" / STATISTICS_FILE
    with boot(Settings(data_dir=str(tmp_path / "data"), enable=("metrics",))) as nx:
        assert json.loads(file.read_bytes())["pid"] == os.getpid()
        nx.write("/a", b"1")
        nx.service("metrics").publish()
        assert json.loads(file.read_bytes())["calls"]["write"]["total"] == 1
        nx.sys_unlink("/__sys__/services/metrics")
        assert not file.exists()
    assert not file.exists()


def test_it_publishes_by_itself(nx: NexusFS, tmp_path: Path) -> None:
    published = threading.Event()

    class Telling(Metrics):
        times = 0

        def publish(self) -> None:
            super().publish()
            self.times += 1
            if self.times > 2:
                published.set()

    metrics = Telling(nx, Clock(), str(tmp_path), interval_s=0.001)
    nx.sys_setattr("/__sys__/services/metrics", service=metrics)
    assert published.wait(PATIENT_S)


def test_publishing_begins_a_new_interval(nx: NexusFS) -> None:
    clock = Clock()
    metrics = Metrics(nx, clock, None)
    nx.sys_setattr("/__sys__/services/metrics", service=metrics)
    for _ in range(10):
        nx.exists("/a")
    clock.now_ns += 2 * 10**9
    assert metrics.sample()["calls"]["stat"]["per_s"] == 5.0
    metrics.publish()
    clock.now_ns += 10**9
    row = metrics.sample()["calls"]["stat"]
    assert (row["total"], row["per_s"]) == (10, 0.0)


def test_a_file_that_cannot_be_written_fails_no_call_and_is_logged_once(
    nx: NexusFS, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(nx, Clock(), str(tmp_path / "gone"), interval_s=3600)
    with caplog.at_level(logging.WARNING):
        nx.sys_setattr("/__sys__/services/metrics", service=metrics)
        metrics._try_to_publish()
    assert caplog.text.count("no statistics") == 1
    nx.write("/a", b"works")
    (tmp_path / "gone").mkdir()
    metrics._try_to_publish()
    assert (tmp_path / "gone" / STATISTICS_FILE).exists()


# -- the meter as a hook ----------------------------------------------------------------------


class Meter:
    """Raises, or waits, when asked to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.fails = False

    def hook_spec(self) -> HookSpec:
        return HookSpec(meter=self)

    def on_call(self, point: Any, ctx: Any, seconds: float, failed: bool, /) -> None:
        self.seen.append(point.name)
        if self.fails:
            raise RuntimeError("broken")


def test_a_meter_that_raises_is_logged_and_the_call_stays_done(
    nx: NexusFS, caplog: pytest.LogCaptureFixture
) -> None:
    meter = Meter()
    meter.fails = True
    nx.sys_setattr("/__sys__/services/meter", service=meter)
    nx.write("/a", b"1")
    with pytest.raises(FileNotFoundError):
        nx.read("/none")
    assert nx.read("/a") == b"1"
    assert "meter of meter failed after write /a" in caplog.text


def test_a_meter_that_hangs_is_reported_and_keeps_only_its_caller(
    nx: NexusFS, caplog: pytest.LogCaptureFixture
) -> None:
    entered, opened = threading.Event(), threading.Event()

    class Stuck(Meter):
        def on_call(self, point: Any, ctx: Any, seconds: float, failed: bool, /) -> None:
            if ctx.path == "/stuck":
                entered.set()
                assert opened.wait(PATIENT_S)

    nx.sys_setattr("/__sys__/services/meter", service=Stuck())
    nx.dispatch._hang_timeout_s = -1.0
    caller = threading.Thread(target=nx.write, args=("/stuck", b""))
    caller.start()
    assert entered.wait(PATIENT_S)
    with caplog.at_level(logging.ERROR):
        nx.write("/other", b"goes on")
        nx.dispatch.report_overdue()
    assert "meter of meter at write has not returned" in caplog.text
    nx.dispatch._hang_timeout_s = PATIENT_S
    opened.set()
    caller.join()


def test_there_is_one_meter(nx: NexusFS) -> None:
    enlisted(nx)
    with pytest.raises(InvalidArgumentError, match="one measures all calls"):
        nx.sys_setattr("/__sys__/services/second", service=Meter())
    assert [row["name"] for row in nx.services.rows()] == ["metrics"]


def test_a_meter_of_a_wrong_shape_is_refused(nx: NexusFS) -> None:
    class Deaf:
        def on_call(self, point: Any) -> None: ...

    with pytest.raises(InvalidArgumentError, match="on_call"):
        nx.dispatch.register("deaf", HookSpec(meter=Deaf()))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="is not registered"):
        nx.dispatch.unregister("meter", HookSpec(meter=Meter()))


def test_exchanging_the_service_under_load_loses_no_call(nx: NexusFS) -> None:
    first = Meter()
    nx.sys_setattr("/__sys__/services/meter", service=first)
    second = Meter()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(nx.write, f"/{n}", b"") for n in range(200)]
        nx.sys_setattr("/__sys__/services/meter", service=second)
        for call in calls:
            call.result()
    assert len(first.seen) + len(second.seen) == 200


def test_what_is_registered_can_be_seen(nx: NexusFS) -> None:
    enlisted(nx)
    nx.dispatch.register("check", HookSpec(interceptors=(pre(WRITE, print),)))
    rows = nx.list("/__sys__/hooks", details=True)
    assert [(row["owner"], row["kind"], row["point"]) for row in rows] == [
        ("check", "pre", "write"),
        ("metrics", "meter", None),
    ]
    page = nx.sys_readdir("/__sys__/hooks", limit=1, details=True)
    assert page.next_cursor is not None
    rest = nx.sys_readdir("/__sys__/hooks", cursor=page.next_cursor, details=True)
    assert [row["owner"] for row in rest] == ["metrics"]
