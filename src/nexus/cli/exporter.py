"""Exporter: a tree into a host directory. Layer: cli.

Invariants. 1: nothing is written outside the host directory: every directory is opened relative
to its parent with O_NOFOLLOW, and names in the tree hold neither ``/`` nor ``..``. 2: a file
appears under its name whole, by rename. 3: without ``force`` no existing file is replaced.
"""

from __future__ import annotations

import os
import secrets
from typing import Any

from nexus.cli.errors import host_error
from nexus.cli.files import existing, read_pieces
from nexus.cli.output import Report
from nexus.contracts.errors import ConflictError, PathExistsError, PathNotDirectoryError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import CHANNEL_TYPES, Stat
from nexus.lib.disk import Disk, can_syncfs
from nexus.lib.paths import normalize, parent

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Exporter:
    """One export. Errors: those of the filesystem, and host errors as NexusErrors."""

    def __init__(self, nx: NexusFilesystem, path: str, host: str, force: bool) -> None:
        self._nx = nx
        self._path = normalize("export", path)
        self._host = host
        self._force = force
        self._top = existing(nx, "export", self._path)
        self._base = self._path if self._top["is_directory"] else parent(self._path)
        self._disk = Disk()
        self._root_fd = -1
        self._files = self._directories = self._bytes = self._skipped = 0

    @property
    def summary(self) -> dict[str, Any]:
        """What was done, for ``--json``."""
        return {
            "files": self._files,
            "directories": self._directories,
            "bytes": self._bytes,
            "skipped": self._skipped,
        }

    def check(self) -> int:
        """Return the bytes to come. Errors: PathExistsError for the first file in the way."""
        total = 0
        for stat in self._stats():
            if stat["entry_type"] in CHANNEL_TYPES:
                continue
            total += 0 if stat["is_directory"] else stat["size"]
            host = self._host_path(stat["path"])
            if not self._force and not stat["is_directory"] and os.path.lexists(host):
                raise _in_the_way(host)
        return total

    def run(self, progress: Report) -> None:
        """Copy everything; it is on the disk when this returns."""
        try:
            os.makedirs(self._host, exist_ok=True)
            # The directory named by the user may be a link; none beneath it is followed.
            self._root_fd = os.open(self._host, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise host_error("export", self._host, error) from error
        try:
            for stat in self._stats():
                self._export(stat, progress)
            if can_syncfs():
                self._disk.syncfs(self._root_fd)
            else:
                os.sync()
        finally:
            os.close(self._root_fd)

    def _stats(self) -> Any:
        return self._nx.walk(self._path) if self._top["is_directory"] else iter((self._top,))

    def _host_path(self, path: str) -> str:
        return self._host.rstrip("/") + path[len(self._base.rstrip("/")) :]

    def _export(self, stat: Stat, progress: Report) -> None:
        path: str = stat["path"]
        if stat["entry_type"] in CHANNEL_TYPES:
            self._skipped += 1  # messages are for who reads them, not for a copy
            return
        host = self._host_path(path)
        names = path[len(self._base.rstrip("/")) + 1 :].split("/")
        try:
            if stat["is_directory"]:
                os.close(self._open_directory(names))
                self._directories += 1
                return
            fd = self._open_directory(names[:-1])
            try:
                self._export_file(stat, names[-1], host, fd, progress)
            finally:
                os.close(fd)
        except OSError as error:
            if hasattr(error, "operation"):
                raise  # one of ours
            raise host_error("export", host, error) from error

    def _open_directory(self, names: list[str]) -> int:
        """Open a directory beneath the root one name at a time, creating what is missing."""
        fd = os.dup(self._root_fd)
        for depth, name in enumerate(names, 1):
            try:
                try:
                    below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    os.mkdir(name, dir_fd=fd)
                    below = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
            except NotADirectoryError as error:
                host = os.path.join(self._host, *names[:depth])
                raise PathNotDirectoryError(
                    "export", host, "is a file or a symbolic link, and a directory has to go there"
                ) from error
            finally:
                os.close(fd)
            fd = below
        return fd

    def _export_file(
        self, stat: Stat, name: str, host: str, directory_fd: int, progress: Report
    ) -> None:
        staging = f".nexus-{secrets.token_hex(8)}"
        fd = os.open(staging, _CREATE, 0o666, dir_fd=directory_fd)
        try:
            try:
                self._copy(stat, fd, progress)
            finally:
                os.close(fd)
            if not self._force and _exists(name, directory_fd):
                raise _in_the_way(host)
            os.rename(staging, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        except BaseException:
            os.unlink(staging, dir_fd=directory_fd)
            raise
        self._files += 1

    def _copy(self, stat: Stat, fd: int, progress: Report) -> None:
        path = stat["path"]
        for piece in read_pieces(self._nx, path):
            self._disk.write_all(fd, piece)
            self._bytes += len(piece)
            progress("exporting", self._bytes)
        after = self._nx.sys_stat(path)
        if after is None or after["etag"] != stat["etag"] or after["size"] != stat["size"]:
            raise ConflictError("export", path, "changed while it was read", hint="try again")


def _exists(name: str, directory_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _in_the_way(host: str) -> PathExistsError:
    return PathExistsError("export", host, "exists already", hint="--force replaces files")
