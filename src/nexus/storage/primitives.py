"""The primitives that the drivers run on: Rust where it was built, else the Python twins.

Layer: storage. What :mod:`nexus.core.primitives` is to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nexus.lib.disk import Disk
from nexus.lib.native import chosen

if TYPE_CHECKING:
    from nexus.storage.object_store.object_index import ObjectIndex

if TYPE_CHECKING or chosen().module is None:
    from nexus.storage.object_store.segment_file import packed_record
    from nexus.storage.stream.stream_buffer import StreamBuffer
else:
    from nexus._kernel import StreamBuffer, packed_record

__all__ = ["StreamBuffer", "create_object_index", "open_object_index", "packed_record"]


def open_object_index(path: str, disk: Disk, boot: int) -> ObjectIndex:
    """Open an index within the boot of a number. Errors: IndexLostError; OSError."""
    native = _native_for(disk)
    if native is None:
        return _twin()(path, disk=disk, boot=boot)
    opened: ObjectIndex = native.ObjectIndex(path, boot=boot)
    return opened


def create_object_index(
    path: str, fill: Callable[[ObjectIndex], None], disk: Disk, boot: int
) -> ObjectIndex:
    """Make an index in place of any other, with what ``fill`` puts into it or not at all.

    Errors: OSError; those of ``fill``.
    """
    native = _native_for(disk)
    if native is None:
        return _twin().create(path, fill, disk=disk, boot=boot)
    made: ObjectIndex = native.ObjectIndex.create(path, fill, boot=boot)
    return made


def _twin() -> type[ObjectIndex]:
    from nexus.storage.object_store.object_index import ObjectIndex  # costs start-up time

    return ObjectIndex


def _native_for(disk: Disk) -> Any:
    """Return the extension module, None for a disk whose calls have to go through Python."""
    return chosen().module if type(disk) is Disk else None
