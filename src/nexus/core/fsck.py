"""Checker: compares everything stored with its checksums, and records with one another.

Layer: core, over the sealed store and the content stores of mounted volumes. Unix counterpart:
fsck(8), but online: records are checked while commits wait, content while everything runs.

What it finds: a damaged record (its seal), a missing one (the totals in the head, and the version
record that each current record must have and the other way round), an entry without its
directory, missing or damaged content (its hash). Memory: about 300 bytes an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nexus.contracts.errors import ContentNotFoundError, CorruptionError, NexusError
from nexus.contracts.metadata import DIRECTORY_TYPES
from nexus.contracts.object_store import ContentStoreABC
from nexus.core.inode_table import decode_metadata, parse_key
from nexus.core.inode_volume import InodeVolume
from nexus.core.sealed_store import Head, Sealed, SealedStore, revision_of
from nexus.core.volume import Volume
from nexus.lib.paths import join, parent

Progress = Callable[[str, int], None]
_KINDS = {
    "C": "record",
    "O": "record",
    "V": "version record",
    "J": "journal entry",
    "M": "mount",
    "L": "lock",
    "B": "record",
}
_NO_BACKUP = "restore it from another copy, or remove it"


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: what is wrong with which object, what to do, and whether repair did it."""

    object: str
    problem: str
    advice: str
    repaired: bool = False


