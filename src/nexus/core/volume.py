"""Volume: what a mount serves, whatever stores it. One interface, a few implementations.

Layer: core. NexusFS validates paths, routes and locks; a volume answers for the paths beneath its
mount point. Paths given to a volume are relative to it and canonical (``/`` is its root); paths
it returns are absolute. Unix counterparts: ``struct super_operations``, ``inode_operations``.

Every mutating method is called with exclusive VFS locks that cover what it changes, and puts its
records and events into the transaction it is given; the caller commits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    ConflictError,
    InvalidArgumentError,
    NexusError,
    NotSupportedError,
    PathExistsError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.file_events import DIR_CREATE, FILE_WRITE, FileEvent
from nexus.contracts.filesystem.syscalls import Precondition, WriteRequest
from nexus.contracts.metadata import (
    CHANNEL_TYPES,
    DIRECTORY_TYPES,
    ENTRY_TYPE_NAMES,
    Buffer,
    FileMetadata,
    Stat,
)
from nexus.contracts.object_store import Content, ContentStoreABC, Leftovers
from nexus.core.inode_table import Transaction
from nexus.lib.paths import join, parent

if TYPE_CHECKING:
    from nexus.core.channels import Channels

MAX_ATTRIBUTES_BYTES = 32 << 10
"""Custom attributes of one entry, encoded; a record stays below what every metastore holds."""

_DEFAULT_MIME_TYPE = "application/octet-stream"


class Actor(msgspec.Struct, frozen=True):
    """Who mutates and when, worked out once a call."""

    context: OperationContext
    now_ns: int

    @property
    def name(self) -> str:
        """The agent where there is one, else the user."""
        return self.context.agent_id or self.context.user_id

    def event(
        self,
        kind: str,
        path: str,
        *,
        new_path: str | None = None,
        etag: str = "",
        size: int = 0,
        version: int = 0,
    ) -> FileEvent:
        """Return a journal entry by this actor."""
        context = self.context
        return FileEvent(
            kind,
            path,
            context.user_id,
            self.now_ns,
            context.zone_id,
            0,  # the revision is that of the commit
            new_path,
            etag,
            size,
            version,
            context.agent_id,
            context.run_id,
        )

    def event_of(self, path: str, meta: FileMetadata) -> FileEvent:
        """Return the journal entry for what was made or rewritten at a path."""
        if meta.entry_type in DIRECTORY_TYPES:
            return self.event(DIR_CREATE, path)
        return self.event(FILE_WRITE, path, etag=meta.etag, size=meta.size, version=meta.version)


class TreeEntry(msgspec.Struct, frozen=True):
    """One entry of a subtree on its way to another volume, with its bytes if it is a file."""

    relative: str
    meta: FileMetadata
    pieces: Iterable[Buffer]


class Departure(msgspec.Struct, frozen=True):
    """A file or a subtree on its way to another volume.

    ``entries`` come parents first; the first has the relative path ``/``. Taking them to the end
    raises ConflictError when others changed meanwhile what was to be one version.
    """

    is_directory: bool
    is_move: bool
    entries: Iterator[TreeEntry]
    remove: Callable[[Transaction, Actor], None]
    """Takes away the source, once it is at the target. Errors: ConflictError, and all stays."""


class Volume(ABC):
    """What is mounted at a point. Shared by all threads; holds no VFS lock itself."""

    point: str
    keeps_versions: bool
    atomic_batch: bool
    immutable_content: bool
    """A record names bytes that never change, so that reading needs no lock."""
    snapshot_entries: int
    """How many entries of a directory one scan shows as of one moment; 0: not even a page."""

    @property
    def channels(self) -> Channels:
        """What :meth:`channel_record` names. Errors: NotSupportedError where it names none."""
        raise NotSupportedError("open", self.point, "this mount holds no pipe and no stream")

    def absolute(self, relative: str) -> str:
        """Return the absolute path of a volume path."""
        return join(self.point, relative)

    # -- reading ------------------------------------------------------------------------------

    @abstractmethod
    def stat(self, relative: str) -> Stat | None:
        """Return the attributes, a dict of the caller's own, or None where nothing is."""

    def look(self, relative: str) -> Stat | None:
        """Return the attributes of a path, or of the nearest directory above it that is there.

        They may be in a dict that others see too. None where not even the root is there.
        """
        while (stat := self.stat(relative)) is None and relative != "/":
            relative = parent(relative)
        return stat

    def read_again(self, relative: str) -> bytes | None:
        """Return the whole content of a file that was read before, None where that is unknown.

        Asked first: it costs next to nothing.
        """
        return None

    @abstractmethod
    def read(
        self, operation: str, relative: str, count: int | None, offset: int, version: int | None
    ) -> bytes:
        """Return bytes of a file. Errors: as sys_read."""

    @abstractmethod
    def names(self, relative: str) -> list[str] | None:
        """Return the sorted names in a directory, or None when there are too many at once."""

    def paths(self, relative: str) -> list[str] | None:
        """Return the sorted absolute paths of everything beneath a directory, or None.

        None where the volume does not know better than :meth:`subtree`.
        """
        return None

    @abstractmethod
    def entries(self, relative: str, after: str = "") -> Iterator[Stat]:
        """Yield the stats in a directory in order, after the volume path ``after``."""

    @abstractmethod
    def subtree(self, relative: str, after: str = "") -> Iterator[Stat]:
        """Yield the stats of everything beneath a directory, sorted bytewise by path."""

    @abstractmethod
    def versions(self, relative: str, after_revision: int) -> Iterator[Stat]:
        """Yield what history keeps of a path, oldest first, after a revision."""

    # -- writing ------------------------------------------------------------------------------

    @abstractmethod
    def first_missing(self, relative: str) -> str:
        """Return the topmost missing directory on the way to a path, else the path itself.

        Whoever creates locks that one. Errors: PathNotDirectoryError.
        """

    def prepare(self, operation: str, relative: str, request: WriteRequest) -> Content | None:
        """Do what a whole-file write can do before its lock is taken; see :meth:`abandon`."""
        return None

    def prepare_many(
        self, operation: str, writes: Sequence[tuple[str, WriteRequest]]
    ) -> list[Content | None]:
        """Prepare several (path, request), at less cost where the volume can, or none of them."""
        prepared: list[Content | None] = []
        try:
            for relative, request in writes:
                prepared.append(self.prepare(operation, relative, request))
        except BaseException:
            for content in prepared:
                if content is not None:
                    self.abandon(content)
            raise
        return prepared

    def settle(self) -> None:  # noqa: B027 - most prepare nothing
        """Make what :meth:`prepare` stored durable, in ``strict`` durability."""

    def abandon(self, prepared: Content) -> None:  # noqa: B027 - most prepare nothing
        """Let go of what :meth:`prepare` returned, after the commit or instead of it."""

    @abstractmethod
    def write(
        self,
        txn: Transaction,
        operation: str,
        relative: str,
        request: WriteRequest,
        prepared: Content | None,
        actor: Actor,
    ) -> Stat:
        """Write a whole file, or append to it."""

    def write_new(
        self, txn: Transaction, relative: str, prepared: Content, actor: Actor
    ) -> Stat | None:
        """Write a whole file that is new, in a directory that is there: as :meth:`write`.

        None, and nothing was done, where that is not so or not known from memory.
        """
        return None

    @abstractmethod
    def write_at(
        self,
        txn: Transaction,
        relative: str,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
        actor: Actor,
    ) -> Stat:
        """Write into an existing file at an offset."""

    @abstractmethod
    def create_directory(
        self, txn: Transaction, relative: str, parents: bool, exist_ok: bool, actor: Actor
    ) -> None:
        """Create a directory."""

    def create_channel(
        self, txn: Transaction, relative: str, kind: int, capacity_bytes: int | None, actor: Actor
    ) -> None:
        """Create a pipe or a stream, of the default capacity where None is given.

        One of the same kind, and of the same capacity where one is given, may be there already.
        """
        name = ENTRY_TYPE_NAMES[kind]
        raise NotSupportedError(
            "setattr",
            self.absolute(relative),
            f"this mount cannot hold a {name}",
            hint="create it on a content-addressed mount",
        )

    def channel_record(self, relative: str) -> FileMetadata | None:
        """Return the record of the pipe or stream at a path, None where none is."""
        return None

    def channel_rows(self) -> list[Stat]:
        """Return what there is to know of each channel that is open."""
        return []

    @abstractmethod
    def set_attributes(
        self, txn: Transaction, relative: str, attrs: dict[str, Any], actor: Actor
    ) -> None:
        """Update mutable attributes, checked by the caller for name and type."""

    @abstractmethod
    def remove(self, txn: Transaction, relative: str, recursive: bool, actor: Actor) -> int:
        """Remove a file or a directory; return how many entries went."""

    @abstractmethod
    def rename(self, txn: Transaction, old: str, new: str, actor: Actor) -> int:
        """Move within the volume; return how many entries moved."""

    @abstractmethod
    def copy(self, txn: Transaction, source: str, target: str, actor: Actor) -> int:
        """Copy within the volume; return how many entries were written."""

    @abstractmethod
    def check_target(self, operation: str, target: str, source_is_directory: bool) -> None:
        """Raise unless a file or a directory may go to ``target``, as rename(2) has it."""

    @abstractmethod
    def send(self, operation: str, relative: str, *, is_move: bool) -> Departure:
        """Return a file or a subtree for another volume to receive.

        A move takes all that is there or is refused before anything is read. Errors: as sys_read;
        NotSupportedError for what cannot be taken along.
        """

    @abstractmethod
    def receive(
        self, txn: Transaction, operation: str, target: str, departure: Departure, actor: Actor
    ) -> int:
        """Write what comes from another volume, verified; return how many entries that was.

        ``target`` has passed :meth:`check_target`. A move keeps owner, times and version.
        """

    # -- the rest -----------------------------------------------------------------------------

    def content_store(self) -> ContentStoreABC:
        """Return the content store behind the volume. Errors: NotSupportedError."""
        raise NotSupportedError(
            "content", self.point, "this mount is not content-addressed", hint="use a CAS mount"
        )

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool) -> Leftovers:
        """Remove what dead processes left unfinished behind the volume; say what it was."""
        return Leftovers(0, 0)

    @abstractmethod
    def sync(self) -> None:
        """Make what was acknowledged durable. Errors: StorageFailedError."""

    @abstractmethod
    def close(self) -> None:
        """Release what is behind the volume. Idempotent."""


