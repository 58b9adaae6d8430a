"""Digests of bytes. Layer: lib."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from nexus.contracts.metadata import Buffer


def hex_digest(data: bytes) -> str:
    """Return the BLAKE3 digest as 64 hex digits."""
    return blake3(data).hexdigest()


class RunningDigest:
    """The BLAKE3 digest of bytes on their way somewhere. One thread's own."""

    def __init__(self) -> None:
        self._hasher = blake3()

    def through(self, pieces: Iterable[Buffer]) -> Iterator[Buffer]:
        """Yield the pieces as they come, and take them into the digest."""
        for piece in pieces:
            self._hasher.update(piece)
            yield piece

    def hex(self) -> str:
        """Return the digest so far as 64 hex digits."""
        return self._hasher.hexdigest()


def hex_digest_of(pieces: Iterable[Buffer]) -> str:
    """Return the BLAKE3 digest of a concatenation as 64 hex digits, in bounded memory."""
    digest = RunningDigest()
    for _ in digest.through(pieces):
        pass
    return digest.hex()
