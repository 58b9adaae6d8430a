"""KernelDispatch: what is called at which point, in which order, and what failures do."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    AccessDeniedError,
    InvalidArgumentError,
    InvalidPathError,
    PathNotFoundError,
    WouldBlock,
)
from nexus.contracts.file_events import FILE_DELETE, FILE_WRITE, OVERFLOW, FileEvent
from nexus.contracts.lock_manager import EXCLUSIVE
from nexus.contracts.metadata import DT_MOUNT, DT_PIPE, DT_REG
from nexus.contracts.vfs_hooks import (
    BATCH,
    DELETE,
    LOCK,
    POINTS,
    READ,
    RMDIR,
    STAT,
    WATCH,
    WRITE,
    Handled,
    HookPoint,
    HookSpec,
    Interceptor,
    Observation,
    ReadContext,
    VFSContext,
    WriteContext,
    post,
    pre,
)
from nexus.core.content_calls import ContentCalls
from nexus.core.dispatch import KernelDispatch
from nexus.core.nexus_fs import NexusFS
from nexus.core.observers import ObserverHub, Operation
from nexus.core.sealed_store import SealedStore
from nexus.core.tree_calls import TreeCalls
from nexus.factory.boot import Settings, boot
from nexus.storage.metastore.memory import MemoryMetastore

LONG_S = 30.0


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


class Recorder:
    """An observer that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[FileEvent] = []

    def on_mutation(self, event: FileEvent, /) -> None:
        self.events.append(event)


