"""Listings: one page of a directory, with mounts in the place of what they shadow.

Layer: core, between the readdir system call and the volumes. It takes no lock and checks no
argument; NexusFS does both. Unix counterpart: ``iterate_dir()`` over a mount namespace.

Invariant: a page is sorted bytewise by path, whatever number of volumes it comes from.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from nexus.contracts.metadata import DirectoryPage, Stat
from nexus.core.mounts import Mount
from nexus.core.primitives import VFSRouter
from nexus.core.sys_volume import SYS_POINT
from nexus.core.volume import Volume
from nexus.lib.paths import is_below

_PATH = itemgetter("path")


class Query(NamedTuple):
    """What one page of a directory is asked for."""

    path: str
    zone_id: str
    recursive: bool
    limit: int | None
    after: str
    details: bool


class Listings:
    """Makes pages from the volumes in a mount table. Shared by all threads; holds no state."""

    def __init__(self, router: VFSRouter[Mount]) -> None:
        self._router = router

    def page(self, volume: Volume, relative: str, query: Query) -> DirectoryPage:
        """Return one page of a directory of ``volume``, which is the one mounted there."""
        limit, details = query.limit, query.details
        if not (details or limit or query.after):
            paths = self._paths(volume, relative, query)
            if paths is not None:
                return DirectoryPage(paths)
        stats = self._stats(volume, relative, query)
        taken = list(stats if limit is None else islice(stats, limit))
        more = limit is not None and next(stats, None) is not None
        return DirectoryPage(
            taken if details else map(_PATH, taken), taken[-1]["path"] if more else None
        )

    def _paths(self, volume: Volume, relative: str, query: Query) -> list[str] | None:
        """Return all paths at once where the volume has them without their stats, else None."""
        if query.recursive:
            shadowing = self._points_below(query)
            return None if shadowing else volume.paths(relative)
        names = volume.names(relative)
        base = "/" if query.path == "/" else query.path + "/"
        return None if names is None else [base + name for name in names]

    def _points_below(self, query: Query) -> list[str]:
        points = self._router.points_below(query.path, query.zone_id)
        return [point for point in points if point != SYS_POINT]

    def _stats(self, volume: Volume, relative: str, query: Query) -> Iterator[Stat]:
        zone_id, after = query.zone_id, query.after
        points = self._points_below(query)
        start = relative_to(volume.point, after)
        if not query.recursive:
            stats = volume.entries(relative, start)
            return self._overlay_mounts(stats, points, zone_id) if points else stats
        if not points:
            return volume.subtree(relative, start)
        listings = [_unshadowed(volume.subtree(relative, start), points)]
        for point in points:
            mount = self._router.at(point, zone_id)
            if mount is not None and mount.volume is not None:
                inner = mount.volume.subtree("/", relative_to(point, after))
                beneath = [p for p in points if is_below(p, point)]
                listings.append(_unshadowed(inner, beneath))
                root = mount.volume.stat("/")
                if root is not None:
                    listings.append(iter((root,)))
        return (stat for stat in merge(*listings, key=_PATH) if stat["path"] > after)

    def _overlay_mounts(
        self, stats: Iterator[Stat], points: list[str], zone_id: str
    ) -> Iterator[Stat]:
        for stat in stats:
            if stat["path"] in points:
                mount = self._router.at(stat["path"], zone_id)
                if mount is not None and mount.volume is not None:
                    yield mount.volume.stat("/") or stat
                    continue
            yield stat


def relative_to(base: str, path: str) -> str:
    """Return where an absolute path stands in the order of what lies beneath ``base``."""
    if base == "/" or not path:
        return path
    return (
        path[len(base) :] if is_below(path, base) else ("" if path < base + "/" else "/\U0010ffff")
    )


def _unshadowed(stats: Iterator[Stat], points: list[str]) -> Iterator[Stat]:
    for stat in stats:
        path = stat["path"]
        if not any(path == point or is_below(path, point) for point in points):
            yield stat
