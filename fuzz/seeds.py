"""What each target starts from: stored forms by the real encoders, small ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable

import msgspec
from blake3 import blake3

from fuzz.targets import IDENTITY
from nexus.contracts.file_events import FILE_WRITE, FileEvent
from nexus.contracts.metadata import FileMetadata
from nexus.core.inode_table import parse_key
from nexus.core.lock_manager import LockRecord, encode_lock
from nexus.core.metadata_codec import encode_event, encode_metadata
from nexus.core.sealed_store import Head, revision_key
from nexus.lib.manifest import ManifestBuilder
from nexus.lib.native import chosen
from nexus.storage.object_store.segment_file import padding, record_header
from nexus.storage.stream.log_record import encode

_COMMIT_LOG_IDENTITY = 7
_LOG_LIMIT_BYTES = 1 << 20
_SEED_BYTES = 512


def manifests() -> list[bytes]:
    """A manifest of two chunks."""
    builder = ManifestBuilder()
    builder.add("11" * 32, 5, bytes(8))
    builder.add("22" * 32, 65_537, bytes(16))
    return [builder.finish().encoded]


def segment_records() -> list[bytes]:
    """A record, and two with damage between them."""
    stored = [
        record_header(blake3(data).digest(), data, 1) + data + padding(len(data))
        for data in (b"some", b"", b"x" * 40)
    ]
    return [stored[0], stored[0] + bytes(8) + stored[1] + stored[2]]


def log_records() -> list[bytes]:
    """Three messages, and the same with the second one gone."""
    stored = [encode(message, at, IDENTITY) for at, message in enumerate((b"a", b"", b"ccc"))]
    return [b"".join(stored), stored[0] + bytes(32) + stored[2]]


def index_pages() -> list[bytes]:
    """Headers of two pages that share all hashes, in the pieces that the target takes."""
    pages = [bytes(8) + prefix.to_bytes(4, "little") + b"\1\0\1\0" for prefix in (0, 1)]
    return [bytes(128) + b"".join(page.ljust(128, b"\0") for page in pages)]


def metadata() -> list[bytes]:
    """Metadata and an event."""
    meta = FileMetadata(
        *(0, 5, "b3:00", 1, 1_700_000_000, 1_700_000_000, "ann", 0o644),
        *("text/plain", "root", "cas_memory", "indexer"),
        run_id="run-1",
        attributes={"text": "ä", "number": -5, "float": 0.5, "truth": True},
    )
    event = FileEvent(FILE_WRITE, "/a", "ann", 1, "root", etag="b3:00", size=5, version=1)
    return [encode_metadata(meta), encode_event(event)]


def locks() -> list[bytes]:
    """A hold."""
    return [encode_lock(LockRecord("id", "exclusive", 1000, 1, 2, "ann"))]


def keys() -> list[bytes]:
    """A key of each kind."""
    found = [
        b"J" + revision_key(7) + bytes(4),
        b"A" + revision_key(7),
        b"B",
        b"Lroot\0/a\0" + bytes(8),
        b"Mroot\0/a",
        *(keyspace + b"root\0volume\0/a" + bytes(9) for keyspace in (b"C", b"O", b"V")),
    ]
    assert all(parse_key(key) for key in found)
    return found


def commit_log() -> list[bytes]:
    """The log of a store after two commits; none where the crate is not built."""
    native = chosen().module
    if native is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "store")
        native.create_store(path, _COMMIT_LOG_IDENTITY)
        store = native.OrderedStore(
            path,
            log_limit_bytes=_LOG_LIMIT_BYTES,
            scarce_log_limit_bytes=_LOG_LIMIT_BYTES,
            cache_bytes=1 << 20,
        )
        store.commit([(b"key", b"value")], [b"gone"], [], False)
        store.commit([], [b"key"], [], False)
        logs = sorted(set(os.listdir(folder)) - {"store"})
        found = []
        for name in logs:
            with open(os.path.join(folder, name), "rb") as file:
                found.append(file.read(_SEED_BYTES))
        store.close()
    return found


SEEDS: dict[str, Callable[[], Iterable[bytes]]] = {
    "head_record": lambda: [Head(7, 5, 1, 2, 7).packed()],
    "lock_record": locks,
    "log_record": log_records,
    "manifest": manifests,
    "metadata_record": metadata,
    "object_index": index_pages,
    "segment_file": segment_records,
    "stored_key": keys,
    "rust_commit_log": commit_log,
    "rust_metadata_decode": metadata,
    "rust_msgpack": lambda: [msgspec.msgpack.encode(value) for value in (1.5, -7, "a", True)],
    "rust_object_index": index_pages,
    "rust_paths": lambda: [b"/a/b.c", b"/.", b"/..", "/ä\u0080".encode()],
    "rust_segment_record": segment_records,
}
