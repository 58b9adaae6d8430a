"""The stored form of metadata and of journal entries: a codec version, then a MessagePack array.

Layer: core. It turns records into bytes and back, and knows neither keys nor seals; docs/formats.md
has the bytes. The codec is msgspec's, a C library that reads and fills the class at once. The Rust
twin has to go through the interpreter field by field, so its calls take longer, but for
:func:`decode_event`, which it spares an object: that one is in :mod:`nexus.core.primitives`, the
rest of the twin is for paths that stay in Rust. Unix counterpart: the inode on the disk.

Invariants:

1. Both twins store a record as the same bytes.
2. What one of them reads the other reads alike; what one refuses the other refuses.
3. A field that a newer release appended is gone past; one that an older release did not know has
   its default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import msgspec

from nexus.contracts.errors import CorruptionError, InvalidArgumentError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.metadata import FileMetadata
from nexus.core.record_seal import Sealed

METADATA_VERSION = b"\x01"
EVENT_VERSION = b"\x01"

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_decode_metadata = msgspec.msgpack.Decoder(FileMetadata).decode


def encode_metadata(meta: FileMetadata) -> bytes:
    """Return the stored form of a record. Errors: InvalidArgumentError."""
    return METADATA_VERSION + _encoded(meta)


def _encoded(value: FileMetadata | FileEvent) -> bytes:
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError, TypeError) as error:
        # Identities and attributes come from callers: text with lone surrogates, huge numbers.
        raise InvalidArgumentError("commit", None, f"cannot be stored: {error}") from error


def decode_metadata(record: Sealed) -> FileMetadata:
    """Return the metadata of a record. Errors: CorruptionError."""
    return decode_versioned(record, METADATA_VERSION, _as_record, _decode_metadata)


def encode_event(event: FileEvent) -> bytes:
    """Return the stored form of a journal entry. Errors: InvalidArgumentError."""
    return EVENT_VERSION + _encoded(event)


@cache
def _event_decoder() -> Callable[[bytes], FileEvent]:
    return msgspec.msgpack.Decoder(FileEvent).decode  # costs start-up time


def decode_event(record: Sealed) -> FileEvent:
    """Return the event of a journal entry, with its position. Errors: CorruptionError."""
    event = decode_versioned(record, EVENT_VERSION, _as_entry, _event_decoder())
    sequence = int.from_bytes(record.key[-4:], "big")
    return msgspec.structs.replace(event, revision=record.revision, sequence=sequence)


def _as_record(record: Sealed) -> str:
    return f"record {record.key!r}"


def _as_entry(record: Sealed) -> str:
    return f"the journal entry of revision {record.revision}"


def decode_versioned(
    record: Sealed, version: bytes, what: Callable[[Sealed], str], decode: Callable[[bytes], T]
) -> T:
    """Return what a payload says after its codec version; ``what`` names the record in errors.

    Errors: CorruptionError.
    """
    payload = record.payload
    if payload[:1] != version:
        raise CorruptionError(
            "metastore",
            None,
            f"{what(record)} has codec version {payload[:1].hex() or 'none'}",
            hint="it was written by a newer release",
        )
    try:
        return decode(payload[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptionError(
            "metastore", None, f"{what(record)}: {error}", hint="run `nexus fsck`"
        ) from error
