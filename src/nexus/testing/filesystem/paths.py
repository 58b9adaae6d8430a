"""Paths in every call, the shape of errors, and what is left after close. Layer: testing."""

from __future__ import annotations

import errno
import unicodedata

import pytest

from nexus.contracts.errors import (
    ClosedError,
    InvalidArgumentError,
    InvalidPathError,
    NameTooLongError,
    NexusError,
    PathExistsError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem
from nexus.testing.filesystem.base import CALLS_ON_ONE_PATH, Call, SuiteBase, check_error

FORBIDDEN_PARTS = {
    "parent": "a/../b",
    "parent at the end": "a/..",
    "NUL": "a\0b",
    "newline": "a\nb",
    "tab": "a\tb",
    "escape": "a\x1bb",
    "delete": "a\x7fb",
    "C1 control": "a\x85b",
    "lone high surrogate": "a\ud800b",
    "lone low surrogate": "a\udfffb",
}

NAMES = [
    "café",
    unicodedata.normalize("NFD", "café"),
    "ﬁ-ligature",
    "日本語",
    "עברית",
    "🙂👩‍👩‍👧",
    " leading and trailing ",
    "back\\slash",
    "quote'\"",
    "star*?[x]{y}",
    "percent%2f",
    "semi;colon:",
    "...",
    ".hidden",
    "~",
    "-rf",
    "\u200bzero-width",
    "\uffff",
    "\U0010ffff",
    "CON",
    "trailing.",
    "n" * 255,
    "é" * 127,
]

every_call = pytest.mark.parametrize("call", CALLS_ON_ONE_PATH.values(), ids=CALLS_ON_ONE_PATH)


class PathTests(SuiteBase):
    """Which strings are paths, and which name the same place."""

    @every_call
    def test_a_forbidden_path_is_refused_by_every_call(
        self, nx: NexusFilesystem, base: str, call: Call
    ) -> None:
        for what, part in FORBIDDEN_PARTS.items():
            with pytest.raises(InvalidPathError) as caught:
                call(nx, f"{base}/{part}")
            assert caught.value.errno == errno.EINVAL, what
            assert caught.value.operation
            assert isinstance(caught.value, ValueError)
            assert isinstance(caught.value, OSError)

    @every_call
    def test_a_relative_path_is_refused_by_every_call(
        self, nx: NexusFilesystem, call: Call
    ) -> None:
        for path in ("", "relative", "./a", "a/b", "~/a"):
            with pytest.raises(InvalidPathError):
                call(nx, path)

    @every_call
    def test_a_name_over_255_bytes_is_refused_by_every_call(
        self, nx: NexusFilesystem, base: str, call: Call
    ) -> None:
        with pytest.raises(NameTooLongError) as caught:
            call(nx, f"{base}/{'é' * 128}")
        assert caught.value.errno == errno.ENAMETOOLONG

    @every_call
    def test_a_path_over_4096_bytes_is_refused_by_every_call(
        self, nx: NexusFilesystem, base: str, call: Call
    ) -> None:
        with pytest.raises(NameTooLongError):
            call(nx, base + "/component" * 410)

    def test_a_forbidden_target_is_refused_by_rename_and_copy(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/a", b"x")
        for part in FORBIDDEN_PARTS.values():
            with pytest.raises(InvalidPathError):
                nx.sys_rename(f"{base}/a", f"{base}/{part}")
            with pytest.raises(InvalidPathError):
                nx.sys_copy(f"{base}/a", f"{base}/{part}")
        assert nx.list(base or "/") == [f"{base}/a"]

    def test_a_path_of_4096_bytes_holds_a_file(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("longest_paths")
        room = 4096 - len(base.encode())
        directories = "/" + "d" * 199
        count = (room - 2) // 200
        path = base + directories * count
        path += "/" + "f" * (4096 - len(path) - 1)
        assert len(path.encode()) == 4096
        nx.write(path, b"deep")
        assert nx.read(path) == b"deep"

    def test_spellings_that_fold_name_the_same_file(self, nx: NexusFilesystem, base: str) -> None:
        path = f"{base}/a"
        for spelling in (f"{base}//a", f"{base}/./a", f"{path}/", f"{base}///./a//./", f"{path}/."):
            assert nx.write(spelling, spelling.encode())["path"] == path
            stat = nx.sys_stat(spelling)
            assert stat is not None
            assert stat["path"] == path
            assert nx.read(path) == nx.read(spelling) == spelling.encode()
            assert nx.list(base or "/") == [path]

    def test_results_carry_the_normalised_path(self, nx: NexusFilesystem, base: str) -> None:
        assert nx.mkdir(f"{base}//d/")["path"] == f"{base}/d"
        assert nx.append(f"{base}/d//a", b"1")["path"] == f"{base}/d/a"
        assert nx.sys_write(f"{base}/d/./a", b"2")["path"] == f"{base}/d/a"
        assert nx.edit(f"{base}/d/a/", bytes.upper)["path"] == f"{base}/d/a"
        assert nx.list(f"{base}/d//") == [f"{base}/d/a"]
        moved = nx.sys_rename(f"{base}//d/a", f"{base}/d//b")
        assert (moved["old_path"], moved["path"]) == (f"{base}/d/a", f"{base}/d/b")
        assert nx.sys_copy(f"{base}/d//b", f"{base}/d/./c")["path"] == f"{base}/d/c"
        assert nx.sys_unlink(f"{base}/d/c/")["path"] == f"{base}/d/c"

    def test_names_are_kept_byte_for_byte(self, nx: NexusFilesystem, base: str) -> None:
        for name in NAMES:
            nx.write(f"{base}/{name}", name.encode())
        paths = sorted(f"{base}/{name}".encode() for name in NAMES)
        assert [entry.encode() for entry in nx.list(base or "/")] == paths
        for name in NAMES:
            assert nx.read(f"{base}/{name}") == name.encode()

    def test_two_unicode_spellings_are_two_files(self, nx: NexusFilesystem, base: str) -> None:
        composed, decomposed = "\u00e9", "e\u0301"
        nx.write(f"{base}/{composed}", b"composed")
        nx.write(f"{base}/{decomposed}", b"decomposed")
        assert nx.read(f"{base}/{composed}") == b"composed"
        assert nx.list(base or "/") == [f"{base}/{decomposed}", f"{base}/{composed}"]

    def test_names_are_case_sensitive(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/Name", b"upper")
        assert nx.sys_stat(f"{base}/name") is None

    def test_a_name_with_a_common_prefix_is_not_beneath(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/d/a", b"in")
        nx.write(f"{base}/d-sibling/a", b"out")
        nx.write(f"{base}/d0", b"out")
        nx.sys_unlink(f"{base}/d", recursive=True)
        assert nx.list(base or "/") == [f"{base}/d-sibling", f"{base}/d0"]

    def test_errors_name_operation_path_and_errno(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/d/f", b"x")
        cases: list[tuple[type[NexusError], type[Exception], str, str]] = [
            (PathNotFoundError, FileNotFoundError, "sys_read", f"{base}/none"),
            (PathNotFoundError, FileNotFoundError, "sys_unlink", f"{base}/none"),
            (PathNotFoundError, FileNotFoundError, "sys_readdir", f"{base}/none"),
            (PathNotFoundError, FileNotFoundError, "sys_setattr", f"{base}/none"),
            (PathNotFoundError, FileNotFoundError, "sys_write", f"{base}/none"),
            (PathNotFoundError, FileNotFoundError, "edit", f"{base}/none"),
            (PathIsDirectoryError, IsADirectoryError, "sys_read", f"{base}/d"),
            (PathIsDirectoryError, IsADirectoryError, "write", f"{base}/d"),
            (PathNotDirectoryError, NotADirectoryError, "sys_readdir", f"{base}/d/f"),
            (PathNotDirectoryError, NotADirectoryError, "write", f"{base}/d/f/x"),
            (PathExistsError, FileExistsError, "mkdir", f"{base}/d"),
        ]
        for expected, builtin, call, path in cases:
            with pytest.raises(builtin) as caught:
                CALLS_ON_ONE_PATH[call](nx, path)
            assert type(caught.value) is expected, call
            assert isinstance(caught.value, NexusError)
            check_error(caught.value, path)

    def test_an_error_about_an_argument_names_the_path_too(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"x")
        with pytest.raises(InvalidArgumentError) as caught:
            nx.read(f"{base}/f", -1)
        check_error(caught.value, f"{base}/f")

    @every_call
    def test_every_call_on_a_closed_filesystem_says_so(
        self, nx: NexusFilesystem, base: str, call: Call
    ) -> None:
        nx.write(f"{base}/f", b"x")
        nx.close()
        with pytest.raises(ClosedError) as caught:
            call(nx, f"{base}/f")
        assert caught.value.errno == errno.EBADF

    def test_a_view_of_a_closed_filesystem_is_closed(self, nx: NexusFilesystem, base: str) -> None:
        from_before = nx.bind(self.someone())
        nx.close()
        with pytest.raises(ClosedError):
            from_before.sys_stat(f"{base}/f")

    def test_sync_on_a_closed_filesystem_says_so(self, nx: NexusFilesystem) -> None:
        nx.close()
        with pytest.raises(ClosedError):
            nx.sync()

    def test_close_may_be_called_again(self, nx: NexusFilesystem) -> None:
        nx.close()
        nx.close()

    def test_leaving_the_context_closes(self, nx: NexusFilesystem) -> None:
        with nx as entered:
            assert entered is nx
        with pytest.raises(ClosedError):
            nx.sys_stat("/")