class Gate(Recorder):
    """An observer that waits to be let through."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.opened = threading.Event()

    def on_mutation(self, event: FileEvent, /) -> None:
        self.entered.set()
        assert self.opened.wait(LONG_S)
        super().on_mutation(event)


class Under:
    """A resolver that answers reads beneath its prefixes."""

    def __init__(self, *prefixes: str, answer: bytes | None = b"resolved") -> None:
        self.prefixes = prefixes
        self.answer = answer
        self.asked: list[str] = []

    def try_resolve(self, point: HookPoint[Any, Any], ctx: VFSContext, /) -> Handled | None:
        self.asked.append(ctx.path)
        return None if self.answer is None or point is not READ else Handled(self.answer)


def settle(nx: NexusFS) -> None:
    assert nx.dispatch.observers.settle(LONG_S)


def bare_stat(nx: NexusFS, path: str) -> object:
    return TreeCalls(nx._kernel).stat(path, nx._context, include_lock=False)


# -- order ------------------------------------------------------------------------------------


def test_phases_come_in_their_order(nx: NexusFS) -> None:
    order: list[str] = []

    class Asked(Under):
        def try_resolve(self, point: HookPoint[Any, Any], ctx: VFSContext, /) -> Handled | None:
            order.append("resolve")
            return None

    class Last(Recorder):
        def on_mutation(self, event: FileEvent, /) -> None:
            order.append("observe")

    def before(ctx: WriteContext) -> None:
        order.append("pre, missing" if bare_stat(nx, "/f") is None else "pre, there")

    def after(ctx: WriteContext, result: dict[str, Any]) -> None:
        order.append("post, missing" if bare_stat(nx, "/f") is None else "post, there")

    spec = HookSpec((Asked(),), (pre(WRITE, before), post(WRITE, after)), (Observation(Last()),))
    nx.dispatch.register("order", spec)
    nx.write("/f", b"x")
    settle(nx)
    assert order == ["resolve", "pre, missing", "post, there", "observe"]


def test_pre_hooks_run_in_registration_order_and_see_what_earlier_ones_changed(
    nx: NexusFS,
) -> None:
    def add(letter: bytes) -> Callable[[WriteContext], None]:
        def hook(ctx: WriteContext) -> None:
            assert isinstance(ctx.buf, bytes)
            ctx.buf += letter

        return hook

    for letter in (b"a", b"b", b"c"):
        nx.dispatch.register_pre("letters", WRITE, add(letter))
    nx.write("/f", b"")
    assert nx.read("/f") == b"abc"


def test_a_changed_path_is_checked_again(nx: NexusFS) -> None:
    def away(ctx: WriteContext) -> None:
        ctx.path = "relative"

    nx.dispatch.register_pre("away", WRITE, away)
    with pytest.raises(InvalidPathError):
        nx.write("/f", b"x")
    nx.dispatch.unregister_pre("away", WRITE, away)
    nx.write("/f", b"x")


def test_a_whole_file_write_that_a_hook_gives_an_offset_is_a_write_there(nx: NexusFS) -> None:
    def there(ctx: WriteContext) -> None:
        ctx.offset = 2

    nx.write("/f", b"abcdef")
    nx.dispatch.register_pre("there", WRITE, there)
    nx.write("/f", b"--")
    assert nx.read("/f") == b"ab--ef"


def test_a_whole_file_write_that_a_hook_makes_a_message_waits_for_no_room(nx: NexusFS) -> None:
    def message(ctx: WriteContext) -> None:
        ctx.offset = 0

    nx.sys_setattr("/q", entry_type=DT_PIPE, capacity_bytes=64)
    nx.sys_write("/q", b"x" * 32)
    nx.dispatch.register_pre("message", WRITE, message)
    nx.write("/q", b"y" * 32)
    with pytest.raises(WouldBlock):
        nx.write("/q", b"z" * 32)
    assert [nx.sys_read("/q", timeout=0.0) for _ in range(2)] == [b"x" * 32, b"y" * 32]


def test_a_write_at_an_offset_that_a_hook_takes_away_writes_the_whole_file(nx: NexusFS) -> None:
    def whole(ctx: WriteContext) -> None:
        ctx.offset = None

    nx.write("/f", b"abcdef")
    nx.dispatch.register_pre("whole", WRITE, whole)
    nx.sys_write("/f", b"--", offset=2)
    assert nx.read("/f") == b"--"


def test_a_pre_hook_that_raises_refuses_the_call_and_nothing_is_written(nx: NexusFS) -> None:
    later: list[str] = []

    def refuse(ctx: WriteContext) -> None:
        raise AccessDeniedError("write", ctx.path, "not today")

    nx.dispatch.register_pre("guard", WRITE, refuse)
    nx.dispatch.register_pre("later", WRITE, lambda ctx: later.append(ctx.path))
    revision = nx.store.head().revision
    with pytest.raises(AccessDeniedError, match="not today"):
        nx.write("/f", b"x")
    assert not later
    assert nx.sys_stat("/f") is None
    assert nx.store.head().revision == revision


def test_a_post_hook_that_raises_is_logged_and_undoes_nothing(
    nx: NexusFS, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def fail(ctx: WriteContext, result: dict[str, Any]) -> None:
        raise RuntimeError("broken hook")

    nx.dispatch.register_post("broken", WRITE, fail)
    nx.dispatch.register_post("counter", WRITE, lambda ctx, result: seen.append(result["size"]))
    with caplog.at_level(logging.ERROR):
        assert nx.write("/f", b"abc")["size"] == 3
    assert nx.read("/f") == b"abc"
    assert seen == [3]
    assert "post hook of broken failed after write /f" in caplog.text


def test_a_post_hook_is_not_called_after_a_call_that_failed(nx: NexusFS) -> None:
    seen: list[str] = []
    nx.dispatch.register_post("counter", READ, lambda ctx, result: seen.append(ctx.path))
    with pytest.raises(PathNotFoundError):
        nx.read("/nothing")
    assert not seen


# -- resolvers --------------------------------------------------------------------------------


def test_the_longest_prefix_is_asked_first_and_the_first_answer_is_the_answer(
    nx: NexusFS,
) -> None:
    everywhere, outer, inner = Under(answer=b"0"), Under("/a", answer=b"1"), Under("/a/b")
    for resolver in (everywhere, outer, inner):
        nx.dispatch.register_resolver("r", resolver)
    refused: list[str] = []
    nx.dispatch.register_pre("guard", READ, lambda ctx: refused.append(ctx.path))
    assert nx.read("/a/b/c") == b"resolved"
    assert nx.read("/a/bc") == b"1"
    assert nx.read("/else") == b"0"
    assert (everywhere.asked, outer.asked, inner.asked) == (["/else"], ["/a/bc"], ["/a/b/c"])
    assert not refused


def test_a_resolver_that_does_not_answer_leaves_the_call_to_the_kernel(nx: NexusFS) -> None:
    nx.write("/a/f", b"kept")
    resolver = Under("/a", answer=None)
    nx.dispatch.register_resolver("r", resolver)
    assert nx.read("/a/f") == b"kept"
    assert resolver.asked == ["/a/f"]


def test_what_a_resolver_raises_reaches_the_caller(nx: NexusFS) -> None:
    class Failing(Under):
        def try_resolve(self, point: HookPoint[Any, Any], ctx: VFSContext, /) -> Handled | None:
            raise PathNotFoundError("read", ctx.path, "gone from the other side")

    nx.dispatch.register_resolver("r", Failing("/a"))
    with pytest.raises(PathNotFoundError, match="the other side"):
        nx.read("/a/f")


# -- points -----------------------------------------------------------------------------------


CALLS: list[Callable[[NexusFS], object]] = [
    lambda nx: nx.write("/d/f", b"x"),
    lambda nx: nx.append("/d/f", b"y"),
    lambda nx: nx.sys_write("/d/f", b"z"),
    lambda nx: nx.sys_setattr("/d/made", entry_type=DT_REG),
    lambda nx: nx.write_batch({"/d/a": b"1", "/d/b": b"2"}),
    lambda nx: nx.read("/d/f"),
    lambda nx: nx.sys_stat("/d/f"),
    lambda nx: nx.sys_setattr("/d/f", mode=0o600),
    lambda nx: nx.sys_copy("/d/f", "/d/g"),
    lambda nx: nx.sys_rename("/d/g", "/d/h"),
    lambda nx: nx.sys_readdir("/d"),
    lambda nx: nx.sys_unlink("/d/h"),
    lambda nx: nx.mkdir("/d/sub"),
    lambda nx: nx.sys_unlink("/d/sub"),
    lambda nx: nx.write_content(b"hashed"),
    lambda nx: nx.sys_setattr("/d/q", entry_type=DT_PIPE),
    lambda nx: nx.sys_unlock("/d/f", nx.sys_lock("/d/f")),
    lambda nx: nx.sys_watch("/d/f", 0.0, since=0),
    lambda nx: nx.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"}),
    lambda nx: nx.sys_unlink("/m"),
]
"""One call or more for each point."""


def use_everything(nx: NexusFS) -> None:
    for call in CALLS:
        call(nx)


def test_every_call_passes_its_point_before_and_after(nx: NexusFS) -> None:
    seen: dict[str, list[HookPoint[Any, Any]]] = {"pre": [], "post": []}
    for point in POINTS:
        nx.dispatch.register(
            "all",
            HookSpec(
                interceptors=(
                    pre(point, lambda ctx, point=point: seen["pre"].append(point)),
                    post(point, lambda ctx, result, point=point: seen["post"].append(point)),
                )
            ),
        )
    use_everything(nx)
    assert set(seen["pre"]) == set(POINTS)
    assert seen["post"] == seen["pre"]
    assert seen["pre"].count(WRITE) == 4


def test_a_hook_gets_the_context_of_its_point(nx: NexusFS) -> None:
    kinds: dict[HookPoint[Any, Any], type] = {}
    for point in POINTS:
        nx.dispatch.register_pre(
            "all", point, lambda ctx, point=point: kinds.update({point: type(ctx)})
        )
    use_everything(nx)
    assert kinds == {point: point.context_type for point in POINTS}


def test_unlinking_passes_the_point_of_what_is_there(nx: NexusFS) -> None:
    seen: list[str] = []
    nx.write("/d/f", b"")
    nx.dispatch.register_pre("files", DELETE, lambda ctx: seen.append(f"file {ctx.path}"))
    nx.dispatch.register_pre("trees", RMDIR, lambda ctx: seen.append(f"tree {ctx.path}"))
    nx.sys_unlink("/d/f")
    nx.sys_unlink("/d")
    assert seen == ["file /d/f", "tree /d"]


def test_hooks_know_who_calls(nx: NexusFS) -> None:
    seen: list[str] = []
    nx.dispatch.register_pre("who", WRITE, lambda ctx: seen.append(ctx.context.user_id))
    nx.bind(OperationContext("ada")).write("/f", b"")
    assert seen == ["ada"]


def test_points_without_hooks_are_not_mediated(nx: NexusFS) -> None:
    assert not nx.dispatch.live
    nx.dispatch.register_pre("guard", READ, lambda ctx: None)
    assert nx.dispatch.live == {READ}


def test_only_calls_of_a_point_that_is_hooked_leave_the_bare_way(nx: NexusFS) -> None:
    def ways() -> dict[str, object]:
        return {name: way for name, way in vars(nx._entry).items() if not name.startswith("_")}

    nx.sys_stat("/")  # calls on the tree have a way from the first one on
    bare = ways()
    hook = Recorder().on_mutation
    nx.dispatch.register_pre("guard", READ, hook)
    assert {name for name, way in ways().items() if way != bare[name]} == {"read", "reading"}
    nx.dispatch.register_observer("o", observer := Recorder())
    assert ways()["stat"] == bare["stat"]
    assert ways()["write_file"] != bare["write_file"]
    nx.dispatch.unregister_observer("o", observer)
    nx.dispatch.unregister_pre("guard", READ, hook)
    assert ways() == bare


def test_the_first_call_on_the_tree_meets_the_hooks_that_were_there_before_it(
    nx: NexusFS,
) -> None:
    seen: list[str] = []
    nx.dispatch.register_pre("guard", STAT, lambda ctx: seen.append(ctx.path))
    nx.sys_stat("/")
    assert seen == ["/"]


def test_a_resolver_without_a_prefix_is_on_the_way_of_every_call(nx: NexusFS) -> None:
    nx.sys_stat("/")  # as above
    bare = dict(vars(nx._entry))
    nx.dispatch.register_resolver("r", Under())
    same = {name for name, way in vars(nx._entry).items() if way == bare[name]}
    assert {name for name in same if not name.startswith("_")} == set()


def test_a_system_call_kept_from_before_meets_hooks_that_come_later(nx: NexusFS) -> None:
    seen: list[str] = []
    nx.write("/f", b"x")
    kept = nx.sys_read
    nx.dispatch.register_pre("guard", READ, lambda ctx: seen.append(ctx.path))
    assert kept("/f") == b"x"
    assert seen == ["/f"]


def test_a_path_that_a_hook_left_is_checked_as_one_that_a_caller_gave(nx: NexusFS) -> None:
    nx.write("/d/f", b"x")

    def elsewhere(ctx: ReadContext) -> None:
        ctx.path = "/d//./f" if ctx.path == "/a" else "/../f"

    nx.dispatch.register_pre("turn", READ, elsewhere)
    assert nx.sys_read("/a") == b"x"
    with pytest.raises(InvalidPathError):
        nx.sys_read("/b")


def test_a_read_hook_can_choose_what_is_read(nx: NexusFS) -> None:
    nx.write("/f", b"0123456789")

    def first_three(ctx: ReadContext) -> None:
        ctx.count = 3

    nx.dispatch.register_pre("short", READ, first_three)
    assert nx.read("/f") == b"012"


# -- shapes -----------------------------------------------------------------------------------


async def in_a_loop(ctx: VFSContext) -> None:
    pass


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        (HookSpec(interceptors=(pre(WRITE, lambda: None),)), "with its context"),  # type: ignore
        (
            HookSpec(interceptors=(post(WRITE, lambda ctx: None),)),  # type: ignore
            "with its context and its result",
        ),
        (HookSpec(interceptors=(pre(WRITE, in_a_loop),)), "not a coroutine"),  # type: ignore
        (HookSpec(interceptors=(pre(WRITE, 5),)), "cannot be called"),  # type: ignore
        (
            HookSpec(interceptors=(Interceptor("write", "pre", print),)),  # type: ignore
            "is no hook point",
        ),
        (HookSpec(interceptors=(print,)), "is no interceptor"),  # type: ignore
        (HookSpec(resolvers=(object(),)), "try_resolve"),  # type: ignore
        (HookSpec(observers=(Observation(object()),)), "on_mutation"),  # type: ignore
        (HookSpec(observers=(Recorder(),)), "no Observation"),  # type: ignore
        (HookSpec(observers=(Observation(Recorder(), {"x"}),)), "frozenset"),  # type: ignore
        ([], "not a HookSpec"),
    ],
)
def test_a_wrong_shape_is_refused_naming_the_service_the_hook_and_the_rule(
    nx: NexusFS, spec: HookSpec, rule: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=rule) as raised:
        nx.dispatch.register("sloppy", spec)
    assert "service sloppy" in str(raised.value)
    assert not nx.dispatch.live


def test_nothing_of_a_spec_is_registered_when_one_hook_of_it_is_wrong(nx: NexusFS) -> None:
    good = pre(WRITE, lambda ctx: None)
    with pytest.raises(InvalidArgumentError):
        nx.dispatch.register(
            "half", HookSpec(interceptors=(good, pre(READ, print)), resolvers=(1,))
        )  # type: ignore
    assert not nx.dispatch.rows()


def test_unregistering_what_is_not_registered_is_an_error(nx: NexusFS) -> None:
    with pytest.raises(InvalidArgumentError, match="not registered"):
        nx.dispatch.unregister_pre("nobody", WRITE, print)
    with pytest.raises(InvalidArgumentError, match="not registered"):
        nx.dispatch.unregister_observer("nobody", Recorder())


# -- observers --------------------------------------------------------------------------------


def test_observers_get_every_event_in_commit_order_with_who_and_which_run(nx: NexusFS) -> None:
    recorder = Recorder()
    nx.dispatch.register_observer("log", recorder)
    ada = nx.bind(OperationContext("ada", agent_id="a1", run_id="r1"))

    def work(number: int) -> None:
        for count in range(20):
            ada.write(f"/{number}/{count}", b"x")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(nx)
    written = [event for event in recorder.events if event.kind == FILE_WRITE]
    assert len(written) == 80
    revisions = [event.revision for event in recorder.events]
    assert revisions == sorted(revisions)
    journal = [row for row in nx.list("/__sys__/journal", details=True) if row["revision"]]
    mine = [(row["revision"], row["path"]) for row in journal if row["run_id"] == "r1"]
    assert [(event.revision, event.path) for event in recorder.events] == mine
    assert {(e.user_id, e.agent_id, e.run_id) for e in written} == {("ada", "a1", "r1")}


def test_the_event_mask_filters(nx: NexusFS) -> None:
    recorder = Recorder()
    nx.dispatch.register_observer("deletions", recorder, frozenset({FILE_DELETE}))
    nx.write("/f", b"")
    nx.sys_unlink("/f")
    settle(nx)
    assert [event.kind for event in recorder.events] == [FILE_DELETE]


def test_no_lock_is_held_while_a_post_hook_or_an_observer_runs(nx: NexusFS) -> None:
    held: list[bool] = []

    def is_held() -> bool:
        return bool(nx.locks.held())

    class Looking(Recorder):
        def on_mutation(self, event: FileEvent, /) -> None:
            held.append(is_held())

    nx.dispatch.register_observer("look", Looking())
    for point in POINTS:
        nx.dispatch.register_post("look", point, lambda ctx, result: held.append(is_held()))
    for call in CALLS:
        call(nx)
        settle(nx)  # else the next call's own locks are seen
    assert len(held) > 2 * len(POINTS)
    assert not any(held)


def test_an_observer_waits_for_the_post_hooks_of_its_call(nx: NexusFS) -> None:
    recorder = Recorder()
    seen: list[int] = []
    nx.dispatch.register_observer("log", recorder)
    nx.dispatch.register_post("p", WRITE, lambda ctx, result: seen.append(len(recorder.events)))
    nx.write("/f", b"")
    settle(nx)
    assert seen == [0]
    assert recorder.events


def test_an_observer_may_call_the_filesystem(nx: NexusFS) -> None:
    class Copying(Recorder):
        def on_mutation(self, event: FileEvent, /) -> None:
            super().on_mutation(event)
            if event.path == "/f":
                nx.write("/copy", nx.read("/f"))

    observer = Copying()
    nx.dispatch.register_observer("copy", observer)
    nx.write("/f", b"again")
    settle(nx)
    assert nx.read("/copy") == b"again"
    assert [event.path for event in observer.events] == ["/f", "/copy"]


def test_an_observer_that_raises_is_logged_and_goes_on(
    nx: NexusFS, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Recorder):
        def on_mutation(self, event: FileEvent, /) -> None:
            super().on_mutation(event)
            raise RuntimeError("broken observer")

    failing, sound = Failing(), Recorder()
    nx.dispatch.register_observer("broken", failing)
    nx.dispatch.register_observer("sound", sound)
    with caplog.at_level(logging.ERROR):
        nx.write("/a", b"")
        nx.write("/b", b"")
        settle(nx)
    assert [event.path for event in failing.events] == ["/a", "/b"]
    assert [event.path for event in sound.events] == ["/a", "/b"]
    assert "observer of broken failed" in caplog.text
    assert nx.dispatch.observers.rows()[0]["failed"] == 2


def test_an_unregistered_observer_is_not_called_any_more(nx: NexusFS) -> None:
    recorder = Recorder()
    nx.dispatch.register_observer("log", recorder)
    nx.write("/a", b"")
    settle(nx)
    nx.dispatch.unregister_observer("log", recorder)
    nx.write("/b", b"")
    assert [event.path for event in recorder.events] == ["/a"]
    assert not nx.dispatch.live


def test_closing_hands_out_what_observers_still_wait_for() -> None:
    recorder = Recorder()
    with boot(Settings(data_dir=":memory:")) as nx:
        nx.dispatch.register_observer("log", recorder)
        for number in range(50):
            nx.write(f"/{number}", b"")
    assert len(recorder.events) == 50


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def operation(hub: ObserverHub) -> Iterator[Operation]:
    begun = hub.begin()
    try:
        yield begun
    finally:
        hub.end(begun)


def observed(hub: ObserverHub, *paths: str) -> None:
    """Commit one event a path, as an operation of its own, at revisions that go on."""
    for path in paths:
        with operation(hub):
            entered = hub.tap([FileEvent(FILE_WRITE, path, "ada", 0, "root")])
            assert entered is not None
            entered(int(path[1:]))


def test_overflow_is_counted_and_stands_where_events_are_missing() -> None:
    hub = ObserverHub(Clock(), LONG_S, queue_limit=3)
    gate = Gate()
    hub.add("slow", gate, None)
    observed(hub, "/1")
    assert gate.entered.wait(LONG_S)
    observed(hub, "/2", "/3", "/4", "/5", "/6")
    assert hub.rows()[0]["lost"] == 2
    gate.opened.set()
    assert hub.settle(LONG_S)
    observed(hub, "/7")
    assert hub.settle(LONG_S)
    got = [(e.kind, e.revision, e.size) for e in gate.events]
    assert got == [
        (FILE_WRITE, 1, 0),
        (FILE_WRITE, 2, 0),
        (FILE_WRITE, 3, 0),
        (FILE_WRITE, 4, 0),
        (OVERFLOW, 6, 2),
        (FILE_WRITE, 7, 0),
    ]
    hub.close()


def test_commits_wait_for_those_before_them() -> None:
    hub = ObserverHub(Clock(), LONG_S)
    recorder = Recorder()
    hub.add("log", recorder, None)
    with operation(hub) as first:
        entered = hub.tap([FileEvent(FILE_WRITE, "/1", "ada", 0, "root")])
        assert entered is not None
        entered(1)
        with operation(hub):
            second = hub.tap([FileEvent(FILE_WRITE, "/2", "ada", 0, "root")])
            assert second is not None
            second(2)
        assert not recorder.events
        hub.release(first)
        assert hub.settle(LONG_S)
    assert [event.path for event in recorder.events] == ["/1", "/2"]
    hub.close()


def test_observers_that_hang_are_reported_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    hub = ObserverHub(clock, 10.0, workers=1)
    gate, recorder = Gate(), Recorder()
    hub.add("stuck", gate, None)
    observed(hub, "/1")
    assert gate.entered.wait(LONG_S)
    hub.add("sound", recorder, None)
    clock.now = 11.0
    with caplog.at_level(logging.ERROR):
        observed(hub, "/2")
        assert hub.settle(LONG_S)
    assert [event.path for event in recorder.events] == ["/2"]
    assert "observer of stuck has not returned for 11 s" in caplog.text
    assert hub.rows()[0]["overdue"]
    gate.opened.set()
    deadline = time.monotonic() + LONG_S
    while hub.rows()[0]["overdue"]:  # closing waits for no observer that hangs
        assert time.monotonic() < deadline, "the observer does not return"
    observed(hub, "/3")
    hub.close()
    assert [event.path for event in gate.events] == ["/1", "/2", "/3"]


def test_removing_an_observer_between_two_of_its_events_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = ObserverHub(Clock(), 0.5)
    gate = Gate()
    hub.add("log", gate, None)
    between, removing = threading.Event(), threading.Event()
    take_next = hub._next

    def held_up(queue: Any) -> Any:
        if gate.events:
            between.set()
            assert removing.wait(LONG_S)
        return take_next(queue)

    monkeypatch.setattr(hub, "_next", held_up)
    observed(hub, "/1", "/2")
    gate.opened.set()
    assert between.wait(LONG_S)
    remover = threading.Thread(target=hub.remove, args=(gate,))
    remover.start()
    while len(hub):
        threading.Event().wait(0.001)
    removing.set()
    remover.join()
    assert not caplog.records
    assert len(gate.events) == 1
    hub.close()


def make_dispatch(clock: Clock, hang_timeout_s: float) -> KernelDispatch:
    return KernelDispatch(SealedStore(MemoryMetastore()), clock, hang_timeout_s=hang_timeout_s)


def test_a_hook_that_hangs_is_reported_and_keeps_only_its_caller(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    dispatch = make_dispatch(clock, 10.0)
    entered, opened = threading.Event(), threading.Event()

    def stuck(ctx: VFSContext) -> None:
        if ctx.path == "/stuck":
            entered.set()
            assert opened.wait(LONG_S)

    def call(path: str) -> bytes:
        who = OperationContext("ada")
        return dispatch.run(READ, ReadContext(path, who), lambda ctx: ctx.path.encode())

    dispatch.register_pre("slow", READ, stuck)
    thread = threading.Thread(target=call, args=("/stuck",))
    thread.start()
    assert entered.wait(LONG_S)
    clock.now = 12.0
    with caplog.at_level(logging.ERROR):
        assert call("/other") == b"/other"
        assert call("/other") == b"/other"
    assert caplog.text.count("pre hook of slow at read has not returned for 12 s") == 1
    opened.set()
    thread.join()


def test_unregistering_waits_for_the_calls_that_saw_the_hooks() -> None:
    dispatch = make_dispatch(Clock(), LONG_S)
    entered, opened = threading.Event(), threading.Event()
    done: list[str] = []

    def slow(ctx: VFSContext) -> None:
        entered.set()
        assert opened.wait(LONG_S)
        done.append("hook")

    dispatch.register_pre("slow", STAT, slow)
    context = VFSContext("/f", OperationContext("ada"))
    caller = threading.Thread(target=dispatch.run, args=(STAT, context, lambda ctx: None))
    caller.start()
    assert entered.wait(LONG_S)

    def unregister() -> None:
        dispatch.unregister_pre("slow", STAT, slow)
        done.append("unregistered")

    remover = threading.Thread(target=unregister)
    remover.start()
    deadline = time.monotonic() + LONG_S
    while dispatch.live:
        assert time.monotonic() < deadline, "the hook is still in the tables"
    opened.set()
    caller.join()
    remover.join()
    assert done == ["hook", "unregistered"]


WAITS: list[tuple[HookPoint[Any, Any], Callable[[NexusFS], object]]] = [
    (READ, lambda nx: nx.sys_read("/q", timeout=LONG_S)),
    (WRITE, lambda nx: nx.sys_write("/full", b"x" * 32, timeout=LONG_S)),
    (LOCK, lambda nx: nx.sys_lock("/locked", timeout=LONG_S)),
    (WATCH, lambda nx: nx.sys_watch("/new", timeout=LONG_S)),
    (READ, lambda nx: asyncio.run(nx._read_async("/q", 0, LONG_S, None))),
    (WRITE, lambda nx: asyncio.run(nx._write_async("/full", b"x" * 32, LONG_S, None))),
    (LOCK, lambda nx: asyncio.run(nx._lock_async("/locked", EXCLUSIVE, 30.0, None, LONG_S, None))),
    (WATCH, lambda nx: asyncio.run(nx._watch_async("/new", LONG_S, False, None, None))),
]


@pytest.mark.parametrize(("point", "call"), WAITS)
def test_a_call_that_waits_holds_up_neither_locks_nor_the_removal_of_its_hooks(
    nx: NexusFS, point: HookPoint[Any, Any], call: Callable[[NexusFS], object]
) -> None:
    nx.sys_setattr("/q", entry_type=DT_PIPE)
    nx.sys_setattr("/full", entry_type=DT_PIPE, capacity_bytes=64)
    nx.sys_write("/full", b"x" * 48)
    lock_id = nx.sys_lock("/locked")
    before: list[VFSContext] = []
    after: list[object] = []

    def gone_by_then(ctx: VFSContext, result: object) -> None:
        after.append(result)

    def still_there(ctx: VFSContext, result: object) -> None:
        after.append("kept")

    spec = HookSpec(interceptors=(pre(point, before.append), post(point, gone_by_then)))
    nx.dispatch.register("gone", spec)
    nx.dispatch.register_post("kept", point, still_there)
    caller = threading.Thread(target=call, args=(nx,))
    caller.start()
    deadline = time.monotonic() + LONG_S
    while not before or nx.dispatch._tables.calls:
        assert time.monotonic() < deadline, "the call does not begin to wait"
    nx.dispatch.unregister("gone", spec)
    assert nx.locks.held() == {}
    assert caller.is_alive()
    nx.write("/new", b"x")
    content = ContentCalls(nx._kernel)
    content.write_at("/q", nx._context, b"message", 0, None, 0.0)
    content.read("/full", nx._context, None, 0, None, 0.0)
    nx.sys_unlock("/locked", lock_id)
    caller.join(LONG_S)
    assert not caller.is_alive()
    assert "kept" in after
    assert all(found == "kept" for found in after)


def test_asynchronous_calls_pass_their_points(nx: NexusFS) -> None:
    nx.sys_setattr("/q", entry_type=DT_PIPE)
    seen: list[str] = []
    for point in (READ, WRITE, LOCK, WATCH):
        nx.dispatch.register_pre("a", point, lambda ctx, point=point: seen.append(point.name))
        nx.dispatch.register_post(
            "a", point, lambda ctx, result, point=point: seen.append(f"{point.name} done")
        )

    async def use() -> None:
        await nx._write_async("/q", b"x", 0.0, None)
        await nx._read_async("/q", 0, 0.0, None)
        await nx._lock_async("/q", EXCLUSIVE, 30.0, None, 0.0, None)
        await nx._watch_async("/q", 0.0, False, 0, None)

    asyncio.run(use())
    points = ("write", "read", "lock", "watch")
    assert seen == [word for name in points for word in (name, f"{name} done")]


def test_a_resolver_answers_asynchronous_calls(nx: NexusFS) -> None:
    nx.dispatch.register_resolver("r", Under("/r"))
    assert asyncio.run(nx._read_async("/r/q", 0, None, None)) == b"resolved"


def test_observers_get_events_with_the_cursor_that_the_journal_has(nx: NexusFS) -> None:
    observer = Recorder()
    nx.dispatch.register_observer("o", observer)
    nx.write_batch({"/a": b"1", "/b": b"2"})
    settle(nx)
    cursors = [event.cursor for event in observer.events]
    assert len(cursors) == 2
    second = nx.sys_watch("/b", 0.0, since=cursors[0])
    assert second is not None
    assert second.cursor == cursors[1]


def test_a_hook_may_unregister_itself(nx: NexusFS) -> None:
    seen: list[str] = []

    def once(ctx: WriteContext) -> None:
        seen.append(ctx.path)
        nx.dispatch.unregister_pre("once", WRITE, once)

    nx.dispatch.register_pre("once", WRITE, once)
    nx.write("/a", b"")
    nx.write("/b", b"")
    assert seen == ["/a"]


def test_replacing_hooks_leaves_no_call_without_them(nx: NexusFS) -> None:
    seen: list[str] = []
    old = HookSpec(interceptors=(pre(WRITE, lambda ctx: seen.append("old")),))
    new = HookSpec(interceptors=(pre(WRITE, lambda ctx: seen.append("new")),))
    nx.dispatch.register("guard", old)
    nx.dispatch.register_pre("other", WRITE, lambda ctx: seen.append("other"))
    nx.write("/a", b"")
    nx.dispatch.replace("guard", old, new)
    nx.write("/b", b"")
    assert seen == ["old", "other", "new", "other"]


def test_a_batch_passes_one_point_with_all_its_requests(nx: NexusFS) -> None:
    seen: list[list[str]] = []
    nx.dispatch.register_pre("b", BATCH, lambda ctx: seen.append([r.path for r in ctx.requests]))
    nx.write_batch({"/a": b"1", "/b": b"2"})
    assert seen == [["/a", "/b"]]
