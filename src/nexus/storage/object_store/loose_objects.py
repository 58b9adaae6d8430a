"""LooseObjects: one key of a transport for each object.

Layer: storage. The readable layout, and the only one over a transport that is no local disk. Unix
counterpart: git's loose objects. Keys::

    <first two hex digits>/<other 62>      an object, nothing but its bytes
    quarantine/<64 hex digits>-<unix ns>   an object that is set aside, and when

Locks: none but the transport's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from blake3 import blake3

from nexus.contracts.errors import ContentNotFoundError, CorruptionError, StorageError
from nexus.contracts.metadata import Buffer
from nexus.contracts.object_store import KeyInfo, Leftovers, StoredObject, TransportABC
from nexus.lib.block_seals import block_seals
from nexus.lib.content_id import is_object_id
from nexus.storage.object_store.object_database import ObjectDatabase

QUARANTINE = "quarantine"
_LIST_LIMIT = 1000


class LooseObjects(ObjectDatabase):
    """Objects in a transport. Shared freely between threads; owns the transport."""

    def __init__(self, transport: TransportABC) -> None:
        self.persistent = transport.capabilities.persistent
        self.place = transport.place
        self._transport = transport
        self._fetch = transport.fetch

    def put_many(
        self, objects: Sequence[tuple[str, Buffer]], seals: Mapping[str, bytes] | None = None
    ) -> None:
        for object_id, data in objects:
            key = object_id[:2] + "/" + object_id[2:]
            # For an absent key, asking is cheaper than an error of fetch.
            if not self._transport.exists(key) or not self._holds(key, data):
                self._transport.store(key, data)

    def _holds(self, key: str, data: Buffer) -> bool:
        try:
            stored = self._fetch(key, 0, len(data) + 1)
        except (ContentNotFoundError, StorageError):
            # Gone since it was asked for, or unreadable: storing it again heals both.
            return False
        return stored == data

    def get(self, object_id: str, *, size: int | None = None, seals: bytes | None = None) -> bytes:
        key = object_id[:2] + "/" + object_id[2:]
        try:
            data = self._fetch(key, 0, size)
            if _matches(data, object_id, seals):
                return data
            if size is not None:
                # The size may be wrong rather than the object.
                data = self._fetch(key)
                if _matches(data, object_id, seals):
                    return data
        except ContentNotFoundError as error:
            raise not_stored(object_id) from error
        raise damaged(object_id, "its bytes do not match its hash")

    def is_empty(self) -> bool:
        """Return whether no object is there, nor was; those that are set aside do not count."""
        first = self._transport.list_dir("", "", 1)  # folders of objects come before all else
        return not first or len(first[0].key) != 2

    def contains(self, object_id: str) -> bool:
        return self._transport.exists(_key(object_id))

    def verify(self, object_id: str) -> int:
        return self._verify_key(object_id, _key(object_id))

    def _verify_key(self, object_id: str, key: str) -> int:
        digest = blake3()
        size = 0
        try:
            for piece in self._transport.stream(key):
                digest.update(piece)
                size += len(piece)
        except ContentNotFoundError as error:
            raise not_stored(object_id) from error
        if digest.hexdigest() != object_id:
            raise damaged(object_id, "its bytes do not match its hash")
        return size

    def objects(self) -> Iterator[StoredObject]:
        for info in self._keys(""):
            object_id = info.key.replace("/", "", 1)
            if info.key[2:3] == "/" and is_object_id(object_id):
                yield StoredObject(object_id, info.size, info.modified_at_ns)
            elif info.key.startswith(QUARANTINE):
                return  # sorts after every object

    def set_aside(self, object_id: str, at_ns: int) -> bool:
        try:
            # A name that sorts by object, so that bringing one back looks at one place.
            target = f"{QUARANTINE}/{object_id}-{at_ns:020d}"
            self._transport.rename_key(_key(object_id), target)
        except ContentNotFoundError:
            return False
        return True

    def bring_back(self, object_id: str) -> bool:
        prefix = f"{QUARANTINE}/{object_id}-"
        found = self._transport.list_keys(QUARANTINE, prefix, 1)
        if not found or not found[0].key.startswith(prefix):
            return False
        # A writer may store the object at this very moment: what replaces it must be intact too.
        self._verify_key(object_id, found[0].key)
        self._transport.rename_key(found[0].key, _key(object_id))
        return True

    def purge(self, before_ns: int) -> int:
        freed = 0
        for info in self._keys(QUARANTINE):
            object_id, _, at_ns = info.key.rpartition("/")[2].partition("-")
            known = is_object_id(object_id) and at_ns.isdecimal()
            if known and int(at_ns) < before_ns and self._transport.remove(info.key):
                freed += info.size
        return freed

    def compact(self) -> int:
        """Give nothing back: purging has done so already."""
        return 0

    def remove_leftovers(self, untouched_since_ns: int, *, dry_run: bool) -> Leftovers:
        return self._transport.remove_leftovers(untouched_since_ns, dry_run=dry_run)

    def check(self, *, repair: bool) -> list[str]:
        """Find nothing: there is no structure but the transport's own."""
        return []

    def sync(self) -> None:
        self._transport.sync()

    def close(self) -> None:
        self._transport.close()

    def _keys(self, prefix: str) -> Iterator[KeyInfo]:
        after = ""
        while True:
            page = self._transport.list_keys(prefix, after, _LIST_LIMIT)
            yield from page
            if len(page) < _LIST_LIMIT:
                return
            after = page[-1].key


def not_stored(object_id: str) -> ContentNotFoundError:
    """Return the error for an object that is not there."""
    return ContentNotFoundError("fetch", object_id, f"object {object_id} is not stored")


def damaged(object_id: str, reason: str) -> CorruptionError:
    """Return the error for an object whose bytes are not its own."""
    return CorruptionError("fetch", object_id, f"object {object_id} is damaged: {reason}")


def _key(object_id: str) -> str:
    return object_id[:2] + "/" + object_id[2:]


def _matches(data: bytes, object_id: str, seals: bytes | None) -> bool:
    if seals is not None:
        return block_seals(data) == seals
    return blake3(data).hexdigest() == object_id
