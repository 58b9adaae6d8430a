"""SysVolume: the kernel's own state as directories beneath ``/__sys__``. Read-only.

Layer: core. Unix counterpart: procfs. ``journal`` lists the committed changes, ``locks`` the
advisory locks that are held, ``mounts`` the mount table, ``records`` what a recorder stored with
each commit, ``services`` the services and their states, ``versions/PATH`` what history keeps of a
path, ``hooks``, ``watches`` and ``channels`` what is registered, watched and open at the moment;
all by ``sys_readdir``. A service is a file as well: reading it gives what the listing shows,
as JSON. Entries are made when asked for; nothing is stored here. The revision of ``journal`` is
that of the last commit: where a watch begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

import msgspec

from nexus.contracts.errors import (
    AccessDeniedError,
    InvalidArgumentError,
    NotSupportedError,
    shown,
)
from nexus.contracts.filesystem.syscalls import Precondition, WriteRequest
from nexus.contracts.lock_manager import LockHold
from nexus.contracts.metadata import (
    DEFAULT_DIRECTORY_MODE,
    DEFAULT_FILE_MODE,
    DT_DIR,
    DT_REG,
    ENTRY_TYPE_NAMES,
    Buffer,
    DirectoryPage,
    Stat,
)
from nexus.contracts.object_store import Content
from nexus.core.inode_table import Transaction, commit_records, journal
from nexus.core.sealed_store import SealedStore, revision_of
from nexus.core.volume import Actor, Departure, Volume, is_directory, missing
from nexus.lib.paths import normalize

SYS_POINT = "/__sys__"
SERVICES_POINT = SYS_POINT + "/services"
VERSIONS_POINT = SYS_POINT + "/versions"
_LARGEST = (1 << 63) - 1
_LARGEST_SEQUENCE = {1: _LARGEST, 2: (1 << 32) - 1}
"""What the last part of a cursor can be: a revision, or a sequence within one."""
VIEW_PAGE = 10_000
"""Entries in a page of a view that is asked for without a limit."""
_DIRECTORIES = (
    *("channels", "hooks", "journal", "locks", "mounts"),
    *("records", "services", "versions", "watches"),
)


class SysVolume(Volume):
    """Views of the kernel. Shared by all threads."""

    point = SYS_POINT
    keeps_versions = False
    atomic_batch = False
    snapshot_entries = 0
    immutable_content = True

    def __init__(
        self,
        store: SealedStore,
        zone_id: str,
        list_mounts: Callable[[], list[Stat]],
        list_versions: Callable[[str, int], Iterator[Stat]],
        list_locks: Callable[[], list[LockHold]],
        list_services: Callable[[], list[Stat]],
        list_moment: Mapping[str, Callable[[], list[Stat]]],
    ) -> None:
        self._list_moment = list_moment
        self._list_locks = list_locks
        self._store = store
        self._zone_id = zone_id
        self._list_mounts = list_mounts
        self._list_versions = list_versions
        self._list_services = list_services

    def readdir(
        self, relative: str, limit: int | None, cursor: str | None, details: bool
    ) -> DirectoryPage:
        """Return one page of a view. Cursors are opaque: revisions, not paths."""
        if relative == "/":
            return DirectoryPage(
                self._directory(f"/{name}") if details else f"{SYS_POINT}/{name}"
                for name in _DIRECTORIES
            )
        if relative == "/mounts":
            mounts = self._list_mounts()
            return DirectoryPage(mounts if details else [stat["path"] for stat in mounts])
        if relative == "/services":
            after_name = _name_position(cursor)
            rows = [row for row in self._list_services() if row["name"] > after_name]
            found = ((row["name"], self._service(row)) for row in rows)
            return _page(found, limit, details, "services")
        if relative == "/records":
            (after,) = _position(cursor, 1)
            return _page(self._records(after), limit, details, "records")
        if relative == "/locks":
            (token,) = _position(cursor, 1)
            holds = [hold for hold in self._list_locks() if hold.token > token]
            locks = ((str(hold.token), hold.as_dict()) for hold in holds)
            return _page(locks, limit, details, "locks")
        if relative == "/journal":
            return _page(self._journal(_position(cursor, 2)), limit, details, "journal")
        if relative[1:] in self._list_moment:
            (after,) = _position(cursor, 1)
            listed = self._list_moment[relative[1:]]()
            numbered = ((str(at), row) for at, row in enumerate(listed, 1) if at > after)
            return _page(numbered, limit, details, relative[1:])
        if relative == "/versions" or relative.startswith("/versions/"):
            path = relative.removeprefix("/versions") or "/"
            (after,) = _position(cursor, 1)
            versions = ((str(stat["revision"]), stat) for stat in self._list_versions(path, after))
            return _page(versions, limit, details, f"versions{path.rstrip('/')}")
        raise missing("readdir", self.absolute(relative))

    def _journal(self, after: tuple[int, ...]) -> Iterator[tuple[str, Stat]]:
        for event in journal(self._store, (after[0], after[1])):
            yield event.cursor, event.as_dict()

    def _records(self, after: int) -> Iterator[tuple[str, Stat]]:
        for record in commit_records(self._store, after):
            revision = revision_of(record.key)
            yield str(revision), {"revision": revision, "record": record.payload}

    def _service_row(self, relative: str) -> Stat | None:
        rows = self._list_services() if relative.startswith("/services/") else []
        return next((row for row in rows if f"/services/{row['name']}" == relative), None)

    def _service(self, row: Stat) -> Stat:
        return self._entry(f"/services/{row['name']}", DT_REG, len(_as_json(row))) | row

    def _directory(self, relative: str) -> Stat:
        return self._entry(relative, DT_DIR, 0)

    def _entry(self, relative: str, kind: int, size: int) -> Stat:
        directory = kind == DT_DIR
        return {
            "path": self.absolute(relative),
            "entry_type": kind,
            "type": ENTRY_TYPE_NAMES[kind],
            "is_directory": directory,
            "size": size,
            "etag": "",
            "version": 1,
            "revision": 0,
            "mime_type": "inode/directory" if directory else "application/json",
            "mode": (DEFAULT_DIRECTORY_MODE if directory else DEFAULT_FILE_MODE) & 0o555,
            "owner_id": "kernel",
            "created_at": 0.0,
            "modified_at": 0.0,
            "modified_by": "kernel",
            "run_id": None,
            "zone_id": self._zone_id,
            "backend_name": "kernel",
            "attributes": {},
        }

    def stat(self, relative: str) -> Stat | None:
        if relative == "/journal":
            return self._directory(relative) | {"revision": self._store.head().revision}
        if relative == "/" or relative[1:] in _DIRECTORIES:
            return self._directory(relative)
        row = self._service_row(relative)
        return None if row is None else self._service(row)

    def read(
        self, operation: str, relative: str, count: int | None, offset: int, version: int | None
    ) -> bytes:
        row = self._service_row(relative)
        if row is not None:
            return _as_json(row)[offset : None if count is None else offset + count]
        if self.stat(relative) is None:
            raise missing(operation, self.absolute(relative))
        raise is_directory(operation, self.absolute(relative))

    def names(self, relative: str) -> list[str] | None:
        return list(_DIRECTORIES) if relative == "/" else []

    def entries(self, relative: str, after: str = "") -> Iterator[Stat]:
        raise NotSupportedError("readdir", self.absolute(relative), "views hold no files")

    def subtree(self, relative: str, after: str = "") -> Iterator[Stat]:
        return self.entries(relative)

    def versions(self, relative: str, after_revision: int) -> Iterator[Stat]:
        return iter(())

    def first_missing(self, relative: str) -> str:
        return relative

    def _refuse(self, operation: str, relative: str) -> NoReturn:
        raise AccessDeniedError(
            operation, self.absolute(relative), f"{SYS_POINT} is the kernel's own and read-only"
        )

    def write(
        self,
        txn: Transaction,
        operation: str,
        relative: str,
        request: WriteRequest,
        prepared: Content | None,
        actor: Actor,
    ) -> Stat:
        self._refuse(operation, relative)

    def write_at(
        self,
        txn: Transaction,
        relative: str,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
        actor: Actor,
    ) -> Stat:
        self._refuse("write", relative)

    def create_directory(
        self, txn: Transaction, relative: str, parents: bool, exist_ok: bool, actor: Actor
    ) -> None:
        self._refuse("mkdir", relative)

    def set_attributes(
        self, txn: Transaction, relative: str, attrs: dict[str, Any], actor: Actor
    ) -> None:
        self._refuse("setattr", relative)

    def remove(self, txn: Transaction, relative: str, recursive: bool, actor: Actor) -> int:
        self._refuse("unlink", relative)

    def rename(self, txn: Transaction, old: str, new: str, actor: Actor) -> int:
        self._refuse("rename", old)

    def copy(self, txn: Transaction, source: str, target: str, actor: Actor) -> int:
        self._refuse("copy", target)

    def check_target(self, operation: str, target: str, source_is_directory: bool) -> None:
        self._refuse(operation, target)

    def send(self, operation: str, relative: str, *, is_move: bool) -> Departure:
        if self.stat(relative) is None:
            raise missing(operation, self.absolute(relative))
        raise NotSupportedError(operation, self.absolute(relative), "views hold no files")

    def receive(
        self, txn: Transaction, operation: str, target: str, departure: Departure, actor: Actor
    ) -> int:
        self._refuse(operation, target)

    def sync(self) -> None:
        """Nothing is stored here."""

    def close(self) -> None:
        """Nothing is held here."""


def _name_position(cursor: str | None) -> str:
    if cursor is None:
        return ""
    if not isinstance(cursor, str):
        raise InvalidArgumentError("readdir", None, f"{shown(cursor)} is not a cursor")
    return cursor


def _as_json(row: Stat) -> bytes:
    return msgspec.json.format(msgspec.json.encode(row)) + b"\n"


def _position(cursor: str | None, parts: int) -> tuple[int, ...]:
    if cursor is None:
        return (0,) * parts
    fields = cursor.split(".") if isinstance(cursor, str) else []
    known = all(len(f) <= 19 and f.isascii() and f.isdecimal() for f in fields)
    position = tuple(int(field) for field in fields) if known else ()
    if (
        len(position) != parts
        or max(position) > _LARGEST
        or position[-1] > _LARGEST_SEQUENCE[parts]
    ):
        raise InvalidArgumentError(
            "readdir", None, f"{shown(cursor)} is not a cursor of this listing"
        )
    return position


def _page(
    items: Iterator[tuple[str, Stat]], limit: int | None, details: bool, place: str
) -> DirectoryPage:
    taken = list(islice(items, limit or VIEW_PAGE))
    more = next(items, None) is not None
    entries = (stat if details else f"{SYS_POINT}/{place}/{at}" for at, stat in taken)
    return DirectoryPage(entries, taken[-1][0] if more else None)


def normalize_listed(path: str) -> str:
    """Normalize a path to list; what follows a view's prefix may itself be of full length."""
    if isinstance(path, str) and path.startswith(VERSIONS_POINT + "/"):
        return VERSIONS_POINT + normalize("history", path[len(VERSIONS_POINT) :])
    return normalize("readdir", path)
