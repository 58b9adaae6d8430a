"""The seal around a stored record: what makes damage of the metastore's file show.

Layer: core, beneath :mod:`nexus.core.sealed_store`. The readable twin of ``src/record_seal.rs``.
A stored value is ``seal (8 bytes, big-endian) | revision (8) | payload``, and the seal is the
XXH3-64 of the key followed by all that comes after the seal: so a record that was moved to another
key, or is an old one in the place of a new one, does not pass for whole.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

import msgspec
import xxhash

PREFIX_BYTES: Final = 16
"""What stands before the payload."""

HEAD: Final = struct.Struct("<QQQQQ")
HeadFields: TypeAlias = tuple[int, int, int, int, int]
"""Revision, number of records, sum of their seals modulo 2**64, start of the journal, end of the
chain: the head record of a store."""

_MASK: Final = (1 << 64) - 1


class Sealed(msgspec.Struct, frozen=True, gc=False):
    """A verified record: payload, the zone revision that wrote it, and its seal."""

    key: bytes
    payload: bytes
    revision: int
    seal: int


def seal_record(key: bytes, payload: bytes, at: bytes) -> tuple[bytes, int]:
    """Return the value to store and its seal; ``at`` is the revision in 8 bytes, big-endian."""
    body = at + payload
    checksum = xxhash.xxh3_64_intdigest(key + body)
    return checksum.to_bytes(8, "big") + body, checksum


def seal_commit(
    head_key: bytes,
    head: HeadFields,
    puts: list[tuple[bytes, bytes, Sealed | None]],
    deletes: list[Sealed],
    at_revision: list[tuple[bytes, bytes, bytes]],
    /,
) -> tuple[list[tuple[bytes, bytes]], list[Sealed], HeadFields]:
    """Seal what one commit writes, as the revision after that of the ``head``.

    ``puts`` are (key, payload, record that is replaced); ``at_revision`` are (start of the key,
    payload, end of the key), with the revision in between. Return the (key, value) rows to store,
    the new head's record last; the records of the puts; and the new head.
    """
    revision, records, seal_sum, journal_start, chain_end = head
    revision += 1
    at = revision.to_bytes(8, "big")
    rows: list[tuple[bytes, bytes]] = []
    written: list[Sealed] = []
    records += len(at_revision) - len(deletes)
    for record in deletes:
        seal_sum -= record.seal
    for key, payload, replaced in puts:
        value, seal = seal_record(key, payload, at)
        rows.append((key, value))
        written.append(Sealed(key, payload, revision, seal))
        seal_sum += seal
        if replaced is None:
            records += 1
        else:
            seal_sum -= replaced.seal
    for prefix, payload, suffix in at_revision:
        key = prefix + at + suffix
        value, seal = seal_record(key, payload, at)
        rows.append((key, value))
        seal_sum += seal
    head = (revision, records, seal_sum & _MASK, journal_start, chain_end)
    rows.append((head_key, seal_record(head_key, HEAD.pack(*head), at)[0]))
    return rows, written, head


def unseal_record(key: bytes, value: bytes) -> tuple[bytes, int, int] | None:
    """Return payload, revision and seal of a stored value; None where the seal does not match."""
    if len(value) < PREFIX_BYTES:
        return None
    checksum = xxhash.xxh3_64_intdigest(key + value[8:])
    if value[:8] != checksum.to_bytes(8, "big"):
        return None
    return value[PREFIX_BYTES:], int.from_bytes(value[8:PREFIX_BYTES], "big"), checksum
