"""From nothing to an open filesystem: a fresh interpreter, measured from outside.

Bytecode is cached, as it is wherever a package has been imported once: the caches are in the
directory of the benchmark, and the round that does not count fills them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import msgspec

from benchmarks.harness import (
    Measurement,
    Plan,
    Row,
    Target,
    announced,
    by_kernel,
    compare,
    interleave,
    single,
)
from nexus.sdk import connect

SECTION = "startup"
OPTIONAL = ("typer", "rich", "yaml", "hypothesis", "pytest")
LIMIT_MS = 150
OVER_BARE_MS = 50

_BARE = "print('ready', flush=True)"
_CONNECT = """
import sys
from nexus.sdk import connect
nx = connect({"data_dir": sys.argv[1]})
print("ready", *sorted(set(sys.argv[2].split(",")) & set(sys.modules)), flush=True)
nx.close()
"""


_READ = _CONNECT.replace("print(", 'nx.read("/file")\nprint(', 1)


class OptionalDependencyLoadedError(Exception):
    """connect() loaded something that only an extra brings."""


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    folder = plan.folder(SECTION)
    existing, new = str(folder / "existing"), folder / "new"
    with connect({"data_dir": existing}) as nx:
        nx.write("/file", b"content")

    environment = dict(os.environ) | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def bare(_: int) -> float:
        return time_to_ready(environment, _BARE)

    def reopen(_: int) -> float:
        return time_to_ready(environment, _CONNECT, existing, ",".join(OPTIONAL))

    def read(_: int) -> float:
        return time_to_ready(environment, _READ, existing, ",".join(OPTIONAL))

    def create(_: int) -> float:
        shutil.rmtree(new, ignore_errors=True)
        return time_to_ready(environment, _CONNECT, str(new), ",".join(OPTIONAL))

    with announced("start-up"):
        return [
            _row(plan, "import nexus.sdk and connect()", reopen, bare),
            _row(plan, "the same, creating the data directory", create, bare),
            _over_bare(plan, read, bare),
        ]


def _row(plan: Plan, name: str, measure: Measurement, bare: Measurement) -> Row:
    samples = interleave(measure, bare, plan.rounds)
    row = compare(SECTION, name, samples, against="bare python", unit="ms")
    limit = Target(LIMIT_MS, absolute=True)
    return msgspec.structs.replace(row, target=limit.text("ms"), ok=limit.holds(row.measured))


def _over_bare(plan: Plan, measure: Measurement, bare: Measurement) -> Row:
    samples = interleave(measure, bare, plan.rounds)
    pairs = zip(samples.measured, samples.reference, strict=True)
    over_ms = median(ours - theirs for ours, theirs in pairs) * 1e3
    target = by_kernel(rust=Target(OVER_BARE_MS, absolute=True))
    name = "import, connect() and a first read, over bare python"
    return single(SECTION, name, "ms", over_ms, target=target)


def time_to_ready(environment: dict[str, str], code: str, *arguments: str) -> float:
    """Return the seconds from starting an interpreter to its first line of output.

    Nothing is subtracted: what a bare interpreter takes is in it.
    """
    start = perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
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
