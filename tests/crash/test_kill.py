"""SIGKILL at any moment: what was acknowledged is there, what was in flight is old or new."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from nexus.sdk import NexusFilesystem, collect, connect, fsck

WRITER = str(Path(__file__).with_name("kill_writer.py"))
MILLISECOND_SPINS = 20_000
"""Empty turns of a loop that take about a millisecond; nothing depends on how long exactly."""

Step = dict[str, Any]
Tree = dict[str, bytes | None]
"""Path to content, None for a directory: the model, and what a filesystem shows."""


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def replayed(tree: Tree, step: Step) -> Tree:
    """Return the tree after an operation."""
    after = dict(tree)
    match step["op"]:
        case "write":
            put(after, step["path"], content(*step["data"]))
        case "append":
            put(after, step["path"], (tree[step["path"]] or b"") + content(*step["data"]))
        case "patch":
            put(after, step["path"], patched(tree[step["path"]] or b"", step))
        case "batch":
            for path in step["paths"]:
                put(after, path, f"{step['marker']} {path}".encode())
        case "mkdir":
            put(after, step["path"], None)
        case "copy":
            after[step["new"]] = tree[step["old"]]
        case "unlink":
            remove(after, step["path"])
        case "rename":
            remove(after, step["old"])
            old, new = step["old"], step["new"]
            after |= {new + path[len(old) :]: tree[path] for path in within(tree, old)}
        case other:
            assert other in ("collect", "close")
    return after


def put(tree: Tree, path: str, data: bytes | None) -> None:
    tree[path] = data
    while (path := path.rpartition("/")[0]) and path not in tree:
        tree[path] = None


def patched(old: bytes, step: Step) -> bytes:
    data = content(*step["data"])
    if not data:
        return old
    start = step["offset"]
    return old[:start].ljust(start, b"\0") + data + old[start + len(data) :]


def within(tree: Tree, top: str) -> list[str]:
    return [path for path in tree if path == top or path.startswith(top + "/")]


def remove(tree: Tree, top: str) -> None:
    for path in within(tree, top):
        del tree[path]


def tree_of(nx: NexusFilesystem) -> Tree:
    entries = nx.list("/", recursive=True, details=True)
    return {e["path"]: None if e["is_directory"] else nx.read(e["path"]) for e in entries}


class Writer:
    """A child process that waits to be let go, and is then killed."""

    def __init__(self, data_dir: str, durability: str, seed: int, mode: str) -> None:
        command = [sys.executable, WRITER, data_dir, durability, str(seed), mode]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run_until(self, is_time: Callable[[dict[str, Any]], bool], spins: int) -> list[Any]:
        """Let it go; kill it some spins after ``is_time`` holds for a line; return its lines."""
        try:
            lines = self._lines_until(is_time)
            for _ in range(spins):
                pass
            died_by_itself = self._child.poll() is not None
        finally:
            rest, complaints = self.kill()
        assert not died_by_itself, complaints.decode()
        return lines + [json.loads(line) for line in rest.splitlines()]

    def _lines_until(self, is_time: Callable[[dict[str, Any]], bool]) -> list[Any]:
        child = self._child
        assert child.stdin
        assert child.stdout
        assert child.stderr
        ready = child.stdout.readline()
        assert ready, child.stderr.read().decode()
        child.stdin.write(b"\n")
        child.stdin.flush()
        lines: list[Any] = []
        while not is_time(lines[-1] if lines else {}):
            line = child.stdout.readline()
            assert line, child.stderr.read().decode()
            lines.append(json.loads(line))
        return lines

    def kill(self) -> tuple[bytes, bytes]:
        """End it; return what it still had to say. Idempotent."""
        child = self._child
        assert child.stdin
        assert child.stdout
        assert child.stderr
        if child.stdout.closed:
            return b"", b""
        child.kill()
        with child.stdin, child.stdout, child.stderr:
            # Not communicate(): it would pass over what readline() has taken in already.
            said = child.stdout.read(), child.stderr.read()
        child.wait()
        return said


def writers(
    data_dirs: list[str], durability: str, seed: int, mode: str
) -> Generator[Writer, None, None]:
    """Yield one writer a directory; the next one starts up while the last one is dealt with."""
    ahead: list[Writer] = []
    try:
        for number, data_dir in enumerate(data_dirs):
            ahead.append(Writer(data_dir, durability, seed * 1000 + number, mode))
            if len(ahead) == 2:
                yield ahead.pop(0)
        yield ahead.pop(0)
    finally:
        for writer in ahead:
            writer.kill()


def outcome(tree: Tree, lines: list[Any]) -> tuple[Tree, Tree]:
    """Return the tree with all that was acknowledged, and with what was in flight as well."""
    in_flight: Step | None = None
    for line in lines:
        if "begin" in line:
            in_flight = line["begin"]
        else:
            assert in_flight
            tree, in_flight = replayed(tree, in_flight), None
    return tree, replayed(tree, in_flight) if in_flight else tree


def checked(data_dir: str, durability: str, tree: Tree, lines: list[Any]) -> Tree:
    """Reopen after a kill, check everything, and return the tree as it is now."""
    old, new = outcome(tree, lines)
    with connect({"data_dir": data_dir, "durability": durability}) as nx:
        found = tree_of(nx)
        assert found in (old, new), difference(found, old, new, lines)
        report = fsck(nx)
        assert report.clean, (report.problems, lines[-3:])
    return found


def difference(found: Tree, old: Tree, new: Tree, lines: list[Any]) -> str:
    def changed(tree: Tree) -> list[str]:
        return [path for path in tree | found if tree.get(path, 0) != found.get(path, 0)]

    return f"not old: {changed(old)}; not new: {changed(new)}; last: {lines[-3:]}"


def live_through(
    data_dirs: list[str],
    durability: str,
    seed: int,
    mode: str,
    plan: Callable[[random.Random], tuple[Callable[[dict[str, Any]], bool], int]],
) -> None:
    rng = random.Random(seed)
    trees: dict[str, Tree] = {}
    with closing(writers(data_dirs, durability, seed, mode)) as children:
        for data_dir, writer in zip(data_dirs, children, strict=True):
            lines = writer.run_until(*plan(rng))
            trees[data_dir] = checked(data_dir, durability, trees.get(data_dir, {}), lines)
            if rng.random() < 0.1:
                with connect({"data_dir": data_dir}) as nx:
                    collect(nx, retention_s=0, grace_s=0)


def line_count(wanted: int) -> Callable[[dict[str, Any]], bool]:
    counter = iter(range(wanted))
    return lambda _: next(counter, None) is None


def during_the_mix(rng: random.Random) -> tuple[Callable[[dict[str, Any]], bool], int]:
    return line_count(rng.randrange(50)), rng.randrange(4 * MILLISECOND_SPINS)


def nth_start_of(
    kind: str, nth: int, rng: random.Random, most_ms: int
) -> tuple[Callable[[dict[str, Any]], bool], int]:
    counter = iter(range(nth))

    def is_time(line: dict[str, Any]) -> bool:
        return line.get("begin", {}).get("op") == kind and next(counter, None) is None

    return is_time, rng.randrange(most_ms * MILLISECOND_SPINS)


@pytest.mark.parametrize("durability", ["ordered", "strict"])
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_leaves_every_acknowledged_operation_and_no_half_of_any(
    tmp_path: Path, metastore: str, durability: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_METASTORE", metastore)
    # Two directories in turn, so that one writer starts up while the other's traces are checked.
    data_dirs = [str(tmp_path / name) for name in "ab"] * 10
    live_through(data_dirs, durability, seed, "mix", during_the_mix)


def test_a_kill_during_creation_leaves_a_directory_that_the_next_start_finishes(
    tmp_path: Path, metastore: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_METASTORE", metastore)
    data_dirs = [str(tmp_path / str(number)) for number in range(20)]
    live_through(
        data_dirs,
        "strict",
        7,
        "mix",
        lambda rng: (lambda _: True, rng.randrange(30 * MILLISECOND_SPINS)),
    )


def test_a_kill_during_a_collection_loses_no_content_in_use(tmp_path: Path) -> None:
    data_dirs = [str(tmp_path / name) for name in "ab"] * 10
    live_through(
        data_dirs,
        "ordered",
        8,
        "collect",
        lambda rng: nth_start_of("collect", rng.randrange(6), rng, 4),
    )


def test_a_kill_during_close_leaves_every_acknowledged_operation(
    tmp_path: Path, metastore: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_METASTORE", metastore)
    data_dirs = [str(tmp_path / name) for name in "ab"] * 10
    live_through(data_dirs, "ordered", 9, "close", lambda rng: nth_start_of("close", 0, rng, 10))


def test_the_model_says_what_the_filesystem_does(tmp_path: Path) -> None:
    steps: list[Step] = [
        {"op": "write", "path": "/d/e/f", "data": [1, 20]},
        {"op": "patch", "path": "/d/e/f", "offset": 25, "data": [2, 5]},
        {"op": "append", "path": "/d/e/f", "data": [3, 5]},
        {"op": "copy", "old": "/d/e/f", "new": "/d/g"},
        {"op": "rename", "old": "/d", "new": "/h"},
        {"op": "unlink", "path": "/h/e"},
    ]
    tree: Tree = {}
    for step in steps:
        tree = replayed(tree, step)
    expected = content(1, 20) + bytes(5) + content(2, 5) + content(3, 5)
    assert tree == {"/h": None, "/h/g": expected}
