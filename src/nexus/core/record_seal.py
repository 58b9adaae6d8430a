"""The seal around a stored record: what makes damage of the metastore's file show.

Layer: core, beneath :mod:`nexus.core.sealed_store`. The readable twin of ``src/record_seal.rs``.
A stored value is ``seal (8 bytes, big-endian) | revision (8) | payload``, and the seal is the
XXH3-64 of the key followed by all that comes after the seal: so a record that was moved to another
key, or is an old one in the place of a new one, does not pass for whole.
"""

from __future__ import annotations

from typing import Final

import msgspec
import xxhash

PREFIX_BYTES: Final = 16
"""What stands before the payload."""


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


def unseal_record(key: bytes, value: bytes) -> tuple[bytes, int, int] | None:
    """Return payload, revision and seal of a stored value; None where the seal does not match."""
    if len(value) < PREFIX_BYTES:
        return None
    checksum = xxhash.xxh3_64_intdigest(key + value[8:])
    if value[:8] != checksum.to_bytes(8, "big"):
        return None
    return value[PREFIX_BYTES:], int.from_bytes(value[8:PREFIX_BYTES], "big"), checksum
