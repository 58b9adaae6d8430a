"""``python -m benchmarks``: measure everything, print it, and write it to ``docs/``."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import (
    dispatch,
    growth,
    ipc,
    large_files,
    primitives,
    report,
    small_files,
    startup,
    waiting,
)
from benchmarks.harness import Plan, Row, filesystem_type
from benchmarks.small_files import OS_WRITE
from nexus.lib.native import chosen

REPOSITORY = Path(__file__).resolve().parent.parent
SLOW_CREATION_US = 80
RUNS: dict[str, Callable[[Plan], list[Row]]] = {
    "small_files": small_files.run,
    "large_files": large_files.run,
    "growth": growth.run,
    "startup": startup.run,
    "primitives": primitives.run,
    "dispatch": dispatch.run,
    "waiting": waiting.run,
    "ipc": ipc.run,
}


def main() -> int:
    """Measure; return 0, also when a target is missed."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the directory is removed
    rows: list[Row] = []
    with work_directory(options.dir) as directory:
        kind = filesystem_type(directory)
        kernel = chosen().name
        where = f"in {directory} ({kind}), Python {platform.python_version()}, {kernel} kernel"
        print(where, file=sys.stderr)
        plan = Plan(directory, options.quick)
        for section, run in RUNS.items():
            if not options.only or section in options.only:
                measured = run(plan)
                print(f"\n{report.SECTIONS[section]}\n\n{report.lines(measured)}\n", flush=True)
                rows += measured
    warn_of_slow_creation(rows)
    results = report.Results(platform.python_version(), kernel, os.cpu_count() or 1, kind, rows)
    if not (options.quick or options.only):
        report.write(results, REPOSITORY / "docs")
        print("written to docs/benchmarks.json, docs/benchmarks.md and docs/performance.md")
    missed = [row.name for row in rows if row.ok is False]
    print(f"{len(missed)} targets missed{': ' if missed else ''}{'; '.join(missed)}")
    return 0


def warn_of_slow_creation(rows: list[Row]) -> None:
    """Say so where plain os calls took long to create a file.

    ext4 steps over every inode that was freed in the last minutes, on each creation: after many
    deletions the figures of writing say more about those than about anybody's code. For the same
    reason nothing is removed between the sections.
    """
    for row in rows:
        theirs_us = row.reference if row.against == OS_WRITE else None
        if theirs_us is not None and theirs_us > SLOW_CREATION_US:
            print(
                f"{row.name}: plain os calls took {theirs_us:.0f} µs. The disk is busy, or steps "
                "over what was deleted in the last minutes; wait five, then measure again",
                file=sys.stderr,
            )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where to work (default: build/, on this disk)")
    parser.add_argument(
        "--quick", action="store_true", help="100,000 entries, fewer rounds; writes no documents"
    )
    parser.add_argument(
        "--only", action="append", choices=RUNS, help="one section; writes no documents"
    )
    return parser.parse_args()


@contextmanager
def work_directory(parent: Path | None) -> Iterator[Path]:
    """Yield a new directory, removed at the end whatever happens."""
    parent = parent or REPOSITORY / "build"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=parent) as name:
        yield Path(name)


if __name__ == "__main__":
    sys.exit(main())
