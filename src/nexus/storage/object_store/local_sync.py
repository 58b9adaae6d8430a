"""What a local folder has not made durable yet, and the rounds that make it so.

Layer: storage. Holds paths and no bytes; knows files and directories, no keys. Unix counterparts:
fsync(2) and syncfs(2).

Invariants:

1. A change that was noted before :meth:`SyncRounds.sync` was called is durable when it returns.
2. After a failed round everything that round covered is suspect: a later fsync(2) may report
   success although the kernel has dropped the pages. Suspect files are written afresh, to a new
   inode, and only a round in which all of that succeeds makes them clean.
3. What is remembered is bounded: past ``TRACKED_LIMIT`` paths only "everything" is.
4. A suspect file is written afresh only while its path still names the inode that was read, so
   no newer value is lost.

Locks, outermost first: ``round_lock`` (one round, or one rename of a directory, at a time);
a path's stripe from :meth:`path_lock` (renames and removals of that path); ``_tally_lock`` (the
flag ``_everything`` and what a round takes). ``note`` takes none on its usual way: appending to a
deque is atomic.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import msgspec

from nexus.contracts.errors import ClosedError, StorageFailedError
from nexus.contracts.object_store import PIECE_BYTES
from nexus.lib.disk import Disk, can_syncfs
from nexus.lib.shared_rounds import SharedRounds
from nexus.storage.object_store.staging import is_staging_name, staging_name

TRACKED_LIMIT = 4096
"""Paths remembered one by one."""

SYNCFS_FROM = 8
"""From this many files on, one syncfs(2) replaces an fsync(2) a file."""

RECENT_MARGIN_NS = 3600 * 10**9
"""Slack for clock steps when "everything" has to be found again by change time."""

_STRIPES = 64
_ATTEMPTS = 5
_NO_FILE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_REMOVED = "\0"  # no path ends in NUL: marks a path that this process took away


class Changes(msgspec.Struct):
    """What a round has to make durable."""

    files: set[str] = msgspec.field(default_factory=set)
    directories: set[str] = msgspec.field(default_factory=set)
    removed: set[str] = msgspec.field(default_factory=set)
    everything: bool = False

    def add(self, note: str) -> None:
        """Sort in one noted change, see :meth:`SyncRounds.note`."""
        if note.endswith("/"):
            self.directories.add(note)
            return
        path = note.removesuffix(_REMOVED)
        (self.files if path is note else self.removed).add(path)
        self.directories.add(path[: path.rindex("/") + 1])

    def merged(self, other: Changes) -> Changes:
        """Return the union of two; one of too many paths is everything."""
        union = Changes(
            self.files | other.files,
            self.directories | other.directories,
            self.removed | other.removed,
            self.everything or other.everything,
        )
        if len(union.files) + len(union.removed) > TRACKED_LIMIT:
            return Changes(everything=True)
        return union


class SyncRounds:
    """Tracks changes below one root. Shared by all threads that use the transport."""

    def __init__(
        self, root: str, disk: Disk, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._root = root
        self._disk = disk
        self._clock_ns = clock_ns
        # Open from the start: syncfs reports the write errors since its descriptor was opened.
        self._root_fd = disk.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._stripes = [threading.Lock() for _ in range(_STRIPES)]
        self._tally_lock = threading.Lock()
        self._noted: deque[str] = deque()
        self._everything = False  # guarded by _tally_lock
        self._suspects_moved = False  # set by movers, read and cleared by rounds
        self._rounds = SharedRounds()
        self.round_lock = self._rounds.turn
        self._closed = False  # guarded by round_lock, as all below
        self._suspect = Changes()
        self._clean_since_ns = clock_ns()

    def path_lock(self, path: str) -> threading.Lock:
        """Return the lock under which ``path`` is replaced or taken away."""
        return self._stripes[hash(path) % _STRIPES]

    def path_locks(self, *paths: str) -> list[threading.Lock]:
        """Return the locks of several paths, each once, in the order to take them."""
        return [self._stripes[i] for i in sorted({hash(path) % _STRIPES for path in paths})]

    def note(self, path: str) -> None:
        """Remember a stored file, or with a trailing ``/`` a directory whose entries changed.

        Called after the change: a round that took the note before it would sync too early.
        """
        self._noted.append(path)
        if len(self._noted) > TRACKED_LIMIT:
            self.note_everything()

    def note_removed(self, path: str) -> None:
        """Remember that this process took ``path`` away."""
        self.note(path + _REMOVED)

    def note_moved(self, source: str, target: str) -> None:
        """Remember that this process moved a file."""
        if self._suspect.files or self._suspect.everything:
            self._suspects_moved = True
        self.note_removed(source)
        self.note(target)

    def note_tree_moved_locked(self, source: str, target: str) -> None:
        """Remember that a directory was moved under ``round_lock``."""
        if self._suspect.files or self._suspect.everything:
            self._suspects_moved = True
        if self._noted:
            self.note_everything()  # the paths noted below the directory name nothing now
            return
        self.note_removed(source)
        self.note(target[: target.rindex("/") + 1])

    def note_everything(self) -> None:
        """Remember only that anything below the root may have changed."""
        with self._tally_lock:
            self._everything = True
            self._noted.clear()

    def sync(self) -> None:
        """Return when all that was noted before the call is durable; callers share a round.

        Errors: StorageFailedError; ClosedError.
        """
        self._rounds.join(self._sync_locked)

    def _sync_locked(self) -> None:
        if self._closed:
            raise ClosedError("sync", self._root, "the transport is closed")
        try:
            self._run_round_locked()
        except OSError as error:
            raise StorageFailedError(
                "sync",
                self._root,
                error.strerror or str(error),
                hint="what was stored since the last sync is written again by the next one",
            ) from error

    def suspect_paths(self) -> list[str]:
        """Return the files that a failed round covered and no clean one since, sorted."""
        with self.round_lock:
            moved = Changes(everything=self._suspects_moved)
            return sorted(self._files_of_locked(self._suspect.merged(moved)))

    def close(self) -> None:
        """Release the root. Idempotent."""
        with self.round_lock:
            if not self._closed:
                self._closed = True
                self._disk.close(self._root_fd)

    def _take(self) -> Changes:
        taken = Changes()
        with self._tally_lock:
            taken.everything, self._everything = self._everything, False
            for _ in range(len(self._noted)):
                taken.add(self._noted.popleft())
        return taken

    def _run_round_locked(self) -> None:
        started_ns = self._clock_ns()
        taken = self._take()
        suspect = self._suspect
        suspect.everything |= self._suspects_moved
        # Suspect until proven durable, so that no way out of here forgets them.
        self._suspect = suspect.merged(taken)
        self._write_afresh_locked(suspect, taken)
        self._flush_locked(taken)
        self._suspect = Changes()
        self._suspects_moved = False
        self._clean_since_ns = started_ns

    def _flush_locked(self, taken: Changes) -> None:
        if not taken.everything and len(taken.files) < SYNCFS_FROM:
            gone = [path for path in sorted(taken.files) if not self._fsync_file(path)]
            if taken.removed.issuperset(gone):
                self._fsync_directories(taken.directories)
                return
            # A file that someone else moved is somewhere below the root, not durable yet.
            taken.everything = True
        if can_syncfs():
            self._sync_filesystems()
            return
        for path in sorted(self._files_of_locked(taken)):
            self._fsync_file(path)
        everywhere = self._directories() if taken.everything else ()
        self._fsync_directories(taken.directories.union(everywhere))

    def _sync_filesystems(self) -> None:
        """Sync the root's filesystem and those mounted below it."""
        self._disk.syncfs(self._root_fd)
        for place in _mounts_below(self._root):
            fd = self._disk.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._disk.syncfs(fd)
            finally:
                self._disk.close(fd)

    def _fsync_file(self, path: str) -> bool:
        """Return False where the file is gone or cannot be opened."""
        try:
            fd = self._open_file(path)
        except PermissionError:
            return False  # permission bits that were kept; syncing the filesystem covers it
        if fd is None:
            return False
        try:
            self._disk.fsync(fd)
        finally:
            self._disk.close(fd)
        return True

    def _open_file(self, path: str) -> int | None:
        """Open for reading; None where no file is."""
        try:
            # Non-blocking: someone may have put a fifo there.
            return self._disk.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise

    def _fsync_directories(self, directories: set[str]) -> None:
        for path in sorted(directories):
            try:
                self._disk.fsync_directory(path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed since; that removal is noted with its parent

    def _write_afresh_locked(self, suspect: Changes, taken: Changes) -> None:
        """Give each suspect file a new, synced inode; add what changed to ``taken``."""
        removed = suspect.removed | taken.removed
        for path in self._files_of_locked(suspect):
            if self._write_file_afresh(path):
                taken.add(path[: path.rindex("/") + 1])
            elif not suspect.everything and path not in removed:
                # Someone else moved it: it is suspect wherever it is now.
                suspect = suspect.merged(Changes(everything=True))
                self._write_afresh_locked(suspect, taken)
                break
        taken.directories |= suspect.directories
        taken.everything |= suspect.everything

    def _write_file_afresh(self, path: str) -> bool:
        """Return False where no file is."""
        for _ in range(_ATTEMPTS):
            source = self._open_file(path)
            if source is None:
                return False
            try:
                was = os.fstat(source)
                if not stat.S_ISREG(was.st_mode) or self._replace_with_copy(path, source, was):
                    return True
            finally:
                self._disk.close(source)
        raise OSError(errno.EBUSY, "the file keeps changing while it is written afresh", path)

    def _replace_with_copy(self, path: str, source: int, was: os.stat_result) -> bool:
        """Return False where the file was changed in place meanwhile."""
        temporary = path[: path.rindex("/") + 1] + staging_name()
        target = self._disk.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        renamed = False
        try:
            try:
                self._copy_bytes(source, target)
                os.fchmod(target, stat.S_IMODE(was.st_mode))
                self._disk.fsync(target)
            finally:
                self._disk.close(target)
            with self.path_lock(path):
                now = _lstat(path)
                if now is None or now.st_ino != was.st_ino:
                    return True  # replaced or removed since, and noted then
                if now.st_ctime_ns != was.st_ctime_ns:
                    return False
                self._disk.rename(temporary, path)
                renamed = True
                return True
        finally:
            if not renamed:
                self._disk.unlink(temporary)

    def _copy_bytes(self, source: int, target: int) -> None:
        offset = 0
        while piece := self._disk.pread(source, PIECE_BYTES, offset):
            self._disk.write_all(target, piece)
            offset += len(piece)

    def _files_of_locked(self, changes: Changes) -> Iterator[str]:
        yield from changes.files
        if not changes.everything:
            return
        oldest_ns = self._clean_since_ns - RECENT_MARGIN_NS
        for directory, _, names in os.walk(self._root):
            for name in names:
                path = f"{directory.rstrip('/')}/{name}"
                known = None if is_staging_name(name) else _lstat(path)
                if (
                    known is not None
                    and stat.S_ISREG(known.st_mode)
                    and known.st_ctime_ns >= oldest_ns
                    and path not in changes.files
                ):
                    yield path

    def _directories(self) -> Iterator[str]:
        for directory, _, _ in os.walk(self._root):
            yield directory.rstrip("/") + "/"


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _mounts_below(root: str) -> list[str]:
    """Return the mount points beneath ``root``, as the kernel lists them."""
    prefix = root.rstrip("/") + "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        places = [line.split(" ")[4] for line in table]
    decoded = [place.replace("\\040", " ").replace("\\011", "\t") for place in places]
    return [place for place in decoded if place.startswith(prefix)]
