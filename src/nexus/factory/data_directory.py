"""The data directory: its lock, its descriptor, and the files in it.

Layer: factory. One process owns a data directory at a time. Layout::

    LOCK           held with flock(2) by the owner; its pid and the machine's boot id are in it,
                   and after a clean end nothing
    nexus.json     what the directory is: format, metastore driver, id; written last at creation
    meta.redb*     the metastore, where it is redb
    meta.db*       the metastore, where it is sqlite
    convert/       a conversion that is under way, or was cut short
    content/       the content store of the root mount
    statistics.json  what the owner is doing, while the service metrics runs

Invariant: a directory without a descriptor has acknowledged nothing, so a creation that was
killed is simply finished by the next one.
"""

from __future__ import annotations

import errno
import fcntl
import os

import msgspec

from nexus.contracts.errors import (
    ConfigError,
    CorruptionError,
    DataDirectoryLockedError,
    NexusError,
)
from nexus.factory.metastores import CONVERSION, FILES, Choice, choose
from nexus.lib.boot_id import boot_id
from nexus.lib.disk import Disk, put_in_place, storage_error
from nexus.lib.hashing import hex_digest

FORMAT = 1
DESCRIPTOR = "nexus.json"
LOCK = "LOCK"
CONTENT = "content"
_OURS = (DESCRIPTOR, LOCK, *FILES.values(), CONTENT)


class _AnyDescriptor(msgspec.Struct, frozen=True):
    """What every format's descriptor has."""

    format: int


class Descriptor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data directory says of itself; ``checksum`` covers the other fields."""

    format: int
    metastore: str
    id: str
    checksum: str = ""

    def sealed(self) -> Descriptor:
        """Return the same with its checksum filled in."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, checksum=""))
        return msgspec.structs.replace(self, checksum=hex_digest(plain)[:16])


