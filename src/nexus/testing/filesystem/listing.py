"""What is in a directory: sys_readdir, list, walk, glob and grep. Layer: testing."""

from __future__ import annotations

import pytest

from nexus.contracts.errors import (
    InvalidArgumentError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DirectoryPage
from nexus.testing.filesystem.base import SuiteBase, pages

AWKWARD_NAMES = ["a", "a!", "a-", "a/x", "a/x-", "a/x/y", "a0", "a.b", "é", "\uffff", "😀", "Z"]
"""Files and directories whose paths sort differently by component and by byte."""


class ListingTests(SuiteBase):
    """Which entries are listed, in what order, and how pages join."""

    def make_awkward_tree(self, nx: NexusFilesystem, base: str) -> list[str]:
        """Create the awkward names and return every path, sorted bytewise."""
        directories = {"a", "a/x"}
        for name in AWKWARD_NAMES:
            if name not in directories:
                nx.write(f"{base}/{name}", b"x")
        return sorted((f"{base}/{name}" for name in AWKWARD_NAMES), key=str.encode)

    def make_files(self, nx: NexusFilesystem, base: str, count: int) -> list[str]:
        """Create ``count`` files in ``d`` and return their paths."""
        paths = [f"{base}/d/{n:03}" for n in range(count)]
        for path in paths:
            nx.write(path, path.encode())
        return paths

    # -- one directory ------------------------------------------------------------------------

    def test_readdir_lists_absolute_paths_sorted_bytewise(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        everything = self.make_awkward_tree(nx, base)
        direct = [path for path in everything if "/" not in path[len(base) + 1 :]]
        assert nx.sys_readdir(base or "/") == direct
        assert nx.list(base or "/") == direct

    def test_recursive_readdir_lists_everything_beneath_sorted_bytewise(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        everything = self.make_awkward_tree(nx, base)
        assert nx.sys_readdir(base or "/", recursive=True) == everything

    def test_a_listing_of_a_subdirectory_stays_in_it(self, nx: NexusFilesystem, base: str) -> None:
        self.make_awkward_tree(nx, base)
        assert nx.list(f"{base}/a") == [f"{base}/a/x", f"{base}/a/x-"]
        beneath = [f"{base}/a/x", f"{base}/a/x-", f"{base}/a/x/y"]
        assert nx.list(f"{base}/a", recursive=True) == beneath

    def test_an_empty_directory_lists_nothing(self, nx: NexusFilesystem, base: str) -> None:
        nx.mkdir(f"{base}/d")
        for recursive in (False, True):
            page = nx.sys_readdir(f"{base}/d", recursive)
            assert isinstance(page, DirectoryPage)
            assert page == []
            assert page.next_cursor is None

    @pytest.mark.parametrize("recursive", [False, True])
    def test_details_are_the_stats_of_the_entries(
        self, nx: NexusFilesystem, base: str, recursive: bool
    ) -> None:
        self.make_awkward_tree(nx, base)
        names = nx.sys_readdir(base or "/", recursive)
        details = nx.sys_readdir(base or "/", recursive, details=True)
        assert details == [nx.sys_stat(name) for name in names]

    def test_changing_a_listed_stat_changes_nothing_stored(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"x")
        nx.list(base or "/", details=True)[0]["size"] = 99
        nx.list(base or "/").clear()
        assert nx.list(base or "/", details=True)[0]["size"] == 1

    def test_listing_what_is_no_directory_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        for recursive in (False, True):
            with pytest.raises(PathNotDirectoryError):
                nx.sys_readdir(f"{base}/f", recursive)
            with pytest.raises(PathNotFoundError):
                nx.sys_readdir(f"{base}/none", recursive)
            with pytest.raises((PathNotDirectoryError, PathNotFoundError)):
                nx.sys_readdir(f"{base}/f/x", recursive)

    # -- pages --------------------------------------------------------------------------------

    @pytest.mark.parametrize("recursive", [False, True])
    @pytest.mark.parametrize("details", [False, True])
    def test_pages_join_to_the_full_listing(
        self, nx: NexusFilesystem, base: str, recursive: bool, details: bool
    ) -> None:
        self.make_awkward_tree(nx, base)
        full = nx.sys_readdir(base or "/", recursive, details=details)
        assert full.next_cursor is None
        for limit in (1, 2, 5, 11, 12, 1000):
            found = pages(nx, base or "/", limit, recursive=recursive, details=details)
            assert [entry for page in found for entry in page] == full
            assert all(len(page) <= limit for page in found)
            assert all(page for page in found[:-1])

    def test_a_page_that_holds_everything_has_no_cursor(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.make_files(nx, base, 5)
        assert nx.sys_readdir(f"{base}/d", limit=6).next_cursor is None
        assert nx.sys_readdir(f"{base}/d", limit=4).next_cursor is not None

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_below_one_is_refused(self, nx: NexusFilesystem, base: str, limit: int) -> None:
        for recursive in (False, True):
            with pytest.raises(InvalidArgumentError):
                nx.sys_readdir(base or "/", recursive, limit=limit)

    @pytest.mark.parametrize("recursive", [False, True])
    def test_a_cursor_stays_valid_when_entries_around_it_are_deleted(
        self, nx: NexusFilesystem, base: str, recursive: bool
    ) -> None:
        paths = self.make_files(nx, base, 20)
        first = nx.sys_readdir(f"{base}/d", recursive, limit=10)
        for path in paths[8:12]:
            nx.sys_unlink(path)
        rest = nx.sys_readdir(f"{base}/d", recursive, cursor=first.next_cursor)
        assert first == paths[:10]
        assert rest == paths[12:]

    @pytest.mark.parametrize("recursive", [False, True])
    def test_a_cursor_sees_what_was_inserted_after_it_and_nothing_twice(
        self, nx: NexusFilesystem, base: str, recursive: bool
    ) -> None:
        paths = self.make_files(nx, base, 6)
        first = nx.sys_readdir(f"{base}/d", recursive, limit=3)
        nx.write(f"{base}/d/000-before", b"x")
        nx.write(f"{base}/d/004-after", b"x")
        rest = nx.sys_readdir(f"{base}/d", recursive, cursor=first.next_cursor)
        assert rest == [*paths[3:5], f"{base}/d/004-after", paths[5]]

    def test_a_cursor_outlives_everything_before_and_after_it(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        paths = self.make_files(nx, base, 6)
        cursor = nx.sys_readdir(f"{base}/d", limit=3).next_cursor
        for path in paths:
            nx.sys_unlink(path)
        assert nx.sys_readdir(f"{base}/d", cursor=cursor) == []

    def test_walk_yields_the_stats_of_everything_beneath(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.make_awkward_tree(nx, base)
        expected = nx.list(base or "/", recursive=True, details=True)
        assert list(nx.walk(base or "/")) == expected

    def test_walk_of_more_than_one_page_is_complete(self, nx: NexusFilesystem, base: str) -> None:
        if not self.atomic_batch:
            pytest.skip("a thousand single writes take long; paging is tested above")
        items = {f"{base}/d{n % 3}/{n:04}": b"x" for n in range(1005)}
        nx.write_batch(items)
        files = [stat["path"] for stat in nx.walk(base or "/") if not stat["is_directory"]]
        assert files == sorted(items)

    # -- glob ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("*.py", ["a.py", "src/b.py", "src/pkg/c.py"]),
            ("?.py", ["a.py", "src/b.py", "src/pkg/c.py"]),
            ("[ab].py", ["a.py", "src/b.py"]),
            ("[!a].py", ["src/b.py", "src/pkg/c.py"]),
            ("[b-z].py", ["src/b.py", "src/pkg/c.py"]),
            ("*.{txt,md}", ["notes.md", "src/pkg/d.txt"]),
            ("src/*", ["src/b.py", "src/pkg"]),
            ("src/*.py", ["src/b.py"]),
            ("src/**", ["src/b.py", "src/pkg", "src/pkg/c.py", "src/pkg/d.txt"]),
            ("**/*.py", ["a.py", "src/b.py", "src/pkg/c.py"]),
            ("src/**/*.py", ["src/b.py", "src/pkg/c.py"]),
            ("a.py", ["a.py"]),
            ("axpy", []),
            ("pkg", ["src/pkg"]),
            ("*.PY", []),
        ],
    )
    def test_glob_matches_shell_patterns(
        self, nx: NexusFilesystem, base: str, pattern: str, expected: list[str]
    ) -> None:
        for name in ("a.py", "notes.md", "src/b.py", "src/pkg/c.py", "src/pkg/d.txt"):
            nx.write(f"{base}/{name}", b"x")
        assert nx.glob(pattern, base or "/") == [f"{base}/{name}" for name in expected]

    def test_glob_of_what_is_missing_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(PathNotFoundError):
            nx.glob("*", f"{base}/none")

    # -- grep ---------------------------------------------------------------------------------

    def make_texts(self, nx: NexusFilesystem, base: str) -> None:
        """Create the small files that grep is tried on."""
        nx.write(f"{base}/a.txt", "first\nthe needle\nlast needle\n")
        nx.write(f"{base}/d/b.py", "needle = 1")
        nx.write(f"{base}/d/c.txt", "NEEDLE, größer\n")
        nx.write(f"{base}/binary", b"needle\0needle")

    def test_grep_returns_path_line_number_and_line(self, nx: NexusFilesystem, base: str) -> None:
        self.make_texts(nx, base)
        found = nx.grep(r"needle\b", base or "/")
        assert found == [
            (f"{base}/a.txt", 2, "the needle"),
            (f"{base}/a.txt", 3, "last needle"),
            (f"{base}/d/b.py", 1, "needle = 1"),
        ]
        assert found[0].path == f"{base}/a.txt"
        assert not found.truncated
        assert found.skipped == []

    def test_grep_takes_one_file(self, nx: NexusFilesystem, base: str) -> None:
        self.make_texts(nx, base)
        assert [match.line_number for match in nx.grep("needle", f"{base}/a.txt")] == [2, 3]

    def test_grep_can_ignore_case_and_match_names(self, nx: NexusFilesystem, base: str) -> None:
        self.make_texts(nx, base)
        found = nx.grep("needle, GR", base or "/", ignore_case=True)
        assert [match.line for match in found] == ["NEEDLE, größer"]
        found = nx.grep("needle", base or "/", include="*.py")
        assert [match.path for match in found] == [f"{base}/d/b.py"]

    def test_grep_matches_text_beyond_ascii(self, nx: NexusFilesystem, base: str) -> None:
        self.make_texts(nx, base)
        assert [match.path for match in nx.grep("größer", base or "/")] == [f"{base}/d/c.txt"]

    def test_a_grep_cut_by_its_limit_says_so(self, nx: NexusFilesystem, base: str) -> None:
        self.make_texts(nx, base)
        cut = nx.grep("needle", base or "/", limit=2)
        assert (len(cut), cut.truncated) == (2, True)
        whole = nx.grep("needle", base or "/", limit=3)
        assert (len(whole), whole.truncated) == (3, False)

    def test_a_bad_grep_pattern_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(InvalidArgumentError):
            nx.grep("(unclosed", base or "/")

    def test_grep_of_what_is_missing_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(PathNotFoundError):
            nx.grep("x", f"{base}/none")
