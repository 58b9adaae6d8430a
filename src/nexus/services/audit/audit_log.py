"""AuditLog: a record of each commit, chained by hash, stored in the commit itself.

Layer: services. The kernel stores what :meth:`AuditLog.record` returns together with the change and
shows it beneath ``/__sys__/records``; nothing removes it. Unix counterpart: auditd, with the log
inside of the journal's transaction.

Invariants:

1. A change that was made while the service was enlisted has a record, and a record its change.
2. A record holds the digest of the one before it, so none can be changed, removed or put in between
   without every later one showing it; the newest is guarded by its digest kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from nexus.contracts.errors import CorruptionError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.protocols.audit import ChainReport
from nexus.contracts.vfs_hooks import HookSpec
from nexus.lib.hashing import hex_digest
from nexus.lib.paths import is_same_or_below, normalize

_RECORDS: Final = "/__sys__/records"
_PAGE: Final = 1000


class AuditEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One event as it is recorded; what has no value is left out."""

    kind: str
    path: str
    user_id: str
    timestamp_ns: int
    zone_id: str
    new_path: str | None = None
    etag: str = ""
    size: int = 0
    version: int = 0
    agent_id: str | None = None
    run_id: str | None = None


class AuditRecord(msgspec.Struct, frozen=True, gc=False):
    """What is stored with a commit, as JSON. ``previous`` is empty in the first record."""

    revision: int
    previous: str
    events: list[AuditEvent]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AuditRecord).decode


class AuditLog:
    """Records changes and answers for them. Shared by all threads."""

    def __init__(self, nx: NexusFilesystem) -> None:
        self._nx = nx

    def hook_spec(self) -> HookSpec:
        """Return the recorder: this object."""
        return HookSpec(recorder=self)

    def record(self, events: Sequence[FileEvent], revision: int, previous: bytes, /) -> bytes:
        """Return the record of a commit."""
        digest = hex_digest(previous) if previous else ""
        return _encode(AuditRecord(revision, digest, [_recorded(event) for event in events]))

    def query(
        self,
        *,
        path: str | None = None,
        user_id: str | None = None,
        run_id: str | None = None,
        after_revision: int = 0,
    ) -> Iterator[dict[str, Any]]:
        wanted = None if path is None else normalize("audit", path)
        for revision, payload in self._stored(after_revision):
            for event in _decoded(revision, payload).events:
                if (
                    (wanted is None or _concerns(event, wanted))
                    and (user_id is None or event.user_id == user_id)
                    and (run_id is None or event.run_id == run_id)
                ):
                    yield {"revision": revision, **msgspec.structs.asdict(event)}

    def verify(self, tip: str | None = None) -> ChainReport:
        problems: list[str] = []
        count, digest = 0, ""
        for revision, payload in self._stored(0):
            count += 1
            try:
                record = _decoded(revision, payload)
            except CorruptionError as error:
                problems.append(error.reason)
            else:
                if record.revision != revision:
                    problems.append(f"revision {revision}: says that it is {record.revision}")
                if record.previous != digest:
                    problems.append(f"revision {revision}: does not follow the record before it")
            digest = hex_digest(payload)
        if tip is not None and tip != digest:
            problems.append(f"the newest record has the digest {digest or 'none'}, not {tip}")
        return ChainReport(count, digest, tuple(problems))

    def _stored(self, after_revision: int) -> Iterator[tuple[int, bytes]]:
        cursor: str | None = str(after_revision)
        while cursor is not None:
            page = self._nx.sys_readdir(_RECORDS, limit=_PAGE, cursor=cursor, details=True)
            for row in page:
                yield row["revision"], row["record"]
            cursor = page.next_cursor


def _recorded(event: FileEvent) -> AuditEvent:
    return AuditEvent(
        event.kind,
        event.path,
        event.user_id,
        event.timestamp_ns,
        event.zone_id,
        event.new_path,
        event.etag,
        event.size,
        event.version,
        event.agent_id,
        event.run_id,
    )


def _decoded(revision: int, payload: bytes) -> AuditRecord:
    try:
        return _decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        reason = f"revision {revision}: {error}"
        raise CorruptionError("audit", None, reason) from error


def _concerns(event: AuditEvent, path: str) -> bool:
    paths = [event.path] + ([event.new_path] if event.new_path else [])
    return any(is_same_or_below(found, path) for found in paths)
