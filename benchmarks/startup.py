"""From nothing to an open filesystem: a fresh interpreter, measured from outside."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.harness import Plan, Row, Target, announced, compare, interleave, single
from nexus.sdk import connect

SECTION = "startup"
OPTIONAL = ("typer", "rich", "yaml", "hypothesis", "pytest")
LIMIT_MS = 150

_BARE = "print('ready', flush=True)"
_CONNECT = """
import sys
from nexus.sdk import connect
nx = connect({"data_dir": sys.argv[1]})
print("ready", *sorted(set(sys.argv[2].split(",")) & set(sys.modules)), flush=True)
nx.close()
"""


class OptionalDependencyLoadedError(Exception):
    """connect() loaded something that only an extra brings."""


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    folder = plan.folder(SECTION)
    existing, new = str(folder / "existing"), folder / "new"
    connect({"data_dir": existing}).close()

    def reopen(_: int) -> float:
        return time_to_ready(_CONNECT, existing, ",".join(OPTIONAL))

    def create(_: int) -> float:
        shutil.rmtree(new, ignore_errors=True)
        return time_to_ready(_CONNECT, str(new), ",".join(OPTIONAL))

    with announced("start-up"):
        return [
            _row(plan, "import nexus.sdk and connect()", reopen),
            _row(plan, "the same, creating the data directory", create),
        ]


def _row(plan: Plan, name: str, measure: Callable[[int], float]) -> Row:
    samples = interleave(measure, lambda _: time_to_ready(_BARE), plan.rounds)
    row = compare(SECTION, name, samples, against="bare python", unit="ms")
    whole = single(
        SECTION,
        name,
        "ms",
        median(samples.measured) * 1e3,
        against="bare python",
        reference=row.reference,
        target=Target(LIMIT_MS, absolute=True),
    )
    print(f"    {name}: {min(samples.measured) * 1e3:.0f} to {max(samples.measured) * 1e3:.0f} ms")
    return whole


def time_to_ready(code: str, *arguments: str) -> float:
    """Return the seconds from starting an interpreter to its first line of output.

    Nothing is subtracted: what a bare interpreter takes is in it.
    """
    start = perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        elapsed = perf_counter() - start
    word, *loaded = line.split() or [""]
    if word != "ready" or process.returncode:
        raise subprocess.CalledProcessError(process.returncode, code)
    if loaded:
        raise OptionalDependencyLoadedError(", ".join(loaded))
    return elapsed
