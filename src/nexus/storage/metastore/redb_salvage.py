"""Builds a damaged redb store anew from every entry that its tree still leads to.

Layer: storage. For a checker that was told to accept losses. How entries are found is
``rust/nexus_kernel/src/salvage.rs``; here is the exchange of the files. The logs stay: the new
file is the same store, and they go on from it.

Invariant: the store is replaced in one rename, after its replacement is complete and synced; the
damaged file stays beside it as ``.damaged``.

Locks: none; nobody else has the file open.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any

from nexus.lib.disk import Disk, put_in_place

_log = logging.getLogger(__name__)


def rebuild_if_damaged(path: str, *, disk: Disk, kernel: Any) -> bool:
    """Build the store at ``path`` anew if an entry cannot be reached; return whether.

    Errors: OSError; StoreError of the kernel, ``damaged`` where nothing can be read.
    """
    if kernel.is_store_whole(path):
        return False
    rebuilt = path + ".rebuilt"
    with suppress(FileNotFoundError):
        disk.unlink(rebuilt)
    count = kernel.rebuild_store(path, rebuilt, int.from_bytes(os.urandom(8), "big"))
    with suppress(FileNotFoundError):
        disk.unlink(path + ".damaged")
    os.link(path, path + ".damaged")
    put_in_place(rebuilt, path, disk)
    message = "%s was damaged: built anew from %d entries; the damaged file is now %s.damaged"
    _log.warning(message, path, count, path)
    return True
