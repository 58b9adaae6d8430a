from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from nexus.contracts.errors import AccessDeniedError, ConflictError, NotSupportedError
from nexus.contracts.object_store import PIECE_BYTES, NamespaceStoreABC
from nexus.storage.object_store.local_transport import LocalTransport
from nexus.storage.object_store.memory_transport import MemoryTransport
from nexus.storage.object_store.path_store import PathStore
from nexus.testing.namespace_store import NamespaceStoreSuite
from nexus.testing.transport import keys_of


class TestOverMemory(NamespaceStoreSuite):
    def make(self, folder: Path) -> NamespaceStoreABC:
        return PathStore(MemoryTransport(), name="path_memory", volume_id="path-memory")


class TestOverAFolder(NamespaceStoreSuite):
    def make(self, folder: Path) -> NamespaceStoreABC:
        transport = LocalTransport(str(folder), confined=True)
        return PathStore(transport, name="path_local", volume_id="path-local")


@pytest.fixture
def store(tmp_path):
    transport = LocalTransport(str(tmp_path), confined=True)
    made = PathStore(transport, name="path_local", volume_id="path-local")
    yield made
    made.close()


def test_what_others_do_in_the_folder_is_seen_at_once(store, tmp_path):
    (tmp_path / "theirs").write_bytes(b"1")
    first = store.stat("theirs")
    (tmp_path / "theirs").write_bytes(b"22")
    assert store.stat("theirs").fingerprint != first.fingerprint
    assert store.read("theirs") == b"22"
    (tmp_path / "theirs").unlink()
    assert store.stat("theirs") is None
    assert store.list_dir("") == []


def test_links_that_leave_are_denied_and_not_listed(store, tmp_path):
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(AccessDeniedError):
        store.stat("link")
    assert store.list_dir("") == []


class ChangingTransport(MemoryTransport):
    """Someone else replaces the file while it is streamed, the first ``changes`` times."""

    def __init__(self, changes: int) -> None:
        super().__init__()
        self.changes = changes

    def stream(self, key, offset=0, count=None, piece_bytes=PIECE_BYTES):
        yield from super().stream(key, offset, count, piece_bytes)
        if self.changes:
            self.changes -= 1
            self.store(key, b"theirs %03d" % self.changes)


def test_a_splice_never_mixes_two_versions():
    store = PathStore(ChangingTransport(3), name="changing", volume_id="v")
    store.write("file", b"0123456789")
    store.splice("file", 3, b"X")
    assert store.read("file") == b"theXrs 000"


def test_a_splice_gives_up_when_the_file_keeps_changing():
    store = PathStore(ChangingTransport(1000), name="changing", volume_id="v")
    store.write("file", b"0123456789")
    with pytest.raises(ConflictError):
        store.splice("file", 3, b"X")
    assert store.read("file").startswith(b"theirs")


def test_a_splice_uses_bounded_memory(store):
    pieces = 24
    store.write("file", (bytes(PIECE_BYTES) for _ in range(pieces)))
    tracemalloc.start()
    try:
        store.splice("file", 5 * PIECE_BYTES + 7, b"change")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * PIECE_BYTES
    assert store.stat("file").size == pieces * PIECE_BYTES


def test_locks_of_paths_are_forgotten_after_use(store):
    store.write("file", b"")
    store.rename("file", "other")
    assert not store._paths._used


def test_modes_are_not_supported_where_the_transport_declares_none():
    transport = MemoryTransport()
    transport.capabilities = msgspec.structs.replace(transport.capabilities, modes=False)
    store = PathStore(transport, name="plain", volume_id="v")
    store.write("file", b"")
    with pytest.raises(NotSupportedError):
        store.set_mode("file", 0o600)


def test_a_page_of_staging_names_is_not_the_end(store):
    for _ in range(5):
        store.write(store.staging_path("x"), b"")
    store.write("z", b"")
    assert keys_of(store.list_dir("", "", 2)) == ["z"]


@pytest.mark.parametrize("hidden", ["fifo", "not-utf-8", "leaving-link", "dangling-link"])
def test_no_inventory_leaves_out_what_listings_do(store, tmp_path, hidden):
    folder = tmp_path / "d" / "e"
    folder.mkdir(parents=True)
    (tmp_path / "d" / "listed").write_bytes(b"1")
    if hidden == "fifo":
        os.mkfifo(folder / "fifo")
    elif hidden == "not-utf-8":
        (folder / os.fsdecode(b"caf\xe9")).write_bytes(b"2")
    else:
        (folder / "link").symlink_to("/etc" if hidden == "leaving-link" else "nowhere")
    with pytest.raises(NotSupportedError, match="d/e/"):
        store.inventory("d")
    assert store.inventory("d/listed").keys() == {"/"}


def test_a_linked_directory_is_not_taken_for_an_empty_one(store, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "d" / "link").symlink_to("../other")
    with pytest.raises(NotSupportedError, match="d/link"):
        store.inventory("d")


def test_what_others_add_where_no_listing_shows_it_stays(store, tmp_path):
    store.write("d/file", b"1")
    inventory = store.inventory("d")
    os.mkfifo(tmp_path / "d" / "fifo")
    with pytest.raises(NotSupportedError):
        store.remove_unchanged("d", inventory)
    assert sorted(os.listdir(tmp_path / "d")) == ["fifo", "file"]


class TakenTransport(MemoryTransport):
    """Someone else takes the name of what is set aside, having changed it just before."""

    taken = False

    def rename_key(self, source, target):
        if not self.taken:
            self.taken = True
            self.store(source, b"changed by them")
            super().rename_key(source, target)
            self.store(source, b"and another")
        else:
            super().rename_key(source, target)


def test_what_cannot_come_back_gets_a_name_of_its_own():
    store = PathStore(TakenTransport(), name="taken", volume_id="v")
    inventory = {"/": store.write("file", b"1")}
    with pytest.raises(ConflictError):
        store.remove_unchanged("file", inventory)
    other, kept = keys_of(store.list_dir(""))
    assert (store.read(other), store.read(kept)) == (b"and another", b"changed by them")


def test_a_copy_that_others_disturb_leaves_the_target_alone():
    store = PathStore(ChangingTransport(1), name="changing", volume_id="v")
    store.write("from", b"0123456789")
    store.write("to", b"kept")
    with pytest.raises(ConflictError):
        store.copy("from", "to")
    assert store.read("to") == b"kept"
