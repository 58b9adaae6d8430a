"""Collector: forgets history past its retention, content that nothing names, and leftovers.

Layer: core, over the sealed store and what lies behind mounted volumes. Leftovers are what writers
that were killed had not finished; a driver tells them from what is being written. Runs beside
readers and writers. Unix counterparts: log cleaning, fstrim(8) and tmpwatch(8).

Why no content in use is collected: a store protects whatever is written or reused from
``begin_collection`` on; every record, wherever a rename moves it meanwhile, leaves a version record
behind, and only this collector, before it marks, removes version records. There is no reference
count to corrupt: what is named is found by reading the records.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import msgspec

from nexus.contracts.errors import BusyError, InvalidArgumentError, shown
from nexus.contracts.lock_manager import LockManagerABC
from nexus.contracts.object_store import ContentStoreABC
from nexus.core.arguments import MAX_TIME_S
from nexus.core.inode_table import InodeTable, Version, journal_records
from nexus.core.inode_volume import InodeVolume
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import Mutation, SealedStore
from nexus.core.tree_volume import TreeVolume
from nexus.core.volume import Volume

_BATCH = 500
Progress = Callable[[str, int], None]


class CollectionReport(msgspec.Struct):
    """What a collection did, or with ``dry_run`` would do."""

    dry_run: bool
    journal_entries: int = 0
    version_records: int = 0
    objects_kept: int = 0
    objects_quarantined: int = 0
    bytes_quarantined: int = 0
    bytes_freed: int = 0
    bytes_compacted: int = 0
    """How much the files of packed objects shrank; part of what was freed may follow later."""
    leftovers_removed: int = 0
    leftover_bytes: int = 0


class Collector:
    """Collects for one filesystem; one run at a time."""

    def __init__(
        self,
        store: SealedStore,
        volumes_in_use: Callable[[], AbstractContextManager[list[Volume]]],
        clock_ns: Callable[[], int],
        sync: Callable[[], None],
        locks: LockManagerABC,
    ) -> None:
        self._locks = locks
        self._sync = sync
        self._store = store
        self._volumes_in_use = volumes_in_use
        self._clock_ns = clock_ns
        self._running = threading.Lock()

    def run(
        self,
        *,
        retention_s: float,
        grace_s: float,
        dry_run: bool = False,
        progress: Progress = lambda stage, count: None,
    ) -> CollectionReport:
        """Drop history older than ``retention_s``, quarantine content unnamed for ``grace_s``.

        Quarantined content is deleted by a later run, ``grace_s`` after it was set aside. What a
        dead process left unfinished goes when nobody has touched it for ``grace_s``. The
        current state and versions superseded within the retention stay. ``progress`` is told
        (stage, items so far). Errors: InvalidArgumentError for a time that is none, BusyError
        while another run is under way, CorruptionError when a damaged record hides what content
        is in use; then no content is touched.
        """
        retention_ns = _nanoseconds("retention_s", retention_s)
        grace_ns = _nanoseconds("grace_s", grace_s)
        if not self._running.acquire(blocking=False):
            raise BusyError("gc", None, "another collection is running")
        try:
            with self._volumes_in_use() as volumes:
                report = CollectionReport(dry_run)
                self._collect(volumes, retention_ns, grace_ns, report, progress)
            return report
        finally:
            self._running.release()

    def _collect(
        self,
        volumes: list[Volume],
        retention_ns: int,
        grace_ns: int,
        report: CollectionReport,
        progress: Progress,
    ) -> None:
        now_ns = self._clock_ns()
        keep_from = self._prune_journal(now_ns - retention_ns, report, progress)
        for volume in volumes:
            if isinstance(volume, TreeVolume):
                self._prune_versions(volume.table, keep_from, report, progress)
        if not report.dry_run:
            self._locks.forget_expired()
            # What supersedes the content to be set aside must survive a power cut first.
            self._sync()
        grace_start_ns = now_ns - grace_ns
        for volume in volumes:
            if isinstance(volume, InodeVolume):
                self._collect_content(volume, keep_from, grace_start_ns, report, progress)
        for volume in volumes:
            found = volume.remove_leftovers(grace_start_ns, dry_run=report.dry_run)
            report.leftovers_removed += found.entries
            report.leftover_bytes += found.size_bytes

    def _prune_journal(self, cutoff_ns: int, report: CollectionReport, progress: Progress) -> int:
        """Drop old entries; return the first revision that history keeps."""
        keep_from = self._store.head().revision + 1
        batch: list[Sealed] = []
        for record, event in journal_records(self._store):
            if event.timestamp_ns >= cutoff_ns:
                keep_from = min(keep_from, record.revision)
                break
            batch.append(record)
            report.journal_entries += 1
            if len(batch) == _BATCH:
                # Of this revision there may be more events, so it does not count as kept.
                self._drop(batch, record.revision + 1, report)
                progress("journal", report.journal_entries)
        self._drop(batch, keep_from, report)
        return keep_from

    def _prune_versions(
        self, table: InodeTable, keep_from: int, report: CollectionReport, progress: Progress
    ) -> None:
        batch: list[Sealed] = []
        for version, kept in _with_fate(table.all_versions(), keep_from):
            if not kept:
                batch.append(version.record)
                report.version_records += 1
                if len(batch) == _BATCH:
                    self._drop(batch, None, report)
                    progress("versions", report.version_records)
        self._drop(batch, None, report)

    def _drop(
        self, batch: list[Sealed], journal_start: int | None, report: CollectionReport
    ) -> None:
        if batch and not report.dry_run:
            mutation = Mutation(reclaim=True)
            mutation.journal_start = journal_start
            for record in batch:
                mutation.delete(record)
            self._store.commit(mutation, durable=False)
        batch.clear()

    def _collect_content(
        self,
        volume: InodeVolume,
        keep_from: int,
        grace_start_ns: int,
        report: CollectionReport,
        progress: Progress,
    ) -> None:
        content = volume.content_store()
        content.begin_collection()
        try:
            named = self._named_objects(volume.table, content, keep_from, progress)
            for item in content.list_objects():
                if bytes.fromhex(item.object_id) in named:
                    report.objects_kept += 1
                elif item.modified_at_ns < grace_start_ns and (
                    report.dry_run or content.quarantine_object(item.object_id)
                ):
                    report.objects_quarantined += 1
                    report.bytes_quarantined += item.size
                progress("content", report.objects_kept + report.objects_quarantined)
            if not report.dry_run:
                report.bytes_freed += content.purge_quarantine(grace_start_ns)
                report.bytes_compacted += content.compact()
        finally:
            content.end_collection()

    def _named_objects(
        self, table: InodeTable, content: ContentStoreABC, keep_from: int, progress: Progress
    ) -> set[bytes]:
        """Return the ids of every object that a kept record needs; 32 bytes each in memory."""
        named: set[bytes] = set()
        seen: set[str] = set()
        for etag in _etags(table, keep_from):
            if etag and etag not in seen:
                seen.add(etag)
                named.update(bytes.fromhex(item) for item in content.objects_of(etag))
                progress("records", len(seen))
        return named


def _nanoseconds(name: str, seconds: float) -> int:
    if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_TIME_S:
        reason = f"{name} is {shown(seconds)}, not within 0 to {MAX_TIME_S} seconds"
        raise InvalidArgumentError("gc", None, reason)
    return round(seconds * 1e9)


def _etags(table: InodeTable, keep_from: int) -> Iterator[str]:
    # Current records first: one that moves while this runs leaves its version record behind.
    for _, inode in table.all_current():
        yield inode.meta.etag
    for version, kept in _with_fate(table.all_versions(), keep_from):
        if kept and version.meta is not None:
            yield version.meta.etag


def _with_fate(versions: Iterator[Version], keep_from: int) -> Iterator[tuple[Version, bool]]:
    """Yield each version with whether it is kept.

    A version goes when the next one of the same path came before ``keep_from``; the mark of a
    removal goes when it is that old itself and nothing follows.
    """
    previous: Version | None = None
    for version in versions:
        if previous is not None:
            if previous.path == version.path:
                yield previous, version.revision >= keep_from
            else:
                yield previous, _last_is_kept(previous, keep_from)
        previous = version
    if previous is not None:
        yield previous, _last_is_kept(previous, keep_from)


def _last_is_kept(version: Version, keep_from: int) -> bool:
    return version.meta is not None or version.revision >= keep_from
