"""The convention of ``brick_factory.py``: how a service says how it is made. Layer: contracts.

A folder beneath ``nexus.services`` has a module ``brick_factory`` with five names:

- ``BRICK_NAME``: what profiles and the configuration call it;
- ``TIER``: :data:`INDEPENDENT`, or :data:`DEPENDENT` if it asks for other services; those start
  after all independent ones;
- ``RESULT_KEY``: the name under which the service is looked up;
- ``PROTOCOL``: the runtime-checkable protocol that it implements;
- ``create(context)``: makes the service from a :class:`BrickContext`. It starts nothing.

Unix counterpart: the ``module_init`` line and the MODULE_* macros of a kernel module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from nexus.contracts.cache_store import CacheStoreABC
from nexus.contracts.context import OperationContext
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import Stat

INDEPENDENT = "independent"
DEPENDENT = "dependent"


Look: TypeAlias = Callable[[str, str], Stat | None]
"""Return the attributes of a canonical path in a zone, or of the nearest directory above: past
every hook. None where the zone has no mount."""


class BrickContext(msgspec.Struct, frozen=True):
    """What a service is made from. ``nx`` acts as an administrator; ``clock_ns`` is Unix time.

    ``look`` is for hooks that decide on a call by what is there: no hook is called for it.
    ``cache`` is shared by all services, so that each names its keys and topics after itself.
    ``caller`` is who makes the calls that name nobody.
    ``folder`` is the data directory, for what other processes may look at; None in memory.
    """

    nx: NexusFilesystem
    clock_ns: Callable[[], int]
    look: Look
    cache: CacheStoreABC
    caller: OperationContext
    folder: str | None = None


class Brick(msgspec.Struct, frozen=True):
    """One brick, as its ``brick_factory`` describes it."""

    name: str
    tier: str
    result_key: str
    protocol: type
    create: Callable[[BrickContext], Any]
