"""The binding of the Rust kernel keeps neither an object nor memory that was handed to it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.errors import CorruptionError, InvalidPathError
from nexus.contracts.file_events import FILE_WRITE, FileEvent
from nexus.contracts.metadata import FileMetadata
from nexus.core.metadata_codec import encode_event, encode_metadata
from nexus.core.sealed_store import Sealed, revision_key

ROUNDS = 150
LARGE = 1 << 20
LEAST_LEAK_BYTES = ROUNDS * LARGE // 3


@pytest.fixture(scope="module")
def kernel() -> Any:
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")


def resident_bytes() -> int:
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except FileNotFoundError:
        pytest.skip("this system does not say how much memory is in use")
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def check_memory(once: Callable[[], object]) -> None:
    for _ in range(10):
        once()
    gc.collect()
    before = resident_bytes()
    for _ in range(ROUNDS):
        once()
    gc.collect()
    assert resident_bytes() - before < LEAST_LEAK_BYTES


def sealed(payload: bytes) -> Sealed:
    return Sealed(b"J" + revision_key(7) + bytes(4), payload, 7, 0)


def test_a_router_lets_go_of_its_mounts(kernel: Any) -> None:
    mount = object()
    before = sys.getrefcount(mount)
    for _ in range(ROUNDS):
        router = kernel.VFSRouter()
        router.add("root", "/", mount)
        router.add("root", "/a", mount)
        router.route("/a/b", "root")
        router.mounts("root")
        router.table("root")
        router.remove("root", "/a")
    del router
    gc.collect()
    assert sys.getrefcount(mount) == before


def test_a_router_in_a_circle_with_its_mount_is_collected(kernel: Any) -> None:
    class Mount:
        router: Any

    held = object()
    before = sys.getrefcount(held)
    for _ in range(ROUNDS):
        mount = Mount()
        mount.router = kernel.VFSRouter()
        mount.router.add("root", "/", mount)
        mount.router.add("root", "/held", held)
    del mount
    gc.collect()
    assert sys.getrefcount(held) == before


def test_a_ring_buffer_lets_go_of_its_messages(kernel: Any) -> None:
    message = bytes(LARGE)
    before = sys.getrefcount(message)

    def once() -> None:
        ring = kernel.RingBuffer(4 * LARGE)
        ring.put_nowait(message)
        ring.put_nowait(bytes(LARGE))
        ring.get_nowait()
        ring.put_back(message)

    check_memory(once)
    assert sys.getrefcount(message) == before


def test_an_extent_lets_go_of_its_segment(kernel: Any, tmp_path: Path) -> None:
    class Segment:
        pass

    segment = Segment()
    object_id = bytes(32)
    before = sys.getrefcount(segment), sys.getrefcount(object_id)
    with open(tmp_path / "segment", "wb+") as file:
        file.write(bytes(LARGE))
        file.flush()

        def once() -> None:
            extent = kernel.SegmentExtent(segment, file.fileno(), 0, LARGE - 64, object_id)
            assert extent.read() is None

        check_memory(once)
    assert (sys.getrefcount(segment), sys.getrefcount(object_id)) == before


def test_a_store_gives_its_memory_back(kernel: Any, tmp_path: Path) -> None:
    path = tmp_path / "store"
    kernel.create_store(path, 7)
    value = b"v" * LARGE
    before = sys.getrefcount(value)

    def once() -> None:
        store = kernel.OrderedStore(
            path, log_limit_bytes=LARGE, scarce_log_limit_bytes=LARGE, cache_bytes=LARGE
        )
        if store.get(b"key") is None:
            store.commit([(b"key", value)], [], [], False)
        assert store.scan(b"", True, None, 10)[0][1] == value
        with pytest.raises(kernel.StoreConflict):
            store.commit([], [b"key"], [(b"key", 99)], False)
        store.close()

    check_memory(once)
    assert sys.getrefcount(value) == before


def test_codecs_and_paths_keep_nothing_of_what_they_read_or_refuse(kernel: Any) -> None:
    text = "t" * LARGE
    meta = FileMetadata(
        *(0, 5, "", 1, 1, 1, "ann", 0o644, "", "root", "", ""), attributes={"text": text}
    )
    event = FileEvent(FILE_WRITE, "/a", text, 1, "root")
    stored, entry = encode_metadata(meta), encode_event(event)
    before = sys.getrefcount(text), sys.getrefcount(stored), sys.getrefcount(entry)

    def once() -> None:
        kernel.encode_metadata(meta)
        kernel.decode_metadata(sealed(stored))
        kernel.encode_event(event)
        kernel.decode_event(sealed(entry))
        for decode in (kernel.decode_metadata, kernel.decode_event):
            with pytest.raises(CorruptionError):
                decode(sealed(entry[:-1]))
        with pytest.raises(InvalidPathError):
            kernel.normalize("test", text)

    check_memory(once)
    assert (sys.getrefcount(text), sys.getrefcount(stored), sys.getrefcount(entry)) == before