class DataDirectory:
    """An open, owned data directory. Close it last."""

    def __init__(self, path: str, disk: Disk, metastore: str) -> None:
        """Take ownership, creating the directory where it does not exist.

        ``metastore`` is the one wanted, or ``auto``: the one that is there, for a new directory the
        best there is. Errors: DataDirectoryLockedError, ConfigError for a folder that holds
        something else or another metastore, CorruptionError for a damaged descriptor,
        AccessDeniedError, ReadOnlyError.
        """
        self.path = path
        self.was_left_synced = True
        self.was_cut_off = False
        self._disk = disk
        try:
            self._check_foreign()
            os.makedirs(path, mode=0o700, exist_ok=True)
            self._lock_fd = self._lock()
        except OSError as error:
            if isinstance(error, NexusError):
                raise
            raise storage_error("open", path, error) from error
        try:
            self.descriptor = self._open_descriptor(metastore)
        except BaseException:
            self.close()
            raise
        self.is_new = not os.path.exists(self.file(DESCRIPTOR))

    @property
    def metastore_file(self) -> str:
        """The path of the metastore's file."""
        return self.file(FILES[self.descriptor.metastore])

    def file(self, name: str) -> str:
        """Return the path of a file in the directory."""
        return os.path.join(self.path, name)

    def subdirectory(self, name: str) -> str:
        """Return the path of a directory in the directory, made where it is missing."""
        path = self.file(name)
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise storage_error("open", path, error) from error
        return path

    def keep_id(self, known_id: str) -> None:
        """Give a directory without a descriptor the id that its content knows it by."""
        assert self.is_new
        self.descriptor = msgspec.structs.replace(self.descriptor, id=known_id).sealed()

    def finish_creation(self) -> None:
        """Write the descriptor once everything else exists and is durable."""
        self._write_descriptor()
        self.is_new = False

    def record_metastore(self, kind: str) -> None:
        """Put another metastore in force, whose file is there and durable: one rename."""
        self.descriptor = msgspec.structs.replace(self.descriptor, metastore=kind).sealed()
        self._write_descriptor()

    def _write_descriptor(self) -> None:
        data = msgspec.json.format(msgspec.json.encode(self.descriptor), indent=2) + b"\n"
        staging = self.file(DESCRIPTOR + ".new")
        disk = self._disk
        try:
            disk.fsync_directory(self.path)  # what the descriptor speaks of comes first
            fd = disk.open(staging, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            try:
                disk.write_all(fd, data)
            finally:
                disk.close(fd)
            put_in_place(staging, self.file(DESCRIPTOR), disk)
        except OSError as error:
            raise storage_error("open", self.path, error) from error

    def note_recovered(self) -> None:
        """Note that a power cut has been recovered from."""
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n{boot_id()}\n".encode(), 0)
        self.was_cut_off = False

    def leave_synced(self) -> None:
        """Note for the next owner that everything was synced; called last, before closing."""
        os.ftruncate(self._lock_fd, 0)

    def close(self) -> None:
        """Give ownership back. Idempotent."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _check_foreign(self) -> None:
        if not os.path.isdir(self.path):
            if os.path.exists(self.path):
                raise ConfigError("open", self.path, "the data directory is not a directory")
            return
        names = set(os.listdir(self.path))
        if names and not names & set(_OURS):
            raise ConfigError(
                "open",
                self.path,
                "the folder is not empty and holds no NexusFS data",
                hint="choose an empty or a new folder",
            )

    def _lock(self) -> int:
        fd = os.open(self.file(LOCK), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").partition("\n")[0] or "unknown"
            os.close(fd)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise DataDirectoryLockedError(
                "open",
                self.path,
                f"the process with pid {owner} has this data directory open",
                hint="stop it, or choose another directory with --data-dir",
            ) from error
        try:
            self._note_owner(fd)
        except OSError:
            os.close(fd)  # on a full disk; whoever tries again must not find it locked
            raise
        return fd

    def _note_owner(self, fd: int) -> None:
        left = os.pread(fd, 128, 0).decode("ascii", "replace").split()
        self.was_left_synced = not left
        self.was_cut_off = len(left) == 2 and left[1] != boot_id()
        os.ftruncate(fd, 0)
        # After a power cut its boot id stays until recovery is done, however often that is tried.
        uptime = left[1] if self.was_cut_off else boot_id()
        os.pwrite(fd, f"{os.getpid()}\n{uptime}\n".encode(), 0)

    def _open_descriptor(self, metastore: str) -> Descriptor:
        found = read_descriptor(self.path)
        chosen = choose(self.path, metastore, found.metastore if found else None).name
        if found is not None and os.path.isdir(self.file(CONVERSION)):
            from nexus.factory.store_switch import settle  # costs start-up time

            settle(self.path, found.metastore, self._disk)
        return found or Descriptor(FORMAT, chosen, os.urandom(8).hex()).sealed()


def metastore_of(path: str, asked: str) -> Choice:
    """Return which metastore opening a directory would take; it need not be there.

    Errors: as :class:`DataDirectory`.
    """
    found = read_descriptor(path)
    return choose(path, asked, found.metastore if found else None)


def read_descriptor(path: str) -> Descriptor | None:
    """Return what the data directory at a path says of itself, None where it says nothing.

    Errors: CorruptionError; ConfigError for the format of a newer release.
    """
    file = os.path.join(path, DESCRIPTOR)
    return _parse(file) if os.path.exists(file) else None


def _parse(path: str) -> Descriptor:
    try:
        with open(path, "rb") as file:
            data = file.read()
        known = msgspec.json.decode(data, type=_AnyDescriptor)
        if known.format > FORMAT:
            raise ConfigError(
                "open",
                path,
                f"format {known.format} is newer than format {FORMAT}",
                hint="use the release that wrote it",
            )
        found = msgspec.json.decode(data, type=Descriptor)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    if found != found.sealed() or found.format != FORMAT:
        raise _damaged(path, "its checksum does not match")
    return found


def _damaged(path: str, reason: str) -> CorruptionError:
    hint = "restore the file from a backup, or delete it: the next start writes it anew"
    return CorruptionError("open", path, f"the descriptor is damaged: {reason}", hint=hint)


def default_path() -> str:
    """Return the platform's user data folder for NexusFS."""
    # Costs 15 ms of start-up, and most callers name a directory.
    from platformdirs import user_data_dir

    return user_data_dir("nexusfs")
