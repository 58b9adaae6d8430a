"""What waiting costs: advisory locks, and the way of an event from its commit to who waits."""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.harness import Plan, Row, Target, announced, each, quickest, single
from nexus.core.nexus_fs import NexusFS
from nexus.lib.semaphore import VFSSemaphore
from nexus.sdk import connect

SECTION = "waiting"
CALLS = 500
EVENTS = 200
IN_CLOSE_WRITE = 0x8
LOCK_TARGET = Target(20, absolute=True)
EVENT_TARGET = Target(1, absolute=True)


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    folder = plan.folder(SECTION)
    with announced("waiting"):
        return [*locking(plan), waking(folder)]


def locking(plan: Plan) -> list[Row]:
    """Take and give back a lock that nobody else wants: half of the pair is one call."""
    semaphore = VFSSemaphore(time.time_ns)

    def count(path: str) -> None:
        holder = semaphore.acquire(path)
        semaphore.release(path, holder or "")

    with connect({"data_dir": ":memory:"}) as nx:

        def lock(path: str) -> None:
            nx.sys_unlock(path, nx.sys_lock(path))

        paths = ["/work/project/folder/file.txt"] * CALLS
        pairs = [
            ("semaphore, acquire or release", count),
            ("advisory lock in memory, sys_lock or sys_unlock", lock),
        ]
        return [
            single(SECTION, name, "µs", _cost(once, paths, plan), target=LOCK_TARGET)
            for name, once in pairs
        ]


def _cost(once: Callable[[str], None], paths: list[str], plan: Plan) -> float:
    return quickest(lambda _: each(once, paths), 4 * plan.rounds) * 1e6 / 2


def waking(folder: Path) -> Row:
    """From the commit of a write to a thread in sys_watch, with inotify for scale."""
    with connect({"data_dir": ":memory:"}) as nx:
        assert isinstance(nx, NexusFS)
        ours = watch_latency(nx)
    return single(
        SECTION,
        "event, from commit to a waiting thread",
        "ms",
        ours * 1e3,
        against="inotify, from close to a blocked read",
        reference=inotify_latency(folder) * 1e3,
        target=EVENT_TARGET,
    )


def watch_latency(nx: NexusFS) -> float:
    """Return the median seconds from a commit to the return of sys_watch."""
    committed: list[float] = []
    woken: queue.Queue[float] = queue.Queue()
    nx.store.on_announce(lambda _: committed.append(perf_counter()))

    def follow() -> None:
        for _ in nx.watch("/f", timeout=60):
            woken.put(perf_counter())
            if len(committed) == EVENTS:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    latencies = []
    for number in range(EVENTS):
        _wait_until_idle(nx)
        nx.write("/f", str(number))
        latencies.append(woken.get() - committed[-1])
    thread.join()
    return median(latencies)


def _wait_until_idle(nx: NexusFS) -> None:
    while not nx.waiting.watcher.watched():
        time.sleep(0.0005)
    time.sleep(0.001)  # registered, and on its way to sleep


def inotify_latency(folder: Path) -> float:
    """Return the median seconds from closing a file to the return of a read of inotify."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(0)
    libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_CLOSE_WRITE)
    woken: queue.Queue[float] = queue.Queue()

    def follow() -> None:
        for _ in range(EVENTS):
            os.read(descriptor, 4096)
            woken.put(perf_counter())

    thread = threading.Thread(target=follow)
    thread.start()
    latencies = []
    for _ in range(EVENTS):
        time.sleep(0.001)
        file = os.open(folder / "f", os.O_WRONLY | os.O_CREAT)
        os.write(file, b"x")
        start = perf_counter()
        os.close(file)
        latencies.append(woken.get() - start)
    thread.join()
    os.close(descriptor)
    return median(latencies)
