"""Which uptime of the machine this is: what tells a killed process from a power cut.

Layer: lib. Within one boot the page cache keeps what a killed process wrote; after another boot
only what was synced is sure. Unix counterpart: ``/proc/sys/kernel/random/boot_id``.
"""

from __future__ import annotations

import sys

import xxhash

UNKNOWN = "unknown"
NO_BOOT = 0
"""The number of a boot that has no name: no two of them are known to be the same."""


def boot_id() -> str:
    """Return the name of the machine's uptime, ``unknown`` where the system gives none."""
    if sys.platform != "linux":
        return UNKNOWN
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as source:
            return source.read().strip()
    except OSError:
        return UNKNOWN


def boot_number() -> int:
    """Return a 64-bit number for :func:`boot_id`, ``NO_BOOT`` where it is unknown."""
    name = boot_id()
    return NO_BOOT if name == UNKNOWN else xxhash.xxh3_64_intdigest(name.encode())
