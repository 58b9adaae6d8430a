"""Virtual paths: absolute, ``/``-separated, UTF-8, kept byte for byte.

Layer: lib. Pure functions on strings, no filesystem. Repeated slashes, ``.`` and a trailing slash
fold; ``..``, NUL, control characters and lone surrogates are refused. Nothing is normalised
beyond that: two spellings of a character in Unicode are two names. Unix counterpart:
path_resolution(7) without links.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from nexus.contracts.errors import InvalidPathError, NameTooLongError, shown
from nexus.lib.native import chosen

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255

_ALWAYS_SHORT = MAX_NAME_BYTES // 4  # characters that fit a name whatever they are


def _normalizer() -> Callable[[str, str], str]:
    # One pass for the usual case: canonical already, and short enough in characters.
    is_canonical = re.compile(
        r"(?:/(?!\.{1,2}(?:/|\Z))[^/\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255})+|/"
    ).fullmatch

    def normalize(operation: str, path: str, /) -> str:
        if (
            isinstance(path, str)
            and is_canonical(path)
            and (len(path) <= _ALWAYS_SHORT or (path.isascii() and len(path) <= MAX_PATH_BYTES))
        ):
            return path
        return normalize_slowly(operation, path)

    return normalize


@cache
def _forbidden() -> Callable[[str], re.Match[str] | None]:
    return re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search  # costs start-up time


def normalize_slowly(operation: str, path: str) -> str:
    """Return what :data:`normalize` does, of a path that is probably not canonical."""
    if not isinstance(path, str):
        raise InvalidPathError(operation, shown(path), "a path is a str")
    readable = path.encode("utf-8", "backslashreplace").decode("utf-8")
    if not path.startswith("/"):
        raise InvalidPathError(operation, readable, "a path starts with '/'")
    found = _forbidden()(path)
    if found:
        raise InvalidPathError(
            operation, readable, f"character U+{ord(found[0]):04X} is not allowed in a path"
        )
    names = [name for name in path.split("/") if name not in ("", ".")]
    for name in names:
        if name == "..":
            raise InvalidPathError(operation, readable, "'..' is not allowed in a path")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise NameTooLongError(
                operation, readable, f"a component is over {MAX_NAME_BYTES} bytes"
            )
    canonical = "/" + "/".join(names)
    if len(canonical.encode()) > MAX_PATH_BYTES:
        raise NameTooLongError(operation, readable, f"the path is over {MAX_PATH_BYTES} bytes")
    return canonical


_native = chosen().module

normalize: Callable[[str, str], str] = _normalizer() if _native is None else _native.normalize
"""Return the canonical form of a path, the second argument; the first names the caller in errors.

Errors: InvalidPathError, NameTooLongError.
"""


def parent(path: str) -> str:
    """Return the directory that holds a canonical path; the root's is the root."""
    return path[: path.rfind("/")] or "/"


def name(path: str) -> str:
    """Return the last component of a canonical path; the root's is empty."""
    return path[path.rfind("/") + 1 :]


def join(directory: str, relative: str) -> str:
    """Return ``relative`` (canonical, starting with ``/``) beneath ``directory``."""
    if relative == "/":
        return directory
    return relative if directory == "/" else directory + relative


def is_below(path: str, directory: str) -> bool:
    """Return whether a canonical path lies strictly beneath a canonical directory."""
    if directory == "/":
        return path != "/"
    return path.startswith(directory) and path[len(directory) : len(directory) + 1] == "/"


def is_same_or_below(path: str, directory: str) -> bool:
    """Return whether a canonical path is a directory or lies beneath it."""
    return path == directory or is_below(path, directory)


def depth(path: str) -> int:
    """Return the number of components of a canonical path; 0 for the root."""
    return 0 if path == "/" else path.count("/")


def tree_order(path: str) -> list[str]:
    """Sort key in which a directory comes right before everything beneath it."""
    return path.split("/")
