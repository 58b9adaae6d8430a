"""WatchTable: who watches what, found by what an event is about.

Layer: core, beneath :mod:`nexus.core.file_watcher`, which says what concerns whom. Paths are
canonical; what a watch is it does not know. Unix counterpart: the marks of fsnotify.

Invariants:

1. A match costs the depth of the event's paths and the watches found, not those there are.
2. A watch is found once, whichever of an event's paths it is found by.

Locks: none; the owner synchronises, but whether there is a watch at all may be asked at any moment.
The Rust twin takes turns by itself.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from nexus.core.path_trie import PathTrie
from nexus.lib.paths import parent

W = TypeVar("W")


class _Zone(Generic[W]):
    __slots__ = ("direct", "recursive")

    def __init__(self) -> None:
        self.recursive: PathTrie[W] = PathTrie()
        self.direct: PathTrie[W] = PathTrie()

    def __bool__(self) -> bool:
        return bool(self.recursive or self.direct)

    def trie(self, recursive: bool) -> PathTrie[W]:
        return self.recursive if recursive else self.direct

    def concerned(self, path: str, of_subtree: bool) -> list[W]:
        found = self.recursive.covering(path) + self.direct.at(path)
        if path != "/":
            found += self.direct.at(parent(path))
        if of_subtree:
            found += self.recursive.below(path) + self.direct.below(path)
        return found


class WatchTable(Generic[W]):
    """The watches of every zone. Not thread-safe while it changes."""

    __slots__ = ("_zones",)

    def __init__(self) -> None:
        self._zones: dict[str, _Zone[W]] = {}

    def __bool__(self) -> bool:
        return any(list(self._zones.values()))  # of one moment, as others may be changing it

    def insert(self, zone_id: str, path: str, recursive: bool, watch: W, /) -> None:
        """Add a watch of a path: of its entries too, or with ``recursive`` of all beneath."""
        zone = self._zones.get(zone_id) or _Zone()
        zone.trie(recursive).insert(path, watch)
        self._zones[zone_id] = zone

    def remove(self, zone_id: str, path: str, recursive: bool, watch: W, /) -> bool:
        """Take out a watch, the same object, of a path; return whether it was there."""
        zone = self._zones.get(zone_id)
        if zone is None or not zone.trie(recursive).remove(path, watch):
            return False
        if not zone:
            del self._zones[zone_id]
        return True

    def concerned(
        self, zone_id: str, path: str, new_path: str | None, of_subtree: bool, /
    ) -> list[W]:
        """Return the watches that an event about a path, or two, concerns.

        ``of_subtree`` says that it stands for everything beneath its paths too.
        """
        zone = self._zones.get(zone_id)
        if zone is None:
            return []
        found = zone.concerned(path, of_subtree)
        if new_path is None:
            return found
        found += zone.concerned(new_path, of_subtree)
        return list({id(watch): watch for watch in found}.values())
