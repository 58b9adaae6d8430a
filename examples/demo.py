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
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nexus.sdk import DT_MOUNT, NexusFilesystem, connect, fsck

SOURCE = Path(sysconfig.get_path("stdlib")).resolve()
DATA_DIR = Path(__file__).resolve().parent.parent / ".demo"
NOT_THE_LIBRARY = {"site-packages", "dist-packages"}
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
    hashes = step(table, "import", import_files, nx, files)
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


def step(table: Table, title: str, work, *args):  # type: ignore[no-untyped-def]
    """Run one step and add its row: what it returns is (files, bytes, outcome, result)."""
    started = time.perf_counter()
    files, size, outcome, result = work(*args)
    seconds = time.perf_counter() - started
    table.add_row(title, f"{files:,}", f"{size / 1e6:.1f}", f"{seconds:.2f}", outcome)
    return result


def import_files(nx: NexusFilesystem, files: list[Path]):  # type: ignore[no-untyped-def]
    """Write every file in all-or-nothing batches; return the hash of each by its path."""
    hashes: dict[str, str] = {}
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
    return len(files), total, "committed", hashes


def verify(nx: NexusFilesystem, top: str, hashes: dict[str, str]):  # type: ignore[no-untyped-def]
    """Compare names and contents beneath a path with what was imported."""
    found = {
        stat["path"].removeprefix(top): stat
        for stat in nx.walk(top)
        if not stat["is_directory"] and not NOT_THE_LIBRARY & set(stat["path"].split("/"))
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
    return len(hashes), total, "every byte equal", None


def grep_both(nx: NexusFilesystem):  # type: ignore[no-untyped-def]
    """Search both trees and compare the matches."""
    matches = []
    for top in ("/stdlib", "/mnt/stdlib"):
        found = nx.grep(PATTERN, top, include="*.py", limit=100_000)
        matches.append(
            [
                (match.path.removeprefix(top), match.line_number, match.line)
                for match in found
                if not NOT_THE_LIBRARY & set(match.path.split("/"))
            ]
        )
    if matches[0] != matches[1] or not matches[0]:
        raise Difference("grep finds other lines in the mounted folder")
    return len({path for path, _, _ in matches[0]}), 0, f"{len(matches[0])} lines in each", None


def rename(nx: NexusFilesystem, hashes: dict[str, str]):  # type: ignore[no-untyped-def]
    """Move the imported tree in one commit."""
    nx.sys_rename("/stdlib", "/library")
    if nx.exists("/stdlib"):
        raise Difference("/stdlib is still there after renaming it")
    return *verify(nx, "/library", hashes)[:3], None


def copy(nx: NexusFilesystem, hashes: dict[str, str]):  # type: ignore[no-untyped-def]
    """Copy the tree within the content-addressed mount, which stores nothing new."""
    before = sum(1 for _ in (DATA_DIR / "content").rglob("*"))
    nx.sys_copy("/library", "/copy")
    if sum(1 for _ in (DATA_DIR / "content").rglob("*")) != before:
        raise Difference("copying stored content again")
    return *verify(nx, "/copy", hashes)[:3], None


def check(nx: NexusFilesystem):  # type: ignore[no-untyped-def]
    """Check the filesystem as a whole."""
    report = fsck(nx)
    if not report.clean:
        raise Difference(f"fsck: {report.problems[0].object}: {report.problems[0].problem}")
    return report.files, report.bytes_verified, f"clean, {report.records:,} records", None


class bar:  # noqa: N801 - used like a function
    """A progress bar as a context manager that yields (progress, task)."""

    def __init__(self, title: str, total: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console)
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self):  # type: ignore[no-untyped-def]
        self._progress.start()
        return self._progress, self._task

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()


if __name__ == "__main__":
    sys.exit(main())
