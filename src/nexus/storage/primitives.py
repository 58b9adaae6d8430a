"""The primitives that the drivers run on: Rust where it was built, else the Python twins.

Layer: storage. What :mod:`nexus.core.primitives` is to the kernel. Those that reach a disk are
Python's where that is a test's own: only Python reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from nexus.lib.boot_id import boot_number
from nexus.lib.disk import Disk
from nexus.lib.native import chosen
from nexus.storage.object_store.segment_file import Wanted, read_sealed

if TYPE_CHECKING:
    from nexus.storage.object_store.object_index import ObjectIndex

if TYPE_CHECKING or chosen().module is None:
    from nexus.storage.object_store.segment_file import packed_record
    from nexus.storage.stream.stream_buffer import StreamBuffer
else:
    from nexus._kernel import StreamBuffer, packed_record

__all__ = ["StreamBuffer", "create_index", "open_index", "packed_record", "sealed_reader"]


def open_index(path: str, disk: Disk, boot: int | None) -> ObjectIndex:
    """Open an index of objects; by default in this boot. Errors: IndexLostError; OSError."""
    native = _native_for(disk)
    if native is None:
        return _twin()(path, disk=disk, boot=boot)
    index: ObjectIndex = native.ObjectIndex(path, boot_number() if boot is None else boot)
    return index


def create_index(
    path: str, fill: Callable[[ObjectIndex], None], disk: Disk, boot: int | None
) -> ObjectIndex:
    """Make an index in place of any other; see :meth:`ObjectIndex.create`."""
    native = _native_for(disk)
    if native is None:
        return _twin().create(path, fill, disk=disk, boot=boot)
    boot = boot_number() if boot is None else boot
    index: ObjectIndex = native.ObjectIndex.create(path, fill, boot)
    return index


def sealed_reader(disk: Disk) -> Callable[[int, Sequence[Wanted]], bytes | None]:
    """Return what reads sealed parts from a disk."""
    native = _native_for(disk)
    if native is None:
        return partial(read_sealed, disk)
    reader: Callable[[int, Sequence[Wanted]], bytes | None] = native.read_sealed
    return reader


def _twin() -> type[ObjectIndex]:
    from nexus.storage.object_store.object_index import ObjectIndex  # costs start-up time

    return ObjectIndex


def _native_for(disk: Disk) -> ModuleType | None:
    return chosen().module if type(disk) is Disk else None