def mime_type_of(path: str) -> str:
    """Return the MIME type that a name's extension stands for."""
    dot = path.rfind(".")
    if dot <= path.rfind("/"):
        return _DEFAULT_MIME_TYPE
    return _mime_types().get(path[dot:].lower(), _DEFAULT_MIME_TYPE)


@cache
def _mime_types() -> dict[str, str]:
    import mimetypes  # costs start-up time, which programs that create nothing need not pay

    return mimetypes.MimeTypes(filenames=()).types_map[True]  # no files of the host's


def check_precondition(
    operation: str,
    path: str,
    condition: Precondition | None,
    etag: str | None,
    revision: int | None,
) -> None:
    """Raise ConflictError unless the condition holds for the file (None, None: no file)."""
    if condition is None:
        return
    wanted, unwanted = condition.if_match, condition.if_none_match
    if wanted is not None and wanted != etag:
        found = "nothing is there" if etag is None else f"the file has etag {etag}"
        raise ConflictError(
            operation, path, f"if_match={wanted} but {found}", hint="read it again, then retry"
        )
    if unwanted is not None and etag is not None and unwanted in ("*", etag):
        raise ConflictError(
            operation, path, f"if_none_match={unwanted} but the file has etag {etag}"
        )
    if condition.if_revision is not None and condition.if_revision != revision:
        found = "nothing is there" if revision is None else f"the file is of revision {revision}"
        raise ConflictError(
            operation,
            path,
            f"if_revision={condition.if_revision} but {found}",
            hint="read it again, then retry",
        )


