"""DriverLifecycleCoordinator: what happens to a driver from a mount to its unmount.

Layer: core, owned by NexusFS. It opens what a description asks for, makes a volume of a driver,
and tells the driver of its mount and unmount; the mount table and what is remembered of it are
:mod:`nexus.core.mounts`'. It knows drivers by their interface only: a function that the factory
hands in opens them. Unix counterparts: ``file_system_type.mount`` and ``kill_sb``.

A driver is told by hooks, as services are: one that has ``hook_spec`` returns POST hooks at MOUNT
and UNMOUNT, which are called for its own mounts alone. States::

    described --open--> opened --make_volume, MOUNT hooks--> mounted
    mounted --its volume is closed, UNMOUNT hooks--> closed

Invariants:

1. A driver is asked for its hooks once, before it is mounted; a wrong shape refuses the mount.
2. They are called once for each mount and each unmount, in that order, with no I/O lock held: the
   thread that changed the mount table calls them when it has let go of the mount point.
3. What they raise is logged; the mount stays as it is.

Locks: none of its own; what is to be told is the thread's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.metadata import Stat
from nexus.contracts.object_store import ContentStoreABC, NamespaceStoreABC, ObjectStoreABC
from nexus.core.inode_table import InodeTable, OverlayTable
from nexus.core.inode_volume import InodeVolume
from nexus.core.sealed_store import SealedStore
from nexus.core.tree_volume import TreeVolume
from nexus.core.volume import Actor, Volume

if TYPE_CHECKING:
    from nexus.contracts.vfs_hooks import HookPoint, Interceptor, VFSContext
    from nexus.core.dispatch import KernelDispatch

CheckPlace = Callable[[tuple[str, ...]], None]
OpenDriver = Callable[[Mapping[str, Any], CheckPlace], tuple[ObjectStoreABC, dict[str, Any]]]
"""Opens what a description asks for; returns it with the description to remember.

