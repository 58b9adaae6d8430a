"""The primitives that the drivers run on: Rust where it was built, else the Python twins.

Layer: storage. What :mod:`nexus.core.primitives` is to the kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus.lib.native import chosen

if TYPE_CHECKING or chosen().module is None:
    from nexus.storage.object_store.segment_file import packed_record
    from nexus.storage.stream.stream_buffer import StreamBuffer
else:
    from nexus._kernel import StreamBuffer, packed_record

__all__ = ["StreamBuffer", "packed_record"]
