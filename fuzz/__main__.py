"""Run every fuzz target for a bounded time; a failure leaves the bytes that cause it.

``python -m fuzz [--seconds 15] [--jobs 2] [NAME ...]``. Corpora and failures are kept beneath
``rust/nexus_kernel/target``, so that later runs go on from what earlier ones found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from fuzz.seeds import SEEDS
from fuzz.targets import TARGETS

REPOSITORY = Path(__file__).resolve().parents[1]
CRATE = REPOSITORY / "rust" / "nexus_kernel"
WORK = CRATE / "target" / "fuzz"
RUST_TARGETS = sorted(path.stem for path in (CRATE / "fuzz" / "targets").glob("*.rs"))

COVERAGE = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
]
BOUNDS = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=4096", "-print_final_stats=1"]


class Result(NamedTuple):
    """How the run of a target ended."""

    name: str
    command: list[str]
    returncode: int
    output: str


def host() -> str:
    """Return the triple of this machine; naming it keeps the flags off build scripts."""
    done = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True)
    return next(
        line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("host: ")
    )


def build_rust() -> Path:
    """Return the folder of the instrumented programs."""
    triple = host()
    # The switches of coverage and sanitizer are in every toolchain, but open to a nightly only.
    environment = os.environ | {
        "RUSTC_BOOTSTRAP": "1",
        "RUSTFLAGS": " ".join([*COVERAGE, "-Zsanitizer=address", "--cfg fuzzing"]),
        "CARGO_TARGET_DIR": str(WORK),
    }
    command = ["cargo", "build", "--quiet", "--release", "--locked", "--target", triple]
    subprocess.run(command, cwd=CRATE / "fuzz", env=environment, check=True)
    return WORK / triple / "release"


def commands(names: list[str]) -> dict[str, list[str]]:
    """Return what starts each target."""
    found = {
        name: [sys.executable, "-m", "fuzz.run_target", name]
        for name in sorted(TARGETS)
        if not names or name in names
    }
    rust = [name for name in RUST_TARGETS if not names or f"rust_{name}" in names]
    if rust and shutil.which("cargo") is not None:
        programs = build_rust()
        found |= {f"rust_{name}": [str(programs / name)] for name in rust}
    return found


def run(name: str, program: list[str], seconds: int) -> Result:
    """Run one target in a process of its own."""
    corpus = WORK / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]() if name in SEEDS else ()):
        (corpus / f"seed-{number}").write_bytes(seed)
    failures = WORK / "failures"
    failures.mkdir(exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={failures}/{name}-", *BOUNDS]
    command = [*program, *options, str(corpus)]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return Result(name, program, done.returncode, done.stdout + done.stderr)


def main() -> int:
    """Return how many targets failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    programs = commands(asked.names)
    if not programs:
        parser.error(f"no such target: {' '.join(asked.names)}")
    with ThreadPoolExecutor(asked.jobs) as pool:
        waiting = [
            pool.submit(run, name, program, asked.seconds) for name, program in programs.items()
        ]
        failed = [result for result in (future.result() for future in waiting) if report(result)]
    return len(failed)


def report(result: Result) -> bool:
    """Print how a run ended; return whether it failed."""
    if result.returncode == 0:
        lines = [line for line in result.output.splitlines() if "number_of_executed" in line]
        print(f"{result.name}: {lines[-1].split()[-1] if lines else 'unknown'} runs", flush=True)
        return False
    print(result.output[-8000:])
    print(f"{result.name}: FAILED; again with: {' '.join(result.command)} FILE", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
