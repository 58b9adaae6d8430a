"""AuditProtocol: who changed what, in records that are chained. Layer: contracts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import msgspec


class ChainReport(msgspec.Struct, frozen=True):
    """What checking the chain found. ``tip`` is the digest of the newest record, or empty."""

    records: int
    tip: str
    problems: tuple[str, ...]


@runtime_checkable
class AuditProtocol(Protocol):
    """The audit log. Shared by all threads."""

    def query(
        self,
        *,
        path: str | None = None,
        user_id: str | None = None,
        run_id: str | None = None,
        after_revision: int = 0,
    ) -> Iterator[dict[str, Any]]:
        """Yield the changes that match all that is given, oldest first, one dict an event.

        ``path`` matches itself and what lies beneath. Errors: CorruptionError for a record that
        cannot be read.
        """

    def verify(self, tip: str | None = None) -> ChainReport:
        """Check every record against the one before it, and the newest against ``tip``.

        A tip that is kept elsewhere also shows records that were cut off, or a chain made anew.
        """