def merged_attributes(
    path: str, old: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the custom attributes after a change; None removes one.

    Errors: InvalidArgumentError when they are too large together, or cannot be stored.
    """
    merged = {k: v for k, v in {**old, **changes}.items() if v is not None}
    try:
        size = len(msgspec.msgpack.encode(merged))
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise bad_attribute(path, "attributes", f"cannot be stored: {error}") from error
    if size > MAX_ATTRIBUTES_BYTES:
        raise bad_attribute(path, "attributes", f"together over {MAX_ATTRIBUTES_BYTES} bytes")
    return merged


def missing(operation: str, path: str) -> PathNotFoundError:
    """Return the error for a path where nothing is."""
    return PathNotFoundError(operation, path, "no such file or directory")


def missing_parent(operation: str, path: str, parent: str) -> PathNotFoundError:
    """Return the error for a path whose directory does not exist."""
    return PathNotFoundError(
        operation, path, f"the directory {parent} does not exist", hint="create it with mkdir"
    )


def is_directory(operation: str, path: str) -> PathIsDirectoryError:
    """Return the error for a file operation on a directory."""
    return PathIsDirectoryError(operation, path, "is a directory")


def no_channel(operation: str, path: str) -> NotSupportedError:
    """Return the error for waiting on what carries no messages."""
    reason = "is no pipe and no stream, so there is nothing to wait for"
    return NotSupportedError(operation, path, reason, hint="create one with sys_setattr")


def no_file(operation: str, path: str, entry_type: int) -> NexusError:
    """Return the error for a file operation on what is there instead."""
    if entry_type not in CHANNEL_TYPES:
        return is_directory(operation, path)
    return NotSupportedError(
        operation,
        path,
        f"is a {ENTRY_TYPE_NAMES[entry_type]}, which carries messages",
        hint="sys_read and sys_write take and send one",
    )


def not_directory(operation: str, path: str, obstacle: str) -> PathNotDirectoryError:
    """Return the error for a path that runs through a file."""
    what = "is not a directory" if obstacle == path else f"{obstacle} is not a directory"
    return PathNotDirectoryError(operation, path, what)


def exists(operation: str, path: str) -> PathExistsError:
    """Return the error for creating what is there already."""
    return PathExistsError(operation, path, "exists already")


def no_such_version(operation: str, path: str, version: int) -> PathNotFoundError:
    """Return the error for a version that history does not have."""
    return PathNotFoundError(
        operation, path, f"version {version} is not kept", hint="`nexus log` lists those that are"
    )


def bad_attribute(path: str, name: str, reason: str) -> InvalidArgumentError:
    """Return the error for an attribute that cannot be set."""
    return InvalidArgumentError("setattr", path, f"{name}: {reason}")
