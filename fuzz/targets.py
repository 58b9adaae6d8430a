"""The Python fuzz targets: each takes any bytes and fails where a parser breaks its claims.

Claims: nothing but the documented error comes out; what is read is within the bytes at hand; what
is read is stored as the same again. Seals are mended before parsing, since no chance meets them.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from xxhash import xxh3_64_intdigest

from nexus.contracts.errors import CorruptionError
from nexus.contracts.metastore import Batch
from nexus.contracts.stream_backend import RECORD_BYTES
from nexus.core import metadata_codec
from nexus.core.inode_table import parse_key
from nexus.core.lock_manager import LOCK_VERSION, decode_lock, encode_lock
from nexus.core.sealed_store import Sealed, SealedStore, revision_key
from nexus.lib.block_seals import SEAL_BYTES, block_count
from nexus.lib.disk import Disk
from nexus.lib.manifest import VERSION, Manifest, ManifestBuilder, ManifestError
from nexus.lib.native import chosen
from nexus.storage.metastore.memory import MemoryMetastore
from nexus.storage.object_store.entry import Entry, IndexLostError
from nexus.storage.object_store.object_index import PAGE_BYTES, ObjectIndex
from nexus.storage.object_store.segment_file import (
    RECORD_HEADER_BYTES,
    UNIT,
    record_bytes,
    records,
)
from nexus.storage.stream.log_record import DAMAGED, MAGIC, decode, header_at, identity_of, scan

IDENTITY = identity_of("fuzz")
BOOT = 7
_MANIFEST_SIZES = struct.Struct("<QI")
_MANIFEST_ENTRY_BYTES = 36
_FOLDER = tempfile.TemporaryDirectory(prefix="nexus-fuzz-")
_PAGE_PIECE_BYTES = 128
_MOST_PAGES = 8


def manifest(data: bytes) -> None:
    """``Manifest.decode``, of the bytes as they are and with sizes that add up."""
    _check_manifest(data)
    count = max(0, len(data) - 20) // _MANIFEST_ENTRY_BYTES
    whole = bytearray(data[: 20 + count * _MANIFEST_ENTRY_BYTES])
    if count:
        starts = range(20 + 32, len(whole), _MANIFEST_ENTRY_BYTES)
        for at in starts:
            whole[at + 3] = 0  # or the seals of a few chunks are megabytes
        sizes = [int.from_bytes(whole[at : at + 4], "little") for at in starts]
        whole[:8] = b"NXCM" + VERSION.to_bytes(4, "little")
        _MANIFEST_SIZES.pack_into(whole, 8, sum(sizes), count)
        seals = sum(map(block_count, sizes)) * SEAL_BYTES
        _check_manifest(bytes(whole) + bytes(seals))


def _check_manifest(data: bytes) -> None:
    try:
        read = Manifest.decode(data)
    except ManifestError:
        return
    builder = ManifestBuilder()
    for chunk in read.covering(0, read.size):
        assert read[read.index_at(chunk.start)] == chunk
        builder.add(chunk.object_id, chunk.size, chunk.seals)
    assert builder.finish().encoded == data


def segment_file(data: bytes) -> None:
    """``records`` of a segment, of the bytes as they are and with headers that are whole."""
    _check_records(data)
    mended = bytearray(data)
    for at in range(0, len(mended) - RECORD_HEADER_BYTES + 1, UNIT):
        if mended[at : at + 4] == b"NXOB":
            check = xxh3_64_intdigest(bytes(mended[at : at + 48]))
            mended[at + 48 : at + 56] = check.to_bytes(8, "little")
    _check_records(bytes(mended))


def _check_records(data: bytes) -> None:
    end = 0
    for record in records(data, 0):
        start = record.offset * UNIT
        assert end <= start
        assert start + RECORD_HEADER_BYTES + record.size <= len(data)
        end = start + record_bytes(record.size)


def log_record(data: bytes) -> None:
    """``scan`` of a stream's log, of the bytes as they are and with headers that are sound."""
    _check_log(data)
    mended = bytearray(data)
    at = mended.find(MAGIC)
    while 0 <= at <= len(mended) - RECORD_BYTES:
        length = int.from_bytes(mended[at + 4 : at + 8], "little")
        message = bytes(mended[at + RECORD_BYTES : at + RECORD_BYTES + length])
        mended[at + 16 : at + 24] = xxh3_64_intdigest(message).to_bytes(8, "little")
        own = xxh3_64_intdigest(bytes(mended[at : at + 24]), IDENTITY)
        mended[at + 24 : at + 32] = own.to_bytes(8, "little")
        at = mended.find(MAGIC, at + RECORD_BYTES)
    _check_log(bytes(mended))


def _check_log(data: bytes) -> None:
    found = scan(data, 0, IDENTITY)
    assert found.size <= len(data)
    # No log holds more messages than headers fit into it, so nor does the index of one.
    assert len(found.positions) <= len(data) // RECORD_BYTES + 1
    end = 0
    for offset, position in enumerate(found.positions):
        if position != DAMAGED:
            header = header_at(data, position, IDENTITY)
            assert header is not None
            assert header.offset == offset
            assert position >= end
            end = position + RECORD_BYTES + header.length
            decode(data[position:end], offset, IDENTITY)


