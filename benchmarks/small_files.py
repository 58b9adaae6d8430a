"""Files of 4 KiB: read, stat, write, batches and listings, against plain os calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness import (
    Plan,
    Row,
    Samples,
    Target,
    announced,
    by_kernel,
    compare,
    each,
    interleave,
    random_pieces,
    settle,
    timed,
)
from nexus.sdk import NexusFilesystem, connect

SECTION = "small_files"
FILE_BYTES = 4096
FILES = 500
LISTED = 1000
STRICT_FILES = 25
OS_WRITE = "os write, rename"
BATCH_FILES = 100
THREADS = 16
THREAD_FILES = 10
TREE_DIRECTORIES = 100
TREE_FILES = 100

_READ = os.O_RDONLY | os.O_CLOEXEC
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    folder = plan.folder(SECTION)
    with connect({"data_dir": str(folder / "nexus")}) as nx, announced("4 KiB files, ordered"):
        rows = [*reading(plan, nx, folder), writing(plan, nx, folder)]
        rows += [*listing(plan, nx, folder), walking(plan, nx, folder)]
    strict = {"data_dir": str(folder / "strict"), "durability": "strict"}
    with connect(strict) as nx, announced("4 KiB files, strict"):
        rows += [strict_writing(plan, nx, folder), *batching(plan, nx, folder), threads(plan, nx)]
    return rows


def os_read(path: str) -> bytes:
    fd = os.open(path, _READ)
    data = os.pread(fd, FILE_BYTES, 0)
    os.close(fd)
    return data


def os_write(path: str, data: bytes) -> None:
    """Write under a temporary name, then rename."""
    fd = os.open(path + ".tmp", _CREATE, 0o644)
    os.write(fd, data)
    os.close(fd)
    os.rename(path + ".tmp", path)


def os_write_durably(path: str, data: bytes) -> None:
    """Write under a temporary name, sync, rename, and sync the directory."""
    fd = os.open(path + ".tmp", _CREATE, 0o644)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(path + ".tmp", path)
    fd = os.open(path[: path.rindex("/")], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)


def reading(plan: Plan, nx: NexusFilesystem, folder: Path) -> list[Row]:
    """Read and stat warm files."""
    names = [f"file-{number:04d}.txt" for number in range(FILES)]
    contents = random_pieces(FILES, FILE_BYTES)
    (folder / "read").mkdir()
    theirs = [f"{folder}/read/{name}" for name in names]
    ours = [f"/work/read/{name}" for name in names]
    for path, data in zip(theirs, contents, strict=True):
        os_write(path, data)
    nx.write_batch(zip(ours, contents, strict=True))
    settle()
    return [
        compare(
            SECTION,
            "read 4 KiB",
            interleave(lambda _: each(nx.read, ours), lambda _: each(os_read, theirs), plan.rounds),
            against="os.open, pread, close",
            target=by_kernel(rust=Target(0.8), python=Target(4)),
        ),
        compare(
            SECTION,
            "stat",
            interleave(
                lambda _: each(nx.sys_stat, ours), lambda _: each(os.stat, theirs), plan.rounds
            ),
            against="os.stat",
            target=by_kernel(rust=Target(1), python=Target(4)),
        ),
        compare(
            SECTION,
            "exists, of a missing path",
            interleave(
                lambda _: each(nx.exists, [path + ".missing" for path in ours]),
                lambda _: each(os.path.exists, [path + ".missing" for path in theirs]),
                plan.rounds,
            ),
            against="os.path.exists",
            target=by_kernel(rust=Target(0.7)),
        ),
    ]


def write_new(
    write: Callable[[str, bytes], object], base: str, files: int
) -> Callable[[int], float]:
    """Return a measurement that writes new files with new content, each round."""

    def measure(number: int) -> float:
        contents = random_pieces(files, FILE_BYTES)
        paths = [f"{base}/{number}-{index:04d}.txt" for index in range(files)]

        def work() -> None:
            for path, data in zip(paths, contents, strict=True):
                write(path, data)

        return timed(work, files)

    return measure


def writing(plan: Plan, nx: NexusFilesystem, folder: Path) -> Row:
    """Write new files without waiting for the disk."""
    theirs = folder / "write"
    theirs.mkdir()
    nx.mkdir("/work/write")
    settle()
    samples = interleave(
        write_new(nx.write, "/work/write", FILES),
        write_new(os_write, str(theirs), FILES),
        plan.rounds,
    )
    return compare(
        SECTION,
        "write a new 4 KiB file, ordered",
        samples,
        against=OS_WRITE,
        target=by_kernel(rust=Target(1), python=Target(4)),
    )


def strict_writing(plan: Plan, nx: NexusFilesystem, folder: Path) -> Row:
    """Write new files, each synced before the call returns."""
    theirs = folder / "strict-os"
    theirs.mkdir()
    nx.mkdir("/work/write")
    samples = interleave(
        write_new(nx.write, "/work/write", STRICT_FILES),
        write_new(os_write_durably, str(theirs), STRICT_FILES),
        plan.rounds,
    )
    return compare(
        SECTION,
        "write a new 4 KiB file, strict",
        samples,
        against="os write, fsync, rename, fsync of the directory",
        target=by_kernel(rust=Target(0.5), python=Target(2)),
    )


def batching(plan: Plan, nx: NexusFilesystem, folder: Path) -> list[Row]:
    """Write 100 files in one durable commit, against one durable commit a file."""
    theirs = folder / "batch-os"
    theirs.mkdir()
    nx.mkdir("/work/batch")
    nx.mkdir("/work/single")

    def batch(number: int) -> float:
        contents = random_pieces(BATCH_FILES, FILE_BYTES)
        items = [
            (f"/work/batch/{number}-{index:03d}.txt", data) for index, data in enumerate(contents)
        ]
        return timed(lambda: nx.write_batch(items), BATCH_FILES)

    one_by_one = write_new(nx.write, "/work/single", BATCH_FILES)
    os_one_by_one = write_new(os_write_durably, str(theirs), BATCH_FILES)
    beside: list[float] = []

    def alone(number: int) -> float:
        beside.append(os_one_by_one(number))
        return one_by_one(number)

    samples = interleave(batch, alone, plan.few_rounds)
    name = f"batch of {BATCH_FILES} files, strict"
    return [
        compare(
            SECTION,
            name,
            samples,
            against="one by one, strict",
            unit="files/s",
            target=Target(10, at_most=False),
        ),
        compare(
            SECTION,
            name,
            Samples(samples.measured, beside[1:]),
            against="os one by one, synced",
            unit="files/s",
        ),
    ]


def threads(plan: Plan, nx: NexusFilesystem) -> Row:
    """Write strictly from many threads, which share syncs, against one by one."""
    nx.mkdir("/work/shared")
    one_by_one = write_new(nx.write, "/work/alone", THREADS)

    def together(number: int) -> float:
        contents = random_pieces(THREADS * THREAD_FILES, FILE_BYTES)
        barrier = threading.Barrier(THREADS + 1)

        def write(thread: int) -> None:
            barrier.wait()
            for index in range(THREAD_FILES):
                data = contents[thread * THREAD_FILES + index]
                nx.write(f"/work/shared/{number}-{thread}-{index}.txt", data)

        started = [threading.Thread(target=write, args=(thread,)) for thread in range(THREADS)]
        for thread in started:
            thread.start()

        def work() -> None:
            barrier.wait()
            for thread in started:
                thread.join()

        return timed(work, len(contents))

    return compare(
        SECTION,
        f"{THREADS} threads, strict",
        interleave(together, one_by_one, plan.few_rounds),
        against="one by one, strict",
        unit="files/s",
        target=by_kernel(rust=Target(10, at_most=False)),
    )


def listing(plan: Plan, nx: NexusFilesystem, folder: Path) -> list[Row]:
    """List directories of 1,000 and of 10,000 files."""
    return [
        _listing(plan, nx, folder, LISTED, Target(3)),
        _listing(plan, nx, folder, LISTED * 10, None),
    ]


def _listing(
    plan: Plan, nx: NexusFilesystem, folder: Path, entries: int, python: Target | None
) -> Row:
    theirs, ours = folder / f"list-{entries}", f"/work/list-{entries}"
    theirs.mkdir()
    names = [f"entry-{number:05d}.txt" for number in range(entries)]
    for name in names:
        (theirs / name).touch()
    nx.write_batch((f"{ours}/{name}", b"") for name in names)
    times = 20_000 // entries
    samples = interleave(
        lambda _: each(nx.list, [ours] * times),
        lambda _: each(os.listdir, [str(theirs)] * times),
        plan.rounds,
    )
    target = by_kernel(rust=Target(0.8), python=python)
    return compare(
        SECTION, f"list {entries:,} entries", samples, against="os.listdir", target=target
    )


def make_trees(nx: NexusFilesystem, ours: str, theirs: Path) -> None:
    """Make the same 10,000 empty files in 100 directories on both sides, a tenth of them .txt."""
    for directory in range(TREE_DIRECTORIES):
        (theirs / f"{directory:03d}").mkdir(parents=True)
        numbers = range(TREE_FILES)
        names = [f"{directory:03d}/{n:03d}.{'md' if n % 10 else 'txt'}" for n in numbers]
        for name in names:
            (theirs / name).touch()
        nx.write_batch((f"{ours}/{name}", b"") for name in names)


def walking(plan: Plan, nx: NexusFilesystem, folder: Path) -> Row:
    """List 10,000 files in 100 directories, all at once."""
    base = folder / "walk"
    make_trees(nx, "/walk", base)

    def ours(_: int) -> float:
        return timed(lambda: nx.list("/walk", recursive=True))

    def plain(_: int) -> float:
        return timed(lambda: [f"{top}/{name}" for top, _, names in os.walk(base) for name in names])

    return compare(
        SECTION,
        f"walk {TREE_DIRECTORIES * TREE_FILES:,} files",
        interleave(ours, plain, plan.few_rounds),
        against="os.walk",
        unit="ms",
        target=by_kernel(rust=Target(1)),
    )
