"""PathTrie: what is registered for paths, found by path. A tree of their components.

Layer: core, beneath :mod:`nexus.core.dispatch` and :mod:`nexus.core.watch_table`. Paths are
canonical; what the items are it does not know. Unix counterpart: the dentry tree.

Invariants:

1. Finding costs the components of the path asked for and the items found, not those there are.
2. Items of one path stay in the order in which they came.
3. A node has an item, or one beneath it. A change is one step, so that this holds also where a
   signal interrupts it.

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

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def __bool__(self) -> bool:
        return bool(self._root.items or self._root.children)

    def insert(self, path: str, item: T, /) -> None:
        """Add an item at a path, after those that are there."""
        names = _names(path)
        nodes = self._along(names)
        missing = names[len(nodes) - 1 :]
        if not missing:
            nodes[-1].items.append(item)
            return
        branch: _Node[T] = _Node()
        branch.items.append(item)
        for name in reversed(missing[1:]):
            above: _Node[T] = _Node()
            above.children[name] = branch
            branch = above
        nodes[-1].children[missing[0]] = branch

    def remove(self, path: str, item: T, /) -> bool:
        """Take out an item, the same object, at a path; return whether it was there."""
        names = _names(path)
        nodes = self._along(names)
        if len(nodes) <= len(names):
            return False
        items = nodes[-1].items
        place = next((place for place, other in enumerate(items) if other is item), None)
        if place is None:
            return False
        if len(items) > 1 or nodes[-1].children or not names:
            del items[place]
            return True
        # The branch that is for this item alone goes with it, cut off where it leaves the rest.
        while len(names) > 1 and not nodes[-2].items and len(nodes[-2].children) == 1:
            nodes.pop()
            names.pop()
        del nodes[-2].children[names[-1]]
        return True

    def at(self, path: str, /) -> list[T]:
        """Return the items at exactly this path."""
        node = self._node(path)
        return [] if node is None else node.items.copy()

    def covering(self, path: str, /) -> list[T]:
        """Return the items at a path and every directory above it, those of the deepest first."""
        return [item for node in reversed(self._along(_names(path))) for item in node.items]

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
        names = _names(path)
        nodes = self._along(names)
        return nodes[-1] if len(nodes) > len(names) else None

    def _along(self, names: list[str]) -> list[_Node[T]]:
        """Return the nodes from the root on that there are along these names."""
        nodes = [self._root]
        for name in names:
            node = nodes[-1].children.get(name)
            if node is None:
                break
            nodes.append(node)
        return nodes


def _names(path: str) -> list[str]:
    return path[1:].split("/") if path != "/" else []


def _last_to_first(node: _Node[T]) -> list[_Node[T]]:
    return [node.children[name] for name in sorted(node.children, reverse=True)]
