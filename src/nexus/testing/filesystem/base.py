"""What every part of the filesystem suite shares: the place it works in and its helpers.

Layer: testing. A suite works beneath ``base``, a directory without a trailing slash (``""`` for
the root), so that ``f"{base}/name"`` is a path wherever it is. Capabilities are data that the
subclass declares; a test of a capability that is absent checks that the call says so.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import NexusError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_DIR, DirectoryPage

CHUNK_THRESHOLD_BYTES = 1 << 20
"""Content above this size is stored in chunks; the suite crosses it in both directions."""

STAT_KEYS = frozenset(
    {
        "path",
        "entry_type",
        "type",
        "is_directory",
        "size",
        "etag",
        "version",
        "revision",
        "mime_type",
        "mode",
        "owner_id",
        "created_at",
        "modified_at",
        "modified_by",
        "run_id",
        "zone_id",
        "backend_name",
        "attributes",
    }
)
WRITE_RESULT_KEYS = frozenset(
    {
        "path",
        "bytes_written",
        "etag",
        "version",
        "size",
        "modified_at",
        "revision",
    }
)
VERSION_KEYS = frozenset(
    {
        "version",
        "revision",
        "size",
        "etag",
        "modified_at",
        "modified_by",
        "run_id",
        "deleted",
    }
)
EVENT_KEYS = frozenset(
    {
        "revision",
        "kind",
        "path",
        "new_path",
        "etag",
        "size",
        "version",
        "user_id",
        "agent_id",
        "run_id",
        "zone_id",
        "timestamp",
    }
)

Call: TypeAlias = Callable[[NexusFilesystem, str], object]

CALLS_ON_ONE_PATH: dict[str, Call] = {
    "sys_read": lambda nx, path: nx.sys_read(path),
    "sys_write": lambda nx, path: nx.sys_write(path, b"x"),
    "sys_stat": lambda nx, path: nx.sys_stat(path),
    "sys_setattr": lambda nx, path: nx.sys_setattr(path, mode=0o600),
    "sys_setattr DT_DIR": lambda nx, path: nx.sys_setattr(path, entry_type=DT_DIR),
    "sys_unlink": lambda nx, path: nx.sys_unlink(path),
    "sys_rename from": lambda nx, path: nx.sys_rename(path, "/elsewhere"),
    "sys_copy from": lambda nx, path: nx.sys_copy(path, "/elsewhere"),
    "sys_readdir": lambda nx, path: nx.sys_readdir(path),
    "read": lambda nx, path: nx.read(path),
    "write": lambda nx, path: nx.write(path, b"x"),
    "append": lambda nx, path: nx.append(path, b"x"),
    "edit": lambda nx, path: nx.edit(path, bytes.upper),
    "write_batch": lambda nx, path: nx.write_batch({path: b"x"}),
    "read_batch": lambda nx, path: nx.read_batch([path]),
    "mkdir": lambda nx, path: nx.mkdir(path),
    "rmdir": lambda nx, path: nx.rmdir(path),
    "access": lambda nx, path: nx.access(path),
    "exists": lambda nx, path: nx.exists(path),
    "is_directory": lambda nx, path: nx.is_directory(path),
    "list": lambda nx, path: nx.list(path),
    "walk": lambda nx, path: list(nx.walk(path)),
    "glob": lambda nx, path: nx.glob("*", path),
    "grep": lambda nx, path: nx.grep("x", path),
}
"""Every call that acts on one path, by a name for the test's id."""


class SuiteBase(ABC):
    """The place a suite works in. Each test has a filesystem of its own."""

    keeps_versions = True
    """Earlier versions can be read, and ``version`` counts the content writes of a file."""
    atomic_batch = True
    """``write_batch`` of several files is one commit."""
    content_addressed = True
    """Etags are content ids, which the hash-addressed calls take."""
    longest_paths = True
    """A path may have 4,096 bytes; a folder's disk may hold less."""

    @abstractmethod
    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        """Return a new filesystem and the empty directory to work in; "" names the root."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[tuple[NexusFilesystem, str]]:
        nx, base = self.make(tmp_path)
        try:
            yield nx, base
        finally:
            nx.close()

    @pytest.fixture
    def nx(self, place: tuple[NexusFilesystem, str]) -> NexusFilesystem:
        return place[0]

    @pytest.fixture
    def base(self, place: tuple[NexusFilesystem, str]) -> str:
        return place[1]

    def someone(self, user_id: str = "alice", **fields: Any) -> OperationContext:
        """Return an identity that may do everything."""
        return OperationContext(user_id, is_admin=True, **fields)

    def needs(self, capability: str) -> None:
        """Skip the test where the mount does not declare the capability."""
        if not getattr(self, capability):
            pytest.skip(f"this mount does not declare {capability}")


def noise(size: int, seed: int = 0) -> bytes:
    """Return ``size`` bytes that do not compress and are the same in every run."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - test data, not a secret


def tree(nx: NexusFilesystem, directory: str) -> dict[str, bytes | None]:
    """Return everything beneath a directory: bytes of files, None for directories."""
    return {
        stat["path"]: None if stat["is_directory"] else nx.read(stat["path"])
        for stat in nx.walk(directory or "/")
    }


def pages(nx: NexusFilesystem, path: str, limit: int, **options: Any) -> list[DirectoryPage]:
    """Return every page of a listing, fetched ``limit`` entries at a time."""
    found = [nx.sys_readdir(path, limit=limit, **options)]
    while (cursor := found[-1].next_cursor) is not None:
        found.append(nx.sys_readdir(path, limit=limit, cursor=cursor, **options))
    return found


def all_events(nx: NexusFilesystem) -> list[dict[str, Any]]:
    """Return the whole journal, oldest first."""
    return list(nx.history())


def check_error(error: NexusError, path: str | None) -> None:
    """Check that an error names operation, path, cause and errno as the contract says."""
    assert error.operation
    assert error.reason
    assert error.path == path
    assert error.filename == path
    assert error.errno == type(error).code
    assert str(error).startswith(f"{error.operation}: ")
