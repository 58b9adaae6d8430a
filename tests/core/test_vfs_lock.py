"""Both lock managers pass the suite, and one answers as the other does."""

import random
from typing import Any

import pytest

from nexus.contracts.errors import LockTimeoutError
from nexus.core.vfs_lock import VFSLockManager
from nexus.testing.vfs_lock import VFSLockSuite

PATHS = ["/", "/z", "/z/a", "/z/a/b", "/z/a/b/c", "/z/a-", "/z/a-/m", "/z/é", "/z/ü/m", "/y"]


class TestPythonVFSLock(VFSLockSuite):
    def make(self) -> Any:
        return VFSLockManager()


class TestRustVFSLock(VFSLockSuite):
    def make(self) -> Any:
        reason = "the Rust kernel is not built"
        return pytest.importorskip("nexus._kernel", reason=reason).VFSLockManager()

    def test_it_answers_as_its_twin_does_in_10000_histories(self) -> None:
        rng = random.Random(1)
        for _ in range(10_000):
            twins = self.make(), VFSLockManager()
            held: list[tuple[Any, ...]] = []
            for _ in range(rng.randrange(8)):
                one_step(rng, twins, held)
                assert twins[0].held() == twins[1].held()
            held.clear()
            assert twins[0].held() == twins[1].held() == {}
            assert twins[0].waiting() == twins[1].waiting() == 0

    @pytest.mark.parametrize("path", [None, b"/z", 1])
    def test_what_is_no_path_is_refused_with_nothing_held(self, path: Any) -> None:
        locks = self.make()
        with pytest.raises(TypeError):
            locks.write(path)
        with pytest.raises(TypeError):
            locks.write_many(["/z", path])
        assert locks.held() == {}


def one_step(
    rng: random.Random, twins: tuple[Any, VFSLockManager], held: list[tuple[Any, ...]]
) -> None:
    """Take the same of both, or release or drop one of those that are held."""
    if held and rng.random() < 0.4:
        holds = held.pop(rng.randrange(len(held)))
        if rng.random() < 0.5:
            for hold in holds:
                hold.release()
        return
    method, arguments = some_call(rng)
    one, other = (taken(locks, method, arguments) for locks in twins)
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
    else:
        held.append((one, other))


def some_call(rng: random.Random) -> tuple[str, list[Any]]:
    method = rng.choice(["read", "write", "write_many", "copy_pair"])
    if method == "write_many":
        return method, [[rng.choice(PATHS) for _ in range(rng.randrange(4))]]
    return method, [rng.choice(PATHS) for _ in range(2 if method == "copy_pair" else 1)]


def taken(locks: Any, method: str, arguments: list[Any]) -> Any:
    try:
        return getattr(locks, method)(*arguments, 0)
    except LockTimeoutError as error:
        return str(error)
