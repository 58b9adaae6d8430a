"""What a service may implement so that the registry runs it. Layer: contracts.

A service is any object. One that has ``start`` and ``stop`` is a :class:`PersistentService`; one
that has ``hook_spec`` brings hooks. Neither is required. Unix counterparts: a unit file's
ExecStart and ExecStop, ``module_init``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from nexus.contracts.vfs_hooks import HookSpec

ENLISTED = "enlisted"
STARTING = "starting"
RUNNING = "running"
DRAINING = "draining"
STOPPED = "stopped"


@runtime_checkable
class PersistentService(Protocol):
    """A service that works between calls: a daemon."""

    def start(self) -> None:
        """Begin to work. Returns when calls can be served; raising means that it did not start."""

    def stop(self) -> None:
        """End all work. Called once, after the last call has returned."""


@runtime_checkable
class HookedService(Protocol):
    """A service that hooks into the kernel's calls."""

    def hook_spec(self) -> HookSpec:
        """Return its hooks; asked once, when the service is enlisted."""
