"""TransportSuite: what every transport must do. Layer: testing.

A driver's own test is a subclass with :meth:`TransportSuite.make`::

    class TestMyTransport(TransportSuite):
        def make(self, folder):
            return MyTransport(...)

Tests that need something a driver may lack are skipped by its declared capabilities.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from nexus.contracts.errors import (
    ContentNotFoundError,
    DirectoryNotEmptyError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import KeyInfo, TransportABC

ODD_KEYS = (
    "with space",
    " leading and trailing ",
    "ümläut/ñ/名前.txt",
    "🙂",
    ".hidden",
    "..two-dots",
    "trailing.",
    "a+b&c=%41#?*[x]",
    "quo'te\"back\\slash",
    "n" * 255,
    "/".join(["deep"] * 40),
)
"""Keys that a careless driver mangles."""

TREE = ("a!", "a.txt", "a/b", "a/b.c", "a/c/d", "a0", "z", "é", "\uffee", "🙂")
"""Keys in the order of their UTF-8 bytes: ``.`` < ``/`` < ``0``, and U+FFEE before U+1F642."""


def keys_of(page: list[KeyInfo]) -> list[str]:
    """Return the keys of a page."""
    return [info.key for info in page]


def all_pages(fetch_page: Callable[[str], list[KeyInfo]]) -> list[str]:
    """Return the keys of every page, each asked for after the last key of the one before."""
    found: list[str] = []
    while page := fetch_page(found[-1] if found else ""):
        found += keys_of(page)
    return found


class TransportSuite:
    """The contract of :class:`nexus.contracts.object_store.TransportABC`, sentence by sentence."""

    def make(self, folder: Path) -> TransportABC:
        """Return an empty transport; ``folder`` is empty and belongs to this test."""
        raise NotImplementedError

    @pytest.fixture
    def transport(self, tmp_path: Path) -> Iterator[TransportABC]:
        """The transport under test, closed afterwards."""
        folder = tmp_path / "root"
        folder.mkdir()
        made = self.make(folder)
        yield made
        made.close()

    # -- bytes --------------------------------------------------------------------------------

    def test_what_was_stored_is_fetched(self, transport: TransportABC) -> None:
        transport.store("key", b"value")
        assert transport.fetch("key") == b"value"

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_buffer_is_stored(
        self, transport: TransportABC, kind: Callable[[bytes], Buffer]
    ) -> None:
        transport.store("whole", kind(b"value"))
        transport.store_chunked("pieces", [kind(b"va"), kind(b"lue")])
        assert transport.fetch("whole") == transport.fetch("pieces") == b"value"
        assert type(transport.fetch("whole")) is bytes

    def test_a_later_change_of_the_buffer_does_not_reach_the_store(
        self, transport: TransportABC
    ) -> None:
        buffer = bytearray(b"before")
        transport.store("key", buffer)
        buffer[:] = b"after!"
        assert transport.fetch("key") == b"before"

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys_are_kept_byte_for_byte(self, transport: TransportABC, key: str) -> None:
        transport.store(key, b"odd")
        assert transport.fetch(key) == b"odd"
        assert keys_of(transport.list_keys()) == [key]

    def test_two_spellings_of_a_character_are_two_keys(self, transport: TransportABC) -> None:
        transport.store("\u00e9", b"one")
        transport.store("e\u0301", b"two")
        assert transport.fetch("\u00e9") == b"one"
        assert transport.fetch("e\u0301") == b"two"

    def test_an_empty_value_is_a_value(self, transport: TransportABC) -> None:
        transport.store("empty", b"")
        assert transport.store_chunked("none", []) == 0
        for key in ("empty", "none"):
            assert transport.fetch(key) == b""
            assert transport.get_size(key) == 0
            assert transport.exists(key)
            assert list(transport.stream(key)) == []

    def test_store_replaces_what_was_there(self, transport: TransportABC) -> None:
        transport.store("key", b"a long first value")
        transport.store("key", b"short")
        assert transport.fetch("key") == b"short"
        transport.store_chunked("key", [b"from ", b"pieces"])
        assert transport.fetch("key") == b"from pieces"

    def test_store_creates_missing_parents(self, transport: TransportABC) -> None:
        transport.store("a/b/c", b"1")
        transport.store_chunked("d/e/f", [b"2"])
        assert keys_of(transport.list_keys()) == ["a/b/c", "d/e/f"]

    def test_store_chunked_returns_the_size(self, transport: TransportABC) -> None:
        assert transport.store_chunked("key", iter([b"12", b"", b"345"])) == 5
        assert transport.fetch("key") == b"12345"

    @pytest.mark.parametrize("error", [OSError(errno.EIO, "theirs"), KeyError("theirs")])
    def test_an_iterable_that_raises_stores_nothing(
        self, transport: TransportABC, error: Exception
    ) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"half"
            raise error

        transport.store("old", b"old")
        for key in ("old", "new"):
            with pytest.raises(type(error)) as raised:
                transport.store_chunked(key, pieces())
            assert raised.value is error
        assert transport.fetch("old") == b"old"
        assert not transport.exists("new")
        assert keys_of(transport.list_dir("")) == ["old"]

    def test_a_range_is_fetched(self, transport: TransportABC) -> None:
        transport.store("key", b"0123456789")
        assert transport.fetch("key", 3, 4) == b"3456"
        assert transport.fetch("key", 8) == b"89"
        assert transport.fetch("key", 0, 0) == b""
        assert transport.fetch("key", 8, 100) == b"89"
        assert transport.fetch("key", 10) == transport.fetch("key", 99, 5) == b""

    def test_a_stream_yields_what_fetch_returns(self, transport: TransportABC) -> None:
        transport.store("key", b"0123456789")
        pieces = list(transport.stream("key", 1, 7, piece_bytes=3))
        assert pieces == [b"123", b"456", b"7"]
        assert b"".join(transport.stream("key", 4, piece_bytes=4)) == b"456789"
        assert list(transport.stream("key", 10)) == list(transport.stream("key", 2, 0)) == []

    def test_a_stream_is_of_one_version(self, transport: TransportABC) -> None:
        transport.store("key", b"old-" * 4)
        stream = transport.stream("key", piece_bytes=4)
        pieces = [next(stream)]
        transport.store("key", b"new!" * 4)
        pieces += stream
        assert pieces == [b"old-"] * 4

    @pytest.mark.parametrize("key", ["absent", "no/such/parent"])
    def test_an_absent_key_is_not_found(self, transport: TransportABC, key: str) -> None:
        with pytest.raises(ContentNotFoundError) as raised:
            transport.fetch(key)
        assert raised.value.path == key
        assert isinstance(raised.value, FileNotFoundError)
        with pytest.raises(ContentNotFoundError):
            list(transport.stream(key))
        with pytest.raises(ContentNotFoundError):
            transport.get_size(key)
        with pytest.raises(ContentNotFoundError):
            transport.copy_key(key, "copy")
        with pytest.raises(ContentNotFoundError):
            transport.rename_key(key, "moved")
        assert transport.info(key) is None
        assert not transport.exists(key)
        assert transport.remove(key) is False
        assert transport.list_keys() == []

    def test_below_a_file_is_nothing(self, transport: TransportABC) -> None:
        transport.store("file", b"")
        assert transport.info("file/below") is None
        assert transport.remove("file/below") is False
        with pytest.raises((PathNotFoundError, PathNotDirectoryError)):
            transport.fetch("file/below")

    def test_copy_copies_the_bytes(self, transport: TransportABC) -> None:
        transport.store("from", b"bytes")
        transport.copy_key("from", "to/here")
        transport.store("from", b"changed")
        assert transport.fetch("to/here") == b"bytes"

    # -- what is there ------------------------------------------------------------------------

    def test_info_tells_size_and_kind(self, transport: TransportABC) -> None:
        transport.store("d/key", b"12345")
        info = transport.info("d/key")
        assert info is not None
        assert (info.key, info.size, info.is_directory) == ("d/key", 5, False)
        assert info.modified_at_ns > 0
        assert transport.get_size("d/key") == 5
        above = transport.info("d")
        assert above is not None
        assert (above.key, above.is_directory) == ("d", True)
        root = transport.info("")
        assert root is not None
        assert root.is_directory

    def test_a_fingerprint_changes_with_the_bytes(self, transport: TransportABC) -> None:
        fingerprints = set()
        for value in (b"one", b"two", b"six"):
            transport.store("key", value)
            info = transport.info("key")
            assert info is not None
            assert info == transport.info("key")
            fingerprints.add(info.fingerprint)
        assert len(fingerprints) == 3

    # -- listings -----------------------------------------------------------------------------

    def _plant(self, transport: TransportABC, keys: tuple[str, ...] = TREE) -> None:
        for key in reversed(keys):
            transport.store(key, key.encode())

    def test_keys_are_sorted_by_their_bytes(self, transport: TransportABC) -> None:
        self._plant(transport)
        found = transport.list_keys()
        assert keys_of(found) == list(TREE)
        assert all(info == transport.info(info.key) for info in found)

    def test_keys_lie_below_the_prefix_directory(self, transport: TransportABC) -> None:
        self._plant(transport)
        assert keys_of(transport.list_keys("a")) == ["a/b", "a/b.c", "a/c/d"]
        assert keys_of(transport.list_keys("a/c")) == ["a/c/d"]
        assert transport.list_keys("absent") == []
        assert transport.list_keys("z") == []

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_pages_of_keys_join_to_the_whole(self, transport: TransportABC, limit: int) -> None:
        self._plant(transport)
        assert all_pages(lambda after: transport.list_keys("", after, limit)) == list(TREE)
        below = all_pages(lambda after: transport.list_keys("a", after, limit))
        assert below == ["a/b", "a/b.c", "a/c/d"]

    def test_a_cursor_may_be_any_string(self, transport: TransportABC) -> None:
        self._plant(transport)
        order = list(TREE)
        for after in ("a", "a/", "a/a", "a/b/x", "a/c", "a/c/", "a/c/d/e", "a/zz", "b", "a.", "🙃"):
            expected = [key for key in order if key > after]
            assert keys_of(transport.list_keys("", after)) == expected
            below = [key for key in expected if key.startswith("a/")]
            assert keys_of(transport.list_keys("a", after)) == below

    def test_a_directory_lists_its_direct_entries_in_order(self, transport: TransportABC) -> None:
        self._plant(transport)
        entries = transport.list_dir("")
        assert keys_of(entries) == ["a", "a!", "a.txt", "a0", "z", "é", "\uffee", "🙂"]
        assert [info.key for info in entries if info.is_directory] == ["a"]
        assert keys_of(transport.list_dir("a")) == ["a/b", "a/b.c", "a/c"]
        assert [info.is_directory for info in transport.list_dir("a")] == [False, False, True]

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    def test_pages_of_a_directory_join_to_the_whole(
        self, transport: TransportABC, limit: int
    ) -> None:
        self._plant(transport)
        for key in ("", "a"):
            whole = keys_of(transport.list_dir(key))
            pages = all_pages(lambda after, key=key: transport.list_dir(key, after, limit))  # type: ignore[misc]
            assert pages == whole

    def test_fewer_than_the_limit_means_the_end(self, transport: TransportABC) -> None:
        self._plant(transport)
        assert len(transport.list_keys(limit=len(TREE))) == len(TREE)
        assert len(transport.list_keys(limit=len(TREE) - 1)) == len(TREE) - 1
        assert transport.list_keys(after=TREE[-1]) == []

    def test_a_cursor_stays_valid_while_the_tree_changes(self, transport: TransportABC) -> None:
        keys = [f"d/{number:02}" for number in range(20)]
        for key in keys:
            transport.store(key, b"")
        found: list[str] = []
        while page := transport.list_dir("d", found[-1] if found else "", 3):
            found += keys_of(page)
            transport.remove(found[-1])  # the cursor itself
            if not found[-1].endswith("+"):
                transport.store(found[-1] + "+", b"")  # right behind it
            transport.store("d/!" + str(len(found)), b"")  # before it
        kept = [key for key in found if not key.endswith("+")]
        assert kept == keys
        assert all(one < two for one, two in pairwise(found))

    def test_listing_a_missing_directory_is_an_error(self, transport: TransportABC) -> None:
        transport.store("file", b"")
        with pytest.raises(ContentNotFoundError):
            transport.list_dir("absent")
        with pytest.raises(PathNotDirectoryError):
            transport.list_dir("file")
        assert transport.list_dir("")[0].key == "file"

    # -- the tree -----------------------------------------------------------------------------

    def test_remove_says_whether_it_was_there(self, transport: TransportABC) -> None:
        transport.store("key", b"")
        assert transport.remove("key") is True
        assert transport.remove("key") is False
        assert transport.info("key") is None

    def test_a_directory_with_entries_is_not_removed(self, transport: TransportABC) -> None:
        transport.store("d/key", b"")
        with pytest.raises(DirectoryNotEmptyError):
            transport.remove("d")
        assert transport.fetch("d/key") == b""

    def test_a_tree_goes_with_everything_beneath_it_and_nothing_else(
        self, transport: TransportABC
    ) -> None:
        for key in ("tree/a", "tree/deep/er/b", "tree-", "tree.txt"):
            transport.store(key, b"x")
        assert transport.remove_tree("tree")
        assert [info.key for info in transport.list_keys()] == ["tree-", "tree.txt"]
        assert transport.info("tree") is None
        assert not transport.remove_tree("tree")

    def test_a_tree_can_be_a_single_file(self, transport: TransportABC) -> None:
        transport.store("key", b"x")
        assert transport.remove_tree("key")
        assert transport.info("key") is None

    def test_a_renamed_file_replaces_a_file(self, transport: TransportABC) -> None:
        transport.store("from", b"new")
        transport.store("to", b"old")
        transport.rename_key("from", "to")
        assert transport.fetch("to") == b"new"
        assert keys_of(transport.list_keys()) == ["to"]

    def test_a_key_renamed_to_itself_stays(self, transport: TransportABC) -> None:
        transport.store("key", b"value")
        transport.rename_key("key", "key")
        assert transport.fetch("key") == b"value"

    def test_a_renamed_directory_takes_everything_along(self, transport: TransportABC) -> None:
        for key in ("d/a", "d/b/c", "d.txt", "d0"):
            transport.store(key, key.encode())
        transport.rename_key("d", "new/e")
        assert keys_of(transport.list_keys()) == ["d.txt", "d0", "new/e/a", "new/e/b/c"]
        assert transport.fetch("new/e/b/c") == b"d/b/c"
        assert transport.info("d") is None

    def _needs_directories(self, transport: TransportABC) -> None:
        if not transport.capabilities.directories:
            pytest.skip("declares no directories of their own")

    def test_an_empty_directory_exists_by_itself(self, transport: TransportABC) -> None:
        self._needs_directories(transport)
        transport.create_dir("d/e")
        transport.create_dir("d/e")
        info = transport.info("d/e")
        assert info is not None
        assert info.is_directory
        assert keys_of(transport.list_dir("d")) == ["d/e"]
        assert transport.list_dir("d/e") == transport.list_keys() == []
        assert transport.remove("d/e") is True
        assert transport.info("d/e") is None
        assert transport.exists("d")

    def test_a_directory_outlives_its_last_file(self, transport: TransportABC) -> None:
        self._needs_directories(transport)
        transport.store("d/key", b"")
        transport.remove("d/key")
        assert transport.exists("d")
        assert transport.list_dir("d") == []

    def test_file_calls_on_a_directory_are_refused(self, transport: TransportABC) -> None:
        self._needs_directories(transport)
        transport.store("d/key", b"")
        with pytest.raises(PathIsDirectoryError):
            transport.fetch("d")
        with pytest.raises(PathIsDirectoryError):
            transport.fetch("d", 0, 5)
        with pytest.raises(PathIsDirectoryError):
            list(transport.stream("d"))
        with pytest.raises(PathIsDirectoryError):
            transport.store("d", b"")
        with pytest.raises(PathIsDirectoryError):
            transport.store_chunked("d", [b""])
        assert keys_of(transport.list_dir("")) == ["d"]

    def test_a_file_in_the_way_is_named(self, transport: TransportABC) -> None:
        self._needs_directories(transport)
        transport.store("file", b"kept")
        with pytest.raises(PathNotDirectoryError):
            transport.store("file/below", b"")
        with pytest.raises(PathNotDirectoryError):
            transport.store_chunked("file/far/below", [b""])
        for key in ("file", "file/below", "file/far/below"):
            with pytest.raises(PathNotDirectoryError):
                transport.create_dir(key)
        assert transport.fetch("file") == b"kept"

    def test_a_rename_onto_the_other_kind_is_refused(self, transport: TransportABC) -> None:
        self._needs_directories(transport)
        transport.store("file", b"file")
        transport.store("full/key", b"key")
        transport.create_dir("empty")
        with pytest.raises(PathIsDirectoryError):
            transport.rename_key("file", "empty")
        with pytest.raises(PathNotDirectoryError):
            transport.rename_key("empty", "file")
        with pytest.raises(DirectoryNotEmptyError):
            transport.rename_key("empty", "full")
        transport.rename_key("full", "empty")
        assert keys_of(transport.list_keys()) == ["empty/key", "file"]

    def test_set_mode_is_kept_where_modes_are_declared(self, transport: TransportABC) -> None:
        if not transport.capabilities.modes:
            pytest.skip("declares no modes")
        transport.store("key", b"")
        transport.set_mode("key", 0o640)
        transport.store("key", b"overwritten")
        info = transport.info("key")
        assert info is not None
        assert info.mode == self.mode_after_overwriting(0o640)
        with pytest.raises(ContentNotFoundError):
            transport.set_mode("absent", 0o600)

    def mode_after_overwriting(self, mode: int) -> int:
        """Return the permission bits that overwriting a file with ``mode`` leaves."""
        return mode

    # -- together -----------------------------------------------------------------------------

    def test_sync_and_close_may_be_called_again(self, transport: TransportABC) -> None:
        transport.store("key", b"value")
        transport.sync()
        transport.sync()
        assert transport.fetch("key") == b"value"
        transport.close()
        transport.close()

    def test_a_reader_never_sees_a_torn_value(self, transport: TransportABC) -> None:
        values = {bytes([letter]) * (50_000 + letter) for letter in b"abcd"}
        transport.store("key", min(values))
        writers_done = threading.Event()

        def write() -> None:
            for _ in range(10):
                for value in values:
                    transport.store("key", value)
                    transport.store_chunked("key", (value[:777], value[777:]))

        def read() -> None:
            while not writers_done.is_set():
                assert transport.fetch("key") in values
                assert b"".join(transport.stream("key", piece_bytes=9_999)) in values
                assert transport.get_size("key") > 50_000

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            writers = [pool.submit(write) for _ in range(2)]
            try:
                for writer in writers:
                    writer.result()
            finally:
                writers_done.set()
            for reader in readers:
                reader.result()
        assert keys_of(transport.list_dir("")) == ["key"]

    def test_threads_that_store_and_sync_lose_nothing(self, transport: TransportABC) -> None:
        def work(name: int) -> None:
            for number in range(20):
                transport.store(f"{number}/{name}", b"%d" % name)
                if number % 5 == 0:
                    transport.sync()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert len(transport.list_keys()) == 80
        assert transport.fetch("19/3") == b"3"

    def test_directories_come_and_go_under_concurrent_stores(self, transport: TransportABC) -> None:
        def work(name: str) -> None:
            for _ in range(50):
                transport.store(f"d/{name}", name.encode())
                assert transport.fetch(f"d/{name}") == name.encode()
                transport.remove(f"d/{name}")
                try:
                    transport.remove("d")
                except DirectoryNotEmptyError:
                    continue  # the other one is in it

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, "ab"))
        assert transport.list_keys() == []
