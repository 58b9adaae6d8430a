"""MetastoreABC: the ordered key-value store that holds everything but content. Layer: contracts.

A driver stores bytes under bytes and knows nothing of files. Records, history, journal and
seals are written once, above it, so that each database is a small driver. Its conformance suite
is :class:`nexus.testing.ordered_store.OrderedStoreSuite`.

Invariants of every driver:

1. Keys compare as unsigned bytes. A key's version is the revision of the commit that last put it.
2. A commit is atomic, also across SIGKILL: all of its operations or none.
3. A commit that returned is visible to every later call and survives SIGKILL; with ``durable``
   it survives a power cut too.
4. Revisions increase by every commit and never repeat, also across reopening.
5. After a failed write or sync nothing is acknowledged until the driver has reopened by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from nexus.contracts.errors import NotSupportedError


class StoredEntry(NamedTuple):
    """A key with its value and the store revision that last wrote it."""

    key: bytes
    value: bytes
    version: int


class Condition(NamedTuple):
    """Holds when the key's version is ``version``; 0 means the key is absent."""

    key: bytes
    version: int


class Batch(msgspec.Struct, frozen=True, gc=False):
    """The operations of one commit. A key stands in at most one of the two."""

    puts: Sequence[tuple[bytes, bytes]]
    deletes: Sequence[bytes] = ()


class MetastoreCapabilities(msgspec.Struct, frozen=True):
    """What a driver promises beyond the required calls. None as a limit: no limit declared."""

    persistent: bool
    exclusive_owner: bool
    """No one but this process can change the store, so what was read may be kept in memory."""
    loadable: bool = False
    """Takes entries with their versions, by :meth:`MetastoreABC.load`: for conversions."""
    shares_syncs: bool = False
    """A commit that is not durable costs little, and callers of :meth:`MetastoreABC.sync` at the
    same time share one: nobody gains by gathering commits into a batch."""
    max_key_bytes: int | None = None
    max_value_bytes: int | None = None
    max_batch_operations: int | None = None


class MetastoreABC(ABC):
    """An ordered key-value store. Every method may be called from any thread."""

    name: str
    capabilities: MetastoreCapabilities

    @abstractmethod
    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """Return ``(value, version)``, or None when the key is absent.

        Errors: CorruptionError when the store reports damage; StorageError on an I/O failure.
        """

    def get_many(self, keys: Sequence[bytes]) -> list[tuple[bytes, int] | None]:
        """Return one answer a key, in the order of ``keys``. Errors: as :meth:`get`."""
        return [self.get(key) for key in keys]

    @abstractmethod
    def scan(
        self, prefix: bytes, after: bytes = b"", limit: int = 1000, before: bytes | None = None
    ) -> list[StoredEntry]:
        """Return up to ``limit`` entries in ascending key order.

        Entries have the prefix, a key greater than ``after`` and, when given, less than
        ``before``. Fewer than ``limit`` means there are no more. Each call is its own
        snapshot: a long scan resumes by key and pins nothing. Errors: as :meth:`get`.
        """

    @abstractmethod
    def commit(
        self,
        batch: Batch,
        conditions: Sequence[Condition] = (),
        *,
        durable: bool = False,
        reclaim: bool = False,
    ) -> int:
        """Apply the batch if every condition holds, atomically; return the new store revision.

        Deleting an absent key is no error. ``durable`` returns only after a sync. ``reclaim``
        says that this commit frees space: it may use space that the driver keeps in reserve
        for a full disk.

        Errors: ConflictError when a condition fails, with nothing applied; NoSpaceError when
        the disk is full, with nothing applied; StorageFailedError while the driver has not
        recovered from an earlier failure; StorageError otherwise.
        """

    @abstractmethod
    def sync(self) -> None:
        """Make every acknowledged commit survive a power cut. Errors: StorageFailedError."""

    @abstractmethod
    def revision(self) -> int:
        """Return the revision of the last commit, 0 for a new store."""

    def load(self, entries: Sequence[StoredEntry], revision: int) -> None:
        """Store entries with the versions they have, and take up at ``revision``.

        For a store that is being filled, by several calls with keys that are not there yet;
        ``revision`` is none before that of the store, nor before any of the versions. Durable
        after the next :meth:`sync`. Errors: as :meth:`commit`; NotSupportedError where the
        capability ``loadable`` is not declared.
        """
        raise NotSupportedError("load", None, f"the metastore {self.name} cannot be filled")

    def check(self) -> list[str]:
        """Return what the store finds wrong with its own structure; empty when it looks whole.

        For a checker: a damaged index can hide from a lookup what a scan still finds. The cost
        grows with the store. Errors: as :meth:`get`.
        """
        return []

    def in_forked_child(self) -> None:
        """Let go, in a child of fork(2), of locks on files that it shares with its parent.

        Takes no lock of its own: who held it may not exist in the child. Nothing else is called
        there.
        """
        return

    @abstractmethod
    def close(self) -> None:
        """Sync and release everything. Idempotent; later calls raise ClosedError."""
