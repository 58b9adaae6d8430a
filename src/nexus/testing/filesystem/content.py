"""Bytes in and out: read, write, sys_write, append, edit and their preconditions.

Layer: testing. Batches of several files are in :mod:`nexus.testing.filesystem.batches`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nexus.contracts.errors import (
    ConflictError,
    InvalidArgumentError,
    NotSupportedError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem, Precondition
from nexus.contracts.metadata import Buffer
from nexus.testing.filesystem.base import (
    CHUNK_THRESHOLD_BYTES,
    WRITE_RESULT_KEYS,
    SuiteBase,
    noise,
)

BUFFERS: dict[str, Callable[[], Buffer | str]] = {
    "bytes": lambda: b"caf\xc3\xa9",
    "bytearray": lambda: bytearray(b"caf\xc3\xa9"),
    "memoryview": lambda: memoryview(b"caf\xc3\xa9"),
    "a slice of a memoryview": lambda: memoryview(b"__caf\xc3\xa9__")[2:-2],
    "a memoryview with a stride": lambda: memoryview(b"c_a_f_\xc3_\xa9_")[::2],
    "str": lambda: "café",
}

SIZES = {
    "empty": 0,
    "one byte": 1,
    "below the chunk threshold": CHUNK_THRESHOLD_BYTES - 1,
    "at the chunk threshold": CHUNK_THRESHOLD_BYTES,
    "above the chunk threshold": CHUNK_THRESHOLD_BYTES + 1,
    "three times the chunk threshold": 3 * CHUNK_THRESHOLD_BYTES + 17,
}

every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
every_buffer = pytest.mark.parametrize("buffer", BUFFERS.values(), ids=BUFFERS)


class ContentTests(SuiteBase):
    """What the calls that move bytes promise."""

    # -- whole files --------------------------------------------------------------------------

    def test_write_creates_a_file_that_reads_back(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"hello")
        assert nx.read(f"{base}/f") == b"hello"
        assert nx.sys_read(f"{base}/f") == b"hello"

    def test_write_returns_its_documented_fields(self, nx: NexusFilesystem, base: str) -> None:
        result = nx.write(f"{base}/f", b"hello")
        assert set(result) == WRITE_RESULT_KEYS
        assert result["path"] == f"{base}/f"
        assert result["bytes_written"] == 5
        assert result["size"] == 5
        stat = nx.sys_stat(f"{base}/f")
        assert stat is not None
        for key in ("etag", "version", "size", "modified_at", "revision"):
            assert result[key] == stat[key], key
        assert isinstance(result["modified_at"], float)

    def test_every_kind_of_write_returns_the_same_fields(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        path = f"{base}/f"
        results = [
            nx.append(path, b"a"),
            nx.sys_write(path, b"b"),
            nx.edit(path, bytes.upper),
            nx.write(path, b"c"),
        ]
        assert [set(result) for result in results] == [WRITE_RESULT_KEYS] * 4

    def test_write_replaces_the_whole_content(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"a long first content")
        nx.write(f"{base}/f", b"short")
        assert nx.read(f"{base}/f") == b"short"

    def test_write_creates_missing_parents(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/a/b/c", b"x")
        assert nx.is_directory(f"{base}/a")
        assert nx.is_directory(f"{base}/a/b")
        assert nx.read(f"{base}/a/b/c") == b"x"

    @every_buffer
    def test_write_takes_every_kind_of_buffer(
        self, nx: NexusFilesystem, base: str, buffer: Callable[[], Buffer | str]
    ) -> None:
        assert nx.write(f"{base}/f", buffer())["size"] == 5
        content = nx.read(f"{base}/f")
        assert type(content) is bytes
        assert content == "café".encode()

    @every_buffer
    def test_append_takes_every_kind_of_buffer(
        self, nx: NexusFilesystem, base: str, buffer: Callable[[], Buffer | str]
    ) -> None:
        nx.append(f"{base}/f", b">")
        nx.append(f"{base}/f", buffer())
        assert nx.read(f"{base}/f") == ">café".encode()

    def test_a_memoryview_of_wide_items_is_stored_as_its_bytes(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        numbers = array("H", [1, 2, 3])
        assert nx.write(f"{base}/f", memoryview(numbers))["size"] == len(numbers.tobytes())
        assert nx.read(f"{base}/f") == numbers.tobytes()
        nx.write(f"{base}/g", b"")
        assert nx.sys_write(f"{base}/g", memoryview(numbers))["bytes_written"] == 6
        assert nx.read(f"{base}/g") == numbers.tobytes()

    def test_a_bytearray_changed_after_the_write_changes_nothing(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        buffer = bytearray(b"before")
        nx.write(f"{base}/f", buffer)
        buffer[:] = b"after!"
        assert nx.read(f"{base}/f") == b"before"

    @pytest.mark.parametrize("wrong", [None, 5, 1.5, object()], ids=repr)
    def test_what_is_no_buffer_is_refused_and_stores_nothing(
        self, nx: NexusFilesystem, base: str, wrong: Any
    ) -> None:
        with pytest.raises((InvalidArgumentError, TypeError)):
            nx.write(f"{base}/f", wrong)
        assert nx.sys_stat(f"{base}/f") is None

    def test_write_takes_an_iterable_of_pieces(self, nx: NexusFilesystem, base: str) -> None:
        pieces = [noise(300_000, seed) for seed in range(5)]
        result = nx.write(f"{base}/f", iter(pieces))
        assert result["size"] == result["bytes_written"] == 1_500_000
        assert nx.read(f"{base}/f") == b"".join(pieces)

    def test_write_takes_pieces_of_every_kind_and_size(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", [b"", b"a", bytearray(b"b"), memoryview(b"c"), b""])
        assert nx.read(f"{base}/f") == b"abc"
        nx.write(f"{base}/empty", iter(()))
        assert nx.read(f"{base}/empty") == b""

    def test_pieces_and_a_whole_buffer_give_the_same_etag(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("content_addressed")
        content = noise(2_500_000)
        pieces = (content[at : at + 70_001] for at in range(0, len(content), 70_001))
        streamed = nx.write(f"{base}/streamed", pieces)
        assert nx.write(f"{base}/whole", content)["etag"] == streamed["etag"]

    @pytest.mark.parametrize("sent_before", [0, 1, 3], ids="after {} pieces".format)
    def test_pieces_that_raise_store_nothing(
        self, nx: NexusFilesystem, base: str, sent_before: int
    ) -> None:
        def pieces() -> Iterator[bytes]:
            for seed in range(sent_before):
                yield noise(800_000, seed)
            raise LookupError("the source broke")

        nx.write(f"{base}/old", b"old")
        with pytest.raises(LookupError, match="the source broke"):
            nx.write(f"{base}/old", pieces())
        with pytest.raises(LookupError, match="the source broke"):
            nx.write(f"{base}/new", pieces())
        assert nx.read(f"{base}/old") == b"old"
        assert nx.list(base or "/") == [f"{base}/old"]

    @every_size
    def test_content_of_every_size_reads_back(
        self, nx: NexusFilesystem, base: str, size: int
    ) -> None:
        content = noise(size)
        assert nx.write(f"{base}/f", content)["size"] == size
        assert nx.read(f"{base}/f") == content

    def test_repetitive_content_reads_back(self, nx: NexusFilesystem, base: str) -> None:
        content = b"\0" * (4 * CHUNK_THRESHOLD_BYTES)
        nx.write(f"{base}/f", content)
        assert nx.read(f"{base}/f") == content

    @pytest.mark.parametrize("call", ["write", "append"])
    def test_write_over_a_directory_is_refused(
        self, nx: NexusFilesystem, base: str, call: str
    ) -> None:
        nx.mkdir(f"{base}/d")
        with pytest.raises(PathIsDirectoryError):
            getattr(nx, call)(f"{base}/d", b"x")
        with pytest.raises(PathIsDirectoryError):
            getattr(nx, call)(base or "/", b"x")
        assert nx.is_directory(f"{base}/d")

    @pytest.mark.parametrize("call", ["write", "append"])
    @pytest.mark.parametrize("below", ["x", "x/y/z"])
    def test_write_below_a_file_is_refused(
        self, nx: NexusFilesystem, base: str, call: str, below: str
    ) -> None:
        nx.write(f"{base}/f", b"file")
        with pytest.raises(PathNotDirectoryError):
            getattr(nx, call)(f"{base}/f/{below}", b"x")
        assert nx.read(f"{base}/f") == b"file"

    # -- reading ------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("count", "offset", "expected"),
        [
            (None, 0, b"0123456789"),
            (3, 0, b"012"),
            (3, 4, b"456"),
            (None, 7, b"789"),
            (0, 0, b""),
            (0, 5, b""),
            (100, 8, b"89"),
            (5, 10, b""),
            (None, 10, b""),
            (5, 1000, b""),
            (None, 1 << 62, b""),
            (1 << 62, 9, b"9"),
        ],
    )
    def test_read_returns_count_bytes_from_offset_and_fewer_at_the_end(
        self, nx: NexusFilesystem, base: str, count: int | None, offset: int, expected: bytes
    ) -> None:
        nx.write(f"{base}/f", b"0123456789")
        assert nx.sys_read(f"{base}/f", count, offset) == expected
        assert nx.read(f"{base}/f", count, offset) == expected

    def test_ranges_of_chunked_content_read_back(self, nx: NexusFilesystem, base: str) -> None:
        content = noise(3 * CHUNK_THRESHOLD_BYTES)
        nx.write(f"{base}/f", content)
        edges = [0, 1, 65_535, CHUNK_THRESHOLD_BYTES - 1, CHUNK_THRESHOLD_BYTES, len(content) - 1]
        for offset in edges:
            for count in (1, 70_000, CHUNK_THRESHOLD_BYTES + 3, None):
                end = None if count is None else offset + count
                assert nx.read(f"{base}/f", count, offset) == content[offset:end]

    @pytest.mark.parametrize(("count", "offset"), [(-1, 0), (None, -1), (5, -3), (-5, -5)])
    def test_a_negative_count_or_offset_is_refused_by_read(
        self, nx: NexusFilesystem, base: str, count: int | None, offset: int
    ) -> None:
        nx.write(f"{base}/f", b"0123456789")
        with pytest.raises(InvalidArgumentError):
            nx.read(f"{base}/f", count, offset)

    def test_reading_a_missing_file_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(PathNotFoundError):
            nx.read(f"{base}/none")
        with pytest.raises(PathNotFoundError):
            nx.read(f"{base}/none/none")

    def test_reading_a_directory_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.mkdir(f"{base}/d")
        for path in (f"{base}/d", base or "/"):
            with pytest.raises(PathIsDirectoryError):
                nx.read(path)

    def test_reading_below_a_file_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        with pytest.raises(PathNotDirectoryError):
            nx.read(f"{base}/f/x")

    # -- sys_write ----------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("data", "count", "offset", "expected"),
        [
            (b"XY", None, 0, b"XY23456789"),
            (b"XY", None, 4, b"0123XY6789"),
            (b"XY", None, 8, b"01234567XY"),
            (b"XY", None, 9, b"012345678XY"),
            (b"XY", None, 10, b"0123456789XY"),
            (b"XY", None, 13, b"0123456789\0\0\0XY"),
            (b"XYZ", 2, 4, b"0123XY6789"),
            (b"XYZ", 3, 4, b"0123XYZ789"),
        ],
    )
    def test_sys_write_changes_only_its_range(
        self,
        nx: NexusFilesystem,
        base: str,
        data: bytes,
        count: int | None,
        offset: int,
        expected: bytes,
    ) -> None:
        nx.write(f"{base}/f", b"0123456789")
        result = nx.sys_write(f"{base}/f", data, count, offset)
        assert result["bytes_written"] == (len(data) if count is None else count)
        assert result["size"] == len(expected)
        assert nx.read(f"{base}/f") == expected

    def test_sys_write_does_not_truncate(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"0123456789")
        assert nx.sys_write(f"{base}/f", b"ab")["size"] == 10

    def test_sys_write_takes_every_kind_of_buffer(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"")
        buffers: list[Buffer] = [b"ab", bytearray(b"cd"), memoryview(b"_e_f_")[1::2]]
        for at, data in enumerate(buffers):
            nx.sys_write(f"{base}/f", data, offset=2 * at)
        assert nx.read(f"{base}/f") == b"abcdef"

    def test_a_gap_past_the_end_reads_as_zeros(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"head")
        offset = 2 * CHUNK_THRESHOLD_BYTES
        result = nx.sys_write(f"{base}/f", b"tail", offset=offset)
        assert result["size"] == offset + 4
        assert nx.read(f"{base}/f") == b"head" + b"\0" * (offset - 4) + b"tail"

    @pytest.mark.parametrize("size", [CHUNK_THRESHOLD_BYTES - 3, 3 * CHUNK_THRESHOLD_BYTES])
    @pytest.mark.parametrize("where", ["start", "middle", "threshold", "end", "past the end"])
    def test_sys_write_in_a_large_file_equals_the_same_change_of_its_bytes(
        self, nx: NexusFilesystem, base: str, size: int, where: str
    ) -> None:
        content, change = noise(size), noise(100_000, 1)
        offsets = {
            "start": 0,
            "middle": size // 2,
            "threshold": CHUNK_THRESHOLD_BYTES - 50_000,
            "end": size - 5,
            "past the end": size + 5,
        }
        offset = offsets[where]
        expected = bytearray(max(size, offset + len(change)))
        expected[:size] = content
        expected[offset : offset + len(change)] = change
        nx.write(f"{base}/f", content)
        result = nx.sys_write(f"{base}/f", change, offset=offset)
        assert nx.read(f"{base}/f") == bytes(expected)
        if self.content_addressed:
            assert result["etag"] == nx.write(f"{base}/whole", bytes(expected))["etag"]

    def test_sys_write_creates_no_file(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(PathNotFoundError):
            nx.sys_write(f"{base}/none", b"x")
        with pytest.raises(PathNotFoundError):
            nx.sys_write(f"{base}/none/none", b"x")
        assert nx.list(base or "/") == []

    def test_sys_write_on_a_directory_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.mkdir(f"{base}/d")
        with pytest.raises(PathIsDirectoryError):
            nx.sys_write(f"{base}/d", b"x")

    def test_sys_write_below_a_file_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"file")
        with pytest.raises(PathNotDirectoryError):
            nx.sys_write(f"{base}/f/x", b"x")

    @pytest.mark.parametrize(("count", "offset"), [(-1, 0), (None, -1)])
    def test_a_negative_count_or_offset_is_refused_by_sys_write(
        self, nx: NexusFilesystem, base: str, count: int | None, offset: int
    ) -> None:
        before = nx.write(f"{base}/f", b"0123456789")
        with pytest.raises(InvalidArgumentError):
            nx.sys_write(f"{base}/f", b"XY", count, offset)
        assert nx.read(f"{base}/f") == b"0123456789"
        assert nx.list(base or "/", details=True)[0]["revision"] == before["revision"]

    # -- append -------------------------------------------------------------------------------

    def test_append_adds_to_the_end(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"one")
        result = nx.append(f"{base}/f", b" two")
        assert (result["bytes_written"], result["size"]) == (4, 7)
        assert nx.read(f"{base}/f") == b"one two"

    def test_append_creates_the_file_and_its_parents(self, nx: NexusFilesystem, base: str) -> None:
        assert nx.append(f"{base}/a/b/log", b"line\n")["size"] == 5
        assert nx.read(f"{base}/a/b/log") == b"line\n"

    def test_appends_that_cross_the_chunk_threshold_lose_nothing(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        pieces = [noise(400_000, seed) for seed in range(6)]
        results = [nx.append(f"{base}/f", piece) for piece in pieces]
        assert nx.read(f"{base}/f") == b"".join(pieces)
        if self.content_addressed:
            whole = nx.write(f"{base}/whole", b"".join(pieces))
            assert results[-1]["etag"] == whole["etag"]

    def test_a_file_may_shrink_below_the_chunk_threshold(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", noise(2 * CHUNK_THRESHOLD_BYTES))
        nx.write(f"{base}/f", b"small")
        nx.append(f"{base}/f", b"er")
        assert nx.read(f"{base}/f") == b"smaller"

    # -- edit ---------------------------------------------------------------------------------

    def test_edit_by_a_function_replaces_the_content(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"quiet")
        result = nx.edit(f"{base}/f", bytes.upper)
        assert result["size"] == 5
        assert nx.read(f"{base}/f") == b"QUIET"

    def test_edit_by_replacements_applies_them_in_order(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", "naïve = 1\nother = 2\n".encode())
        nx.edit(f"{base}/f", [("naïve = 1", "first = 1"), ("first", "last")])
        assert nx.read(f"{base}/f") == b"last = 1\nother = 2\n"

    @pytest.mark.parametrize("old", ["missing", "twice"])
    def test_an_edit_whose_old_text_is_not_there_once_changes_nothing(
        self, nx: NexusFilesystem, base: str, old: str
    ) -> None:
        before = nx.write(f"{base}/f", b"once twice twice")
        with pytest.raises(InvalidArgumentError) as caught:
            nx.edit(f"{base}/f", [("once", "ONCE"), (old, "x")])
        assert caught.value.operation == "edit"
        assert nx.read(f"{base}/f") == b"once twice twice"
        assert nx.list(base or "/", details=True)[0]["version"] == before["version"]

    def test_an_edit_function_that_raises_changes_nothing(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        def refuse(content: bytes) -> bytes:
            raise LookupError("not like this")

        nx.write(f"{base}/f", b"as it was")
        with pytest.raises(LookupError):
            nx.edit(f"{base}/f", refuse)
        assert nx.read(f"{base}/f") == b"as it was"

    def test_edit_computes_again_when_another_writer_came_first(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        seen: list[bytes] = []

        def exclaim(content: bytes) -> bytes:
            seen.append(content)
            if len(seen) == 1:
                nx.write(f"{base}/f", b"second")
            return content + b"!"

        nx.write(f"{base}/f", b"first")
        nx.edit(f"{base}/f", exclaim)
        assert seen == [b"first", b"second"]
        assert nx.read(f"{base}/f") == b"second!"

    def test_an_edit_of_a_file_deleted_meanwhile_does_not_bring_it_back(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        def delete_first(content: bytes) -> bytes:
            nx.sys_unlink(f"{base}/f")
            return content

        nx.write(f"{base}/f", b"x")
        with pytest.raises(PathNotFoundError):
            nx.edit(f"{base}/f", delete_first)
        assert nx.sys_stat(f"{base}/f") is None

    def test_edit_of_what_is_no_file_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.mkdir(f"{base}/d")
        with pytest.raises(PathNotFoundError):
            nx.edit(f"{base}/none", bytes.upper)
        with pytest.raises(PathIsDirectoryError):
            nx.edit(f"{base}/d", bytes.upper)

    # -- preconditions ------------------------------------------------------------------------

    def test_if_match_with_the_current_etag_writes(self, nx: NexusFilesystem, base: str) -> None:
        first = nx.write(f"{base}/f", b"first")
        second = nx.write(f"{base}/f", b"second", if_match=first["etag"])
        assert nx.read(f"{base}/f") == b"second"
        assert second["etag"] != first["etag"]

    def test_if_match_with_an_older_etag_is_a_conflict(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        first = nx.write(f"{base}/f", b"first")
        nx.write(f"{base}/f", b"second")
        with pytest.raises(ConflictError) as caught:
            nx.write(f"{base}/f", b"third", if_match=first["etag"])
        assert isinstance(caught.value, BlockingIOError)
        assert caught.value.path == f"{base}/f"
        assert nx.read(f"{base}/f") == b"second"

    def test_if_match_on_a_missing_file_is_a_conflict_and_makes_no_parents(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        etag = nx.write(f"{base}/f", b"x")["etag"]
        with pytest.raises(ConflictError):
            nx.write(f"{base}/a/b", b"x", if_match=etag)
        assert nx.list(base or "/") == [f"{base}/f"]

    def test_if_none_match_star_creates(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/a/f", b"x", if_none_match="*")
        assert nx.read(f"{base}/a/f") == b"x"

    def test_if_none_match_star_over_a_file_is_a_conflict(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"first")
        with pytest.raises(ConflictError):
            nx.write(f"{base}/f", b"second", if_none_match="*")
        assert nx.read(f"{base}/f") == b"first"

    def test_if_none_match_star_over_a_directory_is_refused(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.mkdir(f"{base}/d")
        with pytest.raises((ConflictError, PathIsDirectoryError)):
            nx.write(f"{base}/d", b"x", if_none_match="*")
        assert nx.is_directory(f"{base}/d")

    def test_if_none_match_with_an_etag_refuses_only_that_etag(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        first = nx.write(f"{base}/f", b"first")
        with pytest.raises(ConflictError):
            nx.write(f"{base}/f", b"second", if_none_match=first["etag"])
        assert nx.read(f"{base}/f") == b"first"
        nx.write(f"{base}/f", b"second")
        nx.write(f"{base}/f", b"third", if_none_match=first["etag"])
        nx.write(f"{base}/new", b"new", if_none_match=first["etag"])
        assert nx.read(f"{base}/f") == b"third"
        assert nx.read(f"{base}/new") == b"new"

    def test_sys_write_honours_its_precondition(self, nx: NexusFilesystem, base: str) -> None:
        first = nx.write(f"{base}/f", b"0123")
        second = nx.sys_write(
            f"{base}/f", b"X", offset=1, precondition=Precondition(if_match=first["etag"])
        )
        with pytest.raises(ConflictError):
            nx.sys_write(f"{base}/f", b"Y", precondition=Precondition(if_match=first["etag"]))
        with pytest.raises(ConflictError):
            nx.sys_write(f"{base}/f", b"Y", precondition=Precondition(if_none_match="*"))
        with pytest.raises(ConflictError):
            nx.sys_write(f"{base}/f", b"Y", precondition=Precondition(if_none_match=second["etag"]))
        assert nx.read(f"{base}/f") == b"0X23"

    def test_a_failed_precondition_records_nothing(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        events = len(nx.history())
        with pytest.raises(ConflictError):
            nx.write(f"{base}/f", b"y", if_none_match="*")
        assert len(nx.history()) == events

    # -- versions and etags -------------------------------------------------------------------

    def test_the_version_starts_at_one_and_grows_by_one_a_content_write(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        path = f"{base}/f"
        versions = [
            nx.write(path, b"1")["version"],
            nx.write(path, b"2")["version"],
            nx.append(path, b"3")["version"],
            nx.sys_write(path, b"4")["version"],
            nx.edit(path, lambda content: content + b"5")["version"],
            nx.write(path, b"1")["version"],
        ]
        assert versions == [1, 2, 3, 4, 5, 6]

    def test_the_etag_changes_with_the_content(self, nx: NexusFilesystem, base: str) -> None:
        path = f"{base}/f"
        etags = [
            nx.write(path, b"11")["etag"],
            nx.write(path, b"22")["etag"],
            nx.append(path, b"3")["etag"],
            nx.sys_write(path, b"4")["etag"],
            nx.edit(path, lambda content: content[::-1])["etag"],
        ]
        assert len(set(etags)) == 5
        assert all(isinstance(etag, str) and etag for etag in etags)

    def test_the_same_bytes_have_the_same_etag(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("content_addressed")
        small = [nx.write(f"{base}/{name}", b"same")["etag"] for name in "ab"]
        large = [nx.write(f"{base}/{name}", noise(2_000_000))["etag"] for name in "ab"]
        assert small[0] == small[1]
        assert large[0] == large[1]
        assert small[0].startswith("b3:")
        assert large[0].startswith("b3c:")

    def test_every_earlier_version_reads_back(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("keeps_versions")
        contents = [b"first", noise(2_000_000), b"", b"fourth"]
        for content in contents:
            nx.write(f"{base}/f", content)
        for version, content in enumerate(contents, 1):
            assert nx.read(f"{base}/f", version=version) == content
        assert nx.read(f"{base}/f", 10, 1_999_995, version=2) == contents[1][-5:]

    def test_a_version_that_never_was_is_not_found(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("keeps_versions")
        nx.write(f"{base}/f", b"x")
        with pytest.raises(PathNotFoundError):
            nx.read(f"{base}/f", version=2)
        for version in (0, -1):
            with pytest.raises((PathNotFoundError, InvalidArgumentError)):
                nx.read(f"{base}/f", version=version)

    def test_reading_a_version_where_none_are_kept_is_not_supported(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        if self.keeps_versions:
            pytest.skip("this mount keeps versions")
        nx.write(f"{base}/f", b"x")
        with pytest.raises(NotSupportedError):
            nx.read(f"{base}/f", version=1)
