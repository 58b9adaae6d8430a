"""The primitives that the kernel runs on: Rust where it was built, else the Python twins.

Layer: core. The one place where the kernel chooses; :mod:`nexus.lib.native` says by what. The
twins are the readable statement of what each does, and give the types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nexus.lib.native import chosen

if TYPE_CHECKING or chosen().module is None:
    from nexus.core.inode_cache import InodeCache
    from nexus.core.metadata_codec import decode_event
    from nexus.core.path_trie import PathTrie
    from nexus.core.record_seal import seal_commit, seal_record, unseal_record
    from nexus.core.ring_buffer import RingBuffer
    from nexus.core.router import VFSRouter
    from nexus.core.vfs_lock import VFSLockManager
    from nexus.core.watch_table import WatchTable
else:
    from nexus._kernel import (
        InodeCache,
        PathTrie,
        RingBuffer,
        VFSLockManager,
        VFSRouter,
        WatchTable,
        decode_event,
        seal_commit,
        seal_record,
        unseal_record,
    )

__all__ = [
    "InodeCache",
    "PathTrie",
    "RingBuffer",
    "VFSLockManager",
    "VFSRouter",
    "WatchTable",
    "decode_event",
    "seal_commit",
    "seal_record",
    "unseal_record",
]
