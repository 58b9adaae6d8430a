"""The order of locks is checked at run time when NEXUS_DEBUG_LOCK_ORDER asks for it."""

import threading

import pytest

from nexus.contracts.errors import LockOrderError, LockTimeoutError
from nexus.core.nexus_fs import NexusFS
from nexus.core.primitives import VFSLockManager
from nexus.core.vfs_locks import CheckedVFSLockManager, make_vfs_locks
from nexus.lib.lock_order import VARIABLE, Level, ordered_lock
from nexus.sdk import connect
from nexus.testing.vfs_lock import VFSLockSuite


@pytest.fixture
def _checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")


class TestCheckedVFSLock(VFSLockSuite):
    def make(self) -> VFSLockManager:
        return CheckedVFSLockManager()


@pytest.mark.usefixtures("_checked")
@pytest.mark.parametrize("first", list(Level))
@pytest.mark.parametrize("second", list(Level))
def test_a_lower_level_under_a_higher_one_is_refused(first: Level, second: Level):
    lower, higher = ordered_lock(first), ordered_lock(second)
    with lower:
        if second >= first:
            with higher:
                pass
        else:
            with pytest.raises(LockOrderError), higher:
                pass
    with higher:
        pass


@pytest.mark.usefixtures("_checked")
def test_an_io_lock_is_refused_under_a_thread_lock_and_nothing_is_held():
    locks = make_vfs_locks()
    with ordered_lock(Level.THREAD):
        with pytest.raises(LockOrderError):
            locks.read("/root/a")
        with pytest.raises(LockOrderError):
            locks.write_many(["/root/a", "/root/b"])
    assert locks.held() == {}
    with locks.write("/root/a"), ordered_lock(Level.ADVISORY):
        pass


@pytest.mark.usefixtures("_checked")
def test_a_lock_that_was_not_granted_does_not_count_as_held():
    locks = make_vfs_locks()
    with locks.write("/root/a"):
        failed = []

        def other() -> None:
            with pytest.raises(LockTimeoutError):
                locks.write("/root/a", 0)
            with ordered_lock(Level.IO):
                failed.append(False)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert failed == [False]


@pytest.mark.usefixtures("_checked")
def test_every_kind_of_call_keeps_the_order():
    with connect({"data_dir": ":memory:"}) as nx:
        assert isinstance(nx, NexusFS)
        assert isinstance(nx.locks, CheckedVFSLockManager)
        with nx.locked("/a") as lock:
            nx.write("/a", b"1", lock_token=lock.token)
            nx.append("/a", b"2")
            nx.sys_write("/a", b"3")
        nx.write_batch({"/d/b": b"", "/d/e/c": b""})
        nx.sys_copy("/d", "/copy")
        nx.sys_rename("/copy", "/moved")
        nx.sys_setattr("/a", mode=0o600)
        nx.sys_unlink("/moved", recursive=True)
        assert nx.sys_readdir("/", recursive=True)
        nx.sync()


def test_nothing_is_checked_unless_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert type(make_vfs_locks()) is VFSLockManager
    assert type(ordered_lock(Level.THREAD)) is type(threading.Lock())
