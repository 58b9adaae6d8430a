"""Checker: compares everything stored with its checksums, and records with one another.

Layer: core, over the sealed store and the content stores of mounted volumes. Unix counterpart:
fsck(8), but online. Commits wait while records are checked, as long as the progress says
"structure" or "records"; reads go on, and content is checked while everything runs.

What it finds: a damaged record (its seal), a missing one (the totals in the head, and the version
record that each current record must have and the other way round), an entry without its
directory, missing or damaged content (its hash). Memory: about 160
bytes for each current record with a path of 40 characters, then 130 for each object in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from nexus.contracts.errors import ContentNotFoundError, CorruptionError, NexusError
from nexus.contracts.metadata import FileMetadata
from nexus.contracts.object_store import ContentStoreABC
from nexus.core.inode_table import parse_key
from nexus.core.inode_volume import InodeVolume
from nexus.core.metadata_codec import decode_metadata
from nexus.core.record_check import LEAVES, UNREADABLE, Plan, Progress, RecordCheck
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import Head, SealedStore
from nexus.core.volume import Volume
from nexus.lib.content_id import parse_content_id
from nexus.lib.paths import join

_WRITE_AGAIN = "write the same bytes to any file; `nexus log` lists other versions of this one"
_RECOUNTS = "restores what has a second copy, and counts anew"
_LOST = "what was lost has no second copy: it may be history, or files, see `nexus log`"
_BROUGHT_BACK = "object {} was in quarantine, or damaged around its bytes"
_UNSEEN: Any = object()


class Problem(msgspec.Struct, frozen=True):
    """One finding: what is wrong with which object, what to do, and whether repair did it."""

    object: str
    problem: str
    advice: str
    repaired: bool = False


class FsckReport(msgspec.Struct):
    """The outcome of a check. ``clean`` means that nothing harmful is left."""

    records: int = 0
    files: int = 0
    objects: int = 0
    bytes_verified: int = 0
    problems: list[Problem] = msgspec.field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every problem, if any, was repaired."""
        return all(problem.repaired for problem in self.problems)


class Checker:
    """One check of one filesystem."""

    def __init__(
        self,
        store: SealedStore,
        volumes: list[Volume],
        progress: Progress = lambda stage, count: None,
    ) -> None:
        self._store = store
        self._volumes = volumes
        self._progress = progress
        self._report = FsckReport()
        self._findings: list[_Finding] = []

    def run(self, *, repair: bool = False, content: bool = True) -> FsckReport:
        """Check, and with ``repair`` mend what has a second copy; return the report.

        Repair restores a current record from its version record and the other way round, the
        record of a removal from the journal, drops what is unreadable and has no copy, brings
        quarantined content back and counts the totals anew. It never touches what is whole, and no
        record while the metastore's own structure is damaged. ``content=False`` checks records
        only.
        """
        self._check_records(repair)
        if content:
            for volume in self._volumes:
                if isinstance(volume, InodeVolume):
                    _ContentCheck(self._store, volume, self._report, self._progress, repair).run()
        return self._report

    def _check_records(self, repair: bool) -> None:
        check = RecordCheck(self._store, self._volumes, self._found, self._progress)
        with self._store.frozen() as head:
            mendable = check.run(head)
            if mendable:
                self._check_totals(check, head)
            repaired = mendable and repair and self._mend(check.plan, head)
        self._report.problems = [finding.as_problem(repaired) for finding in self._findings]
        self._report.records, self._report.files = check.records, check.files

    def _mend(self, plan: Plan, head: Head | None) -> bool:
        """Do what was planned; return whether it could be done."""
        if not self._findings:
            return False
        try:
            puts = [(key, *put) for key, put in plan.puts.items()]
            after = self._store.repair_locked(puts, plan.drops, head)
        except CorruptionError as error:
            self._found("metastore", error.reason, LEAVES, UNREADABLE)
            return False
        if head is not None:
            self._weigh(plan, head, after)
        return True

    def _weigh(self, plan: Plan, before: Head, after: Head) -> None:
        """Tell losses from what was mended, by the totals of what was committed."""
        if after.totals == before.totals:
            # Every record is as it was committed, whatever its damaged key or neighbours suggested.
            for finding in self._findings:
                if finding.does != LEAVES:
                    finding.left = None
        elif not plan.losses or after.records + plan.losses != before.records:
            for finding in self._findings:
                if finding.does == _RECOUNTS:
                    finding.left = _LOST

    def _check_totals(self, check: RecordCheck, head: Head | None) -> None:
        damaged = len(check.plan.damaged)
        if head is None:
            self._found("metastore", "the head record is damaged", "counts anew", None)
            return
        difference = head.records - check.records - damaged
        if difference:
            records = "record is" if abs(difference) == 1 else "records are"
            problem = f"{abs(difference)} {records} {'missing' if difference > 0 else 'extra'}"
            self._found("metastore", problem, _RECOUNTS, None)
        elif not damaged and check.seal_sum != head.seal_sum:
            problem = "the records are not those that were committed"
            self._found("metastore", problem, _RECOUNTS, None)

    def _found(self, what: str, problem: str, does: str, left: str | None) -> None:
        self._findings.append(_Finding(what, problem, does, left))


