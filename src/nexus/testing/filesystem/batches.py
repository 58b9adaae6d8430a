"""Many files in one call: write_batch and read_batch. Layer: testing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nexus.contracts.errors import (
    ConflictError,
    InvalidArgumentError,
    InvalidPathError,
    NexusError,
    NotSupportedError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.metadata import Buffer
from nexus.testing.filesystem.base import WRITE_RESULT_KEYS, SuiteBase, noise, tree


class BatchTests(SuiteBase):
    """All of a batch, or none of it."""

    def test_a_batch_writes_every_file_with_its_parents(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("atomic_batch")
        items: dict[str, Buffer | str] = {
            f"{base}/a": b"1",
            f"{base}/d/b": "2",
            f"{base}/d/e/c": bytearray(b"3"),
        }
        nx.write_batch(items)
        assert tree(nx, base) == {
            f"{base}/a": b"1",
            f"{base}/d": None,
            f"{base}/d/b": b"2",
            f"{base}/d/e": None,
            f"{base}/d/e/c": b"3",
        }

    def test_a_batch_answers_each_item_in_order_with_one_revision(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("atomic_batch")
        names = ["z", "a", "m"]
        results = nx.write_batch([(f"{base}/{name}", name.encode() * 3) for name in names])
        assert [result["path"] for result in results] == [f"{base}/{name}" for name in names]
        assert [set(result) for result in results] == [WRITE_RESULT_KEYS] * 3
        assert [result["bytes_written"] for result in results] == [3, 3, 3]
        assert [result["version"] for result in results] == [1, 1, 1]
        assert len({result["revision"] for result in results}) == 1

    def test_a_batch_takes_requests_of_every_kind(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("atomic_batch")
        etag = nx.write(f"{base}/replaced", b"old")["etag"]
        nx.write(f"{base}/log", b"one\n")
        nx.write_batch(
            [
                (f"{base}/plain", b"plain"),
                WriteRequest(f"{base}/log", b"two\n", append=True),
                WriteRequest(f"{base}/replaced", b"new", precondition=Precondition(etag)),
                WriteRequest(f"{base}/fresh", b"x", precondition=Precondition(None, "*")),
                WriteRequest(f"{base}/pieces", iter([b"a", b"b"])),
            ]
        )
        assert {path: nx.read(path) for path in nx.list(base or "/")} == {
            f"{base}/fresh": b"x",
            f"{base}/log": b"one\ntwo\n",
            f"{base}/pieces": b"ab",
            f"{base}/plain": b"plain",
            f"{base}/replaced": b"new",
        }

    def test_a_batch_of_nothing_writes_nothing(self, nx: NexusFilesystem, base: str) -> None:
        assert nx.write_batch({}) == []
        assert nx.list(base or "/") == []

    def test_a_batch_of_hundreds_of_files_is_whole(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("atomic_batch")
        items = {f"{base}/d{n % 7}/f{n:03}": str(n).encode() for n in range(400)}
        nx.write_batch(items)
        assert nx.read_batch(items) == items

    def test_a_batch_may_mix_small_and_chunked_content(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("atomic_batch")
        items = {f"{base}/small": b"s", f"{base}/large": noise(2_000_000), f"{base}/empty": b""}
        nx.write_batch(items)
        assert nx.read_batch(items) == items

    @pytest.mark.parametrize(
        ("failing", "expected"),
        [
            (WriteRequest("{}/directory", b"x"), PathIsDirectoryError),
            (WriteRequest("{}/file/below", b"x"), PathNotDirectoryError),
            (WriteRequest("{}/a/../b", b"x"), InvalidPathError),
            (WriteRequest("{}/none", b"x", create=False), PathNotFoundError),
            (WriteRequest("{}/none/none", b"x", parents=False), PathNotFoundError),
            (
                WriteRequest("{}/file", b"x", precondition=Precondition(if_none_match="*")),
                ConflictError,
            ),
            (
                WriteRequest("{}/none", b"x", precondition=Precondition(if_match="b3:0")),
                ConflictError,
            ),
        ],
        ids=[
            "over a directory",
            "below a file",
            "bad path",
            "create=False on a missing file",
            "parents=False below a missing directory",
            "if_none_match on a file",
            "if_match on a missing file",
        ],
    )
    def test_an_item_that_fails_in_the_middle_leaves_nothing_of_the_batch(
        self,
        nx: NexusFilesystem,
        base: str,
        failing: WriteRequest,
        expected: type[NexusError],
    ) -> None:
        self.needs("atomic_batch")
        nx.mkdir(f"{base}/directory")
        nx.write(f"{base}/file", b"old")
        before, events = tree(nx, base), len(nx.history())
        middle = WriteRequest(
            failing.path.format(base),
            failing.buf,
            create=failing.create,
            parents=failing.parents,
            precondition=failing.precondition,
        )
        with pytest.raises(expected):
            nx.write_batch([(f"{base}/new/first", b"1"), middle, (f"{base}/last", b"3")])
        assert tree(nx, base) == before
        assert len(nx.history()) == events

    def test_pieces_that_raise_leave_nothing_of_the_batch(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("atomic_batch")

        def broken() -> Iterator[bytes]:
            yield noise(1_500_000)
            raise LookupError("the source broke")

        with pytest.raises(LookupError):
            nx.write_batch(
                [(f"{base}/a", b"1"), WriteRequest(f"{base}/b", broken()), (f"{base}/c", b"3")]
            )
        assert tree(nx, base) == {}

    @pytest.mark.parametrize("second", ["{}/a", "{}//a", "{}/./a", "{}/a/"])
    def test_a_path_that_stands_twice_in_a_batch_is_refused(
        self, nx: NexusFilesystem, base: str, second: str
    ) -> None:
        self.needs("atomic_batch")
        with pytest.raises(InvalidArgumentError):
            nx.write_batch([(f"{base}/a", b"1"), (second.format(base), b"2")])
        assert nx.list(base or "/") == []

    @pytest.mark.parametrize("order", [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c")])
    def test_an_item_below_another_item_is_refused(
        self, nx: NexusFilesystem, base: str, order: tuple[str, str]
    ) -> None:
        self.needs("atomic_batch")
        with pytest.raises((PathNotDirectoryError, PathIsDirectoryError, InvalidArgumentError)):
            nx.write_batch([(f"{base}/{name}", b"x") for name in order])
        assert nx.list(base or "/") == []

    def test_a_batch_where_no_commit_spans_files_is_not_supported(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        if self.atomic_batch:
            pytest.skip("this mount commits batches")
        with pytest.raises(NotSupportedError):
            nx.write_batch({f"{base}/a": b"1", f"{base}/b": b"2"})
        assert nx.list(base or "/") == []

    # -- read_batch ---------------------------------------------------------------------------

    def test_read_batch_returns_the_bytes_by_path(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/a", b"1")
        nx.write(f"{base}/d/b", noise(1_500_000))
        paths = [f"{base}/d/b", f"{base}/a"]
        assert nx.read_batch(paths) == {f"{base}/d/b": noise(1_500_000), f"{base}/a": b"1"}
        assert nx.read_batch(iter(paths)) == nx.read_batch(paths)
        assert nx.read_batch([]) == {}

    def test_read_batch_fails_at_the_first_missing_path(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/a", b"1")
        with pytest.raises(PathNotFoundError) as caught:
            nx.read_batch([f"{base}/a", f"{base}/none", f"{base}/neither"])
        assert caught.value.path == f"{base}/none"

    def test_read_batch_answers_none_for_a_missing_path_when_allowed(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/a", b"1")
        found = nx.read_batch([f"{base}/none", f"{base}/a"], missing_ok=True)
        assert found == {f"{base}/none": None, f"{base}/a": b"1"}

    def test_read_batch_of_a_directory_fails_even_when_missing_is_allowed(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.mkdir(f"{base}/d")
        with pytest.raises(PathIsDirectoryError):
            nx.read_batch([f"{base}/d"], missing_ok=True)
