"""FileMetadata, entry types and the shapes that calls return. Layer: contracts.

Unix counterpart: ``struct inode`` and the ``DT_*`` constants of readdir(3).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

DT_REG = 0
DT_DIR = 1
DT_MOUNT = 2
DT_PIPE = 3
DT_STREAM = 4
DT_EXTERNAL_STORAGE = 5

ENTRY_TYPE_NAMES = ("file", "directory", "mount", "pipe", "stream", "external_storage")
"""The word for each ``DT_*`` value, at its index."""

DIRECTORY_TYPES = frozenset({DT_DIR, DT_MOUNT, DT_EXTERNAL_STORAGE})
"""Entry types that can have entries beneath them."""

CHANNEL_TYPES = frozenset({DT_PIPE, DT_STREAM})
"""Entry types that carry messages."""

DEFAULT_FILE_MODE = 0o644
DEFAULT_DIRECTORY_MODE = 0o755

Buffer: TypeAlias = bytes | bytearray | memoryview
AttributeValue: TypeAlias = str | int | float | bool
"""What a custom attribute may be."""

Stat: TypeAlias = dict[str, Any]
"""What ``sys_stat`` returns; its keys are listed in docs/syscalls.md."""


class FileMetadata(msgspec.Struct, frozen=True, array_like=True, omit_defaults=False, gc=False):
    """One entry of the tree, as stored. Times are integer nanoseconds since the Unix epoch.

    The path is the key of the record and the revision is in its seal, so neither is repeated
    here. Stored as an array: a new field goes last and has a default. Values of custom attributes
    are plain, so no cycle can run through a record, and the collector of cycles need not look.
    """

    entry_type: int
    size: int
    etag: str
    version: int
    created_at_ns: int
    modified_at_ns: int
    owner_id: str
    mode: int
    mime_type: str
    zone_id: str
    backend_name: str
    modified_by: str
    run_id: str | None = None
    attributes: dict[str, AttributeValue] = {}
    mount: dict[str, AttributeValue] | None = None
    first_version: int = 1
    """The version with which this file came to its path: over 1 where it was moved there."""
    channel_id: str | None = None
    """Names what a pipe or a stream holds, as ``etag`` names what a file does."""


class StreamMessage(bytes):
    """A message read from a stream, which also says where it was and where the next one is."""

    offset: int
    next_offset: int

    def __new__(cls, message: bytes, offset: int) -> StreamMessage:
        """Return a message at an offset."""
        self = super().__new__(cls, message)
        self.offset = offset
        self.next_offset = offset + 1
        return self


class DirectoryPage(list[Any]):
    """A list of entries that also says where the next page starts.

    ``next_cursor`` is None when nothing follows; pass it as ``cursor`` to get the next page.
    """

    next_cursor: str | None

    def __init__(self, entries: Any = (), next_cursor: str | None = None) -> None:
        super().__init__(entries)
        self.next_cursor = next_cursor