class _Finding(msgspec.Struct):
    """A problem, what repair does about it, and what is then left to the user."""

    object: str
    problem: str
    does: str
    left: str | None

    def as_problem(self, repaired: bool) -> Problem:
        if repaired:
            return Problem(self.object, self.problem, self.left or "nothing more", not self.left)
        advice = f"`nexus fsck --repair` {self.does}"
        return Problem(
            self.object, self.problem, advice + (f"; then {self.left}" * bool(self.left))
        )


class _ContentCheck:
    """Verifies what the records of one volume name, while the filesystem is in use."""

    def __init__(
        self,
        store: SealedStore,
        volume: InodeVolume,
        report: FsckReport,
        progress: Progress,
        repair: bool,
    ) -> None:
        self._store = store
        self._table = volume.table
        self._point = volume.point
        self._content: ContentStoreABC = volume.content_store()
        self._report = report
        self._progress = progress
        self._repair = repair
        self._seen: dict[bytes, NexusError | None] = {}  # object id to what is wrong with it
        self._bad_contents: dict[str, dict[str, NexusError]] = {}  # by content id, by object id
        self._reported: set[tuple[str, str]] = set()  # path, object id

    def run(self) -> None:
        for finding in self._content.check_structure(repair=self._repair):
            advice = "nothing more" if self._repair else "`nexus fsck --repair` makes it anew"
            self._add(self._point, finding, advice, self._repair)
        try:
            for prefix in (self._table.current_prefix, self._table.version_prefix):
                for key, record in self._store.iterate_unverified(prefix):
                    meta = _metadata(record)
                    if meta is not None and meta.etag:
                        self._check(key, meta)
        except CorruptionError as error:
            self._add("metastore", f"content is not checked to the end: {error.reason}", UNREADABLE)

    def _check(self, key: bytes, meta: FileMetadata) -> None:
        parsed = parse_key(key)
        assert parsed is not None  # a key of this volume
        shown = join(self._point, parsed.path)
        bad = self._bad_objects(meta.etag, shown)
        if bad and self._store.get(key) is not None:  # else it went, and its content rightly too
            is_current = parsed.keyspace == "C"
            whose = "its content" if is_current else f"the content of its version {meta.version}"
            for object_id, error in bad.items():
                self._report_bad(shown, whose, object_id, error)

    def _bad_objects(self, etag: str, shown: str) -> dict[str, NexusError]:
        """Return what is wrong with the objects of a content, by object id."""
        if etag in self._bad_contents:
            return self._bad_contents[etag]
        try:
            _, root = parse_content_id("fsck", etag)
            if self._seen.get(bytes.fromhex(root), _UNSEEN) is None:
                return {}
            found = {item: self._verified(item, shown) for item in self._objects(etag, root, shown)}
            bad = {item: error for item, error in found.items() if error is not None}
        except NexusError as error:
            bad = {etag: error}
        if bad:
            self._bad_contents[etag] = bad
        return bad

    def _objects(self, etag: str, root: str, shown: str) -> Iterable[str]:
        """Return the objects of a content, with its manifest brought back where it is set aside."""
        try:
            return self._content.objects_of(etag)
        except (ContentNotFoundError, CorruptionError):
            return [root] if self._verified(root, shown) else self._content.objects_of(etag)

    def _verified(self, object_id: str, shown: str) -> NexusError | None:
        """Return what is wrong with an object that ``shown`` needs, or None."""
        key = bytes.fromhex(object_id)
        if key in self._seen:
            return self._seen[key]
        found: NexusError | None = None
        try:
            size = self._content.verify_object(object_id)
        except (ContentNotFoundError, CorruptionError) as error:
            found = error
            if self._repair and self._is_brought_back(object_id):
                found = None
                size = self._content.verify_object(object_id)
                self._add(shown, _BROUGHT_BACK.format(object_id), "nothing more", True)
        if found is None:
            self._report.objects += 1
            self._report.bytes_verified += size
            self._progress("content", self._report.bytes_verified)
        self._seen[key] = found
        return found

    def _is_brought_back(self, object_id: str) -> bool:
        try:
            return self._content.restore_object(object_id)
        except CorruptionError:
            return False  # what was set aside is damaged too

    def _report_bad(self, shown: str, whose: str, object_id: str, error: NexusError) -> None:
        if (shown, object_id) in self._reported:
            return
        self._reported.add((shown, object_id))
        state = f"cannot be read: {error.reason}"
        if isinstance(error, ContentNotFoundError):
            state = f"is missing (object {object_id})"
        elif isinstance(error, CorruptionError):
            state = f"is damaged (object {object_id})"
        advice = _WRITE_AGAIN
        if not self._repair:
            advice = f"`nexus fsck --repair` brings it back if it is in quarantine; else {advice}"
        self._add(shown, f"{whose} {state}", advice)

    def _add(self, what: str, problem: str, advice: str, repaired: bool = False) -> None:
        self._report.problems.append(Problem(what, problem, advice, repaired))


def _metadata(record: Sealed | None) -> FileMetadata | None:
    """Return the metadata of a record; None for a removal, and for what is reported already."""
    if record is None or not record.payload:
        return None
    try:
        return decode_metadata(record)
    except CorruptionError:
        return None
