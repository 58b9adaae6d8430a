"""Deletes folders, and what killed processes left under staging names in those of a local disk.

Layer: storage. Its job: telling leftovers from what is being written, and deleting what is out of
sight already. It decides no age: its caller hands one in. Unix counterparts: rm(1), tmpwatch(8).

Invariant: no leftover goes whose process lives, whatever its age.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from nexus.contracts.object_store import Leftovers
from nexus.lib.disk import Disk
from nexus.storage.object_store.staging import is_leftover, is_staging_name

_OWNER = 0o700


def is_dead(name: str) -> bool:
    """Return whether a name is a staging name of a process that is gone."""
    return is_staging_name(name) and is_leftover(name)


def delete(path: str, disk: Disk) -> None:
    """Delete a file, or a folder with all beneath it; gone already is no error. Errors: OSError.

    Links are deleted, not followed. A folder's own mode protects nothing in it: whoever deletes
    from outside has asked for all of it.
    """
    import shutil  # costs start-up time, which programs that delete no folder need not pay

    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            disk.unlink(path)
            return
        try:
            shutil.rmtree(path)
        except PermissionError:
            _make_writable(path)
            shutil.rmtree(path)


def _make_writable(path: str) -> None:
    os.chmod(path, _OWNER)
    for folder, directories, _ in os.walk(path):
        for below in (f"{folder}/{name}" for name in directories):
            if not os.path.islink(below):
                os.chmod(below, _OWNER)


def sweep(root: str, untouched_since_ns: int, disk: Disk, *, dry_run: bool) -> Leftovers:
    """Delete the leftovers below a root that nobody has touched since; say what they were.

    A folder that cannot be read is passed over: this process has written nothing there.
    Errors: OSError.
    """
    entries = size_bytes = 0
    for path in _leftovers(root):
        found = [status for entry in _tree(path) if (status := _status(entry)) is not None]
        if not found or max(status.st_mtime_ns for status in found) >= untouched_since_ns:
            continue
        if not dry_run:
            delete(path, disk)
        entries += 1
        size_bytes += sum(s.st_size for s in found if stat.S_ISREG(s.st_mode))
    return Leftovers(entries, size_bytes)


def _leftovers(root: str) -> Iterator[str]:
    for folder, directories, files in os.walk(root):
        for name in (*directories, *files):
            if is_dead(name):
                yield f"{folder}/{name}"
        directories[:] = [name for name in directories if not is_staging_name(name)]


def _tree(path: str) -> Iterator[str]:
    yield path
    for folder, directories, files in os.walk(path):
        for name in (*directories, *files):
            yield f"{folder}/{name}"


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None  # gone meanwhile
