"""Digests of bytes. Layer: lib."""

from __future__ import annotations

from blake3 import blake3


def hex_digest(data: bytes) -> str:
    """Return the BLAKE3 digest as 64 hex digits."""
    return blake3(data).hexdigest()
