"""Entry: where in the segments an object lies. Layer: storage. Plain values, without behaviour.

What the twins of the index of objects give and take.
"""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Where a record starts. Later records are at greater places."""

    segment: int
    offset: int
    """In the segment, in units of 8 bytes."""


LOG_START = Place(0, 0)


class End(NamedTuple):
    """Where the last segment ends, as a clean close left it."""

    segment: int
    offset: int


class IndexLostError(Exception):
    """There is no index to go on with: it has to be made anew from the segments."""


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
