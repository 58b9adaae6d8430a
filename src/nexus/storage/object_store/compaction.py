"""Compaction: gives the space of forgotten objects back by emptying segments.

Layer: storage, beside :mod:`nexus.storage.object_store.segment_objects`. It decides which segments
are worth emptying; moving records, syncing and removing files is done by the segments and their
owner. Unix counterpart: the cleaner of a log-structured filesystem.

Invariants:

1. What is in use is copied out of a segment, and the copies made durable, before it is removed. A
   kill at any moment leaves an object in its old place, in the new one, or in both.
2. Only segments that take no more records are looked at, so what is counted while writers go on can
   only become less.

Takes the lock of the segments for a moment at a time; readers and writers go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from nexus.contracts.errors import NoSpaceError
from nexus.storage.object_store.segment_file import record_bytes
from nexus.storage.object_store.segment_set import SegmentSet

_AT_A_TIME = 64


class Compaction:
    """Compacts one set of segments, by one thread at a time."""

    def __init__(self, segments: SegmentSet, sync: Callable[[], None]) -> None:
        self._segments = segments
        self._sync = sync
        self._running = threading.Lock()

    def run(self) -> int:
        """Empty the segments that are forgotten by half, and join small ones; return bytes freed.

        A second call at the same time gives nothing back. Errors: StorageError; ClosedError.
        """
        if not self._running.acquire(blocking=False):
            return 0
        try:
            freed = 0
            self._leave_active_segment()
            while more := self._compact_some():
                freed += more
            return freed
        finally:
            self._running.release()

    def _compact_some(self) -> int:
        segments = self._segments
        used = self._bytes_used()
        empty = [number for number in used if not used[number]]
        if empty:
            return sum([segments.remove_segment(number) for number in empty])
        victims = self._victims(used)
        entries = [entry for entry in segments.entries() if entry.segment in victims]
        try:
            segments.move(entries)
        except NoSpaceError:
            # Without room for copies, the gaps can be given back where they are.
            return sum([segments.punch_gaps(number) for number in victims])
        if entries:
            self._sync()  # the copies, before what they were copied from goes
        # Whatever could not be read keeps its segment.
        used = self._bytes_used()
        return sum([segments.remove_segment(number) for number in victims if not used[number]])

    def _leave_active_segment(self) -> None:
        """Stop appending to a segment that is forgotten by half, so that it can be emptied."""
        segments = self._segments
        with segments.locked("compact", segments.root):
            number, end = segments.active_locked()
        if not number:
            return
        used = sum(record_bytes(entry.size) for entry in segments.entries_of(number))
        if used * 2 <= end:
            with segments.locked("compact", segments.root):
                segments.leave_active_locked()

    def _bytes_used(self) -> dict[int, int]:
        """Return how much of each segment its objects take, without the one to append to."""
        segments = self._segments
        with segments.locked("compact", segments.root):
            active, _ = segments.active_locked()
            used = {number: 0 for number in segments.segment_numbers() if number != active}
        for entry in segments.entries():
            if entry.segment in used:
                used[entry.segment] += record_bytes(entry.size)
        return used

    def _victims(self, used: dict[int, int]) -> list[int]:
        """Return some of the segments worth emptying, those with the least in them first."""
        segments = self._segments
        numbers = sorted(used, key=used.__getitem__)
        forgotten = [n for n in numbers if used[n] * 2 <= segments.allocated(n)]
        small = [n for n in numbers if n not in forgotten and used[n] * 4 <= segments.segment_bytes]
        return (forgotten + (small if len(small) > 1 else []))[:_AT_A_TIME]
