"""NamespaceStoreSuite: what every path-addressed store must do. Layer: testing.

A driver's own test is a subclass with :meth:`NamespaceStoreSuite.make`::

    class TestMyStore(NamespaceStoreSuite):
        def make(self, folder):
            return MyStore(...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nexus.contracts.errors import (
    ConflictError,
    ContentNotFoundError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
    NotSupportedError,
    PathIsDirectoryError,
    PathNotDirectoryError,
)
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import PIECE_BYTES, NamespaceStoreABC
from nexus.testing.transport import ODD_KEYS, TREE, all_pages, keys_of


class NamespaceStoreSuite:
    """The contract of :class:`nexus.contracts.object_store.NamespaceStoreABC`."""

    def make(self, folder: Path) -> NamespaceStoreABC:
        """Return an empty store; ``folder`` is empty and belongs to this test."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[NamespaceStoreABC]:
        """The store under test, closed afterwards."""
        folder = tmp_path / "root"
        folder.mkdir()
        made = self.make(folder)
        yield made
        made.close()

    def test_it_declares_what_it_is(self, store: NamespaceStoreABC) -> None:
        assert store.capabilities.authoritative_namespace
        assert not store.capabilities.content_addressed
        assert store.name
        assert 0 < len(store.volume_id) <= 64

    # -- reading and writing ------------------------------------------------------------------

    @pytest.mark.parametrize("data", [b"value", bytearray(b"value"), memoryview(b"value")])
    def test_what_was_written_is_read(self, store: NamespaceStoreABC, data: Buffer) -> None:
        info = store.write("file", data)
        assert (info.key, info.size, info.is_directory) == ("file", 5, False)
        assert info == store.stat("file")
        assert store.read("file") == b"value"
        assert store.read("file", 1, 3) == b"alu"
        assert store.read("file", 3) == b"ue"
        assert store.read("file", 9, 3) == b""

    def test_an_iterable_is_written_as_one(self, store: NamespaceStoreABC) -> None:
        info = store.write("file", iter([b"12", b"", b"345"]))
        assert info.size == 5
        assert store.read("file") == b"12345"
        assert store.write("empty", []).size == 0

    def test_an_iterable_that_raises_changes_nothing(self, store: NamespaceStoreABC) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"half"
            raise KeyError("theirs")

        store.write("old", b"old")
        for path in ("old", "new"):
            with pytest.raises(KeyError):
                store.write(path, pieces())
        assert store.read("old") == b"old"
        assert store.stat("new") is None
        assert keys_of(store.list_dir("")) == ["old"]

    @pytest.mark.parametrize("path", ODD_KEYS)
    def test_odd_paths_are_kept_byte_for_byte(self, store: NamespaceStoreABC, path: str) -> None:
        assert store.write(path, b"odd").key == path
        assert store.read(path) == b"odd"

    def test_every_write_has_another_fingerprint(self, store: NamespaceStoreABC) -> None:
        infos = [store.write("file", value) for value in (b"one", b"two", b"six")]
        infos.append(store.splice("file", 0, b"x"))
        assert len({info.fingerprint for info in infos}) == 4

    def test_what_is_absent_is_not_found(self, store: NamespaceStoreABC) -> None:
        assert store.stat("absent") is None
        assert store.remove("absent") is False
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.read("absent"),
            lambda: store.splice("absent", 0, b"x"),
            lambda: store.rename("absent", "new"),
            lambda: store.copy("absent", "new"),
            lambda: store.list_dir("absent"),
        )
        for call in calls:
            with pytest.raises(ContentNotFoundError):
                call()
        assert store.list_dir("") == []

    def test_file_calls_on_a_directory_are_refused(self, store: NamespaceStoreABC) -> None:
        store.create_dir("d")
        store.write("file", b"kept")
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.read("d"),
            lambda: store.write("d", b""),
            lambda: store.write("d", [b""]),
            lambda: store.splice("d", 0, b""),
            lambda: store.copy("d", "new"),
            lambda: store.copy("file", "d"),
            lambda: store.rename("file", "d"),
        )
        for call in calls:
            with pytest.raises(PathIsDirectoryError):
                call()
        assert keys_of(store.list_dir("")) == ["d", "file"]
        assert store.read("file") == b"kept"

    # -- splice -------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("offset", "data", "result"),
        [
            (0, b"XY", b"XY23456789"),
            (4, b"XY", b"0123XY6789"),
            (8, b"XY", b"01234567XY"),
            (8, b"XYZ", b"01234567XYZ"),
            (10, b"XY", b"0123456789XY"),
            (12, b"XY", b"0123456789\0\0XY"),
            (0, b"", b"0123456789"),
            (12, b"", b"0123456789\0\0"),
            (0, b"a much longer value", b"a much longer value"),
        ],
    )
    def test_a_splice_changes_only_its_range(
        self, store: NamespaceStoreABC, offset: int, data: bytes, result: bytes
    ) -> None:
        store.write("file", b"0123456789")
        info = store.splice("file", offset, data)
        assert store.read("file") == result
        assert info == store.stat("file")
        assert info.size == len(result)

    def test_a_splice_spans_pieces(self, store: NamespaceStoreABC) -> None:
        content = bytearray(bytes(range(256)) * (PIECE_BYTES // 100))
        store.write("file", content)
        change = b"change" * 1000
        start = PIECE_BYTES - 100
        store.splice("file", start, change)
        content[start : start + len(change)] = change
        assert store.read("file") == content
        store.splice("file", len(content) + PIECE_BYTES + 5, b"!")
        assert store.read("file", len(content)) == bytes(PIECE_BYTES + 5) + b"!"

    def test_a_negative_offset_is_refused(self, store: NamespaceStoreABC) -> None:
        store.write("file", b"kept")
        with pytest.raises(InvalidArgumentError):
            store.splice("file", -1, b"x")
        assert store.read("file") == b"kept"

    def test_concurrent_splices_all_arrive(self, store: NamespaceStoreABC) -> None:
        store.write("file", bytes(64))

        def work(number: int) -> None:
            store.splice("file", number, bytes([number]))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(64)))
        assert store.read("file") == bytes(range(64))

    # -- the tree -----------------------------------------------------------------------------

    @pytest.mark.parametrize("limit", [1, 2, 100])
    def test_listings_are_sorted_and_paged(self, store: NamespaceStoreABC, limit: int) -> None:
        for path in reversed(TREE):
            store.write(path, b"")
        top = all_pages(lambda after: store.list_dir("", after, limit))
        assert top == ["a", "a!", "a.txt", "a0", "z", "é", "\uffee", "🙂"]
        assert all_pages(lambda after: store.list_dir("a", after, limit)) == ["a/b", "a/b.c", "a/c"]
        with pytest.raises(PathNotDirectoryError):
            store.list_dir("z")

    def test_a_directory_is_created_and_removed(self, store: NamespaceStoreABC) -> None:
        info = store.create_dir("d")
        assert (info.key, info.is_directory) == ("d", True)
        assert store.list_dir("d") == []
        assert store.remove("d") is True
        assert store.stat("d") is None

    def test_a_directory_with_entries_is_not_removed(self, store: NamespaceStoreABC) -> None:
        store.write("d/file", b"")
        with pytest.raises(DirectoryNotEmptyError):
            store.remove("d")
        assert store.remove("d/file") is True

    def test_a_directory_does_not_replace_a_file(self, store: NamespaceStoreABC) -> None:
        store.write("file", b"kept")
        with pytest.raises(PathNotDirectoryError):
            store.create_dir("file")
        assert store.read("file") == b"kept"

    def test_rename_moves_files_and_trees(self, store: NamespaceStoreABC) -> None:
        store.write("one", b"1")
        store.write("two", b"2")
        store.rename("one", "two")
        assert store.read("two") == b"1"
        assert store.stat("one") is None
        store.write("d/e/file", b"deep")
        store.rename("d", "f")
        assert store.read("f/e/file") == b"deep"
        assert keys_of(store.list_dir("")) == ["f", "two"]

    def test_copy_copies_one_file(self, store: NamespaceStoreABC) -> None:
        store.write("from", b"bytes")
        info = store.copy("from", "to")
        assert (info.key, info.size) == ("to", 5)
        store.write("from", b"changed")
        assert store.read("to") == b"bytes"

    def test_set_mode_follows_the_declared_capability(self, store: NamespaceStoreABC) -> None:
        store.write("file", b"")
        if not store.capabilities.modes:
            with pytest.raises(NotSupportedError):
                store.set_mode("file", 0o600)
            return
        assert store.set_mode("file", 0o640).mode == 0o640
        assert store.write("file", b"new").mode == 0o640
        assert store.splice("file", 0, b"N").mode == 0o640
        with pytest.raises(ContentNotFoundError):
            store.set_mode("absent", 0o600)

    # -- staging ------------------------------------------------------------------------------

    def test_what_is_staged_is_hidden_until_it_is_renamed(self, store: NamespaceStoreABC) -> None:
        for name in ("!", "a", "z"):
            store.write(f"d/{name}", b"")
        staged = store.staging_path("d/file")
        assert staged != store.staging_path("d/file")
        assert staged.rpartition("/")[0] == "d"
        assert store.write(staged, b"value").size == 5
        assert store.stat(staged) is None
        for limit in (1, 2, 100):
            listed = all_pages(lambda after, limit=limit: store.list_dir("d", after, limit))  # type: ignore[misc]
            assert listed == ["d/!", "d/a", "d/z"]
        store.rename(staged, "d/file")
        assert store.read("d/file") == b"value"

    def test_a_tree_can_be_staged_and_renamed(self, store: NamespaceStoreABC) -> None:
        staged = store.staging_path("tree")
        store.create_dir(staged)
        store.create_dir(f"{staged}/d")
        store.write(f"{staged}/d/file", b"value")
        assert store.list_dir("") == []
        assert keys_of(store.list_dir(staged)) == [f"{staged}/d"]
        store.rename(staged, "tree")
        assert store.read("tree/d/file") == b"value"
        staged = store.staging_path("tree")
        store.rename("tree", staged)
        assert store.list_dir("") == []
        assert store.remove(f"{staged}/d/file") is True

    def test_staging_names_are_the_store_s_own(self, store: NamespaceStoreABC) -> None:
        staged = store.staging_path("d/file")
        assert store.is_hidden(staged)
        assert store.is_hidden(f"{staged}/beneath")
        store.write(f"{staged}/beneath", b"")
        assert store.stat(f"{staged}/beneath") is None
        for theirs in ("d/file", ".nexus-tmp-", ".nexus-tmp-notes", "d/.nexus-tmp-1-2-3"):
            assert not store.is_hidden(theirs)
            assert store.write(theirs, b"kept") == store.stat(theirs)

    # -- taking away --------------------------------------------------------------------------

    def test_a_stream_is_of_the_version_that_was_asked_for(self, store: NamespaceStoreABC) -> None:
        version = store.write("file", b"one")
        assert b"".join(store.stream("file", version)) == b"one"
        newer = store.write("file", b"two")
        with pytest.raises(ConflictError):
            list(store.stream("file", version))
        stream = store.stream("file", newer)
        next(stream)
        store.write("file", b"six")
        with pytest.raises(ConflictError):
            list(stream)

    def test_an_inventory_holds_everything_beneath(self, store: NamespaceStoreABC) -> None:
        store.write("d/file", b"1")
        store.write("d/e/file", b"22")
        inventory = store.inventory("d")
        assert {path: info.size for path, info in inventory.items() if not info.is_directory} == {
            "/file": 1,
            "/e/file": 2,
        }
        assert {path for path, info in inventory.items() if info.is_directory} == {"/", "/e"}
        assert list(store.inventory("d/file")) == ["/"]
        with pytest.raises(ContentNotFoundError):
            store.inventory("absent")

    @pytest.mark.parametrize("path", ["d", "d/file"])
    def test_what_is_unchanged_is_removed(self, store: NamespaceStoreABC, path: str) -> None:
        store.write("d/file", b"1")
        store.remove_unchanged(path, store.inventory(path))
        assert store.stat(path) is None

    @pytest.mark.parametrize("changed", ["d/file", "d/new", "d/e/new"])
    @pytest.mark.parametrize("path", ["d", "d/file"])
    def test_what_is_not_as_described_stays(
        self, store: NamespaceStoreABC, path: str, changed: str
    ) -> None:
        store.write("d/file", b"1")
        store.create_dir("d/e")
        inventory = store.inventory(path)
        store.write(changed, b"2")
        if changed.startswith(path):
            with pytest.raises(ConflictError):
                store.remove_unchanged(path, inventory)
            assert store.read(changed) == b"2"
            assert store.stat("d/file") is not None

    def test_sync_and_close_may_be_called_again(self, store: NamespaceStoreABC) -> None:
        store.write("file", b"value")
        store.sync()
        store.sync()
        assert store.read("file") == b"value"
        store.close()
        store.close()
