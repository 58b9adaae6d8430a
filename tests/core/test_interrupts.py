"""A call may be interrupted (a signal that raises) at any step: old or new, and nothing held."""

from __future__ import annotations

import gc
import linecache
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nexus.core
from nexus.contracts.metadata import DT_REG
from nexus.core.nexus_fs import NexusFS
from nexus.core.sealed_store import SealedStore
from nexus.factory.boot import Settings, boot
from nexus.sdk import fsck

CORE = str(Path(nexus.core.__file__).parent)


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:", lock_timeout_s=1)) as filesystem:
        filesystem.write("/d/f", b"old")
        yield filesystem


def is_with(frame: FrameType) -> bool:
    """Whether the line is that of a with statement.

    A tracer sees it again on the way out, just before the block is left, where the interpreter
    looks at no signal.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith("with ")


def interrupted_at(step: int, call: Callable[[], object]) -> bool:
    """Run a call, raising at its ``step``-th line within the kernel; False where it has fewer."""
    left = step

    def each_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line" and not is_with(frame):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return each_line

    def each_frame(frame: FrameType, _event: str, _: Any) -> Any:
        code = frame.f_code
        # What is raised while an object is given back reaches nobody.
        watched = code.co_filename.startswith(CORE) and code.co_name != "__del__"
        return each_line if left > 0 and watched else None

    before = sys.gettrace()
    sys.settrace(each_frame)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def fenced_write(nx: NexusFS) -> None:
    lock = nx.sys_lock("/d/f", "shared")
    assert lock is not None
    nx.write("/d/f", b"fenced", lock_token=lock.token)


CALLS: dict[str, Callable[[NexusFS, int], object]] = {
    "write": lambda nx, n: nx.write("/d/f", b"%d" % n),
    "create": lambda nx, n: nx.write(f"/new-{n}/a/f", b"x"),
    "append": lambda nx, n: nx.append("/d/f", b"more"),
    "write at": lambda nx, n: nx.sys_write("/d/f", b"x", offset=1),
    "batch": lambda nx, n: nx.write_batch({f"/b/{n}": b"x", "/d/f": b"%d" % n}),
    "mkdir": lambda nx, n: nx.mkdir(f"/dir-{n}"),
    "mknod": lambda nx, n: nx.sys_setattr(f"/d/file-{n}", entry_type=DT_REG),
    "setattr": lambda nx, n: nx.sys_setattr("/d/f", mode=0o600 + n % 8),
    "copy": lambda nx, n: nx.sys_copy("/d/f", f"/d/copy-{n}"),
    "rename": lambda nx, n: (nx.write(f"/from-{n}", b"x"), nx.sys_rename(f"/from-{n}", "/to")),
    "unlink": lambda nx, n: (nx.write(f"/gone-{n}", b"x"), nx.sys_unlink(f"/gone-{n}")),
    "list": lambda nx, n: nx.list("/", recursive=True),
    "lock": lambda nx, n: nx.sys_lock(f"/lock-{n}", ttl=0.05),
    "extend": lambda nx, n: nx.sys_lock("/d/f", lock_id=nx.sys_lock("/d/f") or "none"),
    "unlock": lambda nx, n: nx.sys_unlock("/d/f", nx.sys_lock("/d/f") or "none"),
    "force": lambda nx, n: (nx.sys_lock("/d/f"), nx.sys_unlock("/d/f", force=True)),
    "fenced write": lambda nx, n: fenced_write(nx),
    "watch": lambda nx, n: nx.sys_watch("/", 0, recursive=True, since=0),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_interrupted_at_any_line_leaves_old_or_new_and_holds_nothing(
    nx: NexusFS, name: str
) -> None:
    for step in count(1):
        if not interrupted_at(step, lambda step=step: CALLS[name](nx, step)):  # type: ignore[misc]
            break
        assert nx.locks.held() == {}, step
        nx.write("/d/f", b"the next call goes on")
        assert nx.read("/d/f") == b"the next call goes on"
        assert nx.sys_stat("/d/f") in nx.sys_readdir("/d", details=True)
        assert nx.waiting.watcher.watched() == [], step
        assert not nx.waiting.watcher._table, step
        if name in ("extend", "unlock", "force", "fenced write"):
            nx.sys_unlock("/d/f", force=True)
            assert nx.sys_unlock("/d/f", nx.lock("/d/f", timeout=0)), step
    assert step > 20
    assert fsck(nx).clean


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(30_000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it did not come to that")


def is_committing(thread: int) -> bool:
    """Whether a thread is in the commit of the store, or in what that calls."""
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not SealedStore.commit.__code__:
        frame = frame.f_back
    return frame is not None


def test_what_was_interrupted_while_waiting_for_the_turn_is_not_committed(nx: NexusFS) -> None:
    main = threading.get_ident()
    frozen = threading.Event()

    def holding_off_commits() -> None:
        with nx.store.frozen():
            frozen.set()
            wait_for(lambda: is_committing(main))
            signal.pthread_kill(main, signal.SIGINT)
            wait_for(lambda: not is_committing(main))

    check_interrupted(nx, holding_off_commits, frozen)


def test_what_was_interrupted_while_waiting_for_its_turn_is_not_committed_later(
    nx: NexusFS,
) -> None:
    nx.store._shares_syncs = False
    queue = nx.store._queue
    main = threading.get_ident()
    frozen = threading.Event()

    def holding_off_commits() -> None:
        with nx.store.frozen():
            frozen.set()
            wait_for(lambda: queue)
            signal.pthread_kill(main, signal.SIGINT)
            wait_for(lambda: queue[0].done)

    check_interrupted(nx, holding_off_commits, frozen)


def check_interrupted(nx: NexusFS, hold: Callable[[], None], frozen: threading.Event) -> None:
    """Write while another thread holds off commits and interrupts this one."""
    holder = threading.Thread(target=hold)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        holder.start()
        frozen.wait()
        with pytest.raises(KeyboardInterrupt):
            nx.write("/d/f", b"interrupted")
    finally:
        holder.join()
        signal.signal(signal.SIGINT, before)
    revision = nx.write("/other", b"x")["revision"]
    assert nx.read("/d/f") == b"old"
    assert [event["revision"] for event in nx.history()][-1] == revision
    assert nx.locks.held() == {}
    assert fsck(nx).clean


def test_a_waiter_whose_lock_is_granted_while_it_is_interrupted_gives_it_back(
    nx: NexusFS,
) -> None:
    main = threading.get_ident()
    held = nx.locks.write("/root/d/f")

    def interrupt() -> None:
        wait_for(nx.locks.waiting)
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            nx.locks.write("/root/d", 30)
    finally:
        interrupter.join()
        signal.signal(signal.SIGINT, before)
    held.release()
    assert nx.locks.held() == {}
    nx.write("/d/f", b"new")


def test_a_hold_that_is_dropped_releases_itself(nx: NexusFS) -> None:
    nx.locks.write("/root/d/f")
    gc.collect()
    assert nx.locks.held() == {}
    nx.write("/d/f", b"new")
