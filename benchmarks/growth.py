"""What a call costs when a million other entries are there, and what such a tree costs in memory.

Two filesystems are open at once, a small and a large one; each holds the same files to measure,
and the rounds of the two are interleaved. ``elsewhere`` is everything else: 1,000 entries in one,
a million in the other, all with the same tiny content.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.harness import (
    MIB,
    Plan,
    Row,
    Samples,
    Target,
    announced,
    compare,
    each,
    interleave,
    random_pieces,
    settle,
    single,
)
from nexus.sdk import NexusFilesystem, connect

SECTION = "growth"
SAMPLED = 500
FILE_BYTES = 4096
LISTED = 100
PAGE = 1000
BATCH = 4000
WIDE = 100_000
LESS_WIDE = 10_000
FEW = 1000
_SAME = Target(1.3)
_MEMORY = Target(200, absolute=True)

_OPEN = """
import sys, time
from nexus.sdk import connect
start = time.perf_counter()
nx = connect({"data_dir": sys.argv[1]})
nx.sys_stat("/measured")
elapsed = time.perf_counter() - start
status = open("/proc/self/status").read() if sys.platform == "linux" else "VmRSS: 0"
print(elapsed, int(status.split("VmRSS:")[1].split()[0]) / 1024, flush=True)
nx.close()
"""

_WRITE_AND_DIE = """
import os, signal, sys
from nexus.sdk import connect
nx = connect({"data_dir": sys.argv[1]})
for number in range(int(sys.argv[2])):
    nx.write(f"/killed/{number % 100}/{sys.argv[3]}-{number}", b"x")
os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_AFTER = 20_000
"""About as many files as the metastore's log holds: the most that an opening has to apply."""


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    folder = plan.folder(SECTION)
    small, large = folder / "small", folder / "large"
    rows = [_build(small, FEW, wide=False), _build(large, plan.entries, wide=True)][1:]
    settle()
    with announced(f"calls with {plan.entries:,} entries elsewhere"):
        rows += _calls(plan, small, large)
    with announced("pages of wide directories"):
        rows += _pages(plan, large)
    with announced("opening"):
        rows += _opening(plan, small, large)
    return rows


def _build(folder: Path, entries: int, *, wide: bool) -> Row:
    """Fill a new filesystem; return how long the entries elsewhere took."""
    with connect({"data_dir": str(folder)}) as nx:
        nx.write_batch(zip(_measured(), random_pieces(SAMPLED, FILE_BYTES), strict=True))
        nx.write_batch((f"/listed/entry-{number:03d}", b"") for number in range(LISTED))
        start = perf_counter()
        with announced(f"building {entries:,} entries"):
            _write_elsewhere(nx, _elsewhere(entries, wide=wide))
        cost = (perf_counter() - start) / entries
        # A second mount would spread the records: all are in one table, on purpose.
        assert nx.exists(_measured()[0])
    return single(SECTION, f"create one of {entries:,} in batches of {BATCH:,}", "µs", cost * 1e6)


def _measured() -> list[str]:
    return [f"/measured/file-{number:03d}.txt" for number in range(SAMPLED)]


