"""RouterSuite: what every router must hold. A test subclasses it and overrides ``make``."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.contracts.errors import PathNotFoundError
from nexus.lib.paths import is_same_or_below

_NAMES = st.sampled_from(["a", "b", "a-", "ab", "é", "a b"])
_PATH = st.lists(_NAMES, max_size=5).map(lambda names: "/" + "/".join(names))


class RouterSuite:
    """Conformance of :class:`nexus.core.router.VFSRouter` and its twins."""

    @abstractmethod
    def make(self) -> Any:
        """Return a new, empty router."""

    def test_the_longest_mount_point_wins(self) -> None:
        router = self.make()
        for point in ("/", "/a", "/a/b"):
            router.add("root", point, point)
        assert router.route("/a/b/c", "root") == ("/a/b", "/a/b", "/c")
        assert router.route("/a/bc", "root") == ("/a", "/a", "/bc")
        assert router.route("/x", "root") == ("/", "/", "/x")

    def test_a_mount_point_is_the_root_of_its_mount(self) -> None:
        router = self.make()
        router.add("root", "/", "outer")
        router.add("root", "/a", "inner")
        assert router.route("/a", "root") == ("inner", "/a", "/")
        assert router.route("/", "root") == ("outer", "/", "/")

    def test_zones_do_not_see_each_others_mounts(self) -> None:
        router = self.make()
        router.add("one", "/", "first")
        router.add("two", "/a", "second")
        assert router.route("/a/x", "one")[0] == "first"
        assert router.route("/a/x", "two")[0] == "second"

    @pytest.mark.parametrize("path", ["/", "/a", "/b/c"])
    def test_a_path_without_a_mount_is_not_found(self, path: str) -> None:
        router = self.make()
        router.add("root", "/b/c/d", "deep")
        with pytest.raises(PathNotFoundError) as caught:
            router.route(path, "root")
        assert caught.value.path == path

    def test_a_removed_mount_uncovers_what_is_beneath_it(self) -> None:
        router = self.make()
        router.add("root", "/", "outer")
        router.add("root", "/a", "inner")
        assert router.remove("root", "/a") == "inner"
        assert router.route("/a/x", "root") == ("outer", "/", "/a/x")
        assert router.at("/a", "root") is None

    def test_points_below_are_strictly_below_and_sorted(self) -> None:
        router = self.make()
        for point in ("/", "/a", "/a/c", "/a/b", "/ab"):
            router.add("root", point, point)
        assert router.points_below("/a", "root") == ["/a/b", "/a/c"]
        assert router.points_below("/", "root") == ["/a", "/a/b", "/a/c", "/ab"]

    # A subclass for each implementation is what a suite is for.
    @settings(
        max_examples=300,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(st.sets(_PATH, max_size=6), _PATH)
    def test_routes_agree_with_the_longest_prefix_by_search(
        self, points: set[str], path: str
    ) -> None:
        router = self.make()
        for point in points:
            router.add("root", point, point)
        covering = [point for point in points if is_same_or_below(path, point)]
        if not covering:
            with pytest.raises(PathNotFoundError):
                router.route(path, "root")
            return
        longest = max(covering, key=len)
        mount, point, relative = router.route(path, "root")
        assert mount == point == longest
        rebuilt = longest.rstrip("/") + ("" if relative == "/" else relative)
        assert (rebuilt or "/") == path
