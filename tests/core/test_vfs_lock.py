"""The manager that the kernel uses passes the suite, and tells of what is released."""

import gc

import pytest

from nexus.contracts.errors import LockTimeoutError
from nexus.core.vfs_lock import VFSLockManager
from nexus.testing.vfs_lock import VFSLockSuite


class TestPythonVFSLock(VFSLockSuite):
    def make(self) -> VFSLockManager:
        return VFSLockManager()


@pytest.fixture
def told() -> list[dict[str, str]]:
    return []


@pytest.fixture
def locks(told: list[dict[str, str]]) -> VFSLockManager:
    manager = VFSLockManager()
    manager.after_release = lambda: told.append(manager.held())
    return manager


def test_who_releases_is_told_once_a_call_with_nothing_held(
    locks: VFSLockManager, told: list[dict[str, str]]
):
    with locks.write("/a"):
        assert not told
    locks.read("/a").release()
    with locks.write_many(["/a", "/b", "/c/d"]), pytest.raises(LockTimeoutError):
        locks.write("/a", 0)
    with locks.copy_pair("/a", "/b"):
        pass
    assert told == [{}] * 4


def test_a_hold_that_is_dropped_tells_nobody(locks: VFSLockManager, told: list[dict[str, str]]):
    locks.write("/a")
    gc.collect()
    assert locks.held() == {}
    assert not told
