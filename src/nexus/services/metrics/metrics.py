"""Metrics: counts every call, and lets other processes see what this one is doing.

Layer: services. One process owns a data directory, so what it does cannot be asked for from
outside; while this service runs, a small file there has its last sample, replaced every second.
Unix counterparts: ``/proc/stat`` and top(1).

Invariants:

1. The file is one whole sample, whenever it is read, of bounded size.
2. A sample that cannot be written is logged once and tried again; no call fails or waits for it.
3. After ``stop`` there is no file.

Lock: ``_publishing`` guards the beginning of the interval and the file; under it the kernel is
called, never from within a hook.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import NexusError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.protocols.metrics import STATISTICS_FILE, STATISTICS_VERSION
from nexus.contracts.vfs_hooks import HookPoint, HookSpec, VFSContext
from nexus.lib.disk import storage_error
from nexus.services.metrics.counters import Count, Counters, described

INTERVAL_S: Final = 1.0
SHOWN: Final = 10
"""Rows of each kind in a sample."""
_LOCK_FIELDS: Final = ("path", "mode", "user_id", "agent_id", "expires_at")
_WATCH_FIELDS: Final = ("path", "recursive", "waiting")
_QUEUE_FIELDS: Final = ("name", "waiting", "lost")
_SERVICE_FIELDS: Final = ("name", "state", "calls")
_EVENT_FIELDS: Final = ("revision", "timestamp", "kind", "path", "new_path", "user_id", "agent_id")
_PAGE: Final = 10_000
_WINDOW: Final = 16 * SHOWN
"""Revisions that are looked through for recent events: locks have revisions and no events."""
_WHOLE_REVISION: Final = (1 << 32) - 1
_NOBODY: Final = OperationContext("metrics", is_admin=True)

_log = logging.getLogger(__name__)


class Metrics:
    """Counts and publishes. Shared by all threads."""

    def __init__(
        self,
        nx: NexusFilesystem,
        clock_ns: Callable[[], int],
        folder: str | None,
        *,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._nx = nx
        self._clock_ns = clock_ns
        self._file = None if folder is None else os.path.join(folder, STATISTICS_FILE)
        self._interval_s = interval_s
        self._counters = Counters()
        self._started = self._now()
        self._publishing = threading.Lock()
        self._since = self._started  # this and below guarded by _publishing
        self._before: dict[str, Count] = {}
        self._has_failed = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # -- counting -----------------------------------------------------------------------------

    def hook_spec(self) -> HookSpec:
        """Return the meter: this object."""
        return HookSpec(meter=self)

    def on_call(
        self, point: HookPoint[Any, Any], ctx: VFSContext, seconds: float, failed: bool, /
    ) -> None:
        """Count a call, unless it is one of this service's own."""
        if ctx.context is not _NOBODY:
            self._counters.add(point.name, seconds, failed)

    # -- publishing ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to publish, where there is a folder to publish in."""
        if self._file is None:
            return
        self._try_to_publish()
        self._thread = threading.Thread(target=self._run, name="nexus-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and take the file away."""
        self._stopping.set()
        if self._thread is not None and self._file is not None:
            self._thread.join()
            if os.path.exists(self._file):
                os.unlink(self._file)

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self._try_to_publish()

    def _try_to_publish(self) -> None:
        try:
            self.publish()
        except NexusError as error:
            if not self._has_failed:
                _log.warning("no statistics: %s", error)
            self._has_failed = True
        else:
            self._has_failed = False

    def publish(self) -> None:
        with self._publishing:
            counts, now = self._counters.snapshot(), self._now()
            sample = self._sample_locked(counts, now)
            self._before, self._since = counts, now
            if self._file is not None:
                _replace(self._file, msgspec.json.encode(sample))

    def sample(self) -> dict[str, Any]:
        with self._publishing:
            return self._sample_locked(self._counters.snapshot(), self._now())

    def _sample_locked(self, counts: dict[str, Count], now: float) -> dict[str, Any]:
        interval_s = now - self._since
        return {
            "version": STATISTICS_VERSION,
            "pid": os.getpid(),
            "time": now,
            "started": self._started,
            "interval_s": interval_s,
            "calls": {
                name: described(count, self._before.get(name), interval_s)
                for name, count in sorted(counts.items())
            },
            "locks": _shortened(self._view("locks"), _LOCK_FIELDS),
            "watches": _shortened(self._view("watches"), _WATCH_FIELDS),
            "queues": _shortened(self._queues(), _QUEUE_FIELDS),
            "services": _shortened(self._view("services"), _SERVICE_FIELDS),
            "events": self._events(),
        }

    def _queues(self) -> list[dict[str, Any]]:
        observers = [
            {"name": f"observer of {row['owner']}", "waiting": row["waiting"], "lost": row["lost"]}
            for row in self._view("hooks")
            if row["kind"] == "observer"
        ]
        channels = [
            {"name": row["path"], "waiting": row["size"], "lost": None}
            for row in self._view("channels")
        ]
        return observers + channels

    def _events(self) -> dict[str, Any]:
        journal = self._nx.sys_stat("/__sys__/journal", context=_NOBODY)
        newest = journal["revision"] if journal is not None else 0
        cursor = f"{max(newest - _WINDOW, 0)}.{_WHOLE_REVISION}"
        page = self._nx.history(limit=_PAGE, cursor=cursor, context=_NOBODY)
        return {"count": newest, "rows": [_only(row, _EVENT_FIELDS) for row in page[-SHOWN:]]}

    def _view(self, name: str) -> Sequence[dict[str, Any]]:
        place = f"/__sys__/{name}"
        return self._nx.sys_readdir(place, limit=_PAGE, details=True, context=_NOBODY)

    def _now(self) -> float:
        return self._clock_ns() / 1e9


def _shortened(rows: Sequence[dict[str, Any]], fields: tuple[str, ...]) -> dict[str, Any]:
    return {"count": len(rows), "rows": [_only(row, fields) for row in rows[:SHOWN]]}


def _only(row: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: row[field] for field in fields}


def _replace(path: str, data: bytes) -> None:
    staging = path + ".new"
    try:
        with open(staging, "wb") as file:
            file.write(data)
        os.replace(staging, path)
    except OSError as error:
        raise storage_error("publish", path, error) from error
