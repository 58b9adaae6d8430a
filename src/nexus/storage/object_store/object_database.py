"""ObjectDatabase: where the objects of a content store lie, by id.

Layer: storage, beneath :class:`~nexus.storage.object_store.cas_store.CasStore`, which cuts and
names; a database keeps. An object is a blob, a chunk or a manifest: immutable bytes whose id is
their BLAKE3 hash, 64 hexadecimal digits. Two layouts, with git's words: *loose* objects, one
key of a transport each, and *packed* ones, appended to segment files.

Promises of every layout:

1. No byte is returned that was not checked: against the seal that the caller knows, against the
   object's own hash, or against a seal that was stored with it.
2. What :meth:`ObjectDatabase.put_many` returned from can be read and survives the end of the
   process; what :meth:`ObjectDatabase.sync` returned from survives a power cut.
3. An object that is set aside is absent to readers, and present again when it is stored again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import Extent, Leftovers, StoredObject
from nexus.lib.chunking import Chunk

ObjectPart = tuple[str, int, int, bytes]
"""An object's id, the first byte that is wanted, how many are, and the seals of all its blocks."""


class ObjectDatabase(ABC):
    """Objects by id. Every method may be called from any thread.

    Errors of all: StorageError and its kin, with the object's id in the place of the path.
    """

    persistent: bool
    place: tuple[str, ...]
    """See :class:`~nexus.contracts.object_store.TransportABC`."""

    @abstractmethod
    def put_many(
        self, objects: Sequence[tuple[str, Buffer]], seals: Mapping[str, bytes] | None = None
    ) -> None:
        """Store each object unless it is there, intact.

        ``seals`` has the block seals of those objects of which the caller knows them.
        Errors: NoSpaceError, StorageError; some may be stored then.
        """

    def put(self, object_id: str, data: Buffer, seals: bytes | None = None) -> None:
        """Store one object; see :meth:`put_many`."""
        self.put_many(((object_id, data),), None if seals is None else {object_id: seals})

    def put_chunks(self, chunks: Sequence[Chunk]) -> None:
        """Store several chunks; see :meth:`put_many`."""
        objects = [(chunk.object_id, chunk.joined()) for chunk in chunks]
        self.put_many(objects, {chunk.object_id: chunk.seals for chunk in chunks})

    def holds(self, object_id: str, data: Buffer, seals: bytes) -> bool:
        """Return whether storing these bytes, with these block seals, would change nothing.

        False where comparing them with what is there is not worth it.
        """
        return False

    @abstractmethod
    def get(self, object_id: str, *, size: int | None = None, seals: bytes | None = None) -> bytes:
        """Return the object's verified bytes.

        ``size``, where it is known, may save a system call. ``seals``, those of the blocks, may be
        checked instead of the hash. Errors: ContentNotFoundError; CorruptionError.
        """

    def extent(self, object_id: str) -> Extent | None:
        """Return where an object lies if that is known without asking a disk, else None."""
        return None

    def read_parts(self, count: int, parts: Sequence[ObjectPart]) -> bytes | None:
        """Return parts of objects, ``count`` bytes together, checked by their block seals.

        None where that cannot be had at once: some bytes are out of reach, or not what the seals
        say. :meth:`get` finds them, or says why not.
        """
        return None

    @abstractmethod
    def contains(self, object_id: str) -> bool:
        """Return whether the object is there and not set aside."""

    @abstractmethod
    def verify(self, object_id: str) -> int:
        """Check the object against its hash, and what is stored around it; return its size.

        Errors: ContentNotFoundError; CorruptionError.
        """

    @abstractmethod
    def objects(self) -> Iterator[StoredObject]:
        """Yield every object that is not set aside, in bounded memory.

        One that moves while this runs may come twice.
        """

    @abstractmethod
    def set_aside(self, object_id: str, at_ns: int) -> bool:
        """Hide an object until it is stored again, brought back or purged; False if absent."""

    @abstractmethod
    def bring_back(self, object_id: str) -> bool:
        """Undo :meth:`set_aside`, and mend what is damaged around bytes that are whole.

        Return whether anything was done. Errors: CorruptionError when the bytes are damaged; the
        object stays as it is.
        """

    @abstractmethod
    def purge(self, before_ns: int) -> int:
        """Forget the objects set aside before a time; return their bytes."""

    @abstractmethod
    def compact(self) -> int:
        """Give the space of forgotten objects back to the disk; return the bytes given back.

        Readers and writers go on. On a full disk it does what needs no space.
        """

    @abstractmethod
    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool) -> Leftovers:
        """Remove what dead processes left unfinished; see the transport's."""

    @abstractmethod
    def check(self, *, repair: bool) -> list[str]:
        """Return what is wrong with the database's own structure, mending it with ``repair``."""

    @abstractmethod
    def sync(self) -> None:
        """Make what was stored so far durable. Errors: StorageFailedError."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent; syncs nothing."""
