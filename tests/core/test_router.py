import random
from typing import Any

import pytest

from nexus.contracts.errors import PathNotFoundError
from nexus.core.router import VFSRouter
from nexus.testing.router import RouterSuite


class TestPythonRouter(RouterSuite):
    def make(self) -> VFSRouter[str]:
        return VFSRouter()


class TestRustRouter(RouterSuite):
    def make(self) -> Any:
        reason = "the Rust kernel is not built"
        return pytest.importorskip("nexus._kernel", reason=reason).VFSRouter()

    def test_it_answers_as_its_twin_does_in_10000_tables(self) -> None:
        rng = random.Random(1)
        names = ["a", "b", "ab", "a-", "é", "\U0001f600"]

        def some_path() -> str:
            return "/" + "/".join(rng.choice(names) for _ in range(rng.randrange(5)))

        for _ in range(10_000):
            routers = self.make(), VFSRouter[str]()
            for point in {some_path() for _ in range(rng.randrange(5))}:
                for router in routers:
                    router.add("zone", point, point)
            path = some_path()
            one, other = (answers(router, path) for router in routers)
            assert one == other

    def test_a_table_is_the_same_until_a_mount_changes(self) -> None:
        router = self.make()
        assert router.table("zone") is None
        router.add("zone", "/", "mount")
        first = router.table("zone")
        assert router.table("zone") is first
        router.remove("zone", "/")
        assert router.table("zone") is not first

    def test_a_taken_point_and_a_free_one_are_refused(self) -> None:
        router = self.make()
        router.add("zone", "/a", "mount")
        with pytest.raises(AssertionError):
            router.add("zone", "/a", "other")
        with pytest.raises(KeyError):
            router.remove("zone", "/b")


def answers(router: Any, path: str) -> list[object]:
    try:
        routed = router.route(path, "zone")
    except PathNotFoundError as error:
        routed = str(error)
    return [
        routed,
        type(routed),
        router.at(path, "zone"),
        router.points_below(path, "zone"),
        router.mounts("zone"),
    ]