def _elsewhere(entries: int, *, wide: bool) -> Iterator[str]:
    """Yield paths: 1,000 to a directory and, when ``wide``, two large directories among them."""
    if wide:
        yield from (f"/wide/entry-{number:06d}" for number in range(min(WIDE, entries // 2)))
        yield from (f"/less-wide/entry-{number:06d}" for number in range(LESS_WIDE))
        entries -= min(WIDE, entries // 2) + LESS_WIDE
    yield from (
        f"/elsewhere/{number // 1000:04d}/file-{number % 1000:03d}" for number in range(entries)
    )


def _write_elsewhere(nx: NexusFilesystem, paths: Iterator[str]) -> None:
    batch: list[tuple[str, bytes]] = []
    for path in paths:
        batch.append((path, b"x"))
        if len(batch) == BATCH:
            nx.write_batch(batch)
            batch.clear()
    nx.write_batch(batch)


def _calls(plan: Plan, small: Path, large: Path) -> list[Row]:
    with connect({"data_dir": str(small)}) as few, connect({"data_dir": str(large)}) as many:
        listings = ["/listed"] * 50
        rows = [
            _row(plan, "stat", lambda nx: each(nx.sys_stat, _measured()), few, many),
            _row(plan, "read 4 KiB", lambda nx: each(nx.read, _measured()), few, many),
            _row(plan, f"list {LISTED} entries", lambda nx: each(nx.list, listings), few, many),
            _row(plan, f"list {LISTED} entries by cursor", _list_by_cursor, few, many),
        ]
    return [*rows, _first_stat(plan, small, large)]


def _row(
    plan: Plan,
    name: str,
    measure: Callable[[NexusFilesystem], float],
    few: NexusFilesystem,
    many: NexusFilesystem,
) -> Row:
    samples = interleave(lambda _: measure(many), lambda _: measure(few), plan.rounds)
    return _grown(plan, name, samples)


def _grown(plan: Plan, name: str, samples: Samples) -> Row:
    title = f"{name}, {plan.entries:,} elsewhere"
    return compare(SECTION, title, samples, against=f"{FEW:,} elsewhere", target=_SAME)


def _list_by_cursor(nx: NexusFilesystem) -> float:
    """List with a limit, which reads records instead of a remembered list of names."""

    def once(path: str) -> None:
        assert len(nx.sys_readdir(path, limit=PAGE)) == LISTED

    return each(once, ["/listed"] * 50)


def _first_stat(plan: Plan, small: Path, large: Path) -> Row:
    """Stat files that this process has not looked at yet: their records come from the disk."""

    def measure(folder: Path) -> float:
        with connect({"data_dir": str(folder)}) as nx:
            return each(nx.sys_stat, _measured())

    samples = interleave(lambda _: measure(large), lambda _: measure(small), plan.few_rounds)
    return _grown(plan, "first stat after opening", samples)


def _pages(plan: Plan, large: Path) -> list[Row]:
    wide = min(WIDE, plan.entries // 2)
    against = f"a directory of {LESS_WIDE:,}"
    with connect({"data_dir": str(large)}) as nx:
        samples = interleave(
            lambda _: _page_through(nx, "/wide", wide),
            lambda _: _page_through(nx, "/less-wide", LESS_WIDE),
            plan.few_rounds,
        )
        peak, less = _traced(nx, "/wide", wide), _traced(nx, "/less-wide", LESS_WIDE)
    name = f"list a directory of {wide:,} by pages of {PAGE:,}"
    memory = Row(
        SECTION,
        f"{name}, peak of memory",
        "MiB",
        peak,
        against,
        less,
        peak / less,
        peak / less,
        peak / less,
        _SAME.text("MiB"),
        _SAME.holds(peak / less),
    )
    cost = compare(SECTION, f"{name}, an entry", samples, against=against, target=_SAME)
    return [cost, memory]


def _page_through(nx: NexusFilesystem, path: str, expected: int) -> float:
    """Return the seconds an entry of a listing by pages."""
    start = perf_counter()
    seen = 0
    cursor: str | None = None
    while True:
        page = nx.sys_readdir(path, limit=PAGE, cursor=cursor)
        seen += len(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == expected
    return (perf_counter() - start) / seen


def _traced(nx: NexusFilesystem, path: str, expected: int) -> float:
    """Return the peak of memory that Python allocated for a listing by pages, in MiB."""
    tracemalloc.start()
    try:
        _page_through(nx, path, expected)
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def _opening(plan: Plan, small: Path, large: Path) -> list[Row]:
    """Open in a fresh process: how long until the first stat, and how much memory after it."""
    opened = {folder: [_open(folder) for _ in range(plan.few_rounds)] for folder in (small, large)}
    rows = []
    for position, (name, unit, factor) in enumerate(
        (("connect() and a first stat", "ms", 1e3), ("memory of the process after it", "MiB", 1.0))
    ):
        few, many = (
            median(one[position] for one in opened[folder]) * factor for folder in (small, large)
        )
        title = f"{name}, {plan.entries:,} entries"
        rows.append(
            single(
                SECTION,
                title,
                unit,  # type: ignore[arg-type]
                many,
                against=f"{FEW:,} entries",
                reference=few,
                target=_MEMORY if unit == "MiB" else None,
            )
        )
    return [*rows, _reopening(plan, large)]


def _reopening(plan: Plan, large: Path) -> Row:
    """Open what a process left that was killed after writing for a while."""
    slowest = 0.0
    for number in range(plan.few_rounds):
        command = [sys.executable, "-c", _WRITE_AND_DIE, str(large), str(KILLED_AFTER), str(number)]
        subprocess.run(command, check=False)
        slowest = max(slowest, _open(large)[0])
    title = f"the same after SIGKILL amid writing, {plan.entries:,} entries, slowest"
    return single(SECTION, title, "s", slowest, target=Target(5, absolute=True))


def _open(folder: Path) -> tuple[float, float]:
    answer = subprocess.run(
        [sys.executable, "-c", _OPEN, str(folder)], check=True, capture_output=True, text=True
    )
    seconds, memory_mib = map(float, answer.stdout.split())
    return seconds, memory_mib
