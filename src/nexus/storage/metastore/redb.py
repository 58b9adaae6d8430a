"""RedbMetastore: an ordered store in one redb file, through the Rust crate.

Layer: storage. The store itself is ``rust/nexus_kernel/src/store.rs``: a commit is a change of
a map in memory and one record in a log, a thread beside writes full maps into redb, and durable
commits share the syncs of the log. Here are its birth, the witness of its newest revision, the
reserve for a full disk, and its errors. It holds no notion of files, and no seal: its user seals
every value.

Beside the file: ``.log`` and ``.log2`` have, in turn, the commits since the last checkpoint;
``.head`` is the witness against a lost end of a log; ``.reserve`` is space for deleting on a full
disk; ``.new`` a creation cut short.

Invariants (those of :class:`nexus.contracts.metastore.MetastoreABC`, and):

1. A store is born whole: made under a temporary name, synced, renamed, its directory synced.
2. The witness never runs ahead of what is in the log, nor its synced part of what is synced.

Locks: ``_turn``, a leaf, guards the reserve. No call of the store but the last is made under it, so
that commits can share syncs. The store itself tells the witness.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

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
from nexus.lib.boot_id import boot_number
from nexus.lib.disk import Disk, put_in_place, storage_error
from nexus.storage.metastore.head_file import HeadFile
from nexus.storage.metastore.ordered import conflict_error, scan_range
from nexus.storage.metastore.space_reserve import SpaceReserve

_MAGIC = b"redb\x1a\x0a\xa9\x0d\x0a"
_CHECKED_AT_ONCE = 1000
_LOG_SUFFIXES = (".log", ".log2")
_LOGS_IN_RESERVE = 4
"""On a nearly full disk the reserve holds two logs, and as much to write them back."""
_FSCK_HINT = "`nexus fsck --repair` builds the file anew from every entry it can reach"
_BACKUP_HINT = "restore the file from a backup"


class RedbMetastore(MetastoreABC):
    """An ordered store in a redb file. Shared freely between threads, not between processes."""

    name = "redb"
    capabilities = MetastoreCapabilities(
        persistent=True, exclusive_owner=True, loadable=True, shares_syncs=True
    )

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

        ``accept_loss`` opens a store whose last commits are missing, and builds one anew whose
        tree is damaged. ``log_limit_bytes`` is how
        long a log grows before a checkpoint begins; a commit waits when the other one is that
        long before the checkpoint has ended.

        Errors: ConfigError without the Rust kernel; PathNotFoundError; CorruptionError for damage,
        for another program's file and for missing commits; BusyError while another process has it
        open; AccessDeniedError, ReadOnlyError, NoSpaceError, StorageError.
        """
        self._kernel = native.required("the metastore redb")
        self._path = os.path.abspath(path)
        self._disk = disk
        self._turn = threading.Lock()
        self._closed = False  # guarded by _turn
        if create and not os.path.lexists(self._path):
            self._create()
        self._check_header()
        if accept_loss:
            self._rebuild_if_damaged()
        with ExitStack() as undo:
            self._open(log_limit_bytes, reserve_bytes, cache_bytes, undo)
            self._open_beside(accept_loss=accept_loss)
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
            with self._turn:
                self._reserve.restore_for(self._path)
        try:
            revision = self._commit(batch, conditions, durable)
        except NoSpaceError:
            if not reclaim:
                raise
            with self._turn:
                released = self._reserve.release_for(self._path)
            if not released:
                raise
            revision = self._commit(batch, conditions, durable)
        return revision

    def load(self, entries: Sequence[StoredEntry], revision: int) -> None:
        """Store entries with their versions, durably. Errors: NoSpaceError, StorageFailedError."""
        try:
            self._store.load(entries, revision)
        except self._kernel.StoreError as error:
            raise self._error("load", error) from error

    def sync(self) -> None:
        """Make every acknowledged commit survive a power cut. Errors: StorageFailedError."""
        try:
            self._store.sync()
        except self._kernel.StoreError as error:
            raise self._error("sync", error) from error

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
            except self._kernel.StoreError as error:
                raise self._error("close", error) from error

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

    # Files

    def _create(self) -> None:
        """Make an empty store at the path, whole or not at all."""
        disk, temporary = self._disk, self._path + ".new"
        try:
            self._refuse_orphaned_logs()
            with suppress(FileNotFoundError):
                disk.unlink(temporary)
            self._kernel.create_store(temporary, int.from_bytes(os.urandom(8), "big"))
            put_in_place(temporary, self._path, disk)
        except NexusError:
            raise  # an OSError too, and already says what is wrong
        except self._kernel.StoreError as error:
            raise self._error("create", error) from error
        except OSError as error:
            raise storage_error("create", self._path, error) from error

    def _refuse_orphaned_logs(self) -> None:
        for suffix in _LOG_SUFFIXES:
            log = self._path + suffix
            if os.path.exists(log) and os.path.getsize(log):
                reason = f"the store is gone but its log ({suffix}) is there"
                hint = "restore the file, or remove the log"
                raise CorruptionError("create", self._path, reason, hint=hint)

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
            raise CorruptionError("open", self._path, reason, hint=_BACKUP_HINT)

    def _rebuild_if_damaged(self) -> None:
        # Imported here: only a checker needs it, and it costs start-up time.
        from nexus.storage.metastore.redb_salvage import rebuild_if_damaged

        try:
            rebuild_if_damaged(self._path, disk=self._disk, kernel=self._kernel)
        except self._kernel.StoreError as error:
            raise self._error("rebuild", error, hint=_BACKUP_HINT) from error
        except OSError as error:
            raise storage_error("rebuild", self._path, error) from error

    def _open(
        self, log_limit_bytes: int, reserve_bytes: int, cache_bytes: int, undo: ExitStack
    ) -> None:
        try:
            self._reserve = SpaceReserve(
                self._path + ".reserve", size_bytes=reserve_bytes, disk=self._disk
            )
        except OSError as error:
            raise storage_error("open", self._path, error) from error
        scarce = reserve_bytes // _LOGS_IN_RESERVE or log_limit_bytes

        def opened() -> Any:
            return self._kernel.OrderedStore(
                self._path,
                log_limit_bytes=log_limit_bytes,
                scarce_log_limit_bytes=min(scarce, log_limit_bytes),
                cache_bytes=cache_bytes,
            )

        try:
            self._store = opened()
        except self._kernel.StoreError as error:
            answer = self._error("open", error)
            # Opening writes the logs back; on a full disk the reserve gives the room.
            if not (isinstance(answer, NoSpaceError) and self._reserve.release_for(self._path)):
                raise answer from error
            try:
                self._store = opened()
            except self._kernel.StoreError as again:
                raise self._error("open", again) from again
        undo.callback(self._store.close)

    def _open_beside(self, *, accept_loss: bool) -> None:
        head, boot = self._path + ".head", boot_number()
        try:
            self._reserve.restore()
            witness = HeadFile(head, identity=self._store.identity, disk=self._disk, boot=boot)
            with closing(witness):
                self._disk.fsync_directory(os.path.dirname(self._path))
                self._ask_witness(witness, accept_loss=accept_loss)
            self._store.keep_witness(head, boot)
        except NexusError:
            raise  # an OSError too, and already says what is wrong
        except self._kernel.StoreError as error:
            raise self._error("open", error) from error
        except OSError as error:
            raise storage_error("open", self._path, error) from error

    def _ask_witness(self, witness: HeadFile, *, accept_loss: bool) -> None:
        revision = self.revision()
        missing = witness.missing(revision, self._path, accept_loss=accept_loss)
        if missing:
            # Revisions of lost commits were given out and must not come back.
            revision += missing
            self._store.skip_to(revision)
            witness.restart(revision)
        # Opening ends with a checkpoint, so that all of it is synced.
        witness.record(revision)
        witness.record_synced(revision)

    def _error(self, operation: str, error: Exception, *, hint: str = _FSCK_HINT) -> NexusError:
        kind, reason, errno = error.args
        if kind == "closed" and self._closed:
            return ClosedError(operation, self._path, reason)
        if kind == "busy":
            return BusyError(operation, self._path, reason, hint="another process has it open")
        if kind == "damaged":
            return CorruptionError(operation, self._path, reason, hint=hint)
        if kind == "io":
            return storage_error(operation, self._path, OSError(errno, reason))
        return StorageFailedError(
            operation, self._path, reason, hint="the store reopens by itself; try again"
        )
