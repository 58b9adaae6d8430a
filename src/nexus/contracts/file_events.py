"""FileEvent: one committed change, as the journal keeps it. Layer: contracts.

Unix counterpart: ``struct inotify_event``, with the revision that makes a watch resumable.
"""

from __future__ import annotations

from typing import Any

import msgspec

FILE_WRITE = "file_write"
FILE_DELETE = "file_delete"
FILE_RENAME = "file_rename"
METADATA_CHANGE = "metadata_change"
DIR_CREATE = "dir_create"
DIR_DELETE = "dir_delete"
MOUNT = "mount"
UNMOUNT = "unmount"
OVERFLOW = "overflow"
"""For observers only: events were dropped. ``size`` counts them, ``revision`` is the last one's."""


class FileEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One change to one path. ``revision`` orders events within a zone; a batch shares one.

    ``new_path`` is set for a rename; a renamed or deleted directory is one event that stands for
    everything beneath it. ``timestamp_ns`` is nanoseconds since the Unix epoch. ``sequence``
    counts the events of one revision from 0.
    """

    kind: str
    path: str
    user_id: str
    timestamp_ns: int
    zone_id: str
    revision: int = 0
    new_path: str | None = None
    etag: str = ""
    size: int = 0
    version: int = 0
    agent_id: str | None = None
    run_id: str | None = None
    sequence: int = 0

    @property
    def cursor(self) -> str:
        """The position right after this event: what ``since`` takes to go on."""
        return f"{self.revision}.{self.sequence}"

    def as_dict(self) -> dict[str, Any]:
        """Return the event as listings show it, with times in seconds."""
        return {
            "revision": self.revision,
            "kind": self.kind,
            "path": self.path,
            "new_path": self.new_path,
            "etag": self.etag,
            "size": self.size,
            "version": self.version,
            "user_id": self.user_id,
            "agent_id": self.agent_id,
            "run_id": self.run_id,
            "zone_id": self.zone_id,
            "timestamp": self.timestamp_ns / 1e9,
        }
