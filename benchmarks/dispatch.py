"""What dispatch costs: nothing where nothing is hooked, and what one hook adds where one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import thread_time

from benchmarks.harness import (
    Plan,
    Row,
    Target,
    announced,
    compare,
    each,
    interleave,
    random_pieces,
)
from nexus.contracts.context import OperationContext
from nexus.contracts.filesystem import NexusFilesystem, WriteRequest
from nexus.contracts.metadata import DT_PIPE, Buffer
from nexus.contracts.vfs_hooks import MKDIR, READ, STAT, WRITE, HookSpec, Observation, pre
from nexus.core.arguments import write_slice
from nexus.core.content_calls import ContentCalls
from nexus.core.nexus_fs import NexusFS
from nexus.core.tree_calls import TreeCalls
from nexus.factory.boot import Settings, boot
from nexus.lib.paths import normalize

SECTION = "dispatch"
FILES = 100
PAIRS = 20
"""How many short rounds stand for a usual one, so that both of a pair meet the same machine."""
MORE_PAIRS = {"stat": 4}
"""A call of a microsecond is disturbed by less, and so more often."""
PIPE = "/pipe"
MESSAGE = b"y" * 64
WRITES = 20
WRITE_BYTES = 4096
GUARDED = Target(1.3)
UNHOOKED = Target(1.05)
POINTS = {"read": READ, "stat": STAT, "write": WRITE}


class _Ignoring:
    """An observer that does nothing with what it gets."""

    def on_mutation(self, event: object, /) -> None:
        pass


def run(plan: Plan) -> list[Row]:
    """Return every row of this file; each compares a call with the same call past dispatch."""
    rows = []
    with boot(Settings(data_dir=":memory:")) as nx, announced("dispatch"):
        paths = [f"/work/{number}" for number in range(FILES)]
        nx.write_batch(dict.fromkeys(paths, b"x" * 64))
        nx.sys_setattr(PIPE, entry_type=DT_PIPE)
        calls = mediated(nx)
        past = unmediated(nx)

        def row(name: str, what: str, target: Target | None = None) -> Row:
            samples = interleave(
                lambda _: cpu_time(calls[name], paths),
                lambda _: cpu_time(past[name], paths),
                PAIRS * MORE_PAIRS.get(name, 1) * plan.rounds,
            )
            return compare(SECTION, f"{name}, {what}", samples, against="past it", target=target)

        rows += [row(name, "nothing hooked", UNHOOKED) for name in calls]
        with hooked(nx, HookSpec(interceptors=(pre(MKDIR, _nothing),))):
            rows.append(row("stat", "another point hooked", UNHOOKED))
        for name, point in POINTS.items():
            with hooked(nx, HookSpec(interceptors=(pre(point, _nothing),))):
                rows.append(row(name, "one PRE hook"))
        with hooked(nx, HookSpec(observers=(Observation(_Ignoring()),))):
            rows.append(row("write", "one observer"))
    return [*rows, guarded(plan)]


def guarded(plan: Plan) -> Row:
    """Return what audit and permission together cost a user who writes new files, on a disk."""
    user = OperationContext("ada")
    with ExitStack() as opened, announced("audit and permission"):
        views = []
        for name, enable in (("guarded", ("audit", "permission")), ("unguarded", ())):
            folder = plan.folder(f"dispatch-{name}") / "data"
            nx = opened.enter_context(boot(Settings(data_dir=str(folder), enable=enable)))
            nx.mkdir("/work")
            nx.sys_setattr("/work", owner_id=user.user_id)
            views.append(nx.bind(user))

        def write(view: NexusFilesystem, number: int) -> float:
            pieces = random_pieces(WRITES, WRITE_BYTES)
            paths = [f"/work/{number}-{count}" for count in range(WRITES)]
            contents = dict(zip(paths, pieces, strict=True))
            return each(lambda path: view.write(path, contents[path]), paths)

        samples = interleave(
            lambda number: write(views[0], number),
            lambda number: write(views[1], number),
            PAIRS * plan.rounds,
        )
    return compare(
        SECTION,
        "write of 4 KiB, audit and permission",
        samples,
        against="without them",
        target=GUARDED,
    )


def cpu_time(call: Callable[[str], object], paths: list[str]) -> float:
    """Return the seconds a call, of this thread alone: nothing here waits."""
    start = thread_time()
    for path in paths:
        call(path)
    return (thread_time() - start) / len(paths)


def mediated(nx: NexusFS) -> dict[str, Callable[[str], object]]:
    """Return the system calls, as everybody calls them."""

    def message(_: str) -> bytes:
        nx.sys_write(PIPE, MESSAGE)
        return nx.sys_read(PIPE)

    return {
        "read": lambda path: nx.sys_read(path),
        "stat": lambda path: nx.sys_stat(path),
        "write": lambda path: nx._write_many((WriteRequest(path, MESSAGE),), None),
        "pipe message": message,
    }


def unmediated(nx: NexusFS) -> dict[str, Callable[[str], object]]:
    """Return the same calls as they would be in a kernel that has no dispatch."""
    past = _PastDispatch(nx)

    def message(_: str) -> bytes:
        past.sys_write(PIPE, MESSAGE)
        return past.sys_read(PIPE)

    return {
        "read": lambda path: past.sys_read(path),
        "stat": lambda path: past.sys_stat(path),
        "write": lambda path: past.write_many((WriteRequest(path, MESSAGE),), None),
        "pipe message": message,
    }


class _PastDispatch:
    """The system calls, arguments and identity as in the kernel, each with the call behind it."""

    def __init__(self, nx: NexusFS) -> None:
        self._content = ContentCalls(nx._kernel)
        self._tree = TreeCalls(nx._kernel)
        self._context = nx._context
        self._identity = nx._identity

    def sys_read(
        self,
        path: str,
        count: int | None = None,
        offset: int = 0,
        *,
        version: int | None = None,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> bytes:
        path = normalize("read", path)
        who = self._context if context is None else self._identity(context)
        return self._content.read(path, who, count, offset, version, timeout)

    def sys_stat(
        self, path: str, include_lock: bool = False, *, context: OperationContext | None = None
    ) -> object:
        who = self._context if context is None else self._identity(context)
        return self._tree.stat(normalize("stat", path), who, include_lock)

    def sys_write(
        self,
        path: str,
        buf: Buffer,
        count: int | None = None,
        offset: int = 0,
        *,
        timeout: float | None = None,
        context: OperationContext | None = None,
    ) -> object:
        path = normalize("write", path)
        who = self._context if context is None else self._identity(context)
        data = write_slice(path, buf, count)
        return self._content.write_at(path, who, data, offset, None, timeout)

    def write_many(
        self, requests: Sequence[WriteRequest], context: OperationContext | None
    ) -> object:
        who = self._identity(context)
        return [self._content.write_file(requests[0], who)]


@contextmanager
def hooked(nx: NexusFS, spec: HookSpec) -> Iterator[None]:
    """Register a spec for the length of the block."""
    nx.dispatch.register("benchmark", spec)
    try:
        yield
    finally:
        nx.dispatch.unregister("benchmark", spec)


def _nothing(ctx: object, /) -> None:
    pass
