"""How a message lies in a log: a header with checksums, then its bytes. No I/O here.

Layer: storage. docs/formats.md has the bytes. Little-endian::

    "NXSR" | length u32 | offset u64 | xxh3_64(message) u64 | xxh3_64(the above; seed) u64

The seed is the identity of the stream, so that a record of another stream is no record here.
A damaged header does not hide what follows: the next sound header is looked for.
"""

from __future__ import annotations

import struct
from array import array
from typing import Final, NamedTuple

import xxhash

from nexus.contracts.stream_backend import RECORD_BYTES

MAGIC: Final = b"NXSR"
DAMAGED: Final = (1 << 64) - 1
"""Stands in :attr:`Scan.positions` for a message whose header is damaged."""

_HEADER: Final = struct.Struct("<4sIQQQ")
_SEALED: Final = _HEADER.size - 8
assert _HEADER.size == RECORD_BYTES

_checksum = xxhash.xxh3_64_intdigest


class Header(NamedTuple):
    """The header of a record, its own checksum verified."""

    length: int
    offset: int
    seal: int


class Scan(NamedTuple):
    """What a log holds. ``positions`` has an entry for each message from the first on."""

    positions: array[int]
    size: int
    """Where the next record goes; what lies beyond is the torn end of a write."""


def identity_of(stream_id: str) -> int:
    """Return the seed of a stream's checksums."""
    return _checksum(stream_id.encode())


def encode(message: bytes, offset: int, identity: int) -> bytes:
    """Return the record of a message."""
    head = _HEADER.pack(MAGIC, len(message), offset, _checksum(message), 0)[:_SEALED]
    return head + _checksum(head, identity).to_bytes(8, "little") + message


def header_at(data: bytes, position: int, identity: int) -> Header | None:
    """Return the header at a position, None where there is no sound one."""
    if len(data) - position < RECORD_BYTES:
        return None
    magic, length, offset, seal, own = _HEADER.unpack_from(data, position)
    if magic != MAGIC or own != _checksum(data[position : position + _SEALED], identity):
        return None
    return Header(length, offset, seal)


def decode(record: bytes, offset: int, identity: int) -> bytes | None:
    """Return the message of a whole record, None where anything in it is damaged."""
    header = header_at(record, 0, identity)
    message = record[RECORD_BYTES:]
    if header is None or header.offset != offset or header.seal != _checksum(message):
        return None
    return message


def scan(data: bytes, first: int, identity: int) -> Scan:
    """Find the records of a log whose first message has the offset ``first``.

    An end that a kill can leave, a record without its last bytes, is not counted into the size;
    nor are zeros up to the end, which a power cut can leave. Any other bytes without a sound
    header are a damaged message, or several where later offsets say so.
    """
    positions: array[int] = array("Q")
    position = 0
    while position < len(data):
        header = header_at(data, position, identity)
        if header is not None and header.offset == first + len(positions):
            if position + RECORD_BYTES + header.length > len(data):
                break
            positions.append(position)
            position += RECORD_BYTES + header.length
            continue
        found = _next_sound(data, position + 1, first, first + len(positions), identity)
        if found is not None:
            position, offset = found
            positions.extend([DAMAGED] * (offset - first - len(positions)))
        elif len(data) - position < RECORD_BYTES or not data[position:].strip(b"\0"):
            break
        else:
            positions.append(DAMAGED)
            position = len(data)
    return Scan(positions, position)


def _next_sound(
    data: bytes, start: int, first: int, least: int, identity: int
) -> tuple[int, int] | None:
    """Return position and offset of the next sound header that can belong there.

    Before it there are no more messages than headers fit into the bytes from the first on.
    """
    position = data.find(MAGIC, start)
    while position >= 0:
        header = header_at(data, position, identity)
        most = first + position // RECORD_BYTES + 1
        if header is not None and least < header.offset <= most:
            return position, header.offset
        position = data.find(MAGIC, position + 1)
    return None
