"""RedbMetastore: an ordered store in one redb file, through the Rust crate.

Layer: storage. The store itself is ``rust/nexus_kernel/src/store.rs``: a commit is a change of
redb in memory and one record in a log, and durable commits share the syncs of that log. Here are
its birth, the witness of its newest revision, the reserve for a full disk, and its errors. It
holds no notion of files, and no seal: its user seals every value.

Beside the file: ``.log`` has the commits since the last checkpoint; ``.head`` is the witness
against a lost end of the log; ``.reserve`` is space for deleting on a full disk; ``.new`` a
creation cut short.

Invariants (those of :class:`nexus.contracts.metastore.MetastoreABC`, and):

1. A store is born whole: made under a temporary name, synced, renamed, its directory synced.
2. The witness never runs ahead of what is in the log, nor its synced part of what is synced.

Locks: ``_turn``, a leaf, guards the witness and the reserve. No call of the store is made under
it, so that commits can share syncs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from nexus.contracts.errors import (
    BusyError,
    ClosedError,
    CorruptionError,
    InvalidArgumentError,
    NexusError,
    NoSpaceError,
    PathNotFoundError,
    StorageFailedError,
)
from nexus.contracts.metastore import (
    Batch,
    Condition,
    MetastoreABC,
    MetastoreCapabilities,
    StoredEntry,
)
from nexus.lib import native
from nexus.lib.disk import Disk, storage_error
from nexus.storage.metastore.head_file import HeadFile
from nexus.storage.metastore.ordered import conflict_error, scan_range
from nexus.storage.metastore.space_reserve import SpaceReserve

_MAGIC = b"redb\x1a\x0a\xa9\x0d\x0a"
_CHECKED_AT_ONCE = 1000
_FULL_HINT = "delete something, or run `nexus gc`"
_DAMAGE_HINT = "restore the file from a backup"


class RedbMetastore(MetastoreABC):
    """An ordered store in a redb file. Shared freely between threads, not between processes."""

    name = "redb"
    capabilities = MetastoreCapabilities(persistent=True, exclusive_owner=True, loadable=True)

    def __init__(
        self,
        path: str,
        *,
        disk: Disk,
        create: bool,
        accept_loss: bool = False,
        reserve_bytes: int = 4 << 20,
        log_limit_bytes: int = 16 << 20,
        cache_bytes: int = 64 << 20,
    ) -> None:
        """Open the store, making it first when it is absent and ``create`` is set.

        ``accept_loss`` opens a store whose last commits are missing. ``log_limit_bytes`` is how
        long the log grows before a commit waits for a checkpoint.

        Errors: ConfigError without the Rust kernel; PathNotFoundError; CorruptionError for damage,
        for another program's file and for missing commits; BusyError while another process has it
        open; AccessDeniedError, ReadOnlyError, NoSpaceError, StorageError.
        """
        self._kernel = native.required("the metastore redb")
        self._path = os.path.abspath(path)
        self._disk = disk
        self._turn = threading.Lock()
        self._closed = False  # this and both below: guard _turn
        self._recorded = 0
        self._recorded_synced = 0
        if create and not os.path.lexists(self._path):
            self._create()
        self._check_header()
        with ExitStack() as undo:
            self._open(log_limit_bytes, cache_bytes, undo)
            self._open_beside(reserve_bytes, undo)
            self._check_witness(accept_loss=accept_loss)
            undo.pop_all()

    # Reading

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """Return ``(value, version)``, or None. Errors: CorruptionError, StorageError."""
        try:
            found: tuple[bytes, int] | None = self._store.get(key)
        except self._kernel.StoreError as error:
            raise self._error("get", error) from error
        return found

    def scan(
        self, prefix: bytes, after: bytes = b"", limit: int = 1000, before: bytes | None = None
    ) -> list[StoredEntry]:
        """Return up to ``limit`` entries in key order. Errors: as :meth:`get`."""
        try:
            rows = self._store.scan(*scan_range(prefix, after, before), max(limit, 0))
        except self._kernel.StoreError as error:
            raise self._error("scan", error) from error
        return list(map(StoredEntry._make, rows))

    def revision(self) -> int:
        """Return the revision of the last commit. Errors: ClosedError."""
        try:
            revision: int = self._store.revision()
        except self._kernel.StoreError as error:
            raise self._error("revision", error) from error
        return revision

    def check(self) -> list[str]:
        """Read every entry; return what is wrong. Errors: StorageError."""
        after = b""
        while True:
            try:
                page = self.scan(b"", after, _CHECKED_AT_ONCE)
            except CorruptionError as error:
                return [error.reason]
            if len(page) < _CHECKED_AT_ONCE:
                return []
            after = page[-1].key

    # Writing

    def commit(
        self,
        batch: Batch,
        conditions: Sequence[Condition] = (),
        *,
        durable: bool = False,
        reclaim: bool = False,
    ) -> int:
        """Apply the batch; return the new revision.

        Errors: ConflictError, NoSpaceError, StorageFailedError, CorruptionError,
        InvalidArgumentError for keys or values that are not bytes, ClosedError.
        """
        if not (self._reserve.held or reclaim or self._closed):
            self._restore_reserve()
        try:
            revision = self._commit(batch, conditions, durable)
        except NoSpaceError:
            if not (reclaim and self._release_reserve()):
                raise
            revision = self._commit(batch, conditions, durable)
        with self._turn:
            self._witness_locked(revision, synced=durable)
        return revision

    def load(self, entries: Sequence[StoredEntry], revision: int) -> None:
        """Store entries with their versions, durably. Errors: NoSpaceError, StorageFailedError."""
        try:
            self._store.load(entries, revision)
        except self._kernel.StoreError as error:
            raise self._error("load", error) from error
        with self._turn:
            self._witness_locked(revision, synced=True)

    def sync(self) -> None:
        """Make every acknowledged commit survive a power cut. Errors: StorageFailedError."""
        try:
            revision = self._store.revision()
            self._store.sync()
        except self._kernel.StoreError as error:
            raise self._error("sync", error) from error
        with self._turn:
            self._witness_locked(revision, synced=True)

    def in_forked_child(self) -> None:
        """Give up the child's share of the file's lock; its descriptor stays taken."""
        descriptor = self._store.descriptor
        if descriptor >= 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, descriptor, inheritable=False)
            os.close(nothing)

    def close(self) -> None:
        """Write the log back, sync and release everything. Idempotent.

        Errors: StorageFailedError when the last commits may not survive a power cut.
        """
        with self._turn:
            if self._closed:
                return
            self._closed = True
            try:
                self._store.close()
                self._head.record_synced(self._recorded)
            except self._kernel.StoreError as error:
                raise self._error("close", error) from error
            finally:
                self._head.close()

    def _commit(self, batch: Batch, conditions: Sequence[Condition], durable: bool) -> int:
        try:
            revision: int = self._store.commit(batch.puts, batch.deletes, conditions, durable)
        except self._kernel.StoreConflict as conflict:
            index, found = conflict.args
            raise conflict_error(conditions[index], found) from conflict
        except self._kernel.StoreError as error:
            raise self._error("commit", error) from error
        except (TypeError, OverflowError) as error:
            raise InvalidArgumentError("commit", None, str(error)) from error
        return revision

    def _witness_locked(self, revision: int, *, synced: bool) -> None:
        if self._closed:
            return
        if revision > self._recorded:
            self._recorded = revision
            self._head.record(revision)
        if synced and revision > self._recorded_synced:
            self._recorded_synced = revision
            self._head.record_synced(revision)

    # Space

    def _restore_reserve(self) -> None:
        """Refuse what may not take space while the reserve is used up."""
        try:
            with self._turn:
                if self._reserve.restore():
                    return
        except OSError as error:
            raise storage_error("commit", self._path, error) from error
        raise NoSpaceError("commit", self._path, "the disk is full", hint=_FULL_HINT)

    def _release_reserve(self) -> bool:
        try:
            with self._turn:
                return self._reserve.release()
        except OSError as error:
            raise storage_error("commit", self._path, error) from error

    # Files

    def _create(self) -> None:
        """Make an empty store at the path, whole or not at all."""
        disk, temporary = self._disk, self._path + ".new"
        try:
            if os.path.exists(self._path + ".log") and os.path.getsize(self._path + ".log"):
                reason = "the store is gone but its log (.log) is there"
                hint = "restore the file, or remove the log"
                raise CorruptionError("create", self._path, reason, hint=hint)
            with suppress(FileNotFoundError):
                disk.unlink(temporary)
            self._kernel.create_store(temporary, int.from_bytes(os.urandom(8), "big"))
            fd = disk.open(temporary, os.O_RDWR)
            try:
                disk.fsync(fd)
            finally:
                disk.close(fd)
            disk.rename(temporary, self._path)
            disk.fsync_directory(os.path.dirname(self._path))
        except NexusError:
            raise  # an OSError too, and already says what is wrong
        except self._kernel.StoreError as error:
            raise self._error("create", error) from error
        except OSError as error:
            raise storage_error("create", self._path, error) from error

    def _check_header(self) -> None:
        try:
            with open(self._path, "rb") as file:
                magic = file.read(len(_MAGIC))
        except FileNotFoundError as error:
            raise PathNotFoundError("open", self._path, "no metastore here") from error
        except OSError as error:
            raise storage_error("open", self._path, error) from error
        if magic != _MAGIC:
            reason = "this is not a redb database"
            raise CorruptionError("open", self._path, reason, hint=_DAMAGE_HINT)

    def _open(self, log_limit_bytes: int, cache_bytes: int, undo: ExitStack) -> None:
        try:
            self._store = self._kernel.OrderedStore(
                self._path, log_limit_bytes=log_limit_bytes, cache_bytes=cache_bytes
            )
        except self._kernel.StoreError as error:
            raise self._error("open", error) from error
        undo.callback(self._store.close)

    def _open_beside(self, reserve_bytes: int, undo: ExitStack) -> None:
        try:
            self._reserve = SpaceReserve(
                self._path + ".reserve", size_bytes=reserve_bytes, disk=self._disk
            )
            self._reserve.restore()
            self._head = HeadFile(
                self._path + ".head", identity=self._store.identity, disk=self._disk
            )
            undo.callback(self._head.close)
            self._disk.fsync_directory(os.path.dirname(self._path))
        except OSError as error:
            raise storage_error("open", self._path, error) from error

    def _check_witness(self, *, accept_loss: bool) -> None:
        stored, newest = self.revision(), self._head.newest()
        if newest > stored and not accept_loss:
            count = newest - stored
            reason = f"the last {count} commits are missing: the end of the log is damaged or gone"
            hint = "`nexus fsck --repair` accepts the loss"
            raise CorruptionError("open", self._path, reason, hint=hint)
        if newest > stored:
            # Revisions of lost commits were given out and must not come back.
            try:
                self._store.skip_to(newest)
            except self._kernel.StoreError as error:
                raise self._error("open", error) from error
            self._head.restart(newest)
        # Opening ends with a checkpoint, so that all of it is synced.
        self._recorded = self._recorded_synced = max(stored, newest)
        self._head.record(self._recorded)
        self._head.record_synced(self._recorded)

    def _error(self, operation: str, error: Exception) -> NexusError:
        kind, reason, errno = error.args
        if kind == "closed" and self._closed:
            return ClosedError(operation, self._path, reason)
        if kind == "busy":
            return BusyError(operation, self._path, reason, hint="another process has it open")
        if kind == "damaged":
            return CorruptionError(operation, self._path, reason, hint=_DAMAGE_HINT)
        if kind == "io":
            return storage_error(operation, self._path, OSError(errno, reason))
        return StorageFailedError(
            operation, self._path, reason, hint="the store reopens by itself; try again"
        )
