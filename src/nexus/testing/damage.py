"""Damage to a content store on a local disk, behind its back: for tests of what finds it.

Layer: testing. It knows both layouts of objects, loose and packed; the store may be open or closed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from nexus.storage.object_store.segment_file import RECORD_HEADER_BYTES, UNIT, records


class StoredAt(NamedTuple):
    """Where the bytes of an object lie."""

    file: Path
    offset: int
    size: int


def find_object(content: Path, object_id: str) -> StoredAt:
    """Return where an object lies in a content folder: its last record where there are several.

    Errors: FileNotFoundError.
    """
    loose = content / object_id[:2] / object_id[2:]
    if loose.exists():
        return StoredAt(loose, 0, loose.stat().st_size)
    found: StoredAt | None = None
    for segment in sorted((content / "segments").glob("*.seg")):
        for record in records(segment.read_bytes()):
            if record.object_id.hex() == object_id:
                offset = record.offset * UNIT + RECORD_HEADER_BYTES
                found = StoredAt(segment, offset, record.size)
    if found is None:
        raise FileNotFoundError(f"{content} holds no object {object_id}")
    return found


def flip_bit(content: Path, object_id: str, bit: int = 0) -> None:
    """Flip one bit of an object's bytes."""
    file, offset, _ = find_object(content, object_id)
    with file.open("r+b") as stored:
        stored.seek(offset + bit // 8)
        (byte,) = stored.read(1)
        stored.seek(offset + bit // 8)
        stored.write(bytes([byte ^ 1 << bit % 8]))


def lose_object(content: Path, object_id: str) -> None:
    """Leave zeros where an object was, as a power cut does that came before its bytes were written.

    What stands before the bytes goes too.
    """
    file, offset, size = find_object(content, object_id)
    start = max(0, offset - RECORD_HEADER_BYTES)
    with file.open("r+b") as stored:
        stored.seek(start)
        stored.write(bytes(offset + size - start))
