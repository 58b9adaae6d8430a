"""RecordCheck: compares the records of the metastore with their seals, and with one another.

Layer: core, the half of :mod:`nexus.core.fsck` that needs no content store. It finds and plans;
the store applies the plan. Unix counterpart: the passes of e2fsck over inodes and directories.

Every path is recorded twice: its current record, and a version record with the same payload.
Where the two disagree the newer is right, since both carry a seal. What is missing says nothing by
itself: a lost current record and a lost record of its removal look alike. So:

1. A path that is absent comes back only when nothing says that it was removed: its newest version
   record is whole, and the journal has no removal of it, or of a directory above it, since.
2. The plan never takes away a record that is whole, unless a newer one of the same path is.
3. Nothing is planned from a pass that did not come to its end.

Memory: an entry of a dictionary for each current record, about 160 bytes with a path of 40.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import msgspec

from nexus.contracts.errors import CorruptionError
from nexus.contracts.file_events import DIR_DELETE, FILE_DELETE, FILE_RENAME
from nexus.contracts.metadata import DIRECTORY_TYPES
from nexus.core.inode_table import OverlayTable, ParsedKey, parse_key
from nexus.core.lock_manager import decode_lock
from nexus.core.metadata_codec import decode_metadata
from nexus.core.primitives import decode_event
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import Head, SealedStore, revision_key, revision_of
from nexus.core.tree_volume import TreeVolume
from nexus.core.volume import Volume
from nexus.lib.paths import depth, join, parent

Progress = Callable[[str, int], None]
Found = Callable[[str, str, str, str | None], None]
"""Takes what is concerned, what is wrong with it, what repair does, and what is then left to do."""

T = TypeVar("T")
_MASK = (1 << 64) - 1
_NEWEST_REVISION = (1 << 64) - 1
_REMOVALS = (FILE_DELETE, DIR_DELETE, FILE_RENAME)
_UNKNOWN = "what it said is lost, unless another line restores it"
_REBUILDS = "builds the metastore anew from every record that can be read"
_GAP = "history has a gap there, which nothing can fill"
_FROM_COPY = "restores it from its other copy"
_AGAIN = "write it again, or restore it from another copy"
LEAVES = "leaves it"
UNREADABLE = "restore the data directory from a backup, or export what is readable"


class Plan(NamedTuple):
    """What repair does: records to write as payload and revision, and keys to drop."""

    puts: dict[bytes, tuple[bytes, int]]
    damaged: set[bytes]
    outdated: set[bytes]

    @property
    def drops(self) -> list[bytes]:
        """The keys to drop: those that no record is written to."""
        return [key for key in self.damaged | self.outdated if key not in self.puts]

    @property
    def losses(self) -> int:
        """How many damaged records have no copy."""
        return len(self.damaged - self.puts.keys())


class _Tree(msgspec.Struct):
    """What the records say of one volume. ``point`` is None where it is not mounted."""

    volume_id: str
    place: bytes
    point: str | None
    keyspace: str | None = None  # of its current records, once that is certain
    current: dict[str, int] = msgspec.field(default_factory=dict)  # path to revision and two flags
    damaged: dict[str, bytes] = msgspec.field(default_factory=dict)  # path to the key of its record

    def shown(self, path: str) -> str:
        """Return the path as a caller knows it."""
        if self.point is None:
            return f"{path} (volume {self.volume_id})"
        return join(self.point, path)

    def current_key(self, path: str) -> bytes:
        assert self.keyspace is not None
        if self.keyspace == "O":
            return b"O" + self.place + path.encode()
        return b"C" + self.place + depth(path).to_bytes(2, "big") + path.encode()

    def version_key(self, path: str, revision: int) -> bytes:
        return b"V" + self.place + path.encode() + b"\0" + revision_key(revision)


_IS_DIRECTORY, _HAS_VERSION, _REVISION_SHIFT = 1, 2, 2


class _History(msgspec.Struct):
    """The version records of one path: the newest that is whole, and the keys of the others."""

    tree: _Tree
    path: str
    newest: Sealed | None = None
    unreadable: list[bytes] = msgspec.field(default_factory=list)

    @property
    def newest_revision(self) -> int:
        return 0 if self.newest is None else self.newest.revision

    @property
    def is_live(self) -> bool:
        return self.newest is not None and bool(self.newest.payload)


class _Suspect(msgspec.Struct):
    """A path that is absent although its newest whole version record says that it is there."""

    history: _History
    doubtful_revision: int  # of a damaged version record that is newer, 0 where there is none
    removed_revision: int = 0  # of the last removal in the journal


class RecordCheck:
    """One pass over all records. The caller holds commits off (:meth:`SealedStore.frozen`)."""

    def __init__(
        self, store: SealedStore, volumes: Iterable[Volume], found: Found, progress: Progress
    ) -> None:
        self._store = store
        self._found = found
        self._progress = progress
        self._trees: dict[bytes, _Tree] = {}
        self._history: _History | None = None
        self._suspects: list[_Suspect] = []
        self._last_revision = _NEWEST_REVISION
        self.plan = Plan({}, set(), set())
        self.records = 0
        self.seal_sum = 0
        self.files = 0
        for volume in volumes:
            if isinstance(volume, TreeVolume):
                self._add_mounted(volume)

    def _add_mounted(self, volume: TreeVolume) -> None:
        place = volume.table.current_prefix[1:]
        volume_id = place.split(b"\0")[1].decode()
        keyspace = "O" if isinstance(volume.table, OverlayTable) else "C"
        self._trees[place] = _Tree(volume_id, place, volume.point, keyspace)

    def run(self, head: Head | None) -> bool:
        """Check everything; return whether ``plan`` may be carried out.

        Not where the metastore finds its own structure damaged, or a record could not be reached.
        """
        if head is not None:
            self._last_revision = head.revision
        try:
            self._progress("structure", 0)
            findings = self._store.check()
            for finding in findings:
                self._found("metastore", finding, _REBUILDS, None)
            self._read_all()
            self._close_history()
            self._settle_suspects()
            for tree in self._trees.values():
                self._check_unversioned(tree)
                self._check_parents(tree)
        except CorruptionError as error:
            self._found("metastore", error.reason, _REBUILDS, None)
            return False
        return not findings

    # -- the pass -----------------------------------------------------------------------------

    def _read_all(self) -> None:
        damaged = 0
        for key, record in self._store.iterate_unverified():
            parsed = parse_key(key)
            if record is None:
                damaged += 1
                self._note_damaged(key, parsed)
            else:
                self.records += 1
                self.seal_sum += record.seal
                if parsed is not None:
                    self._note(key, parsed, record)
            if (self.records + damaged) % 1000 == 0:
                self._progress("records", self.records + damaged)
        self.seal_sum &= _MASK

    def _note_damaged(self, key: bytes, parsed: ParsedKey | None) -> None:
        self.plan.damaged.add(key)
        if parsed is None or not _has_its_depth(key, parsed):
            self._found(f"key {key!r}", "unknown or damaged key", "drops it", _UNKNOWN)
        elif parsed.keyspace == "V":
            self._history_of(key, parsed).unreadable.append(key)
        elif parsed.keyspace in "CO":
            self._tree(key, parsed).damaged[parsed.path] = key
        elif parsed.keyspace == "J":
            self._found(parsed.path, "its journal entry is damaged", "drops it", _GAP)
        elif parsed.keyspace == "M":
            again = "mount it again with `nexus mount`"
            self._found(parsed.path, "its mount record is damaged", "forgets the mount", again)
        elif parsed.keyspace == "L":
            again = "whoever held it has to lock it again"
            self._found(parsed.path, "its lock record is damaged", "ends the lock", again)
        else:
            self._found(parsed.path, "its record is damaged", "drops it", None)

    def _note(self, key: bytes, parsed: ParsedKey, record: Sealed) -> None:
        if parsed.keyspace == "J":
            self._decodes(parsed.path, record, decode_event)
        elif parsed.keyspace == "L":
            self._decodes(parsed.path, record, decode_lock)
        elif parsed.keyspace == "V":
            history = self._history_of(key, parsed)
            if history.newest is None or record.revision > history.newest.revision:
                history.newest = record
            if record.payload:
                self._decodes(history.tree.shown(parsed.path), record, decode_metadata)
        elif parsed.keyspace in "CO":
            tree = self._tree(key, parsed)
            tree.keyspace = tree.keyspace or parsed.keyspace
            directory = self._is_directory(tree.shown(parsed.path), record)
            tree.current[parsed.path] = record.revision << _REVISION_SHIFT | directory
            self.files += not directory

    def _is_directory(self, shown: str, record: Sealed) -> bool:
        meta = self._decodes(shown, record, decode_metadata)
        # What cannot be read may be a directory: then nothing in it is out of place.
        return meta is None or meta.entry_type in DIRECTORY_TYPES

    def _decodes(self, shown: str, record: Sealed, decode: Callable[[Sealed], T]) -> T | None:
        try:
            return decode(record)
        except CorruptionError as error:
            self._found(shown, error.reason, LEAVES, error.hint or UNREADABLE)
            return None

    def _tree(self, key: bytes, parsed: ParsedKey) -> _Tree:
        place = b"\0".join(key[1:].split(b"\0", 2)[:2]) + b"\0"
        tree = self._trees.get(place)
        if tree is None:
            tree = self._trees[place] = _Tree(parsed.volume_id, place, None)
        return tree

    def _history_of(self, key: bytes, parsed: ParsedKey) -> _History:
        """Return the history that a version record belongs to; they come path by path."""
        tree = self._tree(key, parsed)
        history = self._history
        if history is None or history.tree is not tree or history.path != parsed.path:
            self._close_history()
            history = self._history = _History(tree, parsed.path)
        return history

    # -- one path -----------------------------------------------------------------------------

    def _close_history(self) -> None:
        history, self._history = self._history, None
        if history is None:
            return
        # A revision that was never reached stands in a damaged key, and says nothing.
        newer = [
            revision
            for revision in map(revision_of, history.unreadable)
            if history.newest_revision < revision <= self._last_revision
        ]
        doubtful = max(newer, default=0)
        if history.path in history.tree.damaged:
            self._judge_damaged(history, doubtful)
        elif history.path in history.tree.current:
            self._judge_present(history)
        elif history.is_live:
            self._suspects.append(_Suspect(history, doubtful))
        elif doubtful:
            shown = history.tree.shown(history.path)
            problem = "its newest version record is damaged, and it has no current record"
            self._found(shown, problem, "drops it", _AGAIN + ", if it was not removed")
        else:
            self._report_unreadable(history)

    def _judge_present(self, history: _History) -> None:
        tree, path = history.tree, history.path
        packed = tree.current[path]
        tree.current[path] = packed | _HAS_VERSION
        revision = packed >> _REVISION_SHIFT
        if history.newest is not None and history.newest_revision > revision:
            problem = "its current record is older than its newest version record"
            does = "brings it up to date" if history.is_live else "removes it as recorded"
            self._found(tree.shown(path), problem, does, None)
            self._restore_current(history, tree.current_key(path))
        elif history.newest_revision < revision:
            self._restore_version(tree, path, revision)
        else:
            self._report_unreadable(history)

    def _judge_damaged(self, history: _History, doubtful: int) -> None:
        tree, path = history.tree, history.path
        key = tree.damaged.pop(path)
        shown = tree.shown(path)
        if not doubtful and history.is_live:
            self._found(shown, "its current record is damaged", _FROM_COPY, None)
            self._restore_current(history, key)
        elif history.is_live:
            problem = "its current record and its newest version record are damaged"
            does = f"returns it to its state of revision {history.newest_revision}"
            self._found(shown, problem, does, _AGAIN)
            self._restore_current(history, key)
        elif history.newest is not None and not doubtful:
            problem = "its current record is damaged, and it was removed"
            self._found(shown, problem, "drops it", None)
        else:
            self._found(shown, "both of its records are damaged", "drops them", _AGAIN)

    def _report_unreadable(self, history: _History) -> None:
        for key in history.unreadable:
            problem = f"its version record of revision {revision_of(key)} is damaged"
            self._found(history.tree.shown(history.path), problem, "drops it", _GAP)

    def _restore_current(self, history: _History, key: bytes) -> None:
        tree, path, newest = history.tree, history.path, history.newest
        assert newest is not None
        if not newest.payload:
            self.plan.outdated.add(key)
            tree.current.pop(path, None)
            return
        self.plan.puts[key] = (newest.payload, newest.revision)
        try:
            directory = decode_metadata(newest).entry_type in DIRECTORY_TYPES
        except CorruptionError:
            directory = True  # as reported already
        packed = newest.revision << _REVISION_SHIFT | _HAS_VERSION | directory
        tree.current[path] = packed

    def _restore_version(self, tree: _Tree, path: str, revision: int) -> None:
        current = self._store.get(tree.current_key(path))
        assert current is not None  # read in this pass, and commits wait
        problem = "its version record is missing or damaged"
        self._found(tree.shown(path), problem, _FROM_COPY, None)
        self.plan.puts[tree.version_key(path, revision)] = (current.payload, revision)

    # -- what is absent -----------------------------------------------------------------------

    def _settle_suspects(self) -> None:
        if self._suspects:
            self._look_for_removals()
        for suspect in self._suspects:
            self._settle(suspect)

    def _look_for_removals(self) -> None:
        by_path: dict[str, list[_Suspect]] = {}
        for suspect in self._suspects:
            tree = suspect.history.tree
            if tree.point is not None:
                path = tree.shown(suspect.history.path)
                by_path.setdefault(path, []).append(suspect)
                while path != "/":
                    path = parent(path)
                    by_path.setdefault(path, []).append(suspect)
        for _, record in self._store.iterate_unverified(b"J"):
            event = None if record is None else self._removal(record)
            if event is not None:
                path, revision = event
                for suspect in by_path.get(path, ()):
                    if revision > suspect.history.newest_revision:
                        suspect.removed_revision = revision

    def _removal(self, record: Sealed) -> tuple[str, int] | None:
        try:
            event = decode_event(record)
        except CorruptionError:
            return None  # as reported already
        return (event.path, event.revision) if event.kind in _REMOVALS else None

    def _settle(self, suspect: _Suspect) -> None:
        history = suspect.history
        tree, path = history.tree, history.path
        shown = tree.shown(path)
        removed, doubtful = suspect.removed_revision, suspect.doubtful_revision
        if doubtful > removed:
            problem = (
                "the newest record of its history is damaged and it has no current record: "
                "whether it was removed is not known"
            )
            back = f"`nexus log {shown}` lists what `nexus cat --version` can still read of it"
            self._found(shown, problem, "leaves it absent", back)
            self.plan.puts[tree.version_key(path, doubtful)] = (b"", doubtful)
        elif removed:
            problem = "the record of its removal is missing or damaged"
            self._found(shown, problem, "restores it from the journal", None)
            self.plan.puts[tree.version_key(path, removed)] = (b"", removed)
        elif tree.point is None:
            then = "mount its volume, then run `nexus fsck --repair`"
            self._found(shown, "its current record is missing", LEAVES, then)
        else:
            self._found(shown, "its current record is missing", _FROM_COPY, None)
            self._restore_current(history, tree.current_key(path))

    # -- what the passes left -----------------------------------------------------------------

    def _check_unversioned(self, tree: _Tree) -> None:
        for path, packed in tree.current.items():
            if not packed & _HAS_VERSION:
                self._restore_version(tree, path, packed >> _REVISION_SHIFT)
        for path in tree.damaged:
            problem = "its current record is damaged, and it has no version record"
            self._found(tree.shown(path), problem, "drops it", _AGAIN)

    def _check_parents(self, tree: _Tree) -> None:
        if tree.keyspace != "C":
            return
        reported: set[str] = set()
        for path in tree.current:
            above = parent(path)
            packed = tree.current.get(above)
            if path == "/" or (packed is not None and packed & _IS_DIRECTORY) or above in reported:
                continue
            reported.add(above)
            shown = tree.shown(above)
            problem = f"{tree.shown(path)} lies in it, but it is not a directory"
            self._found(shown, problem, LEAVES, f"`nexus mkdir {shown}`")


def _has_its_depth(key: bytes, parsed: ParsedKey) -> bool:
    """Return whether the depth in the key of a current record is that of its path."""
    if parsed.keyspace != "C":
        return True
    path = parsed.path.encode()
    return key.endswith(b"\0" + depth(parsed.path).to_bytes(2, "big") + path)
