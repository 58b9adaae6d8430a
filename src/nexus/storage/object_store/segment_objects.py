"""SegmentObjects: small objects packed into append-only segments, large ones loose.

Layer: storage. A file for each small object costs several times an append, in time, syncs and
inodes. What an object's life is, is decided here; records and their index are kept by
:mod:`nexus.storage.object_store.segment_set`, and the space of what was forgotten is given back by
:mod:`nexus.storage.object_store.compaction`. Unix counterparts: a log-structured filesystem, git's
packs.

Invariant: an object that was forgotten or set aside may be there again once the index had to be
made anew. Nothing names it, so the next collection takes it again.

Locks, outermost first: the turn of ``_rounds`` (one round of syncing); the lock of the segments. A
reader that finds its object by :meth:`ObjectIndex.peek` takes neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from blake3 import blake3

from nexus.contracts.errors import NexusError
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import Extent, Leftovers, StoredObject
from nexus.lib.chunking import Chunk
from nexus.lib.disk import Disk, storage_error
from nexus.lib.shared_rounds import SharedRounds
from nexus.storage.object_store.compaction import Compaction
from nexus.storage.object_store.entry import Entry
from nexus.storage.object_store.loose_objects import LooseObjects, damaged, not_stored
from nexus.storage.object_store.object_database import ObjectDatabase, ObjectPart
from nexus.storage.object_store.segment_file import SegmentFile, Wanted
from nexus.storage.object_store.segment_set import SEGMENT_BYTES, Item, SegmentSet, translated
from nexus.storage.primitives import sealed_reader

LARGEST_PACKED_BYTES = 1 << 20
"""Objects above this lie loose: forgetting one then gives its space back without copying."""


class SegmentObjects(ObjectDatabase):
    """Objects in segments on a local disk. Shared freely between threads; owns ``loose``."""

    persistent = True

    def __init__(
        self,
        root: str,
        loose: LooseObjects,
        *,
        disk: Disk,
        clock_ns: Callable[[], int],
        zeros_ahead: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
        largest_bytes: int = LARGEST_PACKED_BYTES,
        boot: int | None = None,
    ) -> None:
        """Open the segments in a folder, made where it is missing.

        ``zeros_ahead`` is for who syncs every write. ``boot`` is which uptime of the machine this
        is, by default what the machine says. Errors: StorageError and its kin.
        """
        self.place = loose.place
        self._loose = loose
        self._clock_ns = clock_ns
        self._largest_bytes = largest_bytes
        self._any_loose: bool | None = None  # None: not looked yet
        self._segments = SegmentSet(
            root, disk=disk, zeros_ahead=zeros_ahead, segment_bytes=segment_bytes, boot=boot
        )
        self._read_sealed = sealed_reader(disk)
        self._rounds = SharedRounds()
        self._compaction = Compaction(self._segments, self.sync)

    # -- reading ------------------------------------------------------------------------------

    def get(self, object_id: str, *, size: int | None = None, seals: bytes | None = None) -> bytes:
        """Return the object's bytes; the record's own seal is checked, whatever is handed in."""
        key = bytes.fromhex(object_id)
        there = self._at_hand(key)
        if there is not None:
            segment, entry = there
            try:
                data = segment.read(entry)
            except OSError as error:
                raise storage_error("fetch", object_id, error) from error
            if data is not None:
                return data
        found = self._find(object_id, key)
        return self._loose.get(object_id, size=size, seals=seals) if found is None else found

    def read_parts(self, count: int, parts: Sequence[ObjectPart]) -> bytes | None:
        segments: list[SegmentFile] = []  # open for as long as they are held
        wanted: list[Wanted] = []
        for object_id, start, length, seals in parts:
            there = self._at_hand(bytes.fromhex(object_id))
            if there is None:
                return None
            segment, entry = there
            segments.append(segment)
            wanted.append(segment.wanted(entry, start, length, seals))
        return self._read_sealed(count, wanted)

    def _at_hand(self, key: bytes) -> tuple[SegmentFile, Entry] | None:
        """Return where an object lies, if that is known without the lock."""
        entry = self._segments.index.peek(key)
        if entry is None or entry.aside:
            return None
        segment = self._segments.open_segments.get(entry.segment)
        return None if segment is None else (segment, entry)

    def _find(self, object_id: str, key: bytes) -> bytes | None:
        """Return an object that is out of reach without the lock; None where it is not packed."""
        tried: Entry | None = None
        while True:
            with self._segments.locked("fetch", object_id):
                entry = self._segments.entry_locked(key)
                if entry is None:
                    return None
                if entry.aside:
                    raise not_stored(object_id)
                segment = self._segments.segment_of_locked(object_id, entry)
            with translated("fetch", object_id):
                data = segment.read(entry)
                if data is not None:
                    return data
                if entry == tried:  # compaction has not moved it in between
                    return self._unsealed(object_id, segment, entry)
            tried = entry

    def _unsealed(self, object_id: str, segment: SegmentFile, entry: Entry) -> bytes:
        """Return bytes that match their hash although what stands before them is damaged."""
        data = segment.read_unsealed(entry)
        if blake3(data).digest() != entry.object_id:
            raise damaged(object_id, "its bytes do not match its hash")
        return data

    def extent(self, object_id: str) -> Extent | None:
        there = self._at_hand(bytes.fromhex(object_id))
        if there is None:
            return None
        segment, entry = there
        return segment.extent(entry)

    def contains(self, object_id: str) -> bool:
        with self._segments.locked("exists", object_id):
            entry = self._segments.entry_locked(bytes.fromhex(object_id))
        return self._loose.contains(object_id) if entry is None else not entry.aside

    def verify(self, object_id: str) -> int:
        with self._segments.locked("verify", object_id):
            entry = self._segments.entry_locked(bytes.fromhex(object_id))
            if entry is not None and entry.aside:
                raise not_stored(object_id)
            segment = None if entry is None else self._segments.segment_of_locked(object_id, entry)
        if entry is None or segment is None:
            return self._loose.verify(object_id)
        with translated("verify", object_id):
            data = self._unsealed(object_id, segment, entry)
            if not segment.holds(entry, data):
                raise damaged(object_id, "its bytes are whole but what stands before them is not")
        return len(data)

    def objects(self) -> Iterator[StoredObject]:
        for entry in self._segments.entries():
            if not entry.aside:
                yield StoredObject(entry.object_id.hex(), entry.size, entry.at_ns)
        yield from self._loose.objects()

    # -- storing ------------------------------------------------------------------------------

    def put_many(
        self, objects: Sequence[tuple[str, Buffer]], seals: Mapping[str, bytes] | None = None
    ) -> None:
        """Store objects in one append, those that are too large for a segment aside."""
        loose: list[tuple[str, Buffer]] = []
        segments = self._segments
        with segments.lock:
            segments.check_open("store", segments.root)
            at_ns = self._clock_ns()
            largest = self._largest_bytes
            try:
                if self._may_be_loose_locked() or not segments.append_new_locked(
                    objects, at_ns, largest
                ):
                    loose = self._put_each_locked(objects, at_ns, seals or {})
            except OSError as error:
                if isinstance(error, NexusError):
                    raise
                raise storage_error("store", segments.root, error) from error
        if loose:
            self._any_loose = True
            self._loose.put_many(loose)

    def _put_each_locked(
        self, objects: Sequence[tuple[str, Buffer]], at_ns: int, seals: Mapping[str, bytes]
    ) -> list[tuple[str, Buffer]]:
        """Store what belongs in segments and is not there, whole; return what belongs elsewhere."""
        loose: list[tuple[str, Buffer]] = []
        items: dict[bytes, Item] = {}
        for object_id, data in objects:
            key = bytes.fromhex(object_id)
            entry = self._segments.entry_locked(key)
            if entry is None:
                # What lies loose is compared there, and healed there.
                if len(data) > self._largest_bytes or self._is_loose_locked(object_id):
                    loose.append((object_id, data))
                else:
                    items[key] = (key, data, at_ns, seals.get(object_id))
            elif not self._segments.holds_locked(entry, data):
                items[key] = (key, data, at_ns, seals.get(object_id))  # heals it
            elif entry.aside:
                self._segments.set_locked([entry._replace(aside=0, at_ns=at_ns)])
        if items:
            self._segments.append_locked(list(items.values()))
        return loose

    def put_chunks(self, chunks: Sequence[Chunk]) -> None:
        """Append the new ones as they are in memory; the others are compared, and healed."""
        new: dict[bytes, Chunk] = {}
        others: list[Chunk] = []
        with self._segments.locked("store", self._segments.root):
            for chunk in chunks:
                key = bytes.fromhex(chunk.object_id)
                if (
                    chunk.size > self._largest_bytes
                    or self._segments.entry_locked(key) is not None
                    or self._is_loose_locked(chunk.object_id)
                ):
                    others.append(chunk)
                else:
                    new[key] = chunk
            if new:
                self._segments.append_chunks_locked(new, self._clock_ns())
        if others:
            super().put_chunks(others)

    def holds(self, object_id: str, data: Buffer, seals: bytes) -> bool:
        with self._segments.locked("store", self._segments.root):
            entry = self._segments.entry_locked(bytes.fromhex(object_id))
            if entry is None or entry.aside:
                return False
            return self._segments.holds_locked(entry, data, seals)

    def _may_be_loose_locked(self) -> bool:
        if self._any_loose is None:
            self._any_loose = not self._loose.is_empty()
        return self._any_loose

    def _is_loose_locked(self, object_id: str) -> bool:
        return self._may_be_loose_locked() and self._loose.contains(object_id)

    # -- setting aside, and giving space back -------------------------------------------------

    def set_aside(self, object_id: str, at_ns: int) -> bool:
        with self._segments.locked("quarantine", object_id):
            entry = self._segments.entry_locked(bytes.fromhex(object_id))
            if entry is not None and not entry.aside:
                self._segments.set_locked([entry._replace(aside=1, at_ns=at_ns)])
                return True
        return entry is None and self._loose.set_aside(object_id, at_ns)

    def bring_back(self, object_id: str) -> bool:
        with self._segments.locked("restore", object_id):
            entry = self._segments.entry_locked(bytes.fromhex(object_id))
            if entry is not None:
                segment = self._segments.segment_of_locked(object_id, entry)
                data = self._unsealed(object_id, segment, entry)
                if not segment.holds(entry, data):
                    self._segments.append_locked([(entry.object_id, data, self._clock_ns(), None)])
                    return True
                if entry.aside:
                    self._segments.set_locked([entry._replace(aside=0, at_ns=self._clock_ns())])
                return bool(entry.aside)
        return self._loose.bring_back(object_id)

    def purge(self, before_ns: int) -> int:
        freed = 0
        for number in self._segments.page_numbers():
            with self._segments.locked("purge", self._segments.root):
                entries = self._segments.page_locked(number)
                expired = [entry for entry in entries if entry.aside and entry.at_ns < before_ns]
                if expired:
                    self._segments.forget_locked(expired)
                freed += sum(entry.size for entry in expired)
        return freed + self._loose.purge(before_ns)

    def compact(self) -> int:
        return self._compaction.run()

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool) -> Leftovers:
        return self._loose.remove_leftovers(untouched_since_ns, dry_run=dry_run)

    # -- the whole ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Make what was stored so far durable; callers at the same time share a round."""
        self._rounds.join(self._run_round)

    def _run_round(self) -> None:
        self._segments.sync()
        self._loose.sync()

    def check(self, *, repair: bool) -> list[str]:
        """Read every page of the index, and with ``repair`` make a damaged one anew."""
        found = self._loose.check(repair=repair)
        segments = self._segments
        with segments.locked("check", segments.root):
            pages = segments.index.damaged_pages()
            if pages:
                shown = ", ".join(map(str, pages[:10]))
                found.append(
                    f"the index of the segments is damaged, in {len(pages)} pages: {shown}"
                )
                if repair:
                    segments.make_index_anew_locked()
        return found

    def close(self) -> None:
        try:
            self._segments.close()
        finally:
            self._loose.close()
