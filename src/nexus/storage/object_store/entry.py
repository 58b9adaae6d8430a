"""Entry: where in the segments an object lies. Layer: storage. Plain values, without behaviour."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Where a record starts. Later records are at greater places."""

    segment: int
    offset: int
    """In the segment, in units of 8 bytes."""


class Entry(NamedTuple):
    """Where an object lies. ``at_ns`` is when it was stored or, with ``aside``, set aside."""

    object_id: bytes
    segment: int
    offset: int
    """In the segment, in units of 8 bytes."""
    size: int
    aside: int
    """1 for an object that the collector has set aside, else 0."""
    at_ns: int

    @property
    def place(self) -> Place:
        """Where its record starts."""
        return Place(self.segment, self.offset)
