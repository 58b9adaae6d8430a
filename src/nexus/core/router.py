"""VFSRouter: which mount serves a path. Longest prefix over an in-memory mount table.

Layer: core, a kernel primitive. It knows canonical mount points and opaque mounts, no driver and
no storage; :mod:`nexus.core.mounts` keeps the table persistent. Unix counterpart:
``lookup_mnt()``.

Invariant: a zone's table is replaced, never changed in place, so that a reader without a lock
sees one state of it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Generic, TypeAlias, TypeVar

from nexus.contracts.errors import PathNotFoundError
from nexus.lib.paths import depth, is_below

T = TypeVar("T")


RouteResult: TypeAlias = tuple[T, str, str]
"""The mount that serves a path, its point, and the path within it (``/`` for its root)."""


_REMEMBERED = 1024


class _Table(dict[str, T]):
    """A zone's mounts by their point, and how many components the deepest point has.

    ``by_directory`` remembers the mounts that serve a few directories. It is as old as the table.
    """

    def __init__(self, mounts: Mapping[str, T]) -> None:
        super().__init__(mounts)
        self.deepest = max((depth(point) for point in mounts), default=0)
        self.by_directory: dict[str, tuple[T, str]] = {}


class VFSRouter(Generic[T]):
    """Routes ``/{zone}/{path}`` to mounts. Shared by all threads; writers take turns."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._tables: dict[str, _Table[T]] = {}

    def add(self, zone_id: str, point: str, mount: T) -> None:
        """Mount at a canonical point; it must be free."""
        with self._turn:
            table = dict(self._tables.get(zone_id, {}))
            assert point not in table, f"{point} is mounted already"
            table[point] = mount
            self._tables[zone_id] = _Table(table)

    def remove(self, zone_id: str, point: str) -> T:
        """Take a mount out of the table and return it."""
        with self._turn:
            table = dict(self._tables[zone_id])
            mount = table.pop(point)
            self._tables[zone_id] = _Table(table)
            return mount

    def route(self, path: str, zone_id: str) -> RouteResult[T]:
        """Return the mount with the longest point that contains the canonical path.

        Errors: PathNotFoundError when the zone has no mount there.
        """
        table = self._tables.get(zone_id)
        if table:
            mount = table.get(path)
            if mount is not None:
                return mount, path, "/"
            directory = path[: path.rfind("/")]
            found = table.by_directory.get(directory) or _search(table, directory)
            if found is not None:
                mount, point = found
                return mount, point, path if point == "/" else path[len(point) :]
        raise PathNotFoundError("route", path, f"zone {zone_id!r} has nothing mounted here")

    def table(self, zone_id: str) -> object:
        """Return what stands for a zone's mounts: the same object as long as none has changed."""
        return self._tables.get(zone_id)

    def at(self, path: str, zone_id: str) -> T | None:
        """Return the mount whose point is exactly this path, or None."""
        table = self._tables.get(zone_id)
        return None if table is None else table.get(path)

    def points_below(self, path: str, zone_id: str) -> list[str]:
        """Return the mount points strictly beneath a path, sorted."""
        table = self._tables.get(zone_id)
        if not table:
            return []
        return sorted(point for point in table if is_below(point, path))

    def mounts(self, zone_id: str) -> list[tuple[str, T]]:
        """Return every (point, mount) of a zone, sorted by point."""
        return sorted(self._tables.get(zone_id, {}).items(), key=lambda item: item[0])


def _search(table: _Table[T], directory: str) -> tuple[T, str] | None:
    """Return the mount that serves what lies in a directory and its point, and remember them."""
    point = directory or "/"
    if point.count("/") > table.deepest:
        # No point is as deep as this; a path may have thousands of components.
        point = "/".join(point.split("/", table.deepest + 1)[:-1]) or "/"
    while (mount := table.get(point)) is None:
        if point == "/":
            return None
        point = point[: point.rfind("/")] or "/"
    if len(table.by_directory) >= _REMEMBERED:
        table.by_directory.clear()
    table.by_directory[directory] = mount, point
    return mount, point
