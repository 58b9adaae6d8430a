"""Names for what is not there yet: temporary files beside their target, and staged entries.

Layer: storage. Pure names, no I/O but asking whether a process lives. A staging name is hidden
from every listing, so what a killed process leaves behind is never taken for content. Only names
of exactly the shape that is given out are: what others call ``.nexus-tmp-notes`` is theirs.
"""

from __future__ import annotations

import itertools
import os
import re

STAGING_PREFIX = ".nexus-tmp-"

_SHAPE = re.compile(r"\.nexus-tmp-[0-9]+-[0-9a-f]{8}-[0-9a-f]+").fullmatch
_serials = itertools.count()
_own_prefix = ""


def _identify() -> None:
    global _own_prefix
    # The token keeps apart processes that had the same pid, as the first in a container does.
    _own_prefix = f"{STAGING_PREFIX}{os.getpid()}-{os.urandom(4).hex()}-"


_identify()
os.register_at_fork(after_in_child=_identify)


def staging_name() -> str:
    """Return a name that no other call and no other process returns."""
    return f"{_own_prefix}{next(_serials):x}"


def is_staging_name(name: str) -> bool:
    """Return whether listings leave the name out."""
    return name.startswith(STAGING_PREFIX) and _SHAPE(name) is not None


def is_staged(path: str) -> bool:
    """Return whether a staging name stands anywhere in a ``/``-separated path."""
    return STAGING_PREFIX in path and any(map(is_staging_name, path.split("/")))


def is_leftover(name: str) -> bool:
    """Return whether the process that made the staging name is gone."""
    if name.startswith(_own_prefix):
        return False
    pid = name.removeprefix(STAGING_PREFIX).partition("-")[0]
    return not pid.isdecimal() or int(pid) == os.getpid() or not _is_alive(int(pid))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # someone else's
    except (ProcessLookupError, OverflowError):
        return False
    return True
