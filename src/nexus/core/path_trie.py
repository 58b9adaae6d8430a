"""PathTrie: what is registered for paths, found by path. A tree of their components.

Layer: core, beneath :mod:`nexus.core.dispatch` and :mod:`nexus.core.watch_table`. Paths are
canonical; what the items are it does not know. Unix counterpart: the dentry tree.

Invariants:

1. Finding costs the components of the path asked for and the items found, not those there are.
2. Items of one path stay in the order in which they came.
3. A node has an item, or one beneath it.

Locks: none; the owner synchronises. The Rust twin takes turns by itself.
"""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class _Node(Generic[T]):
    __slots__ = ("children", "items")

    def __init__(self) -> None:
        self.items: list[T] = []
        self.children: dict[str, _Node[T]] = {}


class PathTrie(Generic[T]):
    """Items by path. Not thread-safe while it changes."""

    __slots__ = ("_count", "_root")

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def insert(self, path: str, item: T, /) -> None:
        """Add an item at a path, after those that are there."""
        node = self._root
        for name in _names(path):
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = _Node()
            node = child
        node.items.append(item)
        self._count += 1

    def remove(self, path: str, item: T, /) -> bool:
        """Take out an item, the same object, at a path; return whether it was there."""
        names = _names(path)
        nodes = [self._root]
        for name in names:
            child = nodes[-1].children.get(name)
            if child is None:
                return False
            nodes.append(child)
        items = nodes[-1].items
        place = next((place for place, other in enumerate(items) if other is item), None)
        if place is None:
            return False
        del items[place]
        self._count -= 1
        while names and not (nodes[-1].items or nodes[-1].children):
            nodes.pop()
            del nodes[-1].children[names.pop()]
        return True

    def at(self, path: str, /) -> list[T]:
        """Return the items at exactly this path."""
        node = self._node(path)
        return [] if node is None else node.items.copy()

    def covering(self, path: str, /) -> list[T]:
        """Return the items at a path and every directory above it, those of the deepest first."""
        node: _Node[T] | None = self._root
        levels = []
        for name in _names(path):
            if node is None:
                break
            levels.append(node.items)
            node = node.children.get(name)
        if node is not None:
            levels.append(node.items)
        return [item for items in reversed(levels) for item in items]

    def below(self, path: str, /) -> list[T]:
        """Return the items strictly beneath a path, each directory's before those in it."""
        node = self._node(path)
        found: list[T] = []
        waiting = [] if node is None else _last_to_first(node)
        while waiting:
            node = waiting.pop()
            found += node.items
            waiting += _last_to_first(node)
        return found

    def _node(self, path: str) -> _Node[T] | None:
        node = self._root
        for name in _names(path):
            child = node.children.get(name)
            if child is None:
                return None
            node = child
        return node


def _names(path: str) -> list[str]:
    return path[1:].split("/") if path != "/" else []


def _last_to_first(node: _Node[T]) -> list[_Node[T]]:
    return [node.children[name] for name in sorted(node.children, reverse=True)]