@dataclass(slots=True)
class FsckReport:
    """The outcome of a check. ``clean`` means that nothing harmful is left."""

    records: int = 0
    files: int = 0
    objects: int = 0
    bytes_verified: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether every problem, if any, was repaired."""
        return all(problem.repaired for problem in self.problems)


@dataclass(slots=True)
class _Entry:
    """The last word on a path: from its current record, or from its newest version record."""

    key: bytes
    payload: bytes
    revision: int
    is_directory: bool
    etag: str


@dataclass(slots=True)
class _Tree:
    """What the records say of one volume."""

    current: dict[str, _Entry] = field(default_factory=dict)
    newest: dict[str, _Entry | None] = field(default_factory=dict)  # None: removed
    etags: dict[str, str] = field(default_factory=dict)  # content id to a path that has it
    overlay: bool = False


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
        self._trees: dict[tuple[str, str], _Tree] = {}
        self._restore: list[tuple[bytes, bytes, int]] = []
        self._drop: list[bytes] = []

    def run(self, *, repair: bool = False, content: bool = True) -> FsckReport:
        """Check, and with ``repair`` mend what has a second copy; return the report.

        Repair restores a current record from its version record and the other way round, drops
        unreadable history, brings quarantined content back and counts the totals anew. It never
        touches content that is whole. ``content=False`` checks records only.
        """
        with self._store.frozen() as head:
            self._check_records(head, repair)
            for tree in self._trees.values():
                self._check_tree(tree, repair)
            if repair and self._report.problems:
                start = head.journal_start if head else 1
                restored = {key for key, _, _ in self._restore}
                dropped = [key for key in self._drop if key not in restored]
                self._store.repair_locked(self._restore, dropped, start)
        if content:
            for volume in self._volumes:
                if isinstance(volume, InodeVolume):
                    self._check_content(volume, repair)
        return self._report

    def _found(self, what: str, problem: str, advice: str, *, repaired: bool = False) -> None:
        self._report.problems.append(Problem(what, problem, advice, repaired))

    # -- records ------------------------------------------------------------------------------

    def _check_records(self, head: Head | None, repair: bool) -> None:
        records, total = 0, 0
        restore = "restore the data directory from a backup, or export what is readable"
        try:
            for finding in self._store.check():
                self._found("metastore", finding, restore)
            for key, record in self._store.iterate_unverified():
                if record is None:
                    self._damaged(key, repair)
                    continue
                records += 1
                total += record.seal
                self._note(key, record, repair)
                if records % 1000 == 0:
                    self._progress("records", records)
        except CorruptionError as error:
            self._found("metastore", error.reason, restore)
        self._report.records = records
        advice = "`nexus fsck --repair` counts anew"
        if head is None:
            self._found("metastore", "the head record is damaged", advice, repaired=repair)
        elif records != head.records:
            difference = head.records - records
            problem = f"{abs(difference)} records are {'missing' if difference > 0 else 'extra'}"
            self._found("metastore", problem, advice, repaired=repair)
        elif total & ((1 << 64) - 1) != head.seal_sum:
            problem = "the records are not those that were committed"
            self._found("metastore", problem, advice, repaired=repair)

    def _damaged(self, key: bytes, repair: bool) -> None:
        parsed = parse_key(key)
        if parsed is None:
            self._found(f"key {key!r}", "unknown or damaged key", "`nexus fsck --repair` drops it")
        else:
            what = f"{parsed.path} (volume {parsed.volume_id})" if parsed.volume_id else parsed.path
            problem = f"its {_KINDS.get(parsed.keyspace, 'record')} is damaged"
            advice = "`nexus fsck --repair` restores it where a second copy exists"
            self._found(what, problem, advice, repaired=repair)
        self._drop.append(key)

    def _note(self, key: bytes, record: Sealed, repair: bool) -> None:
        parsed = parse_key(key)
        if parsed is None or parsed.keyspace not in "COV":
            return
        tree = self._trees.setdefault((parsed.zone_id, parsed.volume_id), _Tree())
        path = parsed.path
        if parsed.keyspace == "V" and not record.payload:
            tree.newest[path] = None
            return
        try:
            meta = decode_metadata(record)
        except CorruptionError:
            self._damaged(key, repair)
            return
        directory = meta.entry_type in DIRECTORY_TYPES
        entry = _Entry(key, record.payload, record.revision, directory, meta.etag)
        if meta.etag:
            tree.etags.setdefault(meta.etag, path)
        if parsed.keyspace == "V":
            entry.revision = revision_of(key)
            tree.newest[path] = entry
        else:
            tree.current[path] = entry
            tree.overlay = parsed.keyspace == "O"
            self._report.files += not directory

    def _check_tree(self, tree: _Tree, repair: bool) -> None:
        advice = "`nexus fsck --repair` restores it from its other copy"
        for path, entry in tree.newest.items():
            if entry is not None and path not in tree.current:
                self._found(path, "its current record is missing", advice, repaired=repair)
                self._restore.append(
                    (_current_key(entry, path, tree), entry.payload, entry.revision)
                )
                tree.current[path] = entry
        for path, entry in tree.current.items():
            newest = tree.newest.get(path)
            if newest is None or newest.revision != entry.revision:
                self._found(path, "its version record is missing", advice, repaired=repair)
                self._restore.append((_version_key(entry, path), entry.payload, entry.revision))
            above = parent(path)
            if path != "/" and not tree.overlay:
                directory = tree.current.get(above)
                if directory is None or not directory.is_directory:
                    self._found(path, f"its directory {above} is missing", f"mkdir {above}")

    # -- content ------------------------------------------------------------------------------

    def _check_content(self, volume: InodeVolume, repair: bool) -> None:
        content = volume.content_store()
        prefix = volume.table.current_prefix[1:].split(b"\0")
        tree = self._trees.get((prefix[0].decode(), prefix[1].decode()))
        if tree is None:
            return
        verified: set[str] = set()
        for etag, path in tree.etags.items():
            shown = join(volume.point, path)
            try:
                for object_id in content.objects_of(etag):
                    if object_id not in verified:
                        verified.add(object_id)
                        self._verify(content, object_id, shown, repair)
            except NexusError as error:
                self._report_content(shown, etag, error)

    def _verify(self, content: ContentStoreABC, object_id: str, path: str, repair: bool) -> None:
        try:
            size = content.verify_object(object_id)
        except ContentNotFoundError as error:
            if not repair or not content.restore_object(object_id):
                self._report_content(path, object_id, error)
                return
            size = content.verify_object(object_id)
            problem = f"object {object_id} was in quarantine"
            self._found(path, problem, "nothing more", repaired=True)
        except NexusError as error:
            self._report_content(path, object_id, error)
            return
        self._report.objects += 1
        self._report.bytes_verified += size
        self._progress("content", self._report.bytes_verified)

    def _report_content(self, path: str, what: str, error: NexusError) -> None:
        state = "missing" if isinstance(error, ContentNotFoundError) else "damaged"
        self._found(path, f"content {what} is {state}: {error.reason}", _NO_BACKUP)


def _current_key(entry: _Entry, path: str, tree: _Tree) -> bytes:
    place = b"\0".join(entry.key[1:].split(b"\0", 2)[:2]) + b"\0"
    if tree.overlay:
        return b"O" + place + path.encode()
    depth = 0 if path == "/" else path.count("/")
    return b"C" + place + depth.to_bytes(2, "big") + path.encode()


def _version_key(entry: _Entry, path: str) -> bytes:
    place = b"\0".join(entry.key[1:].split(b"\0", 2)[:2]) + b"\0"
    return b"V" + place + path.encode() + b"\0" + entry.revision.to_bytes(8, "big")
