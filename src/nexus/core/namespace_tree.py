"""NamespaceTree: a namespace store as the kernel asks it.

Layer: core. Its job: paths of the volume in, errors with the kernel's operation and path out, and
walks in order. It keeps nothing of what it is told. Unix counterpart: the client half of NFS.

Locks: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, TypeVar

from nexus.contracts.errors import ContentNotFoundError, NexusError
from nexus.contracts.object_store import KeyInfo, NamespaceStoreABC
from nexus.core.volume import missing

T = TypeVar("T")
PAGE = 1000


class NamespaceTree:
    """The tree behind a store. ``absolute`` makes a volume path the caller's. Shared freely."""

    def __init__(self, store: NamespaceStoreABC, absolute: Callable[[str], str]) -> None:
        self._store = store
        self._absolute = absolute

    def ask(self, operation: str, relative: str, call: Callable[..., T], *args: Any) -> T:
        """Call the driver, and put the kernel's operation and path on its errors."""
        try:
            return call(*args)
        except ContentNotFoundError as error:
            raise missing(operation, self._absolute(relative)) from error
        except NexusError as error:
            if error.path is not None and error.path.startswith("/"):
                raise  # of the volume whose bytes the driver was taking; keys have no slash there
            path = self._absolute(relative)
            raise type(error)(operation, path, error.reason, hint=error.hint) from error

    def at(self, operation: str, relative: str, call: Callable[..., T], *args: Any) -> T:
        """Call the driver for a path's own key; see :meth:`ask`."""
        return self.ask(operation, relative, call, key_of(relative), *args)

    def info(self, operation: str, relative: str) -> KeyInfo | None:
        """Return what is at a path now, or None."""
        return self.at(operation, relative, self._store.stat)

    def page(self, operation: str, relative: str, after: str, limit: int) -> list[KeyInfo]:
        """Return up to ``limit`` entries of a directory, after the volume path ``after``."""
        return self.at(operation, relative, self._store.list_dir, key_of(after or "/"), limit)

    def children(self, relative: str, after: str = "") -> Iterator[KeyInfo]:
        """Yield the entries of a directory in order, after the volume path ``after``."""
        while True:
            page = self.page("readdir", relative, after, PAGE)
            yield from page
            if len(page) < PAGE:
                return
            after = "/" + page[-1].key

    def walk(self, relative: str, after: str = "") -> Iterator[KeyInfo]:
        """Yield everything beneath a directory, bytewise by path, after the path ``after``.

        A merge of the directories that have been met and are not exhausted: what lies in one
        sorts as ``name/…``, so among siblings such as ``name.txt`` and ``name-1``.
        """
        waiting: list[tuple[str, KeyInfo, Iterator[KeyInfo]]] = []

        def advance(listing: Iterator[KeyInfo]) -> None:
            info = next(listing, None)
            if info is not None:
                heappush(waiting, (info.key, info, listing))

        advance(self.children(relative))
        while waiting:
            _, info, listing = heappop(waiting)
            if "/" + info.key > after:
                yield info
            advance(listing)
            enters = info.is_directory and not info.is_linked
            if enters and f"/{info.key}0" > after:  # "0" follows "/"
                advance(self.children("/" + info.key))


def key_of(relative: str) -> str:
    """Return the store's key for a volume path."""
    return relative[1:]