It has the place checked before it writes there.
"""


class OpenedDriver(msgspec.Struct, frozen=True):
    """A driver, its hooks and, where it was made from one, the description to remember."""

    driver: ObjectStoreABC
    description: dict[str, Any] | None
    hooks: tuple[Interceptor, ...]


class _Notice(msgspec.Struct, frozen=True):
    """Hooks to call, and what with."""

    owner: str
    interceptors: tuple[Interceptor, ...]
    point: HookPoint[Any, Any]
    ctx: VFSContext
    result: Stat


class _Pending(threading.local):
    def __init__(self) -> None:
        self.notices: list[_Notice] = []


class DriverLifecycleCoordinator:
    """Opens, hooks up and closes drivers. Shared by all threads."""

    def __init__(
        self,
        dispatch: Callable[[], KernelDispatch],
        store: SealedStore,
        open_driver: OpenDriver,
        *,
        durable: bool,
    ) -> None:
        self._dispatch = dispatch
        self._store = store
        self._open_driver = open_driver
        self._durable = durable
        self._pending = _Pending()

    # -- opening ------------------------------------------------------------------------------

    def open(
        self, point: str, backend: ObjectStoreABC | Mapping[str, Any], check: CheckPlace
    ) -> OpenedDriver:
        """Return a driver object as it is, or what a description opens.

        Errors: InvalidArgumentError for neither of the two and for wrong hooks; those of ``check``
        and of the driver.
        """
        if isinstance(backend, ObjectStoreABC):
            check(backend.place)
            return OpenedDriver(backend, None, _hooks_of(point, backend))
        if not isinstance(backend, Mapping):
            raise InvalidArgumentError(
                "mount",
                point,
                "backend is neither a driver nor a description",
                hint='for example {"driver": "path_local", "root": "/some/folder"}',
            )
        driver, description = self._open_driver(backend, check)
        try:
            return OpenedDriver(driver, description, _hooks_of(point, driver))
        except BaseException:
            driver.close()
            raise

    def make_volume(
        self, point: str, driver: ObjectStoreABC, owner_id: str, actor: Actor
    ) -> Volume:
        """Return what serves a mount. Errors: InvalidArgumentError for an unknown addressing."""
        zone_id = actor.context.zone_id
        if isinstance(driver, ContentStoreABC):
            table = InodeTable(self._store, zone_id, driver.volume_id)
            volume = InodeVolume(point, table, driver, zone_id=zone_id, durable=self._durable)
            volume.ensure_root(actor)
            return volume
        if isinstance(driver, NamespaceStoreABC):
            from nexus.core.path_volume import PathVolume  # start-up time of those who use it

            return PathVolume(
                point,
                OverlayTable(self._store, zone_id, driver.volume_id),
                driver,
                zone_id=zone_id,
                owner_id=owner_id,
                durable=self._durable,
            )
        raise InvalidArgumentError("mount", point, f"{driver.name} has no known addressing")

    def discard(self, driver: ObjectStoreABC, volume: Volume | None, *, is_ours: bool) -> None:
        """Let go of what was not mounted after all; a driver that a caller made stays open."""
        if isinstance(volume, TreeVolume):
            volume.table.close()
        if is_ours:
            driver.close()

    # -- telling ------------------------------------------------------------------------------

    def mounted(self, point: str, opened: OpenedDriver, context: OperationContext) -> None:
        """Note that a driver is in the mount table."""
        if not opened.hooks:
            return
        from nexus.contracts.vfs_hooks import MOUNT, MountContext  # costs start-up time

        driver = opened.driver
        ctx = MountContext(point, context, opened.description or driver)
        row = {"path": point, "driver": driver.name, "volume_id": driver.volume_id}
        self._note(driver.name, opened.hooks, MOUNT, ctx, row)

    def unmounted(
        self, point: str, opened: OpenedDriver, context: OperationContext, revision: int
    ) -> None:
        """Note that a driver is out of the mount table, and closed."""
        if not opened.hooks:
            return
        from nexus.contracts.vfs_hooks import UNMOUNT, UnmountContext  # costs start-up time

        answer = {"path": point, "removed": 1, "revision": revision}
        ctx = UnmountContext(point, context)
        self._note(opened.driver.name, opened.hooks, UNMOUNT, ctx, answer)

    def _note(
        self,
        name: str,
        hooks: tuple[Interceptor, ...],
        point: HookPoint[Any, Any],
        ctx: VFSContext,
        result: Stat,
    ) -> None:
        concerned = tuple(interceptor for interceptor in hooks if interceptor.point is point)
        if concerned:
            notice = _Notice(_owner(name, ctx.path), concerned, point, ctx, result)
            self._pending.notices.append(notice)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell drivers, when the block is left, of what this thread noted in it."""
        try:
            yield
        finally:
            self.tell()

    def tell(self) -> None:
        """Call the hooks of what this thread has noted; it holds no I/O lock any more."""
        notices = self._pending.notices
        while notices:
            told = notices.pop(0)
            self._dispatch().notify(
                told.owner, told.interceptors, told.point, told.ctx, told.result
            )


def _hooks_of(point: str, driver: ObjectStoreABC) -> tuple[Interceptor, ...]:
    if not hasattr(driver, "hook_spec"):  # what isinstance(driver, HookedService) comes to
        return ()
    # Cost start-up time, which the drivers of most mounts save by having no hooks.
    from nexus.contracts.protocols.service_lifecycle import HookedService
    from nexus.contracts.vfs_hooks import MOUNT, POST, UNMOUNT, HookSpec
    from nexus.core.hook_shapes import check_spec

    assert isinstance(driver, HookedService)
    owner, spec = _owner(driver.name, point), driver.hook_spec()
    check_spec(owner, spec)
    allowed = [i for i in spec.interceptors if i.phase == POST and i.point in (MOUNT, UNMOUNT)]
    if spec != HookSpec(interceptors=tuple(allowed)):
        raise InvalidArgumentError(
            "mount", point, f"{owner} hooks more than POST at mount and unmount, as services do"
        )
    return tuple(allowed)


def _owner(driver_name: str, point: str) -> str:
    return f"driver {driver_name} at {point}"
