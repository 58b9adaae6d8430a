"""Checks of what callers hand to the system calls: ranges, buffers, limits, messages, attributes.

Layer: core, above :mod:`nexus.core.volume`. Pure functions on values; paths are checked by
:mod:`nexus.lib.paths`. Whatever passes can be stored and computed with, so that nothing beneath
meets a builtin exception. Unix counterpart: the EINVAL and EFAULT checks at a syscall's entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import AccessDeniedError, InvalidArgumentError, shown
from nexus.contracts.filesystem import Precondition
from nexus.contracts.metadata import ENTRY_TYPE_NAMES, Buffer
from nexus.core.volume import bad_attribute

MAX_TEXT_BYTES = 255
MAX_OFFSET = (1 << 63) - 1
"""The last offset that a file can have on a 64-bit system."""
MAX_WRITE_END = 1 << 36
"""Where a write at an offset may end: a gap is filled with zeros while the file is locked."""
MAX_TIME_S = 253_402_300_799
"""The last second of the year 9999, beyond which calendars in most languages end."""
MAX_PAGE = 100_000
"""The most entries in one page; a larger limit is cut to this, and the page has a cursor."""
MIN_CHANNEL_BYTES: Final = 64
MAX_CHANNEL_BYTES: Final = 1 << 30
_LONGEST_WAIT_S: Final = 1e9

_ATTRIBUTE_TYPES: Mapping[str, tuple[type, ...]] = {
    "mode": (int,),
    "owner_id": (str,),
    "mime_type": (str,),
    "modified_at": (int, float),
    "attributes": (Mapping,),
}


def check_context(context: object) -> None:
    """Raise unless an identity is one. Errors: InvalidArgumentError."""
    if not isinstance(context, OperationContext):
        kind = type(context).__name__
        raise InvalidArgumentError("context", None, f"it is {kind}, not an OperationContext")


def check_admin(operation: str, path: str, context: OperationContext) -> None:
    """Raise unless an administrator calls. Errors: AccessDeniedError."""
    if not context.is_admin:
        raise AccessDeniedError(operation, path, f"{context.user_id} is no administrator")


def check_precondition_type(operation: str, path: str, condition: object) -> None:
    """Raise unless a precondition is one, or None. Errors: InvalidArgumentError."""
    if condition is not None and not isinstance(condition, Precondition):
        kind = type(condition).__name__
        raise InvalidArgumentError(operation, path, f"precondition is {kind}, not a Precondition")


def check_range(operation: str, path: str, count: int | None, offset: int) -> None:
    """Raise unless a range of bytes can be one. Errors: InvalidArgumentError."""
    for name, value in (("offset", offset), ("count", count)):
        if value is None and name == "count":
            continue
        if type(value) is not int or not 0 <= value <= MAX_OFFSET:
            raise InvalidArgumentError(
                operation, path, f"{name} is {shown(value)}, not within 0 to {MAX_OFFSET}"
            )


def check_version(operation: str, path: str, version: object) -> None:
    """Raise unless a version number can be one. Errors: InvalidArgumentError."""
    if type(version) is not int or abs(version) > MAX_OFFSET:
        raise InvalidArgumentError(operation, path, f"version is {shown(version)}, not a number")


def page_limit(path: str, limit: int | None) -> int | None:
    """Return the most entries that a page may hold. Errors: InvalidArgumentError."""
    if limit is None:
        return None
    if type(limit) is not int or limit < 1:
        raise InvalidArgumentError("readdir", path, f"limit is {shown(limit)}, not at least 1")
    return min(limit, MAX_PAGE)


def view(operation: str, path: str, buf: Buffer) -> memoryview:
    """Return the bytes of a buffer, whatever its shape and item type."""
    try:
        found = memoryview(buf)
        if found.format == "B" and found.ndim == 1 and found.c_contiguous:
            return found
        return memoryview(found.tobytes())
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(operation, path, f"buf is not bytes: {error}") from error


def write_slice(path: str, buf: object, count: int | None) -> memoryview:
    """Return the bytes that a write at an offset writes. Errors: InvalidArgumentError."""
    data = view("write", path, cast(Buffer, buf))
    if count is None:
        return data
    check_range("write", path, count, 0)
    if count > len(data):
        raise InvalidArgumentError("write", path, f"count is {count} but buf has {len(data)} bytes")
    return data[:count]


def checked_pieces(
    operation: str, path: str, buf: Buffer | Iterable[Buffer]
) -> Buffer | Iterable[Buffer]:
    """Return what a whole-file write stores: one buffer, or an iterable of them."""
    if isinstance(buf, bytes):
        return buf
    if isinstance(buf, str):
        raise InvalidArgumentError(operation, path, "buf is text; encode it to bytes")
    try:
        memoryview(cast(Buffer, buf))
    except TypeError:
        if isinstance(buf, Iterable):
            return (view(operation, path, cast(Buffer, piece)) for piece in buf)
        kind = type(buf).__name__
        raise InvalidArgumentError(operation, path, f"buf is {kind}, not bytes") from None
    except ValueError as error:
        raise InvalidArgumentError(operation, path, f"buf is not bytes: {error}") from error
    return view(operation, path, cast(Buffer, buf))


def check_attribute(path: str, name: str, value: Any) -> None:
    """Raise unless a mutable attribute can have a value. Errors: InvalidArgumentError."""
    types = _ATTRIBUTE_TYPES.get(name)
    if types is None:
        known = ", ".join(_ATTRIBUTE_TYPES)
        raise bad_attribute(path, name, f"unknown attribute; there are {known}")
    matches: bool = isinstance(value, types) and not isinstance(value, bool)
    if not matches:
        raise bad_attribute(path, name, f"{type(value).__name__} is not {types[0].__name__}")
    if name == "mode" and not 0 <= value <= 0o777:
        raise bad_attribute(path, name, f"{shown(value)} is not within 0 to 0o777")
    if isinstance(value, str) and len(value.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise bad_attribute(path, name, f"over {MAX_TEXT_BYTES} bytes")
    if name == "modified_at" and not 0 <= value <= MAX_TIME_S:
        raise bad_attribute(path, name, f"{shown(value)} is not within 0 to {MAX_TIME_S} seconds")
    if name == "attributes":
        _check_custom(path, value)


def _check_custom(path: str, value: Mapping[str, Any]) -> None:
    for key, item in value.items():
        if not isinstance(key, str) or not key:
            raise bad_attribute(path, "attributes", f"{shown(key)} is not a name")
        if not isinstance(item, str | int | float | bool | None):
            raise bad_attribute(path, "attributes", f"{key} is neither text, number nor bool")


def check_no_more(path: str, attrs: Mapping[str, Any]) -> None:
    """Raise for the first attribute that is left over. Errors: InvalidArgumentError."""
    for name in attrs:
        raise bad_attribute(path, name, "has no meaning for this entry type")


def capacity_of(path: str, kind: int, attrs: Mapping[str, Any]) -> int | None:
    """Return the capacity that is asked for, None where none is. Errors: InvalidArgumentError."""
    unknown = sorted(set(attrs) - {"capacity_bytes"})
    name = ENTRY_TYPE_NAMES[kind]
    if unknown:
        raise InvalidArgumentError("setattr", path, f"{unknown[0]}: no attribute of a new {name}")
    capacity = attrs.get("capacity_bytes")
    if capacity is None:
        return None
    if type(capacity) is not int or not MIN_CHANNEL_BYTES <= capacity <= MAX_CHANNEL_BYTES:
        raise InvalidArgumentError(
            "setattr",
            path,
            f"capacity_bytes: {capacity!r} is not within {MIN_CHANNEL_BYTES} "
            f"and {MAX_CHANNEL_BYTES}",
        )
    return capacity


def wait_limit(operation: str, path: str, timeout: float | None) -> float | None:
    """Return a timeout in seconds, None for none. Errors: InvalidArgumentError."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        reason = f"timeout is {timeout!r}, not a number of seconds"
        raise InvalidArgumentError(operation, path, reason)
    return min(float(timeout), _LONGEST_WAIT_S)


def check_message_read(path: str, count: int | None, version: int | None) -> None:
    """Raise InvalidArgumentError for what has no meaning where messages are read."""
    if count is not None:
        raise InvalidArgumentError("read", path, f"count={count}: a message is read whole")
    if version is not None:
        raise InvalidArgumentError("read", path, f"version={version}: messages have no versions")


def check_message_write(path: str, offset: int, precondition: Precondition | None) -> None:
    """Raise InvalidArgumentError for what has no meaning where messages are written."""
    if offset:
        raise InvalidArgumentError("write", path, f"offset={offset}: a message goes to the end")
    if precondition is not None:
        raise InvalidArgumentError("write", path, "a message is written without a precondition")
