"""The content pillar: transports (where bytes lie) and object stores (how they are addressed).

Layer: contracts. Unix counterparts: a block device (TransportABC) and a filesystem type
(ObjectStoreABC). An object store is a transport composed with an addressing: by content hash
(ContentStoreABC) or by path (NamespaceStoreABC). What a driver can do beyond the required calls
is data in its capabilities; callers never probe with ``hasattr``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from nexus.contracts.errors import ConflictError, ContentNotFoundError
from nexus.contracts.metadata import Buffer

if TYPE_CHECKING:
    from nexus.contracts.stream_backend import StreamStore

PIECE_BYTES = 1 << 20
"""Default size of one piece of a stream."""


class KeyInfo(msgspec.Struct, frozen=True, gc=False):
    """What a transport knows of a key. ``fingerprint`` changes whenever the bytes may have."""

    key: str
    size: int
    modified_at_ns: int
    is_directory: bool
    fingerprint: str
    mode: int
    is_linked: bool = False
    """In a listing: a directory reached by a symbolic link, which walks do not enter."""


class Leftovers(NamedTuple):
    """What processes that died have left unfinished: how many entries, and their bytes."""

    entries: int
    size_bytes: int


class TransportCapabilities(msgspec.Struct, frozen=True):
    """What a transport can do, as data."""

    persistent: bool
    directories: bool
    """Directories exist by themselves (a local disk); else only as prefixes and markers."""
    atomic_rename: bool
    """``rename_key`` moves a key, and a directory with all beneath it, in one step."""
    modes: bool
    """Permission bits are stored; ``set_mode`` works."""
    shared: bool
    """Others can change what lies there while it is open."""


class TransportABC(ABC):
    """Raw key to bytes. Keys are ``/``-separated, relative, without ``.`` or ``..``.

    Every method may be called from any thread. The root directory is the key ``""``.
    """

    name: str
    capabilities: TransportCapabilities
    place: tuple[str, ...] = ()
    """Identities of the folders above where it stores, outermost first, and last of that folder
    itself; empty when nothing else on this host can reach it."""

    @abstractmethod
    def store(self, key: str, data: Buffer) -> None:
        """Store bytes under the key, replacing what was there; a reader sees old or new.

        Missing parent directories are created. Errors: NoSpaceError, StorageError,
        PathIsDirectoryError, PathNotDirectoryError, AccessDeniedError (also for a key that
        leads out of the transport's root).
        """

    @abstractmethod
    def store_chunked(self, key: str, pieces: Iterable[Buffer]) -> int:
        """Store the concatenation of ``pieces`` like :meth:`store`, in bounded memory.

        Returns the size in bytes. When the iterable raises, nothing is stored and the
        exception reaches the caller.
        """

    @abstractmethod
    def fetch(self, key: str, offset: int = 0, count: int | None = None) -> bytes:
        """Return ``count`` bytes from ``offset``, fewer at the end; None means to the end.

        Errors: ContentNotFoundError when the key is absent; PathIsDirectoryError;
        AccessDeniedError; StorageError.
        """

    @abstractmethod
    def remove(self, key: str) -> bool:
        """Remove a key or an empty directory; return whether it was there.

        Errors: DirectoryNotEmptyError; StorageError.
        """

    @abstractmethod
    def info(self, key: str) -> KeyInfo | None:
        """Return what is known of the key, or None when it is absent.

        A directory that exists only because a key lies beneath it is a directory here.
        """

    @abstractmethod
    def list_keys(self, prefix: str = "", after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return up to ``limit`` keys below the directory ``prefix``, at any depth.

        Files only, sorted by UTF-8 bytes, greater than ``after``. Fewer than ``limit`` means no
        more.
        """

    @abstractmethod
    def list_dir(self, key: str, after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return up to ``limit`` entries directly in the directory, sorted by UTF-8 bytes.

        ``after`` is a full key. Errors: ContentNotFoundError when the directory is absent;
        PathNotDirectoryError when the key is a file.
        """

    @abstractmethod
    def rename_key(self, source: str, target: str) -> None:
        """Move a key, or a directory with everything beneath it, replacing a file at ``target``.

        Atomic where ``atomic_rename`` is declared. Errors: ContentNotFoundError.
        """

    @abstractmethod
    def remove_tree(self, key: str) -> bool:
        """Remove a key with everything beneath it, listed or not; return whether it was there.

        Where ``atomic_rename`` is declared it disappears in one step and is deleted after.
        Symbolic links are removed, not followed. Errors: StorageError.
        """

    @abstractmethod
    def create_dir(self, key: str) -> None:
        """Create a directory and its missing parents; an existing one is no error.

        Errors: PathNotDirectoryError when a file is in the way.
        """

    @abstractmethod
    def sync(self) -> None:
        """Make everything stored, renamed and removed so far survive a power cut.

        Errors: StorageFailedError; what was stored since the last sync may then be lost.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""

    def exists(self, key: str) -> bool:
        """Return whether the key is a file or a directory."""
        return self.info(key) is not None

    def get_size(self, key: str) -> int:
        """Return the size in bytes. Errors: ContentNotFoundError when the key is absent."""
        known = self.info(key)
        if known is None:
            raise ContentNotFoundError("get_size", key, f"no such key on {self.name}")
        return known.size

    def copy_key(self, source: str, target: str) -> None:
        """Copy one version of a file.

        Errors: ContentNotFoundError when ``source`` is absent; ConflictError when it changes
        meanwhile, and then ``target`` stays as it was.
        """
        version = self.info(source)
        if version is None:
            raise ContentNotFoundError("copy_key", source, f"no such key on {self.name}")
        self.store_chunked(target, self.stream_version(source, version))

    def unlisted(self, key: str) -> list[str]:
        """Return the names directly in a directory that listings leave out, sorted.

        What dead processes left unfinished is not among them. Errors: as :meth:`list_dir`.
        """
        return []

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool = False) -> Leftovers:
        """Remove what dead processes left unfinished, unless touched since; say what it was.

        ``dry_run`` only says. Errors: StorageError.
        """
        return Leftovers(0, 0)

    def set_mode(self, key: str, mode: int) -> None:
        """Set the permission bits, where ``modes`` is declared. Errors: ContentNotFoundError."""
        raise NotImplementedError(f"{self.name} declares no modes")

    def stream(
        self, key: str, offset: int = 0, count: int | None = None, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Yield the bytes :meth:`fetch` would return, in pieces of at most ``piece_bytes``."""
        end = None if count is None else offset + count
        while end is None or offset < end:
            wanted = piece_bytes if end is None else min(piece_bytes, end - offset)
            piece = self.fetch(key, offset, wanted)
            if not piece:
                return
            yield piece
            offset += len(piece)

    def stream_version(self, key: str, version: KeyInfo) -> Iterator[bytes]:
        """Yield all bytes of the version that :meth:`info` or a listing told of.

        Errors: ConflictError, at the latest after the last piece, when the file is another by
        then; those of :meth:`fetch`.
        """
        self._check_version(key, version)
        yield from self.stream(key)
        self._check_version(key, version)

    def _check_version(self, key: str, version: KeyInfo) -> None:
        there = self.info(key)
        if there is None or there.fingerprint != version.fingerprint:
            reason = "others changed it while it was read"
            raise ConflictError("stream", key, reason, hint="try again")


class Extent(Protocol):
    """Where the bytes of a content lie, for who reads them again. Shared by all threads."""

    def read(self) -> bytes | None:
        """Return the content, verified; None where it is not to be had here any more.

        Then :meth:`ContentStoreABC.read_content` has it, or says what is wrong.
        """


class Content(msgspec.Struct, frozen=True, gc=False):
    """A stored content: its id and its size in bytes."""

    etag: str
    size: int


class StoredObject(NamedTuple):
    """One physical object of a content store: a blob, a chunk or a manifest."""

    object_id: str
    size: int
    modified_at_ns: int


class ObjectStoreCapabilities(msgspec.Struct, frozen=True):
    """What an object store can do, as data."""

    authoritative_namespace: bool
    """The driver's own tree is the truth; the kernel asks it instead of the metastore."""
    content_addressed: bool
    persistent: bool
    atomic_rename: bool
    modes: bool


class ObjectStoreABC(ABC):
    """What the two addressings share. Every method may be called from any thread."""

    name: str
    volume_id: str
    """Names the stored data itself, wherever and whenever it is mounted; at most 64 characters."""
    capabilities: ObjectStoreCapabilities
    place: tuple[str, ...] = ()
    """As the transport's; two stores of which one lies in the other are not mounted together."""

    @abstractmethod
    def sync(self) -> None:
        """Make everything written so far survive a power cut. Errors: StorageFailedError."""

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool = False) -> Leftovers:
        """As the transport's."""
        return Leftovers(0, 0)

    @abstractmethod
    def close(self) -> None:
        """Release everything. Idempotent."""


class ContentStoreABC(ObjectStoreABC):
    """Content-addressed: immutable bytes under an id derived from them.

    An id is ``b3:<64 hex>`` for bytes stored whole, ``b3c:<64 hex>`` for content cut into chunks
    (the hash is then that of the manifest). The same bytes have the same id. Every read is
    verified: damaged bytes raise CorruptionError and are never returned.
    """

    streams: StreamStore | None = None
    """Where the streams of a mount of this store are kept; None: it can have none."""

    @abstractmethod
    def write_content(self, data: Buffer | Iterable[Buffer]) -> Content:
        """Store bytes, or the concatenation of an iterable in bounded memory.

        Storing what is already there writes nothing, but heals it where it is damaged. The
        result is pinned until :meth:`unpin`.
        Errors: NoSpaceError, StorageError.
        """

    def write_many(self, contents: Sequence[Buffer]) -> list[Content]:
        """Store several contents, at less cost where the store can; each result is pinned.

        Errors: those of :meth:`write_content`, with nothing pinned.
        """
        written: list[Content] = []
        try:
            for data in contents:
                written.append(self.write_content(data))  # noqa: PERF401 - to undo those before a failure
        except BaseException:
            for content in written:
                self.unpin(content.etag)
            raise
        return written

    @abstractmethod
    def read_content(
        self, etag: str, offset: int = 0, count: int | None = None, *, size: int | None = None
    ) -> bytes:
        """Return ``count`` bytes from ``offset``, fewer at the end; None means to the end.

        ``size``, where the caller knows the content's size, may save a system call.

        Errors: ContentNotFoundError; CorruptionError; InvalidArgumentError for a malformed id.
        """

    def extent(self, etag: str) -> Extent | None:
        """Return where a content lies if that is known without asking a disk, else None."""
        return None

    @abstractmethod
    def stream_content(
        self, etag: str, offset: int = 0, count: int | None = None, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Yield the bytes of :meth:`read_content` in verified pieces, in bounded memory."""

    @abstractmethod
    def splice(self, etag: str, offset: int, data: Buffer) -> Content:
        """Store the content that results from writing ``data`` at ``offset`` over ``etag``.

        A gap past the end is filled with zeros. Only chunks near the change are rewritten; the
        result has the id that storing the whole new content would give, and is pinned. ``etag``
        may be ``""`` for empty content. No data changes nothing, whatever the offset.

        Errors: those of :meth:`read_content` and :meth:`write_content`.
        """

    @abstractmethod
    def content_size(self, etag: str) -> int:
        """Return the size in bytes. Errors: ContentNotFoundError, CorruptionError."""

    @abstractmethod
    def objects_of(self, etag: str) -> Iterator[str]:
        """Yield the object ids that a content needs: itself, and the chunks of a manifest.

        Errors: ContentNotFoundError or CorruptionError for a manifest that cannot be read.
        """

    @abstractmethod
    def list_objects(self) -> Iterator[StoredObject]:
        """Yield every stored object, in bounded memory."""

    @abstractmethod
    def verify_object(self, object_id: str) -> int:
        """Check an object's bytes against its id; return its size.

        Errors: ContentNotFoundError; CorruptionError.
        """

    @abstractmethod
    def begin_collection(self) -> None:
        """Start protecting: from here on, objects that are written or reused are not collected.

        Objects that are pinned, and those of writes in flight, are protected too. Errors:
        BusyError while a collection is active.
        """

    @abstractmethod
    def quarantine_object(self, object_id: str) -> bool:
        """Set an object aside, unless it is protected or absent; return whether it was.

        A quarantined object is absent to readers; writing it again or
        :meth:`restore_object` brings it back. Errors: InvalidArgumentError when no collection is
        active.
        """

    @abstractmethod
    def end_collection(self) -> None:
        """Stop protecting. Idempotent."""

    @abstractmethod
    def restore_object(self, object_id: str) -> bool:
        """Bring a quarantined object back, or mend what is damaged around bytes that are whole.

        Return whether anything was done. Errors: CorruptionError when the bytes are damaged; they
        stay as they are.
        """

    @abstractmethod
    def purge_quarantine(self, quarantined_before_ns: int) -> int:
        """Delete objects quarantined before a time; return the bytes freed."""

    @abstractmethod
    def compact(self) -> int:
        """Give the space of deleted objects back to the disk; return how many bytes.

        Readers and writers go on. What needs space of its own is left undone on a full disk.
        """

    @abstractmethod
    def check_structure(self, *, repair: bool = False) -> list[str]:
        """Return what is wrong with what finds the objects, mending it with ``repair``.

        For a checker; whether the objects are whole is :meth:`verify_object`'s.
        """

    @abstractmethod
    def pin(self, etag: str) -> None:
        """Protect a content from collection until :meth:`unpin`; pins count.

        During a collection this also brings back what was already set aside. Errors:
        ContentNotFoundError or CorruptionError when that, or a manifest, cannot be read.
        """

    @abstractmethod
    def unpin(self, etag: str) -> None:
        """Undo one :meth:`pin` (or the pin that writing took, see :meth:`write_content`).

        Errors: InvalidArgumentError when the content is not pinned.
        """


class NamespaceStoreABC(ObjectStoreABC):
    """Path-addressed: the folder or bucket behind it is the truth, and others may change it.

    Paths are keys of the transport: relative, ``/``-separated, ``""`` for the root. Symbolic
    links that leave the root are refused with AccessDeniedError and do not appear in listings.
    """

    @abstractmethod
    def stat(self, path: str) -> KeyInfo | None:
        """Return what is at the path now, or None."""

    @abstractmethod
    def list_dir(self, path: str, after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return up to ``limit`` direct entries, sorted by UTF-8 bytes, after the key ``after``."""

    @abstractmethod
    def read(self, path: str, offset: int = 0, count: int | None = None) -> bytes:
        """Return bytes of the file. Errors: ContentNotFoundError, PathIsDirectoryError."""

    @abstractmethod
    def stream(self, path: str, version: KeyInfo) -> Iterator[bytes]:
        """Yield all bytes of the version that the store has described as ``version``.

        Errors: ConflictError, at the latest after the last piece, when the file is another by
        then; those of :meth:`read`.
        """

    @abstractmethod
    def inventory(self, path: str) -> dict[str, KeyInfo]:
        """Return a file, or a directory with all beneath it, by path below it (``/`` itself).

        Errors: ContentNotFoundError; NotSupportedError when something there is not listed, or is
        a link to a directory, so that whoever copies the rest would leave it behind.
        """

    @abstractmethod
    def remove_unchanged(self, path: str, inventory: Mapping[str, KeyInfo]) -> None:
        """Remove what :meth:`inventory` has described, in one step where renaming is atomic.

        Errors: ConflictError when anything there is not as described; then all of it stays.
        """

    @abstractmethod
    def write(self, path: str, data: Buffer | Iterable[Buffer]) -> KeyInfo:
        """Replace or create a file atomically for readers; return what is there now."""

    @abstractmethod
    def splice(self, path: str, offset: int, data: Buffer) -> KeyInfo:
        """Write ``data`` at ``offset``, atomically for readers; a gap is filled with zeros."""

    @abstractmethod
    def create_dir(self, path: str) -> KeyInfo:
        """Create a directory; its parent exists."""

    @abstractmethod
    def remove(self, path: str) -> bool:
        """Remove a file or an empty directory; return whether it was there."""

    @abstractmethod
    def remove_tree(self, path: str) -> bool:
        """Remove a file or a directory with everything beneath it; see the transport's."""

    @abstractmethod
    def rename(self, source: str, target: str) -> None:
        """Move a file or a directory; a file at ``target`` is replaced."""

    @abstractmethod
    def copy(self, source: str, target: str) -> KeyInfo:
        """Copy one version of a file within the store.

        Errors: ContentNotFoundError, PathIsDirectoryError; ConflictError when the file changes
        meanwhile, and then the target stays as it was.
        """

    @abstractmethod
    def staging_path(self, path: str) -> str:
        """Return an unused path beside ``path`` that ``stat`` and listings of its parent hide.

        What is written there appears by renaming it to where it belongs, and leftovers of a
        crash stay hidden.
        """

    @abstractmethod
    def is_hidden(self, path: str) -> bool:
        """Return whether the store keeps such names for itself, so that none may be created."""

    @abstractmethod
    def set_mode(self, path: str, mode: int) -> KeyInfo:
        """Set permission bits, where ``modes`` is declared. Errors: NotSupportedError."""
