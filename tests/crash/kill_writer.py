"""A writer to be killed: random valid operations, each announced and acknowledged.

Run as ``kill_writer.py DIR DURABILITY SEED MODE``. It says that it is ready and waits for a line
on standard input before it opens anything. Then, a JSON line each: ``{"begin": operation}`` before
an operation starts, and ``{"done": its name}`` after it returned. Content is named by a seed and a
size. MODE: "mix" for ever; "collect" with a collection as every second operation; "close" ends
after a few.
"""

import json
import random
import sys
from typing import Any

from nexus.sdk import NexusFilesystem, collect, connect

MOST_FILES = 40
MOST_LARGE = 3
LARGE_BYTES = 1 << 20
Operation = dict[str, Any]


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Chooser:
    """Chooses operations that are valid for the tree as it is."""

    def __init__(self, nx: NexusFilesystem, rng: random.Random) -> None:
        self.nx = nx
        self.rng = rng

    def choose(self) -> Operation:
        entries = self.nx.list("/", recursive=True, details=True)
        self.sizes = {e["path"]: e["size"] for e in entries if not e["is_directory"]}
        self.directories = ["/"] + [e["path"] for e in entries if e["is_directory"]]
        if not self.sizes:
            return self.write()
        if len(self.sizes) > MOST_FILES:
            return self.unlink()
        kinds = [
            *[self.write] * 4,
            *[self.append] * 2,
            *[self.patch] * 2,
            *[self.batch] * 2,
            *[self.rename_directory] * 3,
            self.rename_file,
            self.unlink,
            self.mkdir,
            self.copy,
        ]
        return self.rng.choice(kinds)()

    def some_bytes(self) -> list[int]:
        large = sum(size > LARGE_BYTES for size in self.sizes.values())
        if large < MOST_LARGE and self.rng.random() < 0.15:
            size = LARGE_BYTES + self.rng.randrange(LARGE_BYTES // 4)
        else:
            size = self.rng.choice([0, 1, 17, 300, 5000])
        return [self.rng.randrange(1 << 32), size]

    def fresh(self, stem: str) -> str:
        directory = self.rng.choice([d for d in self.directories if d.count("/") < 5])
        return f"{directory.rstrip('/')}/{stem}{self.rng.randrange(10**6)}"

    def file(self) -> str:
        return self.rng.choice(sorted(self.sizes))

    def write(self) -> Operation:
        new = not self.sizes or self.rng.random() < 0.5
        path = self.fresh("f") if new else self.file()
        return {"op": "write", "path": path, "data": self.some_bytes()}

    def append(self) -> Operation:
        return {"op": "append", "path": self.file(), "data": self.some_bytes()}

    def patch(self) -> Operation:
        path = self.file()
        offset = self.rng.randrange(self.sizes[path] + 10)
        return {"op": "patch", "path": path, "offset": offset, "data": self.some_bytes()}

    def batch(self) -> Operation:
        paths = {self.fresh("f") for _ in range(3)} | {self.file() for _ in range(4)}
        return {"op": "batch", "paths": sorted(paths), "marker": self.rng.randrange(1 << 32)}

    def rename_file(self) -> Operation:
        new = self.file() if self.rng.random() < 0.5 else self.fresh("f")
        return {"op": "rename", "old": self.file(), "new": new}

    def rename_directory(self) -> Operation:
        old = self.rng.choice(self.directories)
        new = self.fresh("d")
        if old == "/" or f"{new}/".startswith(f"{old}/"):
            return self.mkdir()
        return {"op": "rename", "old": old, "new": new}

    def unlink(self) -> Operation:
        small = [d for d in self.directories[1:] if sum(f.startswith(d) for f in self.sizes) < 9]
        path = self.rng.choice([self.file(), *small])
        return {"op": "unlink", "path": path}

    def mkdir(self) -> Operation:
        return {"op": "mkdir", "path": self.fresh("d")}

    def copy(self) -> Operation:
        return {"op": "copy", "old": self.file(), "new": self.fresh("f")}


def perform(nx: NexusFilesystem, step: Operation) -> None:
    match step["op"]:
        case "write":
            nx.write(step["path"], content(*step["data"]))
        case "append":
            nx.append(step["path"], content(*step["data"]))
        case "patch":
            nx.sys_write(step["path"], content(*step["data"]), offset=step["offset"])
        case "batch":
            nx.write_batch({path: f"{step['marker']} {path}" for path in step["paths"]})
        case "rename":
            nx.sys_rename(step["old"], step["new"])
        case "unlink":
            nx.sys_unlink(step["path"], recursive=True)
        case "mkdir":
            nx.mkdir(step["path"])
        case "copy":
            nx.sys_copy(step["old"], step["new"])
        case "collect":
            collect(nx, retention_s=0, grace_s=0)


def say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(data_dir: str, durability: str, seed: str, mode: str) -> None:
    rng = random.Random(int(seed))
    say(ready=True)
    sys.stdin.readline()
    nx = connect({"data_dir": data_dir, "durability": durability})
    chooser = Chooser(nx, rng)
    turns = range(rng.randrange(6)) if mode == "close" else iter(int, 1)
    for _ in turns:
        steps = [chooser.choose()]
        if mode == "collect":
            steps.append({"op": "collect"})
        for step in steps:
            say(begin=step)
            perform(nx, step)
            say(done=step["op"])
    say(begin={"op": "close"})
    nx.close()
    say(done="close")
    sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
