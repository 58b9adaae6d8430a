"""A call may be interrupted (a signal that raises) at any step: old or new, and nothing held."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import nexus.core
from nexus.contracts.errors import LockTimeoutError
from nexus.contracts.metadata import DT_REG
from nexus.core.nexus_fs import NexusFS
from nexus.core.sealed_store import SealedStore
from nexus.core.vfs_lock import VFSLockManager
from nexus.factory.boot import Settings, boot
from nexus.sdk import fsck
from nexus.testing.interrupts import interrupted_at, interruptible

CORE = str(Path(nexus.core.__file__).parent)
SOURCE = str(Path(CORE).parent)


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:", lock_timeout_s=1)) as filesystem:
        filesystem.write("/d/f", b"old")
        yield filesystem


def fenced_write(nx: NexusFS) -> None:
    lock = nx.sys_lock("/d/f", "shared")
    assert lock is not None
    nx.write("/d/f", b"fenced", lock_token=lock.token)


CALLS: dict[str, Callable[[NexusFS, int], object]] = {
    "write": lambda nx, n: nx.write("/d/f", b"%d" % n),
    "new": lambda nx, n: nx.write(f"/d/new-{n}", b"x"),
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
        if not interrupted_at(step, lambda step=step: CALLS[name](nx, step), CORE):  # type: ignore[misc]
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


def test_a_lock_whose_taking_is_interrupted_at_any_line_is_free_for_the_next(nx: NexusFS) -> None:
    before = len(list(nx.store.iterate_unverified()))
    for step in count(1):
        path = f"/lock-{step}"
        if not interrupted_at(step, lambda path=path: nx.sys_lock(path), SOURCE):  # type: ignore[misc]
            break
        assert nx.waiting.locks.holds("root", path) == [], step
        lock = nx.sys_lock(path)
        assert lock is not None, step
        assert nx.sys_unlock(path, lock)
        assert len(list(nx.store.iterate_unverified())) == before, step
    assert step > 60
    assert fsck(nx).clean


TAKEN: dict[str, Callable[[VFSLockManager], Any]] = {
    "one": lambda locks: locks.write("/z/a/b"),
    "set": lambda locks: locks.write_many(["/z/a", "/z/b/c"]),
    "pair": lambda locks: locks.copy_pair("/z/a", "/z/b/c"),
}


@pytest.mark.parametrize("beside", [None, "/y/a", "/z/c"])
@pytest.mark.parametrize("name", TAKEN)
def test_a_lock_interrupted_at_any_line_leaves_the_one_beside_it_and_exact_counts(
    name: str, beside: str | None
) -> None:
    for step in count(1):
        locks = VFSLockManager(0)
        first = None if beside is None else locks.read(beside)

        def taken(locks: VFSLockManager = locks) -> None:
            with TAKEN[name](locks):
                pass

        if not interrupted_at(step, taken, CORE):
            break
        assert locks.held() == ({} if beside is None else {beside: "read"}), step
        if first is not None:
            with pytest.raises(LockTimeoutError):
                locks.write("/")
            first.release()
        assert_counts_are_exact(locks)
    assert step > 10


def test_a_dropped_lock_whose_taking_back_is_interrupted_is_taken_back_by_the_next_call() -> None:
    for step in count(1):
        locks = VFSLockManager(0)
        first, dropped = locks.read("/z/b"), locks.write("/z/a")
        with locks._mutex:  # so that it is left to the next call
            del dropped
        if not interrupted_at(step, lambda locks=locks: locks.read("/z/c").release(), CORE):  # type: ignore[misc]
            break
        locks.write("/z/a").release()
        first.release()
        assert_counts_are_exact(locks)
    assert step > 10


@pytest.mark.parametrize("beside", [None, "/y/a", "/z/c"])
def test_a_lock_whose_dropping_is_interrupted_is_taken_back_by_the_next_call(
    beside: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    for step in count(1):
        locks = VFSLockManager(0)
        first = None if beside is None else locks.read(beside)
        dropped = [locks.write("/z/a/b")]
        if not interrupted_at(step, dropped.clear, CORE):
            break
        assert not locks._mutex.locked(), step
        locks.write("/z/a/b").release()
        if first is not None:
            first.release()
        assert_counts_are_exact(locks)
    assert step > 4


def assert_counts_are_exact(locks: VFSLockManager) -> None:
    """Whether nothing is held, and a hold beneath a directory is told from none there."""
    locks.write("/z").release()
    with locks.read("/z/a/b"), locks.read("/z/b/c"), pytest.raises(LockTimeoutError):
        locks.write("/z")
    assert locks.held() == {}


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
    check_interrupted(nx, lambda: is_committing(main), lambda: not is_committing(main))


def test_what_was_interrupted_while_waiting_for_its_turn_is_not_committed_later(
    nx: NexusFS,
) -> None:
    nx.store._shares_syncs = False
    queue = nx.store._queue
    check_interrupted(nx, lambda: queue, lambda: queue[0].done)


def check_interrupted(
    nx: NexusFS, is_waiting: Callable[[], object], has_given_up: Callable[[], object]
) -> None:
    """Write while another thread holds off commits, and is interrupted once it waits."""
    frozen = threading.Event()

    with interruptible() as interrupt:

        def holding_off_commits() -> None:
            with nx.store.frozen():
                frozen.set()
                wait_for(is_waiting)
                interrupt()
                wait_for(has_given_up)

        holder = threading.Thread(target=holding_off_commits)
        try:
            holder.start()
            frozen.wait()
            with pytest.raises(KeyboardInterrupt):
                nx.write("/d/f", b"interrupted")
        finally:
            holder.join()
    revision = nx.write("/other", b"x")["revision"]
    assert nx.read("/d/f") == b"old"
    assert [event["revision"] for event in nx.history()][-1] == revision
    assert nx.locks.held() == {}
    assert fsck(nx).clean


def test_a_waiter_whose_lock_is_granted_while_it_is_interrupted_gives_it_back(
    nx: NexusFS,
) -> None:
    held = nx.locks.write("/root/d/f")

    with interruptible() as interrupt:

        def interrupt_a_wait() -> None:
            wait_for(nx.locks.waiting)
            interrupt()

        interrupter = threading.Thread(target=interrupt_a_wait)
        try:
            interrupter.start()
            with pytest.raises(KeyboardInterrupt):
                nx.locks.write("/root/d", 30)
        finally:
            interrupter.join()
    held.release()
    assert nx.locks.held() == {}
    nx.write("/d/f", b"new")


def test_a_hold_that_is_dropped_releases_itself(nx: NexusFS) -> None:
    nx.locks.write("/root/d/f")
    gc.collect()
    assert nx.locks.held() == {}
    nx.write("/d/f", b"new")
