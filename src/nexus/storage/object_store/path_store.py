"""PathStore: path addressing over any transport. The folder or bucket behind it is the truth.

Layer: storage. Its job: whole-file and partial writes that readers see at once, and hiding
staging names. It keeps no state of the tree, no versions and no permissions. Unix counterpart: a
filesystem that shows another's tree (NFS, FUSE passthrough).

Invariants:

1. A splice is built from one version of the file: when the file changes meanwhile it starts over.
2. Two writes to one path in this process take turns, so a splice never undoes the other.
3. What is streamed is one version of the file, or the stream raises; what is removed as unchanged
   was compared, entry by entry, after it had left its path.

Locks: one per path in use, around a whole write. Consuming a caller's iterable happens under the
lock of its path; reads take none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from nexus.contracts.errors import (
    ConflictError,
    ContentNotFoundError,
    InvalidArgumentError,
    NotSupportedError,
    PathIsDirectoryError,
)
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import (
    PIECE_BYTES,
    KeyInfo,
    Leftovers,
    NamespaceStoreABC,
    ObjectStoreCapabilities,
    TransportABC,
)
from nexus.storage.object_store.staging import STAGING_PREFIX, is_staged, staging_name

_SPLICE_ATTEMPTS = 10


class PathStore(NamespaceStoreABC):
    """Files by path. Shared freely between threads; owns its transport and closes it."""

    def __init__(self, transport: TransportABC, *, name: str, volume_id: str) -> None:
        self.name = name
        self.volume_id = volume_id
        declared = transport.capabilities
        self.capabilities = ObjectStoreCapabilities(
            authoritative_namespace=True,
            content_addressed=False,
            persistent=declared.persistent,
            atomic_rename=declared.atomic_rename,
            modes=declared.modes,
        )
        self.place = transport.place
        self._transport = transport
        self._paths = _PathLocks()

    def stat(self, path: str) -> KeyInfo | None:
        """Return what is at the path now, or None; staging names are not there."""
        return None if is_staged(path) else self._transport.info(path)

    def list_dir(self, path: str, after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return direct entries, see the contract."""
        page: list[KeyInfo] = []
        while True:
            wanted = limit - len(page)
            found = self._transport.list_dir(path, after, wanted)
            page += [info for info in found if not is_staged(info.key[len(path) :])]
            if len(found) < wanted or len(page) >= limit:
                return page
            after = found[-1].key

    def read(self, path: str, offset: int = 0, count: int | None = None) -> bytes:
        """Return bytes of the file, see the contract."""
        return self._transport.fetch(path, offset, count)

    def stream(self, path: str, version: KeyInfo) -> Iterator[bytes]:
        """Yield the bytes of one version, see the contract."""
        return self._transport.stream_version(path, version)

    def write(self, path: str, data: Buffer | Iterable[Buffer]) -> KeyInfo:
        """Replace or create a file, see the contract."""
        with self._paths.hold(path):
            if isinstance(data, bytes | bytearray | memoryview):
                self._transport.store(path, data)
            else:
                self._transport.store_chunked(path, data)
            return self._present("write", path)

    def splice(self, path: str, offset: int, data: Buffer) -> KeyInfo:
        """Write at an offset of an existing file, in bounded memory, see the contract.

        Errors: ContentNotFoundError; PathIsDirectoryError; InvalidArgumentError for a negative
        offset; ConflictError when others keep changing the file.
        """
        if offset < 0:
            raise InvalidArgumentError("splice", path, f"negative offset {offset}")
        with self._paths.hold(path):
            for attempt in range(_SPLICE_ATTEMPTS):
                base = self._present("splice", path)
                if base.is_directory:
                    raise PathIsDirectoryError("splice", path, "is a directory")
                try:
                    self._transport.store_chunked(path, self._spliced(base, offset, data))
                    break
                except _BaseChangedError:
                    if attempt == _SPLICE_ATTEMPTS - 1:
                        raise
            return self._present("splice", path)

    def _spliced(self, base: KeyInfo, offset: int, data: Buffer) -> Iterator[Buffer]:
        path = base.key
        yield from self._transport.stream(path, 0, min(offset, base.size))
        yield from _zeros(offset - base.size)
        yield data
        end = offset + memoryview(data).nbytes
        if end < base.size:
            yield from self._transport.stream(path, end, base.size - end)
        if self._transport.info(path) != base:
            raise _BaseChangedError("splice", path, "others keep changing the file")

    def create_dir(self, path: str) -> KeyInfo:
        """Create a directory, see the contract."""
        self._transport.create_dir(path)
        return self._present("create_dir", path)

    def remove(self, path: str) -> bool:
        """Remove a file or an empty directory, see the contract."""
        with self._paths.hold(path):
            return self._transport.remove(path)

    def remove_tree(self, path: str) -> bool:
        """Remove a path with everything beneath it, see the contract."""
        return self._transport.remove_tree(path)

    def rename(self, source: str, target: str) -> None:
        """Move a file or a directory, see the contract."""
        with self._paths.hold(*sorted({source, target})):
            self._transport.rename_key(source, target)

    def inventory(self, path: str) -> dict[str, KeyInfo]:
        """Return everything at and beneath a path, see the contract."""
        top = self._present("inventory", path)
        found = {"/": top}
        waiting = [path] if top.is_directory else []
        while waiting:
            directory = waiting.pop()
            self._check_all_listed(directory)
            for info in self._entries(directory):
                found["/" + info.key[len(path) :].lstrip("/")] = info
                if info.is_linked:
                    raise _left_behind(info.key, "it is a symbolic link to a directory")
                if info.is_directory:
                    waiting.append(info.key)
        return found

    def _entries(self, directory: str) -> Iterator[KeyInfo]:
        after = ""
        while page := self.list_dir(directory, after):
            yield from page
            after = page[-1].key

    def _check_all_listed(self, directory: str) -> None:
        for name in self._transport.unlisted(directory):
            shown = name.encode("utf-8", "backslashreplace").decode()
            reason = "no listing shows it (a link that leaves, a special file, or an odd name)"
            raise _left_behind(f"{directory}/{shown}", reason)

    def remove_unchanged(self, path: str, inventory: Mapping[str, KeyInfo]) -> None:
        """Remove what is as described, see the contract.

        It is compared under a hidden name, out of the way of those who go by its path, and comes
        back when it differs.
        """
        with self._paths.hold(path):
            top = self._present("remove", path)
            if not top.is_directory and top != inventory["/"]:
                raise _changed("remove", path)
            hidden = self.staging_path(path)
            self._transport.rename_key(path, hidden)
            try:
                if not _agree(self.inventory(hidden), inventory):
                    raise _changed("remove", path)
                self._transport.remove_tree(hidden)
            except BaseException:
                self._put_back(hidden, path)
                raise

    def _put_back(self, hidden: str, path: str) -> None:
        if self._transport.info(path) is not None:  # others have made another meanwhile
            path = hidden.replace(STAGING_PREFIX, "nexus-kept-")
        self._transport.rename_key(hidden, path)

    def copy(self, source: str, target: str) -> KeyInfo:
        """Copy one version of a file, see the contract."""
        with self._paths.hold(target):
            self._transport.copy_key(source, target)
            return self._present("copy", target)

    def staging_path(self, path: str) -> str:
        """Return an unused hidden path beside ``path``, see the contract."""
        parent, slash, _ = path.rpartition("/")
        return parent + slash + staging_name()

    def is_hidden(self, path: str) -> bool:
        """Return whether a staging name stands in the path."""
        return is_staged(path)

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool = False) -> Leftovers:
        """Remove what dead processes left, see the contract."""
        return self._transport.remove_leftovers(untouched_since_ns, dry_run=dry_run)

    def set_mode(self, path: str, mode: int) -> KeyInfo:
        """Set permission bits, see the contract."""
        if not self.capabilities.modes:
            raise NotSupportedError("set_mode", path, f"{self.name} keeps no permission bits")
        self._transport.set_mode(path, mode)
        return self._present("set_mode", path)

    def sync(self) -> None:
        """Make everything written so far survive a power cut. Errors: StorageFailedError."""
        self._transport.sync()

    def close(self) -> None:
        """Close the transport. Idempotent."""
        self._transport.close()

    def _present(self, operation: str, path: str) -> KeyInfo:
        info = self._transport.info(path)
        if info is None:
            raise ContentNotFoundError(operation, path, "no such file or directory")
        return info


