"""MetricsProtocol: what a filesystem is doing. Layer: contracts. Unix counterpart: ``/proc/stat``.

A sample is a dict that JSON can say. Times are Unix time in seconds, latencies microseconds from
RESOLVE to POST, waiting included; their percentiles are upper bounds, a power of two::

    version, pid, time, started, interval_s
    calls     by hook point: total, failed, per_s, mean_us, p50_us, p99_us; the last four are those
              of the interval, and None where nothing was called in it
    locks, watches, queues, services
              the first rows of each, with ``count`` of all
    events    the most recent ones; ``count`` is the newest revision
"""

from __future__ import annotations

from typing import Any, Final, Protocol, runtime_checkable

STATISTICS_FILE: Final = "statistics.json"
"""Where in the data directory the last sample is, for other processes."""
STATISTICS_VERSION: Final = 1


@runtime_checkable
class MetricsProtocol(Protocol):
    """Counts calls while it is enlisted. Shared by all threads."""

    def sample(self) -> dict[str, Any]:
        """Return a sample whose interval began with the last one that was published."""

    def publish(self) -> None:
        """Write a sample for other processes, and begin a new interval.

        The service does so by itself, once a second. Errors: StorageError.
        """
