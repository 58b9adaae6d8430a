from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.lib.block_seals import block_count
from nexus.lib.content_id import object_id_of
from nexus.lib.manifest import Manifest, ManifestBuilder, ManifestError

SIZES = st.lists(st.integers(1, 1 << 20), min_size=1, max_size=50)


def seals_of(number: int, size: int) -> bytes:
    return bytes([number] * 8) * block_count(size)


def build(sizes: list[int]) -> Manifest:
    builder = ManifestBuilder()
    for number, size in enumerate(sizes):
        builder.add(object_id_of(b"%d" % number), size, seals_of(number, size))
    return builder.finish()


def header(total: int, count: int, magic: bytes = b"NXCM", version: int = 3) -> bytes:
    return struct.pack("<4sIQI", magic, version, total, count)


@given(SIZES)
def test_decoding_gives_back_what_was_encoded(sizes: list[int]) -> None:
    built = build(sizes)
    decoded = Manifest.decode(built.encoded)
    assert decoded.encoded == built.encoded
    assert decoded.size == sum(sizes)
    assert [decoded[index] for index in range(len(decoded))] == list(built.covering(0, built.size))
    assert list(decoded.object_ids()) == [object_id_of(b"%d" % n) for n in range(len(sizes))]


@given(SIZES, st.data())
def test_the_parts_of_a_range_are_what_its_chunks_have_of_it(
    sizes: list[int], data: st.DataObject
) -> None:
    manifest = build(sizes)
    start = data.draw(st.integers(0, manifest.size))
    end = data.draw(st.integers(start, manifest.size))
    expected = []
    for chunk in manifest.covering(start, end):
        first = max(start, chunk.start) - chunk.start
        count = min(end, chunk.start + chunk.size) - chunk.start - first
        expected.append((chunk.object_id, first, count, chunk.seals))
    assert manifest.parts(start, end) == expected


def test_the_layout_is_the_documented_one() -> None:
    encoded = build([5, 65_537]).encoded
    assert encoded[:20] == b"NXCM" + bytes([3, 0, 0, 0, 6, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0])
    assert encoded[20:56] == bytes.fromhex(object_id_of(b"0")) + bytes([5, 0, 0, 0])
    assert encoded[88:92] == bytes([1, 0, 1, 0])
    assert encoded[92:] == bytes(8) + bytes([1] * 16)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"NXCM",
        header(0, 0),
        header(1, 1),
        header(1, 2**32 - 1) + bytes(44),
        header(5, 1, magic=b"NXCN") + bytes(32) + b"\5\0\0\0" + bytes(8),
        header(5, 1, version=2) + bytes(32) + b"\5\0\0\0" + bytes(8),
        header(6, 1) + bytes(32) + b"\5\0\0\0" + bytes(8),
        header(0, 1) + bytes(44),
        header(5, 1) + bytes(32) + b"\5\0\0\0" + bytes(8) + b"\0",
        header(5, 1) + bytes(32) + b"\5\0\0\0",
        header(65_537, 1) + bytes(32) + b"\1\0\1\0" + bytes(8),
        header(5, 2) + bytes(32) + b"\5\0\0\0" + bytes(8) + bytes(44),
    ],
)
def test_what_is_malformed_is_refused(encoded: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.decode(encoded)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_to_themselves_or_are_refused(encoded: bytes) -> None:
    try:
        manifest = Manifest.decode(encoded)
    except ManifestError:
        return
    assert manifest.encoded == encoded


@given(SIZES, st.data())
def test_a_range_is_covered_by_exactly_the_chunks_that_overlap_it(
    sizes: list[int], data: st.DataObject
) -> None:
    manifest = build(sizes)
    start = data.draw(st.integers(0, manifest.size + 10))
    end = data.draw(st.integers(start, manifest.size + 10))
    overlapping = [
        chunk
        for chunk in (manifest[index] for index in range(len(manifest)))
        if chunk.start < end and start < chunk.start + chunk.size and start < end
    ]
    assert list(manifest.covering(start, end)) == overlapping


@given(SIZES)
def test_a_boundary_is_known_by_the_chunk_that_starts_there(sizes: list[int]) -> None:
    manifest = build(sizes)
    position = 0
    for index, size in enumerate(sizes, 1):
        assert size == 1 or manifest.boundary_index(position + 1) is None
        position += size
        assert manifest.boundary_index(position) == index
    assert manifest.boundary_index(position + 1) is None


def test_a_builder_copies_runs_of_another_manifest() -> None:
    sizes = [random.Random(7).randrange(1, 9) for _ in range(20)]
    manifest = build(sizes)
    builder = ManifestBuilder()
    builder.extend(manifest, 0, 5)
    builder.add(manifest[5].object_id, sizes[5], manifest[5].seals)
    builder.extend(manifest, 6, 20)
    builder.extend(manifest, 20, 20)
    assert builder.finish().encoded == manifest.encoded