class _BaseChangedError(ConflictError):
    """The file changed while a splice was reading it."""


class _PathLock:
    """A lock and how many hold or await it."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0  # guarded by _PathLocks._guard


class _PathLocks:
    """A lock per path, for as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._used: dict[str, _PathLock] = {}

    @contextmanager
    def hold(self, *paths: str) -> Iterator[None]:
        """Hold the locks of the paths, which are sorted so that two callers cannot deadlock."""
        with ExitStack() as held:
            for path in paths:
                with self._guard:
                    used = self._used.setdefault(path, _PathLock())
                    used.users += 1
                held.callback(self._leave, path, used)
                held.enter_context(used.lock)
            yield

    def _leave(self, path: str, used: _PathLock) -> None:
        with self._guard:
            used.users -= 1
            if not used.users:
                del self._used[path]


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, PIECE_BYTES))
        count -= PIECE_BYTES


def _agree(found: Mapping[str, KeyInfo], described: Mapping[str, KeyInfo]) -> bool:
    """Compare what was set aside, whose fingerprint (the top's alone) renaming may change."""
    return found.keys() == described.keys() and all(
        info.is_directory == described[path].is_directory
        and (info.is_directory or _version(path, info) == _version(path, described[path]))
        for path, info in found.items()
    )


def _version(path: str, info: KeyInfo) -> tuple[int, int, str]:
    return info.size, info.modified_at_ns, "" if path == "/" else info.fingerprint


def _changed(operation: str, path: str) -> ConflictError:
    return ConflictError(operation, path, "others changed it meanwhile", hint="try again")


def _left_behind(key: str, reason: str) -> NotSupportedError:
    return NotSupportedError(
        "inventory",
        key,
        f"{key} would be left behind: {reason}",
        hint="copy, then remove what was copied, or move it outside of this filesystem",
    )
