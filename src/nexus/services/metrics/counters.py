"""Counters of calls by hook point, with a histogram of their latencies. Layer: services.

Lock: ``_mutex`` is a leaf, held for a few additions.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import msgspec

BUCKETS: Final = 32
"""Bucket n counts calls of less than 2**n microseconds; the last one, all that took longer."""


class Count(msgspec.Struct):
    """The calls at one point."""

    total: int = 0
    failed: int = 0
    seconds: float = 0.0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * BUCKETS)

    def copy(self) -> Count:
        """Return the same, which counts no further."""
        return Count(self.total, self.failed, self.seconds, list(self.buckets))


class Counters:
    """Shared by all threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._counts: dict[str, Count] = {}

    def add(self, name: str, seconds: float, failed: bool) -> None:
        """Count one call."""
        bucket = min(int(seconds * 1e6).bit_length(), BUCKETS - 1)
        with self._mutex:
            count = self._counts.get(name)
            if count is None:
                count = self._counts[name] = Count()
            count.total += 1
            count.failed += failed
            count.seconds += seconds
            count.buckets[bucket] += 1

    def snapshot(self) -> dict[str, Count]:
        """Return all counts as of one moment."""
        with self._mutex:
            return {name: count.copy() for name, count in self._counts.items()}


def described(now: Count, before: Count | None, interval_s: float) -> dict[str, Any]:
    """Return the row of a sample for what was counted between two moments."""
    before = before or Count()
    calls = now.total - before.total
    buckets = [a - b for a, b in zip(now.buckets, before.buckets, strict=True)]
    return {
        "total": now.total,
        "failed": now.failed,
        "per_s": calls / interval_s if interval_s > 0 else None,
        "mean_us": (now.seconds - before.seconds) / calls * 1e6 if calls else None,
        "p50_us": _percentile(buckets, 0.5),
        "p99_us": _percentile(buckets, 0.99),
    }


def _percentile(buckets: list[int], share: float) -> int | None:
    wanted = sum(buckets) * share
    seen = 0
    for number, count in enumerate(buckets):
        seen += count
        if count and seen >= wanted:
            return 1 << number
    return None
