"""Importer: a host directory into the tree. Layer: cli.

Small files go in batches, each one commit; large ones are streamed. Memory: one batch, and the
names of one host directory. Links are never followed: each file is opened relative to its open
directory with O_NOFOLLOW, so that a link put there meanwhile is not followed either.
"""

from __future__ import annotations

import errno
import os
import stat as mode_bits
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

from nexus.cli.errors import host_error
from nexus.cli.output import Report
from nexus.contracts.errors import (
    InvalidPathError,
    NotSupportedError,
    PathNotDirectoryError,
)
from nexus.contracts.filesystem import NexusFilesystem
from nexus.lib.paths import join, normalize

BATCH_FILES = 200
BATCH_BYTES = 8 << 20
PIECE_BYTES = 1 << 20
SKIPPED_NAMED = 100
"""How many skipped paths the summary names."""

LINK, SPECIAL, NAME, OWN = "symbolic links", "special files", "unusable names", "own data"


class Importer:
    """One import. Errors: those of the filesystem, and host errors as NexusErrors."""

    def __init__(
        self,
        nx: NexusFilesystem,
        host: str,
        path: str,
        data_dir: str | None,
        progress: Report,
    ) -> None:
        self._nx = nx
        self._host = host
        self._path = normalize("import", path)
        self._data_dir = data_dir
        self._progress = progress
        self._batch: dict[str, bytes] = {}
        self._batch_bytes = 0
        self._files = self._directories = self._bytes = 0
        self._skipped: Counter[str] = Counter()
        self._skipped_paths: list[str] = []

    @property
    def summary(self) -> dict[str, Any]:
        """What was done, for ``--json``."""
        return {
            "files": self._files,
            "directories": self._directories,
            "bytes": self._bytes,
            "skipped": self._skipped.total(),
            "skipped_reasons": dict(self._skipped),
            "skipped_paths": self._skipped_paths,
        }

    def run(self) -> None:
        """Copy everything."""
        if os.path.lexists(self._host) and not os.path.isdir(self._host):
            raise PathNotDirectoryError(
                "import", self._host, "is not a directory", hint="nexus write PATH < FILE"
            )
        # The directory named by the user may be a link; none beneath it is followed.
        top = os.path.realpath(self._host)
        try:
            for folder, directories, files, fd in os.fwalk(top, onerror=_fail):
                self._import_directory(top, folder, directories, files, fd)
        except OSError as error:
            if hasattr(error, "operation"):
                raise  # one of ours
            raise host_error("import", error.filename or self._host, error) from error
        self._flush()

    def _import_directory(
        self, top: str, folder: str, directories: list[str], files: list[str], fd: int
    ) -> None:
        relative = folder[len(top.rstrip("/")) :] or "/"
        target = join(self._path, relative)
        directories[:] = sorted(
            name for name in directories if self._enters(folder, name, fd, target)
        )
        imported = False
        for name in sorted(files):
            imported |= self._import_file(folder, name, fd, target)
        if not imported and not directories:
            self._flush()
            self._nx.mkdir(target, exist_ok=True)
        self._directories += relative != "/"

    def _enters(self, folder: str, name: str, fd: int, target: str) -> bool:
        host = os.path.join(folder, name)
        if mode_bits.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return self._skip(host, LINK)
        if host == self._data_dir:
            return self._skip(host, OWN)
        return self._target(host, target, name) is not None

    def _target(self, host: str, directory: str, name: str) -> str | None:
        try:
            return normalize("import", join(directory, f"/{name}"))
        except InvalidPathError:
            self._skip(host, NAME)
            return None

    def _import_file(self, folder: str, name: str, fd: int, directory: str) -> bool:
        host = os.path.join(folder, name)
        # O_NONBLOCK: a pipe put there must not hold the import up.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        kind = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        if not mode_bits.S_ISREG(kind):
            return self._skip(host, LINK if mode_bits.S_ISLNK(kind) else SPECIAL)
        target = self._target(host, directory, name)
        if target is None:
            return False
        try:
            opened = os.open(name, flags, dir_fd=fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return self._skip(host, LINK)
            raise host_error("import", host, error) from error
        with os.fdopen(opened, "rb") as file:
            if not mode_bits.S_ISREG(os.fstat(opened).st_mode):
                return self._skip(host, SPECIAL)
            self._store(target, host, file)
        return True

    def _store(self, target: str, host: str, file: BinaryIO) -> None:
        first = _read(file, host)
        self._files += 1
        if len(first) < PIECE_BYTES:
            self._add(target, first)
            return
        rest = iter(lambda: _read(file, host), b"")
        self._nx.write(target, self._counted(chain((first,), rest)))

    def _counted(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._count(len(piece))
            yield piece

    def _count(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        self._progress("importing", self._bytes)

    def _add(self, target: str, data: bytes) -> None:
        if len(self._batch) == BATCH_FILES or self._batch_bytes + len(data) > BATCH_BYTES:
            self._flush()
        self._batch[target] = data
        self._batch_bytes += len(data)

    def _flush(self) -> None:
        try:
            if self._batch:
                self._nx.write_batch(self._batch)
        except NotSupportedError:
            # A mount that shows another's tree takes no part in a commit: nothing was written.
            for path, data in self._batch.items():
                self._nx.write(path, data)
        self._batch = {}
        self._count(self._batch_bytes)
        self._batch_bytes = 0

    def _skip(self, host: str, reason: str) -> bool:
        self._skipped[reason] += 1
        if len(self._skipped_paths) < SKIPPED_NAMED:
            self._skipped_paths.append(host)
        return False


def _read(file: BinaryIO, host: str) -> bytes:
    try:
        return file.read(PIECE_BYTES)
    except OSError as error:
        raise host_error("import", host, error) from error


def _fail(error: OSError) -> None:
    raise error


def count_bytes(host: str) -> int:
    """Return how much there is to import, for a progress bar; files that go away count as 0."""
    total = 0
    for _, _, files, fd in os.fwalk(os.path.realpath(host)):
        for name in files:
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            total += info.st_size if mode_bits.S_ISREG(info.st_mode) else 0
    return total
