"""What the collector must not take: pins, writes in flight, and what was used meanwhile.

Layer: storage. Bookkeeping in memory, without I/O of its own; the store asks it before it sets
an object aside and tells it before it relies on one.

1. A writer marks an object (pins it, or holds it in its flight) before it looks whether the
   object is present. The collector looks at the marks and moves the object in one step, under the
   mutex. So either the collector sees the mark, or the writer sees the object gone and stores it.
2. While a collection is active, a mark lasts until its end, even if it is unpinned before.
3. Whatever was marked when the collection began is protected, chunk by chunk.

Locks: one mutex. Nothing but the collector's own rename is called while it is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from nexus.contracts.errors import BusyError, InvalidArgumentError

if TYPE_CHECKING:
    from nexus.lib.manifest import Manifest


class Flight:
    """The marks of one write that has not ended. Changed by its writer under the guard's mutex."""

    __slots__ = ("manifest", "object_ids")

    def __init__(self) -> None:
        self.object_ids: set[str] = set()
        self.manifest: Manifest | None = None


class CollectionGuard:
    """The marks of one store. Shared freely between threads."""

    def __init__(self) -> None:
        self._mutex = Lock()
        self._pins: dict[str, int] = {}  # by content id; guarded by _mutex
        self._manifests: dict[str, Manifest] = {}  # of pinned chunked content; guarded by _mutex
        self._flights: set[Flight] = set()  # guarded by _mutex
        self._protected: set[str] | None = None  # None: no collection; guarded by _mutex

    def pin(self, etag: str, object_id: str, manifest: Manifest | None = None) -> bool:
        """Count a pin; return whether a collection is active.

        ``manifest`` is given for chunked content, whose chunks are then pinned with it.
        """
        with self._mutex:
            pins = self._pins
            pins[etag] = pins.get(etag, 0) + 1
            if manifest is not None:
                self._manifests[etag] = manifest
            if self._protected is None:
                return False
            self._protected.add(object_id)
            if manifest is not None:
                self._protected.update(manifest.object_ids())
            return True

    def unpin(self, etag: str) -> None:
        """Take back one pin. Errors: InvalidArgumentError when the content is not pinned."""
        with self._mutex:
            count = self._pins.get(etag, 0)
            if count > 1:
                self._pins[etag] = count - 1
            elif count == 1:
                del self._pins[etag]
                self._manifests.pop(etag, None)
            else:
                raise InvalidArgumentError("unpin", None, f"{etag[:80]!r} is not pinned")

    @contextmanager
    def flight(self) -> Iterator[Flight]:
        """Give a flight whose marks last until the block ends."""
        flight = Flight()
        with self._mutex:
            self._flights.add(flight)
        try:
            yield flight
        finally:
            with self._mutex:
                self._flights.remove(flight)

    def hold(self, flight: Flight, object_id: str) -> bool:
        """Mark an object; return whether the flight had not marked it before."""
        with self._mutex:
            if object_id in flight.object_ids:
                return False
            flight.object_ids.add(object_id)
            if self._protected is not None:
                self._protected.add(object_id)
            return True

    def hold_chunks(self, flight: Flight, manifest: Manifest) -> bool:
        """Mark all chunks of the content the flight builds on; return whether one collects."""
        with self._mutex:
            flight.manifest = manifest
            if self._protected is None:
                return False
            self._protected.update(manifest.object_ids())
            return True

    def begin(self) -> None:
        """Start protecting. Errors: BusyError while a collection is active."""
        with self._mutex:
            if self._protected is not None:
                raise BusyError("begin_collection", None, "a collection is already running")
            protected = {etag.rpartition(":")[2] for etag in self._pins}
            for manifest in self._manifests.values():
                protected.update(manifest.object_ids())
            for flight in self._flights:
                protected |= flight.object_ids
                if flight.manifest is not None:
                    protected.update(flight.manifest.object_ids())
            self._protected = protected

    def end(self) -> None:
        """Stop protecting. Idempotent."""
        with self._mutex:
            self._protected = None

    def unless_protected(self, object_id: str, take: Callable[[], bool]) -> bool:
        """Return ``take()``, or False for a protected object; in one step.

        Errors: InvalidArgumentError when no collection is active; those of ``take``.
        """
        with self._mutex:
            if self._protected is None:
                raise InvalidArgumentError(
                    "quarantine_object",
                    None,
                    "no collection is active",
                    hint="call begin_collection first: only then do writers mark what they reuse",
                )
            return object_id not in self._protected and take()
