"""LocalTransport: keys are the files of a folder on a local disk.

Layer: storage. Its job: moving bytes to and from files, atomically for readers, and making them
durable on request. It does not verify bytes, know content ids or decide who may do what. Unix
counterpart: a block driver over the POSIX file calls.

Two uses. ``confined=False``: storage the system owns; keys are trusted and no link is expected.
``confined=True``: a folder that belongs to someone else; links are followed only while they stay
below the root, and special files are not there.

Invariants:

1. A value appears by rename(2) from a file beside it that listings hide: readers see old or new.
2. A call that fails leaves no temporary file; a killed process leaves one that is never listed,
   until ``remove_leftovers`` takes it.
3. Whatever changed is noted for the next sync after it has happened, see
   :mod:`nexus.storage.object_store.local_sync`.
4. Confined: no byte moves through a link that leaves the root.

Locks: those of :class:`~nexus.storage.object_store.local_sync.SyncRounds`; a path's lock is held
around the rename or removal of that path and the note of it, and nothing else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from nexus.contracts.errors import (
    ContentNotFoundError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
    NameTooLongError,
    NexusError,
    PathIsDirectoryError,
    PathNotDirectoryError,
)
from nexus.contracts.metadata import DEFAULT_DIRECTORY_MODE, DEFAULT_FILE_MODE, Buffer
from nexus.contracts.object_store import (
    PIECE_BYTES,
    KeyInfo,
    Leftovers,
    TransportABC,
    TransportCapabilities,
)
from nexus.lib.disk import Disk, folder_place, storage_error
from nexus.lib.on_first_use import OnFirstUse
from nexus.storage.object_store.confinement import (
    Confinement,
    Place,
    must_be_file,
    must_exist,
)
from nexus.storage.object_store.local_sync import SyncRounds
from nexus.storage.object_store.staging import staging_name

if TYPE_CHECKING:
    from nexus.storage.object_store.local_listing import Listing

_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
_READ = os.O_RDONLY
_PERMISSIONS = 0o777
_ATTEMPTS = 10
"""How often a store makes its directory again when someone keeps removing it."""

_CLASSES: dict[int | None, type[NexusError]] = {
    errno.ENOENT: ContentNotFoundError,
    errno.EISDIR: PathIsDirectoryError,
    errno.ENOTDIR: PathNotDirectoryError,
    errno.ENOTEMPTY: DirectoryNotEmptyError,
    errno.EEXIST: DirectoryNotEmptyError,  # what some systems say for ENOTEMPTY
    errno.ENAMETOOLONG: NameTooLongError,
    errno.EINVAL: InvalidArgumentError,
}


class LocalTransport(TransportABC):
    """Files below ``root``. Shared freely between threads, and with other processes.

    ``durable=False`` says that a process which stored here may have ended without syncing: the
    first sync then covers everything. The root exists already.

    Errors: PathNotDirectoryError, ContentNotFoundError for the root.
    """

    def __init__(
        self,
        root: str,
        *,
        disk: Disk | None = None,
        confined: bool = False,
        durable: bool = True,
        name: str = "local",
    ) -> None:
        self.name = name
        self.root = os.path.realpath(root)
        self.capabilities = TransportCapabilities(
            persistent=True, directories=True, atomic_rename=True, modes=True, shared=confined
        )
        self._prefix = self.root.rstrip("/") + "/"
        self._disk = disk = disk or Disk()
        self._confinement = Confinement(self.root) if confined else None
        self._listing = OnFirstUse(self._make_listing)
        try:
            self.place = folder_place(self.root)
            self._rounds = SyncRounds(self.root, disk)
        except OSError as error:
            raise _translate("open", root, error) from error
        if not durable:
            self._rounds.note_everything()
        # Bound once: looking them up costs as much as the lightest of these calls.
        self._open = disk.open
        self._close = disk.close
        self._pread = disk.pread
        self._write_all = disk.write_all
        self._rename = disk.rename
        self._path_lock = self._rounds.path_lock
        self._note = self._rounds.note

    # -- bytes --------------------------------------------------------------------------------

    def store(self, key: str, data: Buffer) -> None:
        """Store bytes, see the contract; an overwritten file keeps its permission bits."""
        if self._confinement is None:
            try:
                self._store_once(self._prefix + key, data)
                return
            except FileNotFoundError:
                pass  # the directory is missing
            except OSError as error:
                raise _translate("store", key, error) from error
        self._store_patiently(key, data)

    def _store_patiently(self, key: str, data: Buffer) -> None:
        """Store although others may keep removing the directory while it is empty."""
        for attempt in range(_ATTEMPTS):
            try:
                self._store_pieces(key, (data,))
                return
            except ContentNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise

    def _store_once(self, target: str, data: Buffer) -> None:
        temporary = target[: target.rindex("/") + 1] + staging_name()
        fd = self._open(temporary, _CREATE, DEFAULT_FILE_MODE)
        try:
            try:
                self._write_all(fd, data)
            finally:
                self._close(fd)
            with self._path_lock(target):
                self._rename(temporary, target)
                self._note(target)
        except BaseException:
            self._discard(temporary)
            raise

    def store_chunked(self, key: str, pieces: Iterable[Buffer]) -> int:
        """Store a concatenation, see the contract."""
        return self._store_pieces(key, pieces)

    def _store_pieces(self, key: str, pieces: Iterable[Buffer]) -> int:
        if not key:
            raise PathIsDirectoryError("store", key, "the root is a directory")
        with _Translated("store", key):
            place = self._place_to_store(key)
            fd, temporary = self._create_beside(place.path)
        try:
            size = self._fill(key, fd, place, pieces)
            with _Translated("store", key), self._path_lock(place.path):
                self._rename(temporary, place.path)
                self._note(place.path)
        except BaseException:
            self._discard(temporary)
            raise
        return size

    def _place_to_store(self, key: str) -> Place:
        if self._confinement is None:
            return Place(self._prefix + key, None)
        place = self._confinement.locate("store", key)
        must_be_file("store", key, place)
        if place.is_directory:
            raise PathIsDirectoryError("store", key, "a directory is there")
        return place

    def _create_beside(self, path: str) -> tuple[int, str]:
        """Open a temporary file in the directory of ``path``, made where it is missing."""
        directory = path[: path.rindex("/") + 1]
        for attempt in range(_ATTEMPTS):
            temporary = directory + staging_name()
            try:
                return self._open(temporary, _CREATE, DEFAULT_FILE_MODE), temporary
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise
                self._make_directories(directory)
        raise AssertionError("unreachable")

    def _fill(self, key: str, fd: int, place: Place, pieces: Iterable[Buffer]) -> int:
        """Write the pieces and close; only errors of the disk are translated."""
        size = 0
        try:
            with _Translated("store", key):
                if self._confinement is not None:
                    self._confinement.check_descriptor("store", key, fd)
            for piece in pieces:
                with _Translated("store", key):
                    self._write_all(fd, piece)
                size += memoryview(piece).nbytes
            with _Translated("store", key):
                if place.status is not None:
                    os.fchmod(fd, place.status.st_mode & _PERMISSIONS)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                self._close(fd)
            raise
        with _Translated("store", key):
            self._close(fd)
        return size

    def _discard(self, temporary: str) -> None:
        # Failing to remove it must not hide the error on its way up; it is never listed.
        with suppress(OSError):
            self._disk.unlink(temporary)

    def fetch(self, key: str, offset: int = 0, count: int | None = None) -> bytes:
        """Return bytes, see the contract."""
        try:
            if self._confinement is None:
                fd = self._open(self._prefix + key, _READ)
            else:
                fd = self._confinement.open_file("fetch", key, self._open)
            try:
                if count is None or count > PIECE_BYTES:
                    left = max(0, os.fstat(fd).st_size - offset)
                    count = left if count is None else min(count, left)
                return self._pread(fd, count, offset)
            finally:
                self._close(fd)
        except OSError as error:
            raise _translate("fetch", key, error) from error

    def stream(
        self, key: str, offset: int = 0, count: int | None = None, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Yield bytes of the one version that was there at the first piece."""
        with _Translated("stream", key):
            if self._confinement is None:
                fd = self._open(self._prefix + key, _READ)
            else:
                fd = self._confinement.open_file("stream", key, self._open)
        try:
            end = None if count is None else offset + count
            while end is None or offset < end:
                wanted = piece_bytes if end is None else min(piece_bytes, end - offset)
                with _Translated("stream", key):
                    piece = self._pread(fd, wanted, offset)
                if not piece:
                    return
                yield piece
                offset += len(piece)
        finally:
            with _Translated("stream", key):
                self._close(fd)

    # -- what is there ------------------------------------------------------------------------

    def info(self, key: str) -> KeyInfo | None:
        """Return what is known of the key, see the contract; special files are not there."""
        try:
            if self._confinement is None:
                status: os.stat_result | None = os.stat(self._prefix + key)
            else:
                status = self._confinement.locate("info", key).status
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _translate("info", key, error) from error
        return None if status is None else _key_info(key, status)

    def exists(self, key: str) -> bool:
        """Return whether the key is a file or a directory."""
        if self._confinement is None:
            return os.access(self._prefix + key, os.F_OK)  # an error of stat costs ten times this
        return self.info(key) is not None

    def _make_listing(self) -> Listing:
        from nexus.storage.object_store.local_listing import Listing  # costs start-up time

        return Listing(self._prefix, self.info, self._confinement)

    def list_keys(self, prefix: str = "", after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return files at any depth, see the contract. Links to a directory above are not entered.

        A directory is read again for each page: the cost of a page grows with the directories
        it touches.
        """
        with _Translated("list_keys", prefix):
            return self._listing().keys(prefix, after, limit)

    def list_dir(self, key: str, after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return direct entries, see the contract; only those of the page are looked at."""
        with _Translated("list_dir", key):
            if self._confinement is not None:
                known = self.info(key)  # refuses a link that leaves, also when nothing is there
                if known is None:
                    raise ContentNotFoundError("list_dir", key, "no such directory")
            return self._listing().entries(key, after, limit)

    def unlisted(self, key: str) -> list[str]:
        """Return the names that listings leave out, see the contract."""
        with _Translated("unlisted", key):
            return self._listing().unlisted(key)

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool = False) -> Leftovers:
        """Remove what dead processes left anywhere below the root, see the contract."""
        with _Translated("remove_leftovers", ""):
            from nexus.storage.object_store import local_removal  # costs start-up time

            disk = self._disk
            return local_removal.sweep(self.root, untouched_since_ns, disk, dry_run=dry_run)

    # -- the tree -----------------------------------------------------------------------------

    def remove(self, key: str) -> bool:
        """Remove a key, an empty directory or a link itself, see the contract."""
        if not key:
            raise InvalidArgumentError("remove", key, "the root cannot be removed")
        try:
            path = self._entry_path("remove", key)
            with self._path_lock(path):
                if _is_directory(path):
                    self._remove_directory(key, path)
                else:
                    self._disk.unlink(path)
                self._rounds.note_removed(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _translate("remove", key, error) from error
        return True

    def _remove_directory(self, key: str, path: str) -> None:
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._remove_leftovers(key, path)
            os.rmdir(path)

    def _remove_leftovers(self, key: str, path: str) -> None:
        """Remove what killed processes left, where the directory holds nothing else."""
        from nexus.storage.object_store import local_removal  # costs start-up time

        names = os.listdir(path)
        if not all(map(local_removal.is_dead, names)):
            raise DirectoryNotEmptyError("remove", key, "the directory is not empty")
        for name in names:
            local_removal.delete(f"{path}/{name}", self._disk)

    def remove_tree(self, key: str) -> bool:
        """Remove a key with everything beneath it, see the contract."""
        if not key:
            raise InvalidArgumentError("remove_tree", key, "the root cannot be removed")
        from nexus.storage.object_store import local_removal  # costs start-up time

        hidden = key[: key.rfind("/") + 1] + staging_name()
        try:
            self.rename_key(key, hidden)
        except ContentNotFoundError:
            return False
        with _Translated("remove_tree", key):
            path = self._entry_path("remove_tree", hidden)
            try:
                local_removal.delete(path, self._disk)
            except BaseException:
                self._show_again(path, key)
                raise
            self._rounds.note_removed(path)
        return True

    def _show_again(self, hidden: str, key: str) -> None:
        # Not to be deleted, so not to be hidden; gc would not delete it either.
        path = self._entry_path("remove_tree", key, missing_ok=True)
        if os.path.lexists(hidden) and not os.path.lexists(path):
            self._disk.rename(hidden, path)

    def rename_key(self, source: str, target: str) -> None:
        """Move a key or a directory, see the contract; missing parents are made."""
        with _Translated("rename_key", source):
            old = self._entry_path("rename_key", source)
            new = self._entry_path("rename_key", target, missing_ok=True)
            if self._confinement is not None:
                self._confinement.check_move("rename_key", source, old, new)
            with ExitStack() as held:
                if _is_directory(old):
                    held.enter_context(self._rounds.round_lock)
                    noted: Callable[[str, str], None] = self._rounds.note_tree_moved_locked
                else:
                    noted = self._rounds.note_moved
                for lock in self._rounds.path_locks(old, new):
                    held.enter_context(lock)
                self._rename_entry(old, new)
                noted(old, new)

    def _rename_entry(self, old: str, new: str) -> None:
        try:
            self._rename(old, new)
            if self._confinement is not None and old != new and os.path.lexists(old):
                self._drop_second_name(old, new)
        except FileNotFoundError:
            if not os.path.lexists(old):
                raise
            self._make_directories(new[: new.rindex("/") + 1])
            self._rename(old, new)

    def _drop_second_name(self, old: str, new: str) -> None:
        # rename(2) does nothing at all between two hard links to one file.
        there, moved = os.lstat(old), os.lstat(new)
        if os.path.samestat(there, moved) and there.st_nlink > 1:
            self._disk.unlink(old)

    def create_dir(self, key: str) -> None:
        """Create a directory and its missing parents, see the contract."""
        with _Translated("create_dir", key):
            path = self._prefix + key
            if self._confinement is not None:
                place = self._confinement.locate("create_dir", key)
                if place.status is not None and not place.is_directory:
                    raise PathNotDirectoryError("create_dir", key, "a file is in the way")
                path = place.path
            self._make_directories(path)

    def _make_directories(self, path: str) -> None:
        """mkdir -p. Errors: OSError, ENOTDIR where a file is in the way."""
        path = path.rstrip("/")
        if len(path) < len(self._prefix):
            return
        try:
            self._disk.mkdir(path, DEFAULT_DIRECTORY_MODE)
        except FileExistsError as error:
            # Gone by now is as good as there: the caller tries again.
            if not _may_become_directory(path):
                reason = os.strerror(errno.ENOTDIR)
                raise NotADirectoryError(errno.ENOTDIR, reason, path) from error
            return
        except FileNotFoundError:
            self._make_directories(path[: path.rindex("/")])
            with suppress(FileExistsError):  # another thread's, made meanwhile
                self._disk.mkdir(path, DEFAULT_DIRECTORY_MODE)
        self._note(path[: path.rindex("/") + 1])

    def set_mode(self, key: str, mode: int) -> None:
        """Set the permission bits. Errors: ContentNotFoundError, AccessDeniedError."""
        with _Translated("set_mode", key):
            path = self._prefix + key
            if self._confinement is not None:
                place = self._confinement.locate("set_mode", key)
                must_exist("set_mode", key, place)
                must_be_file("set_mode", key, place)
                path = place.path
            os.chmod(path, mode & _PERMISSIONS)
            self._note(path + "/" if _is_directory(path) else path)

    def _entry_path(self, operation: str, key: str, *, missing_ok: bool = False) -> str:
        """Return the path of an entry itself: the last name is not followed."""
        if self._confinement is None:
            return self._prefix + key
        if not key:
            raise InvalidArgumentError(operation, key, "the root cannot be moved or replaced")
        place = self._confinement.locate(operation, key)  # refuses what leaves, or is special
        must_be_file(operation, key, place)
        if not missing_ok:
            must_exist(operation, key, place)
        return self._confinement.locate_entry(operation, key)

    # -- durability ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Make everything so far durable; callers share a round.

        After a failure the files it covered are suspect until a later call has written them
        afresh. Errors: StorageFailedError.
        """
        self._rounds.sync()

    def suspect_keys(self) -> list[str]:
        """Return the keys whose bytes a failed sync may have lost, sorted."""
        start = len(self._prefix)
        return [path[start:] for path in self._rounds.suspect_paths()]

    def close(self) -> None:
        """Release the root's descriptor. Idempotent; syncs nothing."""
        with _Translated("close", ""):
            self._rounds.close()


class _Translated:
    """Context manager: OSError of the system becomes the NexusError of its number."""

    __slots__ = ("_key", "_operation")

    def __init__(self, operation: str, key: str) -> None:
        self._operation = operation
        self._key = key

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, NexusError):
            raise _translate(self._operation, self._key, error) from error


def _translate(operation: str, key: str, error: OSError) -> NexusError:
    if isinstance(error, NexusError):
        return error
    known = _CLASSES.get(error.errno)
    if known is None:
        return storage_error(operation, key, error)
    return known(operation, key, error.strerror or str(error))


def _key_info(key: str, status: os.stat_result) -> KeyInfo | None:
    is_directory = stat.S_ISDIR(status.st_mode)
    if not is_directory and not stat.S_ISREG(status.st_mode):
        return None
    return KeyInfo(
        key,
        0 if is_directory else status.st_size,
        status.st_mtime_ns,
        is_directory,
        f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}",
        status.st_mode & _PERMISSIONS,
    )


def _is_directory(path: str) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _may_become_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return True
