"""What the kernel's parts cost, and the calls that have no target of their own."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.harness import (
    Measurement,
    Plan,
    Row,
    Target,
    announced,
    by_kernel,
    compare,
    each,
    interleave,
    quickest,
    random_pieces,
    settle,
    single,
    timed,
)
from benchmarks.small_files import FILE_BYTES, OS_WRITE, make_trees, os_write
from nexus.core.primitives import VFSRouter
from nexus.core.vfs_locks import make_vfs_locks
from nexus.lib.native import chosen
from nexus.sdk import NexusFilesystem, connect

SECTION = "primitives"
CALLS = 2_000
FILES = 300
_NO_SLOWER = ("overwrite", "rename", "unlink")


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    folder = plan.folder(SECTION)
    with announced("primitives in memory"):
        rows = [*locking(plan), routing(plan)]
    with connect({"data_dir": str(folder / "nexus")}) as nx, announced("other calls"):
        rows += [*mutations(plan, nx, folder), globbing(plan, nx, folder)]
    return rows


def locking(plan: Plan) -> list[Row]:
    """Acquire and release a lock that nobody else wants, four components deep."""
    locks = make_vfs_locks()
    limits = Target(0.5, absolute=True), Target(3, absolute=True)
    target = by_kernel(rust=limits[0], python=limits[1])
    path = "/root/work/project/file.txt"

    def cost(acquire: Callable[[str], object]) -> float:
        def once(_: str) -> None:
            with acquire(path):  # type: ignore[attr-defined]
                pass

        return quickest(lambda _: each(once, [path] * CALLS), 4 * plan.rounds) * 1e6

    return [
        single(SECTION, f"VFS lock, {name}, acquire and release", "µs", cost(take), target=target)
        for name, take in (("shared", locks.read), ("exclusive", locks.write))
    ]


def routing(plan: Plan) -> Row:
    """Find the mount of a path among ten, four components deep."""
    router: VFSRouter[str] = VFSRouter()
    router.add("root", "/", "top")
    for number in range(9):
        router.add("root", f"/mnt/{number}", "below")

    def once(path: str) -> None:
        router.route(path, "root")

    paths = ["/work/project/folder/file.txt"] * CALLS

    def cost(call: Callable[[str], object]) -> float:
        return quickest(lambda _: each(call, paths), 4 * plan.rounds) * 1e6

    native = chosen().module
    if native is None:
        target = Target(1, absolute=True)
        return single(SECTION, "route among 10 mounts", "µs", cost(once), target=target)
    empty = native.RingBuffer(1).get_nowait
    name, target = "route among 10 mounts, over an empty native call", Target(0.15, absolute=True)
    measured = cost(once) - cost(lambda path: empty())
    return single(SECTION, name, "µs", measured, target=target)


def mutations(plan: Plan, nx: NexusFilesystem, folder: Path) -> list[Row]:
    """Change 4 KiB files one call at a time, without waiting for the disk."""
    theirs = folder / "os"
    theirs.mkdir()
    nx.mkdir("/work")
    ours = _Mutations("/work", nx.write, nx.append, nx.sys_rename, nx.sys_copy, nx.sys_unlink)
    plain = _Mutations(str(theirs), os_write, _os_append, os.rename, shutil.copyfile, os.unlink)
    against = {
        "overwrite": OS_WRITE,
        "append 64 bytes": "os.open, write, close",
        "copy": "shutil.copyfile",
        "rename": "os.rename",
        "unlink": "os.unlink",
    }
    rows = []
    for name, doing in against.items():
        samples = interleave(ours.measure(name), plain.measure(name), plan.few_rounds)
        target = by_kernel(rust=Target(1)) if name in _NO_SLOWER else None
        title = f"{name}, 4 KiB file"
        rows.append(compare(SECTION, title, samples, against=doing, target=target))
    return rows


class _Mutations:
    """The mutating calls of one side, each over files of its own."""

    def __init__(
        self,
        base: str,
        write: Callable[[str, bytes], object],
        append: Callable[[str, bytes], object],
        rename: Callable[[str, str], object],
        copy: Callable[[str, str], object],
        unlink: Callable[[str], object],
    ) -> None:
        self._base = base
        self._write = write
        self._calls: dict[str, Callable[[str], object]] = {
            "overwrite": lambda path: write(path, os.urandom(FILE_BYTES)),
            "append 64 bytes": lambda path: append(path, os.urandom(64)),
            "copy": lambda path: copy(path, path + ".copy"),
            "rename": lambda path: rename(path, path + ".new"),
            "unlink": unlink,
        }

    def measure(self, name: str) -> Measurement:
        """Return a measurement of one call over new files, each round."""
        call = self._calls[name]

        def work(number: int) -> float:
            prefix = f"{self._base}/{name.replace(' ', '-')}-{number}"
            paths = [f"{prefix}-{index:03d}" for index in range(FILES)]
            for path, data in zip(paths, random_pieces(FILES, FILE_BYTES), strict=True):
                self._write(path, data)
            settle()
            return each(call, paths)

        return work


def _os_append(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    os.write(fd, data)
    os.close(fd)


def globbing(plan: Plan, nx: NexusFilesystem, folder: Path) -> Row:
    """Find every tenth of 10,000 files in 100 directories by its name."""
    base = folder / "glob"
    make_trees(nx, "/glob", base)

    def ours(_: int) -> float:
        return timed(lambda: nx.glob("**/*.txt", "/glob"))

    def plain(_: int) -> float:
        start = perf_counter()
        sorted(glob.glob("**/*.txt", root_dir=base, recursive=True))
        return perf_counter() - start

    samples = interleave(ours, plain, plan.few_rounds)
    return compare(SECTION, "glob over 10,000 files", samples, against="glob.glob", unit="ms")
