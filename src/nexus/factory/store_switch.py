"""The switch of a data directory from one metastore to another, and the end of one cut short.

Layer: factory. It moves and removes files, and knows nothing of what is in them. What is in force
is what ``nexus.json`` records; the folder ``convert`` is the journal of a switch::

    build      convert/ holds a store that is being filled; what is in force is untouched
    place      the new store is renamed beside the old one; still not in force
    record     nexus.json is replaced: the switch
    settle     the old store is removed or set aside, then what is in convert/, then convert/

Invariants:

1. Whatever moment the process ends at, the recorded store is whole, and the other one, where it is
   there, is not in force.
2. A store that is not in force is removed only while ``convert`` is there, and after the record
   that puts the other one in force is synced. So a store of unknown origin is never touched.

Locks: the data directory's, held by the caller.
"""

from __future__ import annotations

import os
from contextlib import suppress

from nexus.contracts.errors import CorruptionError, NexusError
from nexus.factory.metastores import BESIDE, CONVERSION, FILES
from nexus.lib.disk import Disk, storage_error

KEEP = "keep"
"""In the folder, where the old store is to be kept: the kind of that store."""
KEPT_SUFFIX = ".kept"


def begin(path: str, disk: Disk, *, keep: str | None) -> str:
    """Make the folder for a new store and return its path; ``keep`` is a store to keep."""
    folder = os.path.join(path, CONVERSION)
    disk.mkdir(folder, 0o700)
    if keep is not None:
        fd = disk.open(os.path.join(folder, KEEP), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            disk.write_all(fd, keep.encode())
            disk.fsync(fd)
        finally:
            disk.close(fd)
        disk.fsync_directory(folder)
    disk.fsync_directory(path)
    return folder


def place(path: str, kind: str, disk: Disk) -> None:
    """Move the finished store from the folder to where it will be in force."""
    built = os.path.join(path, CONVERSION, FILES[kind])
    fd = disk.open(built, os.O_RDWR)
    try:
        disk.fsync(fd)
    finally:
        disk.close(fd)
    disk.rename(built, os.path.join(path, FILES[kind]))
    disk.fsync_directory(path)


def settle(path: str, recorded: str, disk: Disk) -> None:
    """End a switch, done or not, of which the folder is still there.

    Errors: CorruptionError where the recorded store is missing; StorageError.
    """
    folder = os.path.join(path, CONVERSION)
    if not os.path.isdir(folder):
        return
    if not os.path.exists(os.path.join(path, FILES[recorded])):
        reason = f"the metastore is gone, beside a conversion that was cut short ({CONVERSION}/)"
        hint = "restore the data directory from a backup"
        raise CorruptionError("open", os.path.join(path, FILES[recorded]), reason, hint=hint)
    try:
        disk.fsync_directory(path)  # the record survives a power cut before anything goes
        kept = _to_keep(folder)
        for kind in FILES:
            if kind != recorded:
                _drop(path, kind, disk, keep=kind == kept)
        disk.fsync_directory(path)
        for name in sorted(os.listdir(folder), key=lambda name: name == KEEP):
            disk.unlink(os.path.join(folder, name))
        disk.rmdir(folder)
        disk.fsync_directory(path)
    except NexusError:
        raise  # an OSError too, and already says what is wrong
    except OSError as error:
        raise storage_error("open", path, error) from error


def _to_keep(folder: str) -> str | None:
    try:
        with open(os.path.join(folder, KEEP), encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _drop(path: str, kind: str, disk: Disk, *, keep: bool) -> None:
    file = os.path.join(path, FILES[kind])
    for suffix in BESIDE[kind]:
        with suppress(FileNotFoundError):
            disk.unlink(file + suffix)
    with suppress(FileNotFoundError):
        if keep:
            disk.rename(file, file + KEPT_SUFFIX)
        else:
            disk.unlink(file)
