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
from typing import Generic, NamedTuple, TypeVar

from nexus.contracts.errors import PathNotFoundError
from nexus.lib.paths import depth, is_below

T = TypeVar("T")


class RouteResult(NamedTuple, Generic[T]):
    """The mount that serves a path, and the path within it (``/`` for its root)."""

    mount: T
    point: str
    relative: str


class _Table(dict[str, T]):
    """A zone's mounts by their point, and how many components the deepest point has."""

    def __init__(self, mounts: Mapping[str, T]) -> None:
        super().__init__(mounts)
        self.deepest = max((depth(point) for point in mounts), default=0)


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
            point = path
            if path.count("/") > table.deepest:
                # No point is as deep as this; a path may have thousands of components.
                point = "/".join(path.split("/", table.deepest + 1)[:-1]) or "/"
            while True:
                mount = table.get(point)
                if mount is not None:
                    if point == "/":
                        return RouteResult(mount, point, path)
                    return RouteResult(mount, point, path[len(point) :] or "/")
                if point == "/":
                    break
                point = point[: point.rfind("/")] or "/"
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
