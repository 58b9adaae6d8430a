"""Sorted pages over the folders of a local disk.

Layer: storage. Reads names in one pass a directory and keeps only those of the page; holds no
cursor and no descriptor between pages. Unix counterpart: readdir(3), with an order.

Names that are not valid UTF-8, hold control characters or are staging names are left out.
Comparing ``str`` by code point is comparing UTF-8 bytes, since lone surrogates are out.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice

from msgspec.structs import replace

from nexus.contracts.errors import AccessDeniedError
from nexus.contracts.object_store import KeyInfo
from nexus.storage.object_store.confinement import Confinement
from nexus.storage.object_store.staging import is_leftover, is_staging_name

_UNLISTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search


class Listing:
    """Listings below ``prefix`` (a root with its trailing slash). Stateless, shared freely."""

    def __init__(
        self,
        prefix: str,
        info: Callable[[str], KeyInfo | None],
        confinement: Confinement | None,
    ) -> None:
        self._prefix = prefix
        self._info = info
        self._confinement = confinement

    def entries(self, key: str, after: str, limit: int) -> list[KeyInfo]:
        """Return one page of a directory. Errors: OSError where it cannot be read."""
        base = key + "/" if key else ""
        if not after.startswith(base):
            if after > base:
                os.stat(self._prefix + base)  # still an error where no directory is
                return []
            after = base
        name_after = after[len(base) :]
        page: list[KeyInfo] = []
        while len(page) < limit:
            wanted = limit - len(page)
            names = self._names(base, name_after, wanted, mark_directories=False)
            found = (self._listed(base + name) for name in names)
            page.extend(info for info in found if info is not None)
            if len(names) < wanted:
                break
            name_after = names[-1]
        return page

    def unlisted(self, key: str) -> list[str]:
        """Return the names in a directory that :meth:`entries` leaves out, but for leftovers.

        Errors: OSError where it cannot be read.
        """
        base = self._prefix + key + "/" if key else self._prefix
        names = sorted(os.listdir(base))
        return [name for name in names if self._is_unlisted(base + name, name)]

    def _is_unlisted(self, path: str, name: str) -> bool:
        if _UNLISTABLE(name):
            return True
        if is_staging_name(name):
            return not is_leftover(name)
        return self._listed(path[len(self._prefix) :]) is None and os.path.lexists(path)

    def keys(self, prefix: str, after: str, limit: int) -> list[KeyInfo]:
        """Return one page of files at any depth."""
        base = prefix + "/" if prefix else ""
        above = (os.path.realpath(self._prefix + prefix),) if self._confinement else ()
        try:
            if self._info(prefix) is None:
                return []
            return list(islice(self._walk(base, after, limit, above), limit))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _walk(self, base: str, after: str, limit: int, above: tuple[str, ...]) -> Iterator[KeyInfo]:
        """Yield the files below ``base`` after ``after``; ``above`` guards against cycles."""
        if not after.startswith(base):
            if after > base:
                return
            after = base
        name_after = after[len(base) :]
        # The directory that holds ``after`` sorts at or before it, and is not done yet.
        resumed = name_after.partition("/")[0] + "/" if "/" in name_after else ""
        if resumed:
            yield from self._enter(base + resumed, after, limit, above)
        while True:
            names = self._names(base, name_after, limit, mark_directories=True)
            for name in names:
                if name.endswith("/"):
                    yield from self._enter(base + name, "", limit, above)
                else:
                    info = self._listed(base + name)
                    if info is not None and not info.is_directory:
                        yield info
            if len(names) < limit:
                return
            name_after = names[-1]

    def _enter(
        self, base: str, after: str, limit: int, above: tuple[str, ...]
    ) -> Iterator[KeyInfo]:
        if above:
            real_path = os.path.realpath(self._prefix + base)
            if real_path in above or not self._holds(real_path):
                return
            above = (*above, real_path)
        try:
            yield from self._walk(base, after, limit, above)
        except (FileNotFoundError, NotADirectoryError):
            return  # removed, or replaced by a file, while listing

    def _names(self, base: str, after: str, limit: int, *, mark_directories: bool) -> list[str]:
        """Return the ``limit`` smallest names greater than ``after``, sorted.

        ``mark_directories`` gives those a trailing slash, as they sort in the order of full keys.
        """
        with os.scandir(self._prefix + base) as scanned:
            names = (
                name
                for entry in scanned
                if (name := _sort_name(entry, mark_directories)) > after
                and not _UNLISTABLE(name)
                and not is_staging_name(name)
            )
            return heapq.nsmallest(limit, names)

    def _listed(self, key: str) -> KeyInfo | None:
        """Return what the key is, or None for what listings leave out."""
        try:
            info = self._info(key)
        except AccessDeniedError:
            return None  # a link that leaves the root
        if info is not None and info.is_directory and os.path.islink(self._prefix + key):
            return replace(info, is_linked=True)
        return info

    def _holds(self, real_path: str) -> bool:
        return self._confinement is None or self._confinement.holds(real_path)


def _sort_name(entry: os.DirEntry[str], mark_directories: bool) -> str:
    if mark_directories and _is_directory(entry):
        return entry.name + "/"
    return entry.name


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that cannot be followed
