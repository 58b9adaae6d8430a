"""The conformance suite of content stores. Layer: testing.

A driver's test subclasses :class:`ContentStoreSuite`, says how to make a store and how to damage
one of its objects, and inherits a test for every sentence of
:class:`nexus.contracts.object_store.ContentStoreABC`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexus.contracts.errors import (
    BusyError,
    ContentNotFoundError,
    CorruptionError,
    InvalidArgumentError,
)
from nexus.contracts.object_store import Content, ContentStoreABC
from nexus.lib.content_id import EMPTY_CONTENT_ID, blob_id, object_id_of

_properties = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    # Every example makes its own store, and every driver runs the same inherited test.
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)

# Both repetitive and incompressible bytes: the first make equal chunks, the second all others.
_SEEDS = st.integers(0, 3)


class ContentStoreSuite:
    """One test for each promise of a content store."""

    large_bytes = 20_000
    """A size at which the store that :meth:`make` gives cuts content into many chunks."""

    def make(self) -> ContentStoreABC:
        """Return a new, empty store."""
        raise NotImplementedError

    def damage(self, store: ContentStoreABC, object_id: str, position: int) -> None:
        """Flip one bit of the stored object, behind the store's back."""
        raise NotImplementedError

    @pytest.fixture
    def store(self) -> Iterator[ContentStoreABC]:
        with closing(self.make()) as store:
            yield store

    def large(self, seed: int = 0) -> bytes:
        """Return bytes that are stored as many chunks, the same for the same seed."""
        return _noise(seed, self.large_bytes)

    # Ids

    def test_small_content_is_named_by_the_hash_of_its_bytes(self, store: ContentStoreABC) -> None:
        assert store.write_content(b"abc") == Content(blob_id(object_id_of(b"abc")), 3)

    def test_large_content_is_named_by_its_manifest(self, store: ContentStoreABC) -> None:
        data = self.large()
        content = store.write_content(data)
        own, *chunks = store.objects_of(content.etag)
        assert content == Content(f"b3c:{own}", len(data))
        assert len(chunks) > 1
        assert {own, *chunks} == {found.object_id for found in store.list_objects()}

    def test_empty_content_is_readable_and_needs_no_object(self, store: ContentStoreABC) -> None:
        assert store.read_content(EMPTY_CONTENT_ID) == b""
        assert list(store.stream_content(EMPTY_CONTENT_ID)) == []
        assert store.content_size(EMPTY_CONTENT_ID) == 0
        assert store.write_content(b"") == store.write_content([]) == Content(EMPTY_CONTENT_ID, 0)
        assert list(store.objects_of(EMPTY_CONTENT_ID)) == []
        assert list(store.list_objects()) == []

    @pytest.mark.parametrize(
        "etag",
        ["", "b3:", "b3:../../x", "b3:" + "A" * 64, "b3:" + "a" * 64 + "\n", "sha:" + "a" * 64],
    )
    def test_a_malformed_id_is_an_invalid_argument(self, store: ContentStoreABC, etag: str) -> None:
        for call in (store.read_content, store.stream_content, store.content_size, store.pin):
            with pytest.raises(InvalidArgumentError):
                call(etag)
        with pytest.raises(InvalidArgumentError):
            list(store.objects_of(etag))

    @_properties
    @given(size=st.integers(0, 20_000), seed=_SEEDS, cuts=st.lists(st.integers(0, 20_000)))
    def test_the_same_bytes_have_the_same_id_however_they_are_fed(
        self, size: int, seed: int, cuts: list[int]
    ) -> None:
        data = _sample(size, seed)
        bounds = [0, *sorted(min(cut, size) for cut in cuts), size]
        reused = bytearray()

        def pieces() -> Iterator[bytearray]:
            # A producer may fill the same buffer again for each piece.
            for start, end in pairwise(bounds):
                reused[:] = data[start:end]
                yield reused

        with closing(self.make()) as store:
            content = store.write_content(data)
            assert content.size == size
            assert store.write_content(bytearray(data)) == content
            assert store.write_content(memoryview(data)) == content
            assert store.read_content(content.etag) == data
        with closing(self.make()) as store:
            assert store.write_content(pieces()) == content
            assert store.read_content(content.etag) == data

    # Reading

    @_properties
    @given(
        size=st.sampled_from([1, 700, 1024, 1025, 9_000]),
        offset=st.integers(0, 10_000),
        count=st.none() | st.integers(0, 10_000),
        piece_bytes=st.integers(1, 3_000),
    )
    def test_a_range_is_that_slice_of_the_bytes(
        self, size: int, offset: int, count: int | None, piece_bytes: int
    ) -> None:
        data = _sample(size, 0)
        expected = data[offset:] if count is None else data[offset : offset + count]
        with closing(self.make()) as store:
            etag = store.write_content(data).etag
            assert store.read_content(etag, offset, count) == expected
            assert store.read_content(etag, offset, count, size=size) == expected
            pieces = list(store.stream_content(etag, offset, count, piece_bytes))
        assert b"".join(pieces) == expected
        assert all(0 < len(piece) <= piece_bytes for piece in pieces)

    def test_a_wrong_size_hint_never_changes_the_answer(self, store: ContentStoreABC) -> None:
        etag = store.write_content(b"0123456789").etag
        for size in (0, 1, 9, 11, 1_000):
            assert store.read_content(etag, size=size) == b"0123456789"
            assert store.read_content(etag, 2, 3, size=size) == b"234"

    def test_a_negative_range_is_an_invalid_argument(self, store: ContentStoreABC) -> None:
        etag = store.write_content(b"abc").etag
        for offset, count in ((-1, None), (0, -1)):
            with pytest.raises(InvalidArgumentError):
                store.read_content(etag, offset, count)
            with pytest.raises(InvalidArgumentError):
                store.stream_content(etag, offset, count)

    @pytest.mark.parametrize("etag", [f"b3:{'0' * 64}", f"b3c:{'0' * 64}"])
    def test_unknown_content_is_not_found(self, store: ContentStoreABC, etag: str) -> None:
        with pytest.raises(ContentNotFoundError):
            store.read_content(etag)
        with pytest.raises(ContentNotFoundError):
            list(store.stream_content(etag))
        with pytest.raises(ContentNotFoundError):
            store.content_size(etag)
        with pytest.raises(ContentNotFoundError):
            store.splice(etag, 0, b"x")
        with pytest.raises(ContentNotFoundError):
            store.verify_object("0" * 64)

    def test_the_size_of_a_content_is_known(self, store: ContentStoreABC) -> None:
        for data in (b"abc", self.large()):
            assert store.content_size(store.write_content(data).etag) == len(data)

    # Damage

    @_properties
    @given(choice=st.integers(0), position=st.integers(0), large=st.booleans())
    def test_a_flipped_bit_in_any_object_is_never_returned_as_data(
        self, choice: int, position: int, large: bool
    ) -> None:
        data = self.large() if large else b"a small blob"
        with closing(self.make()) as writer:
            etag = writer.write_content(data).etag
            objects = sorted(writer.list_objects())
            victim = objects[choice % len(objects)]
            self.damage(writer, victim.object_id, position % victim.size)
            with pytest.raises(CorruptionError, match=victim.object_id):
                writer.verify_object(victim.object_id)
            self._assert_never_wrong(writer, etag, data)
            assert writer.write_content(data).etag == etag
            assert writer.verify_object(victim.object_id) == victim.size
            assert writer.read_content(etag) == data

    def _assert_never_wrong(self, store: ContentStoreABC, etag: str, data: bytes) -> None:
        """Every range gives its own bytes or an error. Where the bit was, it is an error."""
        failed = 0
        for offset in range(0, len(data), 1000):
            try:
                assert store.read_content(etag, offset, 1000) == data[offset : offset + 1000]
            except CorruptionError:
                failed += 1
        streamed = b""
        try:
            for piece in store.stream_content(etag):
                streamed += piece
        except CorruptionError:
            failed += 1
        assert data.startswith(streamed)
        # Only a manifest that is still in memory lets every range be read.
        assert failed or streamed == data

    def test_damage_is_reported_with_the_object_and_a_way_out(self, store: ContentStoreABC) -> None:
        etag = store.write_content(b"precious").etag
        self.damage(store, etag[3:], 0)
        with pytest.raises(CorruptionError, match=etag[3:]) as caught:
            store.read_content(etag)
        assert caught.value.operation == "read_content"
        assert caught.value.path == etag
        assert caught.value.hint

    def test_what_hashes_right_but_is_no_manifest_is_corruption(
        self, store: ContentStoreABC
    ) -> None:
        blob = store.write_content(b"not a manifest").etag
        with pytest.raises(CorruptionError):
            store.read_content("b3c:" + blob[3:])

    # Splicing

    @_properties
    @given(
        size=st.sampled_from([0, 1, 1000, 1024, 1025, 3_000, 15_000]),
        offset=st.integers(0, 18_000),
        length=st.sampled_from([1, 2, 60, 1024, 5_000]),
        seed=_SEEDS,
    )
    def test_a_splice_has_the_id_of_the_whole_new_content(
        self, size: int, offset: int, length: int, seed: int
    ) -> None:
        old, change = _sample(size, seed), _sample(length, seed + 10)
        expected = old[:offset].ljust(offset, b"\0") + change + old[offset + length :]
        with closing(self.make()) as store, closing(self.make()) as fresh:
            base = store.write_content(old).etag
            content = store.splice(base, offset, memoryview(change))
            assert content == fresh.write_content(expected)
            assert store.read_content(content.etag) == expected
            assert store.read_content(base) == old

    def test_a_splice_at_every_chunk_boundary_has_the_id_of_the_whole(
        self, store: ContentStoreABC
    ) -> None:
        data = self.large()
        etag = store.write_content(data).etag
        sizes = {found.object_id: found.size for found in store.list_objects()}
        boundary = 0
        for chunk in list(store.objects_of(etag))[1:]:
            boundary += sizes[chunk]
            for offset in (boundary - 1, boundary, boundary + 1):
                expected = data[:offset].ljust(offset, b"\0") + b"!" + data[offset + 1 :]
                assert store.splice(etag, offset, b"!") == store.write_content(expected)

    def test_appends_one_after_another_have_the_id_of_the_whole(
        self, store: ContentStoreABC
    ) -> None:
        etag, whole = "", b""
        for number in range(60):
            piece = _noise(number, 97)
            etag = store.splice(etag, len(whole), piece).etag
            whole += piece
            assert etag == store.write_content(whole).etag

    def test_a_splice_of_no_data_changes_nothing(self, store: ContentStoreABC) -> None:
        for data in (b"", b"abc", self.large()):
            content = store.write_content(data)
            assert store.splice(content.etag, 10**9, b"") == content
        assert store.splice("", 5, b"") == Content(EMPTY_CONTENT_ID, 0)

    def test_a_splice_at_a_negative_offset_is_an_invalid_argument(
        self, store: ContentStoreABC
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            store.splice("", -1, b"x")

    # Several at once

    @_properties
    @given(sizes=st.lists(st.sampled_from([0, 1, 700, 1024, 1025, 9_000]), max_size=8))
    def test_several_contents_are_stored_as_one_by_one(self, sizes: list[int]) -> None:
        contents = [_sample(size, number % 4) for number, size in enumerate(sizes)]
        with closing(self.make()) as store, closing(self.make()) as other:
            written = store.write_many(contents)
            assert written == [other.write_content(data) for data in contents]
            assert [store.read_content(content.etag) for content in written] == contents
            for content in written:
                store.unpin(content.etag)  # each is pinned once for each time it was given

    # Structure

    def test_a_store_that_is_whole_has_nothing_wrong_with_its_structure(
        self, store: ContentStoreABC
    ) -> None:
        etag = store.write_content(self.large()).etag
        assert store.check_structure() == []
        assert store.check_structure(repair=True) == []
        assert store.read_content(etag) == self.large()

    def test_compaction_keeps_what_is_stored_and_what_is_set_aside(
        self, store: ContentStoreABC
    ) -> None:
        kept = store.write_content(b"kept").etag
        aside = _unpinned(store, b"aside")
        for number in range(50):
            _unpinned(store, _noise(number, 900))
        self._collect_everything(store)
        assert store.purge_quarantine(1 << 62) > 0
        store.write_content(b"aside")
        store.unpin(aside)
        self._collect_everything(store)
        store.compact()
        assert store.read_content(kept) == b"kept"
        with pytest.raises(ContentNotFoundError):
            store.read_content(aside)
        assert store.restore_object(aside[3:])
        assert store.read_content(aside) == b"aside"

    # Failing writes

    def test_an_iterable_that_raises_stores_no_content(self, store: ContentStoreABC) -> None:
        def pieces() -> Iterator[bytes]:
            yield self.large()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.write_content(pieces())
        assert store.write_content(self.large()).size == self.large_bytes

    # Collection

    def test_quarantined_content_is_absent_and_comes_back(self, store: ContentStoreABC) -> None:
        for data in (b"abc", self.large()):
            etag = _unpinned(store, data)
            objects = list(store.objects_of(etag))
            store.begin_collection()
            assert all(store.quarantine_object(object_id) for object_id in set(objects))
            assert not store.quarantine_object(objects[0])
            store.end_collection()
            assert list(store.list_objects()) == []
            with pytest.raises(ContentNotFoundError):
                store.read_content(etag)
            with pytest.raises(ContentNotFoundError):
                store.content_size(etag)
            assert all(store.restore_object(object_id) for object_id in set(objects))
            assert not store.restore_object(objects[0])
            assert store.read_content(etag) == data
            self._collect_everything(store)

    def _collect_everything(self, store: ContentStoreABC) -> set[str]:
        """Try to set every object aside; return the ids of those that were."""
        store.begin_collection()
        found = [stored.object_id for stored in store.list_objects()]
        taken = {object_id for object_id in found if store.quarantine_object(object_id)}
        store.end_collection()
        return taken

    def test_writing_brings_quarantined_content_back(self, store: ContentStoreABC) -> None:
        for data in (b"abc", self.large()):
            etag = _unpinned(store, data)
            assert set(store.objects_of(etag)) <= self._collect_everything(store)
            assert store.write_content(data).etag == etag
            assert store.read_content(etag) == data

    def test_pinned_content_is_not_collected_until_every_pin_is_gone(
        self, store: ContentStoreABC
    ) -> None:
        for data in (b"abc", self.large()):
            etag = store.write_content(data).etag
            store.pin(etag)
            store.unpin(etag)
            assert self._collect_everything(store).isdisjoint(store.objects_of(etag))
            store.unpin(etag)
            assert set(store.objects_of(etag)) <= self._collect_everything(store)

    def test_what_is_written_or_reused_during_a_collection_is_kept(
        self, store: ContentStoreABC
    ) -> None:
        reused = [_unpinned(store, b"abc"), _unpinned(store, self.large())]
        pinned = _unpinned(store, self.large(1))
        base = _unpinned(store, self.large(2))
        store.begin_collection()
        kept = [_unpinned(store, data) for data in (b"abc", self.large(), b"new", self.large(3))]
        assert kept[:2] == reused
        store.pin(pinned)
        store.unpin(pinned)
        spliced = store.splice(base, 5, b"change").etag
        store.unpin(spliced)
        for etag in (*kept, pinned, spliced):
            assert not any(store.quarantine_object(needed) for needed in store.objects_of(etag))
        store.end_collection()
        assert set(store.objects_of(pinned)) <= self._collect_everything(store)

    def test_the_chunks_of_a_write_in_flight_are_kept(self, store: ContentStoreABC) -> None:
        taken: list[bool] = []

        before = [self.large(seed) for seed in range(6)]  # some may be stored later than fed

        def pieces() -> Iterator[bytes]:
            yield from before
            store.begin_collection()
            written = [found.object_id for found in store.list_objects()]
            assert written
            taken.extend(store.quarantine_object(object_id) for object_id in written)
            yield self.large(6)
            store.end_collection()

        etag = store.write_content(pieces()).etag
        assert not any(taken)
        assert store.read_content(etag) == b"".join(before) + self.large(6)

    def test_pinning_during_a_collection_brings_back_what_was_taken(
        self, store: ContentStoreABC
    ) -> None:
        data = self.large()
        etag = _unpinned(store, data)
        own, *chunks = store.objects_of(etag)
        store.begin_collection()
        assert store.quarantine_object(chunks[0])
        store.pin(etag)
        assert store.read_content(etag) == data
        assert not store.quarantine_object(own)
        store.end_collection()

    def test_a_splice_during_a_collection_brings_back_what_it_builds_on(
        self, store: ContentStoreABC
    ) -> None:
        data = self.large()
        etag = _unpinned(store, data)
        _, *chunks = store.objects_of(etag)
        store.begin_collection()
        assert store.quarantine_object(chunks[1])
        content = store.splice(etag, len(data), b"more")
        store.end_collection()
        assert store.read_content(content.etag) == data + b"more"

    def test_one_collection_at_a_time(self, store: ContentStoreABC) -> None:
        store.begin_collection()
        with pytest.raises(BusyError):
            store.begin_collection()
        store.end_collection()
        store.end_collection()
        store.begin_collection()
        store.end_collection()

    def test_nothing_is_set_aside_outside_a_collection(self, store: ContentStoreABC) -> None:
        etag = _unpinned(store, b"abc")
        with pytest.raises(InvalidArgumentError):
            store.quarantine_object(etag[3:])
        assert store.read_content(etag) == b"abc"

    def test_an_unbalanced_unpin_is_an_invalid_argument(self, store: ContentStoreABC) -> None:
        etag = _unpinned(store, b"abc")
        with pytest.raises(InvalidArgumentError):
            store.unpin(etag)

    def test_a_purge_frees_only_what_was_set_aside_before(self, store: ContentStoreABC) -> None:
        etag = _unpinned(store, b"abc")
        self._collect_everything(store)
        assert store.purge_quarantine(0) == 0
        assert store.restore_object(etag[3:])
        assert self._collect_everything(store) == {etag[3:]}
        assert store.purge_quarantine(1 << 62) == 3
        assert store.purge_quarantine(1 << 62) == 0
        assert not store.restore_object(etag[3:])

    def test_a_damaged_quarantined_object_is_not_restored(self, store: ContentStoreABC) -> None:
        etag = _unpinned(store, b"abc")
        self.damage(store, etag[3:], 0)
        self._collect_everything(store)
        with pytest.raises(CorruptionError):
            store.restore_object(etag[3:])

    @pytest.mark.parametrize("object_id", ["", "../x", "b3:" + "0" * 64, "A" * 64])
    def test_a_malformed_object_id_is_an_invalid_argument(
        self, store: ContentStoreABC, object_id: str
    ) -> None:
        store.begin_collection()
        for call in (store.verify_object, store.quarantine_object, store.restore_object):
            with pytest.raises(InvalidArgumentError):
                call(object_id)

    # Lifetime

    def test_sync_and_close_can_be_repeated(self) -> None:
        store = self.make()
        store.write_content(b"abc")
        store.sync()
        store.sync()
        store.close()
        store.close()

    def test_a_store_says_that_it_is_content_addressed(self, store: ContentStoreABC) -> None:
        assert store.capabilities.content_addressed
        assert not store.capabilities.authoritative_namespace
        assert store.name
        assert 0 < len(store.volume_id) <= 64


def _sample(size: int, seed: int) -> bytes:
    """Return ``size`` bytes, the same for the same seed; odd seeds give a short period."""
    if seed % 2:
        return (_noise(seed, 7) * (size // 7 + 1))[:size]
    return _noise(seed, size)


def _noise(seed: int, size: int) -> bytes:
    """Return ``size`` incompressible bytes, the same for the same seed."""
    return blake3(b"%d" % seed).digest(length=size)


def _unpinned(store: ContentStoreABC, data: bytes) -> str:
    etag = store.write_content(data).etag
    store.unpin(etag)
    return etag
