"""What happened, and content by its id: history and the hash-addressed calls. Layer: testing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nexus.contracts.errors import (
    ContentNotFoundError,
    InvalidArgumentError,
    NotSupportedError,
)
from nexus.contracts.file_events import (
    DIR_CREATE,
    DIR_DELETE,
    FILE_DELETE,
    FILE_RENAME,
    FILE_WRITE,
    METADATA_CHANGE,
)
from nexus.contracts.filesystem import NexusFilesystem
from nexus.testing.filesystem.base import (
    CHUNK_THRESHOLD_BYTES,
    EVENT_KEYS,
    VERSION_KEYS,
    SuiteBase,
    all_events,
    noise,
)

UNKNOWN_ID = "b3:" + "0" * 64


class HistoryTests(SuiteBase):
    """Versions of a path, the journal of everything, and content by id."""

    # -- one path -----------------------------------------------------------------------------

    def test_the_history_of_a_path_has_every_version_oldest_first(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        written = [nx.write(f"{base}/f", content) for content in (b"1", b"22", b"333")]
        entries = nx.history(f"{base}/f")
        assert [entry["version"] for entry in entries] == [1, 2, 3]
        assert [entry["size"] for entry in entries] == [1, 2, 3]
        for entry, result in zip(entries, written, strict=True):
            assert set(entry) >= VERSION_KEYS
            assert entry["deleted"] is False
            for key in ("etag", "revision", "modified_at"):
                assert entry[key] == result[key], key

    def test_the_history_of_a_deleted_path_ends_with_a_tombstone(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        nx.write(f"{base}/f", b"1")
        removed = nx.sys_unlink(f"{base}/f", context=self.someone("bob", run_id="run-2"))
        first, last = nx.history(f"{base}/f")
        assert (first["version"], first["deleted"]) == (1, False)
        assert last["deleted"] is True
        assert last["revision"] == removed["revision"]

    def test_a_path_deleted_with_its_directory_has_a_tombstone_too(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        nx.write(f"{base}/d/f", b"1")
        nx.sys_unlink(f"{base}/d", recursive=True)
        assert [entry["deleted"] for entry in nx.history(f"{base}/d/f")] == [False, True]

    def test_the_history_goes_on_after_a_path_is_made_again(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        nx.write(f"{base}/f", b"1")
        nx.sys_unlink(f"{base}/f")
        nx.write(f"{base}/f", b"2")
        entries = nx.history(f"{base}/f")
        assert [entry["deleted"] for entry in entries] == [False, True, False]
        assert nx.read(f"{base}/f", version=entries[-1]["version"]) == b"2"

    def test_a_rename_leaves_a_tombstone_at_the_old_path(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        nx.write(f"{base}/a", b"1")
        nx.sys_rename(f"{base}/a", f"{base}/b")
        assert nx.history(f"{base}/a")[-1]["deleted"] is True
        assert nx.history(f"{base}/b")[-1]["deleted"] is False

    def test_the_history_of_a_path_says_who_and_which_run(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        nx.write(f"{base}/f", b"1", context=self.someone("alice", run_id="run-1"))
        nx.write(f"{base}/f", b"2", context=self.someone("bob"))
        entries = nx.history(f"{base}/f")
        assert [entry["modified_by"] for entry in entries] == ["alice", "bob"]
        assert [entry["run_id"] for entry in entries] == ["run-1", None]

    def test_the_histories_of_paths_with_a_common_prefix_are_apart(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("keeps_versions")
        for name in ("f", "f0", "f.txt", "g/f"):
            nx.write(f"{base}/{name}", b"x")
        assert len(nx.history(f"{base}/f")) == 1
        assert len(nx.history(f"{base}/g/f")) == 1

    def test_pages_of_a_history_join(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("keeps_versions")
        for n in range(7):
            nx.write(f"{base}/f", bytes([n]))
        found: list[Any] = []
        cursor = None
        while True:
            page = nx.history(f"{base}/f", limit=3, cursor=cursor)
            found += page
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == nx.history(f"{base}/f")
        assert [entry["version"] for entry in found] == [1, 2, 3, 4, 5, 6, 7]

    # -- everything ---------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("mutate", "kind", "path", "new_path"),
        [
            (lambda nx, base: nx.write(f"{base}/new", b"1"), FILE_WRITE, "new", None),
            (lambda nx, base: nx.write(f"{base}/f", b"1"), FILE_WRITE, "f", None),
            (lambda nx, base: nx.append(f"{base}/f", b"1"), FILE_WRITE, "f", None),
            (lambda nx, base: nx.sys_write(f"{base}/f", b"1"), FILE_WRITE, "f", None),
            (lambda nx, base: nx.edit(f"{base}/f", bytes.upper), FILE_WRITE, "f", None),
            (lambda nx, base: nx.sys_copy(f"{base}/f", f"{base}/c"), FILE_WRITE, "c", None),
            (lambda nx, base: nx.sys_unlink(f"{base}/f"), FILE_DELETE, "f", None),
            (lambda nx, base: nx.sys_rename(f"{base}/f", f"{base}/m"), FILE_RENAME, "f", "m"),
            (lambda nx, base: nx.mkdir(f"{base}/made"), DIR_CREATE, "made", None),
            (lambda nx, base: nx.rmdir(f"{base}/empty"), DIR_DELETE, "empty", None),
            (lambda nx, base: nx.rmdir(f"{base}/d", recursive=True), DIR_DELETE, "d", None),
            (lambda nx, base: nx.sys_rename(f"{base}/d", f"{base}/m"), FILE_RENAME, "d", "m"),
        ],
        ids=[
            "write of a new file",
            "write over a file",
            "append",
            "sys_write",
            "edit",
            "copy",
            "unlink",
            "rename",
            "mkdir",
            "rmdir",
            "recursive rmdir",
            "rename of a directory",
        ],
    )
    def test_a_mutation_is_one_event_that_names_it(
        self,
        nx: NexusFilesystem,
        base: str,
        mutate: Callable[[NexusFilesystem, str], dict[str, Any]],
        kind: str,
        path: str,
        new_path: str | None,
    ) -> None:
        nx.write(f"{base}/f", b"file")
        nx.write(f"{base}/d/inside", b"file")
        nx.mkdir(f"{base}/empty")
        before = len(all_events(nx))
        as_alice = nx.bind(self.someone("alice", agent_id="agent-7", run_id="run-1"))
        result = mutate(as_alice, base)
        (event,) = all_events(nx)[before:]
        assert set(event) >= EVENT_KEYS
        assert (event["kind"], event["path"]) == (kind, f"{base}/{path}")
        assert event["new_path"] == (None if new_path is None else f"{base}/{new_path}")
        assert event["revision"] == result["revision"]
        assert (event["user_id"], event["agent_id"]) == ("alice", "agent-7")
        assert (event["run_id"], event["zone_id"]) == ("run-1", "root")
        assert isinstance(event["timestamp"], float)
        if kind == FILE_WRITE:
            stat = nx.sys_stat(f"{base}/{path}")
            assert stat is not None
            assert (event["etag"], event["size"]) == (stat["etag"], stat["size"])

    def test_a_change_of_attributes_is_an_event(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        result = nx.sys_setattr(f"{base}/f", attributes={"a": 1})
        event = all_events(nx)[-1]
        assert (event["kind"], event["path"]) == (METADATA_CHANGE, f"{base}/f")
        assert event["revision"] == result["revision"]

    def test_a_batch_is_events_that_share_a_revision(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("atomic_batch")
        revision = nx.write_batch({f"{base}/a": b"1", f"{base}/b": b"2"})[0]["revision"]
        events = [event for event in all_events(nx) if event["revision"] == revision]
        writes = [event["path"] for event in events if event["kind"] == FILE_WRITE]
        assert writes == [f"{base}/a", f"{base}/b"]

    def test_events_are_ordered_by_revision(self, nx: NexusFilesystem, base: str) -> None:
        for n in range(5):
            nx.write(f"{base}/{n}", b"x")
            nx.sys_unlink(f"{base}/{n}")
        revisions = [event["revision"] for event in all_events(nx)]
        assert revisions == sorted(revisions)

    def test_pages_of_the_journal_join(self, nx: NexusFilesystem, base: str) -> None:
        for n in range(10):
            nx.write(f"{base}/{n}", b"x")
        found: list[Any] = []
        cursor = None
        while True:
            page = nx.history(limit=3, cursor=cursor)
            assert len(page) <= 3
            found += page
            cursor = page.next_cursor
            if cursor is None:
                break
        assert found == all_events(nx)

    def test_a_call_that_fails_is_no_event(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/d/f", b"x")
        before = len(all_events(nx))
        calls: list[Callable[[], object]] = [
            lambda: nx.write(f"{base}/d", b"x"),
            lambda: nx.mkdir(f"{base}/d"),
            lambda: nx.rmdir(f"{base}/d"),
            lambda: nx.sys_rename(f"{base}/d", f"{base}/d/e"),
            lambda: nx.sys_copy(f"{base}/none", f"{base}/e"),
            lambda: nx.sys_unlink(f"{base}/none"),
        ]
        for call in calls:
            with pytest.raises(OSError):  # noqa: PT011 - which one is tested elsewhere
                call()
        assert len(all_events(nx)) == before

    # -- content by id ------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 10, CHUNK_THRESHOLD_BYTES, 3_000_000])
    def test_the_etag_of_a_file_is_the_id_of_its_content(
        self, nx: NexusFilesystem, base: str, size: int
    ) -> None:
        self.needs("content_addressed")
        content = noise(size)
        etag = nx.write(f"{base}/f", content)["etag"]
        mount = base or "/"
        assert nx.read_content(etag, mount=mount) == content
        assert b"".join(nx.stream(etag, mount=mount)) == content
        assert nx.write_content(content, mount=mount) == etag
        assert nx.write_stream([content[:7], content[7:]], mount=mount) == etag

    def test_content_written_by_id_reads_back(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("content_addressed")
        mount = base or "/"
        etag = nx.write_content(b"nameless", mount=mount)
        assert nx.read_content(etag, mount=mount) == b"nameless"
        assert nx.list(mount) == []

    @pytest.mark.parametrize("size", [100, 3_000_000])
    def test_stream_yields_pieces_of_at_most_the_asked_size(
        self, nx: NexusFilesystem, base: str, size: int
    ) -> None:
        self.needs("content_addressed")
        content, mount = noise(size), base or "/"
        etag = nx.write_content(content, mount=mount)
        pieces = list(nx.stream(etag, piece_bytes=70_000, mount=mount))
        assert b"".join(pieces) == content
        assert all(0 < len(piece) <= 70_000 for piece in pieces)

    @pytest.mark.parametrize("size", [100, 3_000_000])
    def test_stream_range_yields_that_range(
        self, nx: NexusFilesystem, base: str, size: int
    ) -> None:
        self.needs("content_addressed")
        content, mount = noise(size), base or "/"
        etag = nx.write_content(content, mount=mount)
        for offset, count in ((0, 0), (0, 10), (50, 10), (size - 5, 100), (size + 5, 10)):
            pieces = nx.stream_range(etag, offset, count, piece_bytes=7, mount=mount)
            assert b"".join(pieces) == content[offset : offset + count]
        whole = nx.stream_range(etag, 3, size, piece_bytes=50_000, mount=mount)
        assert b"".join(whole) == content[3:]

    def test_unknown_content_is_not_found(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("content_addressed")
        with pytest.raises(ContentNotFoundError):
            nx.read_content(UNKNOWN_ID, mount=base or "/")
        with pytest.raises(ContentNotFoundError):
            list(nx.stream(UNKNOWN_ID, mount=base or "/"))

    @pytest.mark.parametrize("etag", ["", "nonsense", "b3:", "b3:xyz", "b3:../../etc/passwd"])
    def test_a_malformed_content_id_is_refused(
        self, nx: NexusFilesystem, base: str, etag: str
    ) -> None:
        self.needs("content_addressed")
        with pytest.raises(InvalidArgumentError):
            nx.read_content(etag, mount=base or "/")

    def test_content_by_id_where_there_are_no_ids_is_not_supported(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        if self.content_addressed:
            pytest.skip("this mount is content-addressed")
        with pytest.raises(NotSupportedError):
            nx.read_content(UNKNOWN_ID, mount=base)
        with pytest.raises(NotSupportedError):
            nx.write_content(b"x", mount=base)
