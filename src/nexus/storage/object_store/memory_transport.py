"""MemoryTransport: keys in a sorted mapping, gone with the process.

Layer: storage. The readable twin of the local transport: the same answers without a disk. Unix
counterpart: tmpfs.

Invariants:

1. Every key's parents are in the mapping as directories.
2. A value is immutable: a reader holds old or new.

Lock: one, around every access to the mapping; no iterable of a caller is consumed under it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sortedcontainers import SortedDict

from nexus.contracts.errors import (
    ContentNotFoundError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
    PathIsDirectoryError,
    PathNotDirectoryError,
)
from nexus.contracts.metadata import DEFAULT_DIRECTORY_MODE, DEFAULT_FILE_MODE, Buffer
from nexus.contracts.object_store import (
    PIECE_BYTES,
    KeyInfo,
    TransportABC,
    TransportCapabilities,
)

_AFTER_SLASH = chr(ord("/") + 1)
_PERMISSIONS = 0o777


class _Entry(NamedTuple):
    data: bytes | None
    """None for a directory."""
    modified_at_ns: int
    serial: int
    mode: int


class MemoryTransport(TransportABC):
    """Keys in memory. Shared freely between threads."""

    def __init__(self, *, name: str = "memory", clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.name = name
        self.capabilities = TransportCapabilities(
            persistent=False, directories=True, atomic_rename=True, modes=True, shared=False
        )
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._serial = 0
        # str compares by code point, which is the order of UTF-8 bytes.
        self._entries: SortedDict[str, _Entry] = SortedDict()
        self._entries[""] = self._new_locked(None, DEFAULT_DIRECTORY_MODE)

    def store(self, key: str, data: Buffer) -> None:
        """Store bytes, see the contract."""
        value = bytes(data)
        with self._lock:
            was = self._entries.get(key)
            if was is not None and was.data is None:
                raise PathIsDirectoryError("store", key, "a directory is there")
            self._make_parents_locked("store", key)
            mode = DEFAULT_FILE_MODE if was is None else was.mode
            self._entries[key] = self._new_locked(value, mode)

    def store_chunked(self, key: str, pieces: Iterable[Buffer]) -> int:
        """Store a concatenation, see the contract."""
        data = b"".join(pieces)
        self.store(key, data)
        return len(data)

    def fetch(self, key: str, offset: int = 0, count: int | None = None) -> bytes:
        """Return bytes, see the contract."""
        data = self._value("fetch", key)
        end = len(data) if count is None else offset + count
        return data[offset:end]

    def stream(
        self, key: str, offset: int = 0, count: int | None = None, piece_bytes: int = PIECE_BYTES
    ) -> Iterator[bytes]:
        """Yield bytes of the one version that was there at the first piece."""
        data = self._value("stream", key)
        end = len(data) if count is None else min(len(data), offset + count)
        for start in range(offset, end, piece_bytes):
            yield data[start : min(start + piece_bytes, end)]

    def remove(self, key: str) -> bool:
        """Remove a key or an empty directory, see the contract."""
        if not key:
            raise InvalidArgumentError("remove", key, "the root cannot be removed")
        with self._lock:
            if key not in self._entries:
                return False
            if next(self._entries.irange(key + "/", key + _AFTER_SLASH, (True, False)), None):
                raise DirectoryNotEmptyError("remove", key, "the directory is not empty")
            del self._entries[key]
            return True

    def info(self, key: str) -> KeyInfo | None:
        """Return what is known of the key, or None."""
        with self._lock:
            entry = self._entries.get(key)
        return None if entry is None else _info(key, entry)

    def list_keys(self, prefix: str = "", after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return files at any depth, see the contract."""
        base = prefix + "/" if prefix else ""
        found: list[KeyInfo] = []
        with self._lock:
            for key in self._entries.irange(max(base, after), inclusive=(False, False)):
                if not key.startswith(base) or len(found) >= limit:
                    break
                entry = self._entries[key]
                if entry.data is not None:
                    found.append(_info(key, entry))
        return found

    def list_dir(self, key: str, after: str = "", limit: int = 1000) -> list[KeyInfo]:
        """Return direct entries, see the contract."""
        base = key + "/" if key else ""
        with self._lock:
            there = self._entries.get(key)
            if there is None:
                self._check_parents_locked("list_dir", key)
                raise ContentNotFoundError("list_dir", key, "no such directory")
            if there.data is not None:
                raise PathNotDirectoryError("list_dir", key, "not a directory")
            return list(self._children_locked(base, max(base, after), limit))

    def _children_locked(self, base: str, after: str, limit: int) -> Iterator[KeyInfo]:
        index = self._entries.bisect_right(after)
        keys = self._entries.keys()
        while limit > 0 and index < len(keys):
            key: str = keys[index]
            if not key.startswith(base):
                return
            name, slash, _ = key[len(base) :].partition("/")
            if slash:
                # Beneath a child: go on behind all that lies there, in one step.
                index = self._entries.bisect_left(base + name + _AFTER_SLASH)
                continue
            yield _info(key, self._entries[key])
            limit -= 1
            index += 1

    def remove_tree(self, key: str) -> bool:
        """Remove a key with everything beneath it, see the contract."""
        if not key:
            raise InvalidArgumentError("remove_tree", key, "the root cannot be removed")
        with self._lock:
            if key not in self._entries:
                return False
            beneath = self._entries.irange(key + "/", key + _AFTER_SLASH, (True, False))
            for below in [key, *beneath]:
                del self._entries[below]
            return True

    def rename_key(self, source: str, target: str) -> None:
        """Move a key or a directory, see the contract."""
        if not source or not target or target.startswith(source + "/"):
            raise InvalidArgumentError("rename_key", source, f"cannot be moved to {target!r}")
        with self._lock:
            moved = self._entries.get(source)
            if moved is None:
                raise ContentNotFoundError("rename_key", source, "no such file or directory")
            if source == target:
                return
            self._check_target_locked(target, moved)
            self._make_parents_locked("rename_key", target)
            beneath = self._entries.irange(source + "/", source + _AFTER_SLASH, (True, False))
            for key in [source, *beneath]:
                self._entries[target + key[len(source) :]] = self._entries.pop(key)

    def _check_target_locked(self, target: str, moved: _Entry) -> None:
        there = self._entries.get(target)
        if there is None:
            return
        if moved.data is not None and there.data is None:
            raise PathIsDirectoryError("rename_key", target, "a directory is there")
        if moved.data is None and there.data is not None:
            raise PathNotDirectoryError("rename_key", target, "a file is there")
        if next(self._entries.irange(target + "/", target + _AFTER_SLASH, (True, False)), None):
            raise DirectoryNotEmptyError("rename_key", target, "the directory is not empty")

    def create_dir(self, key: str) -> None:
        """Create a directory and its missing parents, see the contract."""
        with self._lock:
            self._make_parents_locked("create_dir", key + "/")

    def set_mode(self, key: str, mode: int) -> None:
        """Set the permission bits. Errors: ContentNotFoundError."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                raise ContentNotFoundError("set_mode", key, "no such file or directory")
            self._entries[key] = entry._replace(mode=mode & _PERMISSIONS)

    def sync(self) -> None:
        """Do nothing: memory survives no power cut, and the capabilities say so."""

    def suspect_keys(self) -> list[str]:
        """Return nothing: no sync fails here."""
        return []

    def close(self) -> None:
        """Keep everything: it lives as long as the object."""

    def _value(self, operation: str, key: str) -> bytes:
        with self._lock:
            entry: _Entry | None = self._entries.get(key)
            if entry is None:
                self._check_parents_locked(operation, key)
                raise ContentNotFoundError(operation, key, "no such file or directory")
        if entry.data is None:
            raise PathIsDirectoryError(operation, key, "is a directory")
        return entry.data

    def _check_parents_locked(self, operation: str, key: str) -> None:
        for parent in _parents(key):
            entry = self._entries.get(parent)
            if entry is not None and entry.data is not None:
                raise PathNotDirectoryError(operation, key, f"{parent} is a file")

    def _make_parents_locked(self, operation: str, key: str) -> None:
        self._check_parents_locked(operation, key)
        for parent in _parents(key):
            if parent not in self._entries:
                self._entries[parent] = self._new_locked(None, DEFAULT_DIRECTORY_MODE)

    def _new_locked(self, data: bytes | None, mode: int) -> _Entry:
        self._serial += 1
        return _Entry(data, self._clock_ns(), self._serial, mode)


def _info(key: str, entry: _Entry) -> KeyInfo:
    return KeyInfo(
        key,
        len(entry.data or b""),
        entry.modified_at_ns,
        entry.data is None,
        f"{entry.serial:x}",
        entry.mode,
    )


def _parents(key: str) -> Iterator[str]:
    """Yield the directories above a key, outermost first, without the root."""
    position = key.find("/")
    while position > 0:
        yield key[:position]
        position = key.find("/", position + 1)