def object_index(data: bytes) -> None:
    """An index of sealed pages that hold anything: both twins see the same in all of it."""
    path = f"{_FOLDER.name}/index"
    _write_index(path, data)
    seen = _seen(lambda: ObjectIndex(path, disk=Disk(), boot=BOOT), data)
    native = chosen().module
    if native is not None:
        _write_index(path, data)
        assert _seen(lambda: native.ObjectIndex(path, BOOT), data) == seen


def _write_index(path: str, data: bytes) -> None:
    pages = [
        data[at : at + _PAGE_PIECE_BYTES]
        for at in range(0, min(len(data), _MOST_PAGES * _PAGE_PIECE_BYTES), _PAGE_PIECE_BYTES)
    ]
    with open(path, "wb") as file:
        file.write(_mended_header(pages[0] if pages else b""))
        for number, page in enumerate(pages[1:], 1):
            body = page[8:].ljust(PAGE_BYTES - 8, b"\0")
            file.write(xxh3_64_intdigest(body, number).to_bytes(8, "little") + body)
    with open(path + ".map", "wb") as file:
        stored = data[_MOST_PAGES * _PAGE_PIECE_BYTES :]
        seed = int.from_bytes(data[8:16].ljust(8, b"\0"), "little")
        checksum = xxh3_64_intdigest(stored, seed ^ max(1, len(pages)))
        file.write(checksum.to_bytes(8, "little") + stored)


def _seen(open_index: Callable[[], ObjectIndex], data: bytes) -> list[object] | str:
    """Return all that an index says, or why it is none."""
    try:
        index = open_index()
    except IndexLostError as error:
        return str(error)
    try:
        return [index.end, index.covered, *_look_into(index, data[:32].ljust(32, b"\0"))]
    finally:
        index.close(None)


def _mended_header(piece: bytes) -> bytes:
    fields = b"NXOI\2\0\0\0" + piece[8:16].ljust(8, b"\0")
    fields += BOOT.to_bytes(8, "little") + piece[24:48].ljust(24, b"\0")
    return (fields + xxh3_64_intdigest(fields).to_bytes(8, "little")).ljust(PAGE_BYTES, b"\0")


def _look_into(index: ObjectIndex, object_id: bytes) -> Iterator[object]:
    yield index.damaged_pages()
    for number in range(1, index.page_count):
        try:
            entries = index.entries_in(number)
        except CorruptionError as error:
            yield error.reason
            continue
        yield from entries
        yield from [_found(index, entry.object_id) for entry in entries]
    yield _found(index, object_id)


def _found(index: ObjectIndex, object_id: bytes) -> Entry | str | None:
    try:
        entry = index.get(object_id)
    except CorruptionError as error:
        return error.reason
    assert entry is None or entry.object_id == object_id
    assert index.peek(object_id) == entry
    return entry


def metadata_record(data: bytes) -> None:
    """Metadata and events: both twins read alike, and what they read is stored as the same."""
    native = chosen().module
    twins = [metadata_codec] if native is None else [metadata_codec, native]
    names = [("decode_metadata", "encode_metadata"), ("decode_event", "encode_event")]
    for payload in (data, b"\1" + data):
        for decoding, encoding in names:
            # Bytes, since a number that is none equals nothing.
            stored = [
                _stored_again(payload, getattr(twin, decoding), getattr(twin, encoding))
                for twin in twins
            ]
            assert stored.count(stored[0]) == len(stored), stored
            if stored[0] is not None:
                decode, encode = (getattr(metadata_codec, name) for name in (decoding, encoding))
                assert _stored_again(stored[0], decode, encode) == stored[0]


def lock_record(data: bytes) -> None:
    """Holds of advisory locks: what is read is stored as the same."""
    for payload in (data, LOCK_VERSION + data):
        stored = _stored_again(payload, decode_lock, encode_lock)
        if stored is not None:
            assert _stored_again(stored, decode_lock, encode_lock) == stored


def _stored_again(
    payload: bytes, decode: Callable[[Sealed], Any], encode: Callable[[Any], bytes]
) -> bytes | None:
    try:
        read = decode(Sealed(b"J" + revision_key(7) + bytes(4), payload, 7, 0))
    except CorruptionError:
        return None
    return encode(read)


def stored_key(data: bytes) -> None:
    """``parse_key``: a key of any bytes is known or not, and never an error."""
    parse_key(data)


def head_record(data: bytes) -> None:
    """The totals of a store, from a sealed record of any bytes."""
    body = revision_key(1) + data
    store = MemoryMetastore()
    seal = xxh3_64_intdigest(b"K" + body).to_bytes(8, "big")
    store.commit(Batch([(b"K", seal + body)]), durable=False)
    try:
        head = SealedStore(store).head()
    except CorruptionError:
        return
    assert head.packed().startswith(data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        head_record,
        lock_record,
        log_record,
        manifest,
        metadata_record,
        object_index,
        segment_file,
        stored_key,
    )
}
