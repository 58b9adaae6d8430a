"""Large content that neither repeats nor compresses: written, read, and written again."""

from __future__ import annotations

import os
import random

from benchmarks.harness import (
    MIB,
    Plan,
    Row,
    Target,
    announced,
    compare,
    interleave,
    random_pieces,
    settle,
    timed,
)
from nexus.sdk import NexusFilesystem, connect

SECTION = "large_files"
FILE_MIB = 256
_READ_BYTES = 256 << 10
_READS = 256
_AGAIN = 32
_AT_LEAST_FOUR_TENTHS = Target(0.4, at_most=False)


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    folder = plan.folder(SECTION)
    theirs = str(folder / "file.bin")
    with connect({"data_dir": str(folder / "nexus")}) as nx:
        nx.mkdir("/work")
        with announced(f"{FILE_MIB} MiB, written"):
            rows = [writing(plan, nx, theirs)]
        with announced(f"{FILE_MIB} MiB, read"):
            rows += reading(plan, nx, theirs)
            rows.append(reading_anywhere(plan, nx, theirs))
        with announced("1 MiB, written again"):
            rows.append(writing_again(plan, nx))
    return rows


def os_write(path: str, pieces: list[bytes]) -> None:
    fd = os.open(path + ".tmp", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    for piece in pieces:
        os.write(fd, piece)
    os.close(fd)
    os.rename(path + ".tmp", path)


def os_read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    while os.read(fd, MIB):
        pass
    os.close(fd)


def writing(plan: Plan, nx: NexusFilesystem, theirs: str) -> Row:
    """Write the same new pieces to both."""
    pieces: list[bytes] = []

    def ours(number: int) -> float:
        pieces[:] = random_pieces(FILE_MIB, MIB)  # new each round: nothing is stored already
        settle()
        return timed(lambda: nx.write(f"/work/{number}.bin", iter(pieces)))

    def plain(number: int) -> float:
        if os.path.exists(theirs):
            os.unlink(theirs)
        settle()
        return timed(lambda: os_write(theirs, pieces))

    return compare(
        SECTION,
        f"write {FILE_MIB} MiB",
        interleave(ours, plain, plan.few_rounds),
        against="os.write, 1 MiB pieces",
        unit="MiB/s",
        units_per_operation=FILE_MIB,
        target=_AT_LEAST_FOUR_TENTHS,
    )


def reading(plan: Plan, nx: NexusFilesystem, theirs: str) -> list[Row]:
    """Read a file of the last writing round, warm, by offset and as a stream."""
    path = "/work/0.bin"
    stat = nx.sys_stat(path)
    assert stat is not None

    def by_offset() -> None:
        for offset in range(0, FILE_MIB * MIB, MIB):
            nx.sys_read(path, MIB, offset)

    def streamed() -> None:
        for _ in nx.stream(stat["etag"]):
            pass

    return [
        compare(
            SECTION,
            name,
            interleave(
                lambda _, work=work: timed(work),  # type: ignore[misc]
                lambda _: timed(lambda: os_read(theirs)),
                plan.few_rounds,
            ),
            against="os.read, 1 MiB pieces",
            unit="MiB/s",
            units_per_operation=FILE_MIB,
            target=_AT_LEAST_FOUR_TENTHS,
        )
        for name, work in (
            (f"sys_read {FILE_MIB} MiB by 1 MiB", by_offset),
            (f"stream {FILE_MIB} MiB", streamed),
        )
    ]


def reading_anywhere(plan: Plan, nx: NexusFilesystem, theirs: str) -> Row:
    """Read 256 KiB at a time from anywhere in the file, warm."""
    path = "/work/0.bin"
    source = random.Random(1)
    offsets = [source.randrange(FILE_MIB * MIB - _READ_BYTES) for _ in range(_READS)]
    fd = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)

    def ours() -> None:
        for offset in offsets:
            nx.sys_read(path, _READ_BYTES, offset)

    def plain() -> None:
        for offset in offsets:
            os.pread(fd, _READ_BYTES, offset)

    try:
        return compare(
            SECTION,
            f"sys_read 256 KiB anywhere in {FILE_MIB} MiB",
            interleave(
                lambda _: timed(ours) / _READS, lambda _: timed(plain) / _READS, plan.rounds
            ),
            against="os.pread",
            target=Target(2.0),
        )
    finally:
        os.close(fd)


def writing_again(plan: Plan, nx: NexusFilesystem) -> Row:
    """Write contents of 1 MiB that are stored already, against writing them first."""
    pieces: list[bytes] = []

    def write(folder: str) -> float:
        def work() -> None:
            for index, piece in enumerate(pieces):
                nx.write(f"/work/{folder}/{index}", piece)

        settle()
        return timed(work) / _AGAIN

    def first(number: int) -> float:
        pieces[:] = random_pieces(_AGAIN, MIB)
        return write(f"first{number}")

    return compare(
        SECTION,
        "write the same 1 MiB again",
        interleave(lambda number: write(f"again{number}"), first, plan.rounds),
        against="writing it first",
        target=Target(0.5),
    )
