"""The primitives that the drivers run on: Rust where it was built, else the Python twins.

Layer: storage. What :mod:`nexus.core.primitives` is to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from nexus.lib.disk import Disk
from nexus.lib.native import chosen
from nexus.storage.object_store.segment_file import Wanted, read_sealed

if TYPE_CHECKING or chosen().module is None:
    from nexus.storage.object_store.segment_file import packed_record
    from nexus.storage.stream.stream_buffer import StreamBuffer
else:
    from nexus._kernel import StreamBuffer, packed_record

__all__ = ["StreamBuffer", "packed_record", "sealed_reader"]


def sealed_reader(disk: Disk) -> Callable[[int, Sequence[Wanted]], bytes | None]:
    """Return what reads sealed parts from a disk; a test's own is reached by Python alone."""
    native = chosen().module
    if native is None or type(disk) is not Disk:
        return partial(read_sealed, disk)
    reader: Callable[[int, Sequence[Wanted]], bytes | None] = native.read_sealed
    return reader
