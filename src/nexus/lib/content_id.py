"""Content ids: what names immutable bytes.

Layer: lib. Its job is the text form of an id; it stores nothing. An id is a tag that names the
algorithm and 64 lower-case hexadecimal digits:

- ``b3:<hex>``: BLAKE3 of the bytes, which are stored as one blob;
- ``b3c:<hex>``: BLAKE3 of a manifest (:mod:`nexus.lib.manifest`) that lists the chunks.

The digits alone are an *object id*: they name a physical object, whatever it holds.
"""

from __future__ import annotations

import re

from blake3 import blake3

from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.metadata import Buffer

BLOB_TAG = "b3:"
MANIFEST_TAG = "b3c:"

_match_content_id = re.compile(r"b3(c?):([0-9a-f]{64})").fullmatch
_match_object_id = re.compile(r"[0-9a-f]{64}").fullmatch


def object_id_of(data: Buffer) -> str:
    """Return the object id of bytes: their BLAKE3 hash, 64 hexadecimal digits."""
    return blake3(data).hexdigest()


EMPTY_OBJECT_ID = object_id_of(b"")
EMPTY_CONTENT_ID = BLOB_TAG + EMPTY_OBJECT_ID
"""The id of no bytes at all. It is always readable and needs no stored object."""


def blob_id(object_id: str) -> str:
    """Return the content id of bytes that are stored whole under ``object_id``."""
    return BLOB_TAG + object_id


def manifest_id(object_id: str) -> str:
    """Return the content id of chunked content whose manifest is ``object_id``."""
    return MANIFEST_TAG + object_id


def parse_content_id(operation: str, etag: str) -> tuple[bool, str]:
    """Return whether the content is chunked, and the object id of its blob or manifest.

    Errors: InvalidArgumentError, naming ``operation``, for anything but a well-formed id.
    """
    match = _match_content_id(etag) if isinstance(etag, str) else None
    if match is None:
        raise InvalidArgumentError(
            operation,
            None,
            f"{str(etag)[:80]!r} is not a content id",
            hint="an id is b3: or b3c: and 64 lower-case hexadecimal digits",
        )
    return match[1] == "c", match[2]


def is_object_id(text: str) -> bool:
    """Return whether the text is 64 lower-case hexadecimal digits."""
    return _match_object_id(text) is not None


def check_object_id(operation: str, object_id: str) -> None:
    """Do nothing for a well-formed object id. Errors: InvalidArgumentError."""
    if not is_object_id(object_id):
        raise InvalidArgumentError(
            operation,
            None,
            f"{object_id[:80]!r} is not an object id",
            hint="an object id is 64 lower-case hexadecimal digits",
        )
