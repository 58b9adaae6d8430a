"""The main job, on real files: import, verify, mount, compare, search, move, copy, check.

Brings this machine's Python standard library into a fresh embedded filesystem in ``.demo/`` and
does with it what a user would. Exits non-zero if anything differs from what it should be.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from nexus.sdk import DT_MOUNT, NexusFilesystem, connect, fsck

SOURCE = Path(sysconfig.get_path("stdlib")).resolve()
DATA_DIR = Path(__file__).resolve().parent.parent / ".demo"
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}
"""Installed packages, and what Python may write there while this runs."""
BATCH_FILES = 100
BATCH_BYTES = 4 << 20
PATTERN = r"^def main\("

console = Console()


class Difference(Exception):
    """Something is not as it should be."""


def main() -> int:
    """Run every step; return the exit code."""
    shutil.rmtree(DATA_DIR, ignore_errors=True)
    files = sorted(host_files())
    console.print(f"[bold]{SOURCE}[/]: {len(files):,} files into a new filesystem in {DATA_DIR}")
    table = Table(title="What was done and verified")
    for column in ("step", "files", "MB", "seconds", "outcome"):
        table.add_column(column, justify="left" if column in ("step", "outcome") else "right")
    try:
        with connect({"data_dir": str(DATA_DIR)}) as nx:
            run(nx, files, table)
    except Difference as difference:
        console.print(f"[bold red]It differs:[/] {difference}")
        return 1
    console.print(table)
    return 0


def run(nx: NexusFilesystem, files: list[Path], table: Table) -> None:
    """Do the steps in order, adding a row for each."""
    hashes: dict[str, str] = {}
    step(table, "import", import_files, nx, files, hashes)
    step(table, "read back, compare hashes", verify, nx, "/stdlib", hashes)
    nx.mkdir("/mnt")
    nx.sys_setattr(
        "/mnt/stdlib", entry_type=DT_MOUNT, backend={"driver": "path_local", "root": str(SOURCE)}
    )
    step(table, "mount in place, compare trees", verify, nx, "/mnt/stdlib", hashes)
    step(table, f"grep '{PATTERN}' in both", grep_both, nx)
    step(table, "rename the tree", rename, nx, hashes)
    step(table, "copy the tree, moving no bytes", copy, nx, hashes)
    nx.rmdir("/mnt/stdlib")
    if nx.list("/mnt/stdlib"):
        raise Difference("the folder is still there after unmounting")
    step(table, "fsck: every record and object", check, nx)
    stored = sum(
        path.stat().st_size for path in (DATA_DIR / "content").rglob("*") if path.is_file()
    )
    total = sum(path.stat().st_size for path in files)
    saved = 1 - stored / total
    table.add_section()
    table.add_row("stored after dedup", "", f"{stored / 1e6:.1f}", "", f"{saved:.1%} saved")


def host_files() -> Iterator[Path]:
    """Yield the regular files of the standard library."""
    pending = [SOURCE]
    while pending:
        for entry in pending.pop().iterdir():
            if entry.is_symlink():
                continue
            if entry.is_dir():
                if entry.name not in NOT_THE_LIBRARY:
                    pending.append(entry)
            elif entry.is_file():
                yield entry


def is_library(relative: str) -> bool:
    """Return whether a path of the mounted folder is one of those that were imported."""
    return (
        not NOT_THE_LIBRARY & set(relative.split("/")) and not (SOURCE / relative[1:]).is_symlink()
    )


class Done(NamedTuple):
    """What a step did: how many files and bytes, and in words."""

    files: int
    size_bytes: int
    outcome: str


def step(table: Table, title: str, work: Callable[..., Done], *args: Any) -> None:
    """Run one step and add its row."""
    started = time.perf_counter()
    done = work(*args)
    seconds = f"{time.perf_counter() - started:.2f}"
    size = f"{done.size_bytes / 1e6:.1f}" if done.size_bytes else ""
    table.add_row(title, f"{done.files:,}", size, seconds, done.outcome)


def import_files(nx: NexusFilesystem, files: list[Path], hashes: dict[str, str]) -> Done:
    """Write every file in all-or-nothing batches, and note the hash of each by its path."""
    batch: dict[str, bytes] = {}
    total = 0
    with bar("importing", len(files)) as (progress, task):
        for file in files:
            data = file.read_bytes()
            relative = "/" + file.relative_to(SOURCE).as_posix()
            hashes[relative] = hashlib.sha256(data).hexdigest()
            batch["/stdlib" + relative] = data
            total += len(data)
            if len(batch) == BATCH_FILES or sum(map(len, batch.values())) > BATCH_BYTES:
                nx.write_batch(batch)
                progress.advance(task, len(batch))
                batch = {}
        nx.write_batch(batch)
        progress.advance(task, len(batch))
    return Done(len(files), total, "committed")


def verify(nx: NexusFilesystem, top: str, hashes: dict[str, str]) -> Done:
    """Compare names and contents beneath a path with what was imported."""
    found = {
        stat["path"].removeprefix(top): stat
        for stat in nx.walk(top)
        if not stat["is_directory"] and is_library(stat["path"].removeprefix(top))
    }
    if found.keys() != hashes.keys():
        odd = sorted(found.keys() ^ hashes.keys())
        raise Difference(f"{top}: {len(odd)} names differ, the first is {odd[0]}")
    total = 0
    with bar(f"verifying {top}", len(hashes)) as (progress, task):
        for relative, wanted in hashes.items():
            data = nx.read(top + relative)
            total += len(data)
            if hashlib.sha256(data).hexdigest() != wanted:
                raise Difference(f"{top}{relative}: the bytes differ")
            progress.advance(task)
    return Done(len(hashes), total, "every byte equal")


def grep_both(nx: NexusFilesystem) -> Done:
    """Search both trees and compare the matches."""
    matches = []
    for top in ("/stdlib", "/mnt/stdlib"):
        found = nx.grep(PATTERN, top, include="*.py", limit=100_000)
        matches.append(
            [
                (match.path.removeprefix(top), match.line_number, match.line)
                for match in found
                if is_library(match.path.removeprefix(top))
            ]
        )
    if matches[0] != matches[1] or not matches[0]:
        raise Difference("grep finds other lines in the mounted folder")
    files = {path for path, _, _ in matches[0]}
    return Done(len(files), 0, f"{len(matches[0])} lines in each")


def rename(nx: NexusFilesystem, hashes: dict[str, str]) -> Done:
    """Move the imported tree in one commit."""
    nx.sys_rename("/stdlib", "/library")
    if nx.exists("/stdlib"):
        raise Difference("/stdlib is still there after renaming it")
    return verify(nx, "/library", hashes)


def copy(nx: NexusFilesystem, hashes: dict[str, str]) -> Done:
    """Copy the tree within the content-addressed mount, which stores nothing new."""
    before = sum(1 for _ in (DATA_DIR / "content").rglob("*"))
    nx.sys_copy("/library", "/copy")
    if sum(1 for _ in (DATA_DIR / "content").rglob("*")) != before:
        raise Difference("copying stored content again")
    return verify(nx, "/copy", hashes)


def check(nx: NexusFilesystem) -> Done:
    """Check the filesystem as a whole."""
    report = fsck(nx)
    if not report.clean:
        raise Difference(f"fsck: {report.problems[0].object}: {report.problems[0].problem}")
    return Done(report.files, report.bytes_verified, f"clean, {report.records:,} records")


@contextmanager
def bar(title: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar for the length of the block."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield progress, progress.add_task(title, total=total)


if __name__ == "__main__":
    sys.exit(main())
