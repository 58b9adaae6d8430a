"""CasStore: content-addressed storage over any object database.

Layer: storage. It cuts, hashes, names, verifies and protects; where objects lie is the
:class:`~nexus.storage.object_store.object_database.ObjectDatabase`'s. It knows no file names and no
references, and never decides that content is garbage. Unix counterpart: a filesystem's block layer.

1. The same bytes have the same id, however they were fed or spliced together.
2. No byte leaves the store that was not checked; see the first promise of an object database.
3. A chunk is stored before the manifest that names it, and a manifest before its id is returned.
4. An object is marked in the :class:`CollectionGuard` before its presence is relied on.

Locks: those of the guard, of the caches and of the database, in this order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from nexus.contracts.errors import (
    ContentNotFoundError,
    CorruptionError,
    InvalidArgumentError,
)
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import (
    PIECE_BYTES,
    Content,
    ContentStoreABC,
    Extent,
    Leftovers,
    ObjectStoreCapabilities,
    StoredObject,
)
from nexus.lib.block_seals import BLOCK_BYTES, block_seals
from nexus.lib.chunking import (
    DEFAULT_CHUNKING,
    Chunk,
    ChunkingParameters,
    chunk_buffer,
    chunk_stream,
)
from nexus.lib.content_id import (
    EMPTY_CONTENT_ID,
    EMPTY_OBJECT_ID,
    blob_id,
    check_object_id,
    manifest_id,
    object_id_of,
    parse_content_id,
)
from nexus.lib.on_first_use import OnFirstUse
from nexus.storage.object_store.collection_guard import CollectionGuard, Flight
from nexus.storage.object_store.object_database import ObjectDatabase
from nexus.storage.object_store.verified_cache import VerifiedCache

if TYPE_CHECKING:
    from nexus.contracts.stream_backend import StreamStore
    from nexus.lib.manifest import ChunkRef, Manifest, ManifestBuilder

CACHE_BYTES = 8 << 20
"""Budget of verified chunks, and another of decoded manifests: eight of the largest chunks."""

UNCACHED_BYTES = 64 << 10
"""Smaller objects are read again: that costs about what keeping them would."""

WRITTEN_BYTES = 128 << 10
"""Budget of the seals and ids of blobs that were written lately: several hundred."""

_RUNS_AHEAD = 3
"""How many runs of chunks wait to be stored at most; bounds the memory of a large write."""

_ZEROS = bytes(64 << 10)
_DAMAGE_HINT = (
    "restore it from another copy, or write the content again; "
    "`nexus fsck` lists every file that needs it"
)


class CasStore(ContentStoreABC):
    """Content in an object database. Shared freely between threads; owns the database."""

    def __init__(
        self,
        objects: ObjectDatabase,
        *,
        name: str,
        volume_id: str,
        clock_ns: Callable[[], int],
        chunking: ChunkingParameters = DEFAULT_CHUNKING,
    ) -> None:
        self.name = name
        self.volume_id = volume_id
        self._streams: Callable[[], StreamStore | None] = OnFirstUse(_memory_streams)
        self.capabilities = ObjectStoreCapabilities(
            authoritative_namespace=False,
            content_addressed=True,
            persistent=objects.persistent,
            # Names and modes are records of the metastore, wherever the bytes lie.
            atomic_rename=True,
            modes=True,
        )
        self._objects = objects
        self._get = objects.get
        self.place = objects.place
        self._clock_ns = clock_ns
        self._chunking = chunking
        self._guard = CollectionGuard()
        self._chunks: VerifiedCache[bytes] = VerifiedCache(CACHE_BYTES)
        self._manifests: VerifiedCache[Manifest] = VerifiedCache(CACHE_BYTES)
        # The object with these block seals, perhaps: written again it is compared, not hashed.
        self._written: VerifiedCache[str] = VerifiedCache(WRITTEN_BYTES)

    @property
    def streams(self) -> StreamStore | None:
        """Where streams are kept: in memory, until a factory says otherwise."""
        return self._streams()

    @streams.setter
    def streams(self, streams: StreamStore | None) -> None:
        self._streams = lambda: streams

    # Writing

    def write_content(self, data: Buffer | Iterable[Buffer]) -> Content:
        """Store bytes, or the concatenation of an iterable, and pin the result."""
        if isinstance(data, bytes):
            if len(data) <= self._chunking.threshold_bytes:
                return self._write_blob(data)
            return self._write_chunks(chunk_buffer(data, self._chunking))
        if isinstance(data, (bytearray, memoryview)):
            flat = _flat(data)
            if len(flat) <= self._chunking.threshold_bytes:
                # Copied, since its owner may write to it while it is hashed and stored.
                return self._write_blob(bytes(flat))
            return self._write_chunks(chunk_buffer(flat, self._chunking))
        return self._write_pieces(data)

    def _write_blob(self, data: Buffer) -> Content:
        if len(data) <= BLOCK_BYTES:
            return self._write_hashed(data, None)
        seals = block_seals(data)
        lately = self._written.get(seals.hex())
        if lately is not None and self._holds_pinned(lately, data, seals):
            return Content(blob_id(lately), len(data))
        return self._write_hashed(data, seals)

    def _holds_pinned(self, object_id: str, data: Buffer, seals: bytes) -> bool:
        """Return whether an object is there and has just these bytes; it is pinned then."""
        etag = blob_id(object_id)
        self._guard.pin(etag, object_id)
        held = False
        try:
            held = self._objects.holds(object_id, data, seals)
        finally:
            if not held:
                self._guard.unpin(etag)
        return held

    def _write_hashed(self, data: Buffer, seals: bytes | None) -> Content:
        object_id = object_id_of(data)
        etag = blob_id(object_id)
        self._guard.pin(etag, object_id)
        try:
            if data:  # empty content needs no object
                self._objects.put(object_id, data, seals)
        except BaseException:
            self._guard.unpin(etag)
            raise
        if seals is not None:
            self._written.put(seals.hex(), object_id, len(seals) + len(object_id))
        return Content(etag, len(data))

    def _write_pieces(self, pieces: Iterable[Buffer]) -> Content:
        """Store an iterable: in one blob if it ends within the threshold, else in chunks."""
        remaining = iter(pieces)
        buffered = bytearray()
        for piece in remaining:
            flat = _flat(piece)
            if len(buffered) + len(flat) > self._chunking.threshold_bytes:
                fed = chain((buffered, flat), remaining)
                return self._write_chunks(chunk_stream(fed, self._chunking))
            buffered += flat
        return self._write_blob(bytes(buffered))

    def _write_chunks(self, runs: Iterable[list[Chunk]]) -> Content:
        # Imported here: only large content needs it, and it costs start-up time.
        from concurrent.futures import Future, ThreadPoolExecutor

        from nexus.lib.manifest import ManifestBuilder

        # Cutting, hashing and sealing take about twice as long as storing, and all of it runs
        # without the interpreter's lock. A third thread takes more for that lock than it gives.
        with self._guard.flight() as flight, ThreadPoolExecutor(1) as beside:
            builder = ManifestBuilder()
            waiting: deque[Future[None]] = deque()
            for chunks in runs:
                waiting.append(beside.submit(self._store_chunks, flight, chunks))
                for chunk in chunks:
                    builder.add(chunk.object_id, chunk.size, chunk.seals)
                if len(waiting) > _RUNS_AHEAD:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
            return self._write_manifest(flight, builder)

    def _store_chunks(self, flight: Flight, chunks: Iterable[Chunk]) -> None:
        # What this write has stored itself (a run of zeros, say) needs no second look.
        new = [chunk for chunk in chunks if self._guard.hold(flight, chunk.object_id)]
        if new:
            self._objects.put_chunks(new)

    def _write_manifest(self, flight: Flight, builder: ManifestBuilder) -> Content:
        manifest = builder.finish()
        object_id = object_id_of(manifest.encoded)
        self._guard.hold(flight, object_id)
        self._objects.put(object_id, manifest.encoded)
        self._manifests.put(object_id, manifest, len(manifest.encoded))
        etag = manifest_id(object_id)
        self._guard.pin(etag, object_id, manifest)
        return Content(etag, manifest.size)

    def write_many(self, contents: Sequence[Buffer]) -> list[Content]:
        """Store several contents and pin each; small ones in one go."""
        threshold = self._chunking.threshold_bytes
        small: list[tuple[str, Buffer]] = []
        answers: list[Content] = []
        try:
            for data in contents:
                flat = _flat(data)
                if len(flat) > threshold:
                    answers.append(self.write_content(flat))
                    continue
                flat = bytes(flat)  # as in write_content
                object_id = object_id_of(flat)
                etag = blob_id(object_id)
                self._guard.pin(etag, object_id)
                answers.append(Content(etag, len(flat)))
                if flat:
                    small.append((object_id, flat))
            self._objects.put_many(small)
        except BaseException:
            for content in answers:
                self._guard.unpin(content.etag)
            raise
        return answers

    # Splicing

    def splice(self, etag: str, offset: int, data: Buffer) -> Content:
        """Store and pin what results from writing ``data`` at ``offset`` over ``etag``."""
        if offset < 0:
            raise InvalidArgumentError("splice", None, f"the offset {offset} is negative")
        chunked, object_id = parse_content_id("splice", etag or EMPTY_CONTENT_ID)
        flat = _flat(data)
        if not flat:
            return self._unchanged(etag or EMPTY_CONTENT_ID)
        if chunked:
            return self._splice_chunks(etag, object_id, offset, flat)
        old = self._blob("splice", etag, object_id, None)
        return self._splice_small(old, offset, flat)

    def _unchanged(self, etag: str) -> Content:
        self.pin(etag)
        try:
            return Content(etag, self.content_size(etag))
        except BaseException:
            self._guard.unpin(etag)
            raise

    def _splice_small(self, old: bytes, offset: int, data: Buffer) -> Content:
        head, tail = old[:offset], old[offset + len(data) :]
        gap = offset - len(head)
        if offset + len(data) + len(tail) <= self._chunking.threshold_bytes:
            return self._write_blob(b"".join((head, bytes(gap), data, tail)))
        pieces = chain((head,), _zeros(gap), (data, tail))
        return self._write_chunks(chunk_stream(pieces, self._chunking))

    def _splice_chunks(self, etag: str, object_id: str, offset: int, data: Buffer) -> Content:
        from nexus.lib.manifest import ManifestBuilder  # costs start-up time

        with self._guard.flight() as flight:
            self._guard.hold(flight, object_id)
            base = self._manifest("splice", etag, object_id)
            if self._guard.hold_chunks(flight, base):
                self._ensure_present("splice", etag, base.object_ids())
            end = offset + len(data)
            if max(base.size, end) <= self._chunking.threshold_bytes:
                return self._splice_small(self.read_content(etag), offset, data)
            # The end of a chunk depends on the byte after it, so the chunk that may move is the
            # one that holds the byte before the change.
            first = base.index_at(max(0, min(offset, base.size) - 1))
            builder = ManifestBuilder()
            builder.extend(base, 0, first)
            pieces = self._spliced_pieces(etag, base, builder.size, offset, data)
            for chunk in chain.from_iterable(chunk_stream(pieces, self._chunking)):
                self._store_chunks(flight, (chunk,))
                builder.add(chunk.object_id, chunk.size, chunk.seals)
                rejoin = base.boundary_index(builder.size) if builder.size >= end else None
                if rejoin is not None:
                    builder.extend(base, rejoin, len(base))
                    break
            return self._write_manifest(flight, builder)

    def _spliced_pieces(
        self, etag: str, base: Manifest, start: int, offset: int, data: Buffer
    ) -> Iterator[Buffer]:
        """Yield the new content from ``start`` (<= offset) to its end."""
        yield from self._pieces("splice", etag, base, start, min(offset, base.size))
        yield from _zeros(offset - base.size)
        yield data
        yield from self._pieces("splice", etag, base, offset + len(data), base.size)

    # Reading

    def read_content(
        self, etag: str, offset: int = 0, count: int | None = None, *, size: int | None = None
    ) -> bytes:
        """Return ``count`` verified bytes from ``offset``, fewer at the end."""
        if offset < 0 or (count is not None and count < 0):
            raise _bad_range("read_content", offset, count)
        chunked, object_id = parse_content_id("read_content", etag)
        if not chunked:
            if offset == 0 and (count is None or (size is not None and count >= size)):
                data = self._blob("read_content", etag, object_id, size)
                return data if count is None else data[:count]
            data = self._cached_blob("read_content", etag, object_id, size)
            return data[offset:] if count is None else data[offset : offset + count]
        manifest = self._manifest("read_content", etag, object_id)
        end = manifest.size if count is None else min(manifest.size, offset + count)
        if end - offset >= BLOCK_BYTES:
            # Of many bytes no more than their blocks are read, to where they are handed out.
            found = self._objects.read_parts(end - offset, manifest.parts(offset, end))
            if found is not None:
                return found
        return b"".join(self._pieces("read_content", etag, manifest, offset, end, keep=True))

    def extent(self, etag: str) -> Extent | None:
        """Return where content that was stored whole lies, see the contract."""
        chunked, object_id = parse_content_id("extent", etag)
        return None if chunked else self._objects.extent(object_id)

    def stream_content(
        self, etag: str, offset: int = 0, count: int | None = None, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Return an iterator of verified pieces of at most ``piece_bytes``."""
        if offset < 0 or (count is not None and count < 0):
            raise _bad_range("stream_content", offset, count)
        if piece_bytes < 1:
            raise InvalidArgumentError("stream_content", None, "a piece has at least one byte")
        parse_content_id("stream_content", etag)
        return self._stream(etag, offset, count, piece_bytes)

    def _stream(
        self, etag: str, offset: int, count: int | None, piece_bytes: int
    ) -> Iterator[bytes]:
        chunked, object_id = parse_content_id("stream_content", etag)
        pieces: Iterable[bytes | memoryview]
        if chunked:
            manifest = self._manifest("stream_content", etag, object_id)
            end = manifest.size if count is None else offset + count
            pieces = self._pieces("stream_content", etag, manifest, offset, end)
        else:
            data = self._blob("stream_content", etag, object_id, None)
            pieces = (data[offset:] if count is None else data[offset : offset + count],)
        for piece in pieces:
            for start in range(0, len(piece), piece_bytes):
                yield bytes(piece[start : start + piece_bytes])

    def content_size(self, etag: str) -> int:
        """Return the size in bytes, from verified bytes."""
        chunked, object_id = parse_content_id("content_size", etag)
        if chunked:
            return self._manifest("content_size", etag, object_id).size
        return len(self._cached_blob("content_size", etag, object_id, None))

    def _pieces(
        self,
        operation: str,
        etag: str,
        manifest: Manifest,
        start: int,
        end: int,
        *,
        keep: bool = False,
    ) -> Iterator[bytes | memoryview]:
        """Yield the bytes from ``start`` up to ``end``, a chunk at a time.

        With ``keep``, a chunk of which only a part was wanted stays in the cache: the next call
        probably wants the rest.
        """
        for chunk in manifest.covering(start, end):
            wanted = min(end, chunk.start + chunk.size) - max(start, chunk.start)
            data = self._kept_chunk(operation, etag, chunk, wanted if keep else chunk.size)
            if wanted < chunk.size:
                yield memoryview(data)[max(0, start - chunk.start) : end - chunk.start]
            else:
                yield data

    def _kept_chunk(self, operation: str, etag: str, chunk: ChunkRef, wanted: int) -> bytes:
        """Return a chunk; kept if less is wanted, since the next call may want the rest."""
        data = self._chunks.get(chunk.object_id)
        if data is None:
            data = self._chunk(operation, etag, chunk)
            if wanted < chunk.size and len(data) > UNCACHED_BYTES:
                self._chunks.put(chunk.object_id, data, len(data))
        return data

    def _chunk(self, operation: str, etag: str, chunk: ChunkRef) -> bytes:
        """Return a chunk, checked by its seals, which the hash of the manifest vouches for."""
        part = (chunk.object_id, 0, chunk.size, chunk.seals)
        found = self._objects.read_parts(chunk.size, (part,))
        if found is not None:
            return found
        data = self._object(operation, etag, chunk.object_id, chunk.size, chunk.seals)
        if len(data) != chunk.size:
            reason = "its size is not what the manifest says"
            raise _damaged(operation, etag, chunk.object_id, reason)
        return data

    def _manifest(self, operation: str, etag: str, object_id: str) -> Manifest:
        manifest = self._manifests.get(object_id)
        if manifest is None:
            from nexus.lib.manifest import Manifest, ManifestError  # costs start-up time

            encoded = self._object(operation, etag, object_id, None)
            try:
                manifest = Manifest.decode(encoded)
            except ManifestError as error:
                raise _damaged(operation, etag, object_id, str(error)) from error
            self._manifests.put(object_id, manifest, len(encoded))
        return manifest

    def _blob(self, operation: str, etag: str, object_id: str, size: int | None) -> bytes:
        if object_id == EMPTY_OBJECT_ID:
            return b""
        return self._object(operation, etag, object_id, size)

    def _cached_blob(self, operation: str, etag: str, object_id: str, size: int | None) -> bytes:
        cached = self._chunks.get(object_id)
        if cached is not None:
            return cached
        data = self._blob(operation, etag, object_id, size)
        if len(data) > UNCACHED_BYTES:
            self._chunks.put(object_id, data, len(data))
        return data

    def _object(
        self,
        operation: str,
        etag: str,
        object_id: str,
        size: int | None,
        seals: bytes | None = None,
    ) -> bytes:
        """Return a whole object, verified. ``size`` only saves the database a look."""
        try:
            return self._get(object_id, size=size, seals=seals)
        except ContentNotFoundError as error:
            raise _missing(operation, etag, object_id) from error
        except CorruptionError as error:
            raise CorruptionError(operation, etag, error.reason, hint=_DAMAGE_HINT) from error

    # Collection

    def pin(self, etag: str) -> None:
        """Protect a content until :meth:`unpin`."""
        chunked, object_id = parse_content_id("pin", etag)
        if not chunked:
            collecting = self._guard.pin(etag, object_id)
            needed: Iterable[str] = (object_id,)
        else:
            with self._guard.flight() as flight:
                self._guard.hold(flight, object_id)
                manifest = self._manifest("pin", etag, object_id)
                collecting = self._guard.pin(etag, object_id, manifest)
            needed = chain((object_id,), manifest.object_ids())
        if collecting:
            try:
                self._ensure_present("pin", etag, needed)
            except BaseException:
                self._guard.unpin(etag)
                raise

    def unpin(self, etag: str) -> None:
        """Undo one pin. Errors: InvalidArgumentError when the content is not pinned."""
        self._guard.unpin(etag)

    def begin_collection(self) -> None:
        """Start protecting. Errors: BusyError while a collection is active."""
        self._guard.begin()

    def end_collection(self) -> None:
        """Stop protecting. Idempotent."""
        self._guard.end()

    def quarantine_object(self, object_id: str) -> bool:
        """Set an object aside, unless it is protected or absent; return whether it was."""
        check_object_id("quarantine_object", object_id)
        taken = self._guard.unless_protected(
            object_id, lambda: self._objects.set_aside(object_id, self._clock_ns())
        )
        if taken:
            self._chunks.discard(object_id)
            self._manifests.discard(object_id)
        return taken

    def restore_object(self, object_id: str) -> bool:
        """Bring a quarantined object back, or mend it, see the contract."""
        check_object_id("restore_object", object_id)
        try:
            return self._objects.bring_back(object_id)
        except CorruptionError as error:
            reason, hint = error.reason, _DAMAGE_HINT
            raise CorruptionError("restore_object", object_id, reason, hint=hint) from error

    def purge_quarantine(self, quarantined_before_ns: int) -> int:
        """Delete objects set aside before a time (nanoseconds since the epoch)."""
        return self._objects.purge(quarantined_before_ns)

    def compact(self) -> int:
        """Give the space of deleted objects back to the disk; return how many bytes."""
        return self._objects.compact()

    def _ensure_present(self, operation: str, etag: str, object_ids: Iterable[str]) -> None:
        """Bring back what a running collection took before the objects were marked."""
        for object_id in object_ids:
            present = object_id == EMPTY_OBJECT_ID or self._objects.contains(object_id)
            if not present and not self.restore_object(object_id):
                raise _missing(operation, etag, object_id)

    # Objects

    def objects_of(self, etag: str) -> Iterator[str]:
        """Return an iterator of the object ids that a content needs; none for empty content."""
        chunked, object_id = parse_content_id("objects_of", etag)
        if chunked:
            manifest = self._manifest("objects_of", etag, object_id)
            return chain((object_id,), manifest.object_ids())
        return iter(() if object_id == EMPTY_OBJECT_ID else (object_id,))

    def list_objects(self) -> Iterator[StoredObject]:
        """Yield every stored object, in bounded memory."""
        return self._objects.objects()

    def verify_object(self, object_id: str) -> int:
        """Check an object's bytes against its id; return its size."""
        check_object_id("verify_object", object_id)
        try:
            return self._objects.verify(object_id)
        except ContentNotFoundError as error:
            raise _missing("verify_object", object_id, object_id) from error
        except CorruptionError as error:
            reason, hint = error.reason, _DAMAGE_HINT
            raise CorruptionError("verify_object", object_id, reason, hint=hint) from error

    def check_structure(self, *, repair: bool = False) -> list[str]:
        """Return what is wrong with what finds the objects, mending it with ``repair``."""
        return self._objects.check(repair=repair)

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool = False) -> Leftovers:
        """Remove what dead processes left, see the contract."""
        return self._objects.remove_leftovers(untouched_since_ns, dry_run=dry_run)

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        self._objects.sync()

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._objects.close()


def _memory_streams() -> StreamStore:
    from nexus.storage.stream.memory import MemoryStreams  # costs start-up time

    return MemoryStreams()


def _flat(data: Buffer) -> Buffer:
    """Return the bytes of a buffer so that ``len`` counts bytes, without copying."""
    # A bytearray stays what it is: a view would keep its owner from filling it again.
    return memoryview(data).cast("B") if isinstance(data, memoryview) else data


def _zeros(count: int) -> Iterator[bytes]:
    """Yield ``count`` zero bytes, none for a negative count, in pieces of bounded size."""
    for start in range(0, count, len(_ZEROS)):
        yield _ZEROS[: count - start]


def _bad_range(operation: str, offset: int, count: int | None) -> InvalidArgumentError:
    return InvalidArgumentError(operation, None, f"offset {offset}, count {count} is no range")


def _missing(operation: str, etag: str, object_id: str) -> ContentNotFoundError:
    return ContentNotFoundError(operation, etag, f"object {object_id} is not stored")


def _damaged(operation: str, etag: str, object_id: str, reason: str) -> CorruptionError:
    reason = f"object {object_id} is damaged: {reason}"
    return CorruptionError(operation, etag, reason, hint=_DAMAGE_HINT)
