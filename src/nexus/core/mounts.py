"""MountManager: mounts and unmounts at run time, and remembers mounts across restarts.

Layer: core. It keeps the router's table and the persistent mount records in step; what is done
with a driver is the coordinator's, :mod:`nexus.core.driver_lifecycle_coordinator`. Unix
counterparts: ``kern_mount`` and ``/proc/mounts``.

Invariants:

1. A volume is mounted at one point at a time, and none that lies within another's folder: a file
   reached through both would be two files to every call, and deleted by a move onto itself.
2. A mount given as a description is in the metastore exactly while it is mounted; one given as a
   driver object, or whose driver keeps nothing, lasts until the filesystem closes.
3. A remembered mount that cannot be opened is kept, shown with its reason, and refuses calls.
4. A volume stays mounted while a collection or a check works on it: mounted anew meanwhile, it
   would have a second store object that knows nothing of what the first one protects.

Lock order: the VFS lock of the mount point, ``_changing``, SealedStore's turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    BusyError,
    NexusError,
    PathExistsError,
    StorageError,
)
from nexus.contracts.file_events import MOUNT, UNMOUNT
from nexus.contracts.metadata import Stat
from nexus.contracts.object_store import ObjectStoreABC
from nexus.core.driver_lifecycle_coordinator import DriverLifecycleCoordinator, OpenedDriver
from nexus.core.inode_table import Transaction
from nexus.core.primitives import VFSRouter
from nexus.core.sealed_store import SealedStore
from nexus.core.sys_volume import SYS_POINT
from nexus.core.volume import Actor, Volume
from nexus.lib.disk import places_overlap
from nexus.lib.paths import is_same_or_below

_MOUNT_PREFIX = b"M"


class Mount(msgspec.Struct):
    """One row of the mount table. ``problem`` says why ``volume`` is None."""

    point: str
    driver_name: str
    volume_id: str
    volume: Volume | None
    description: dict[str, Any] | None
    problem: str | None = None
    persistent: bool = False
    opened: OpenedDriver | None = None
    place: tuple[str, ...] = ()


class MountRecord(msgspec.Struct, frozen=True):
    """A remembered mount, as stored: JSON, so that an unknown driver's keys survive."""

    backend: dict[str, Any]
    owner_id: str
    volume_id: str


class MountManager:
    """Changes the mount table. The caller holds the exclusive VFS lock of the mount point."""

    def __init__(
        self,
        router: VFSRouter[Mount],
        store: SealedStore,
        drivers: DriverLifecycleCoordinator,
        *,
        durable: bool,
    ) -> None:
        self._router = router
        self._store = store
        self._drivers = drivers
        self._durable = durable
        self._changing = threading.Lock()
        self._in_use: list[Volume] = []  # guarded by _changing

    @contextmanager
    def in_use(self, zone_id: str) -> Iterator[list[Volume]]:
        """Yield the volumes that are mounted and available; unmounting one is refused meanwhile."""
        with self._changing:
            mounts = self._router.mounts(zone_id)
            volumes = [mount.volume for _, mount in mounts if mount.volume is not None]
            self._in_use += volumes
        try:
            yield volumes
        finally:
            with self._changing:
                for volume in volumes:
                    self._in_use.remove(volume)

    def unchanging(self) -> AbstractContextManager[bool]:
        """Return a block in which unmounting waits: for what is short."""
        return self._changing

    def mount(
        self, point: str, backend: ObjectStoreABC | Mapping[str, Any], actor: Actor
    ) -> Volume:
        """Mount a driver object, or what a description opens, at a free canonical path.

        Errors: PathExistsError, BusyError, InvalidArgumentError, and those of the driver.
        """
        zone_id = actor.context.zone_id
        if self._router.at(point, zone_id) is not None:
            raise PathExistsError("mount", point, "something is mounted here already")
        if is_same_or_below(point, SYS_POINT):
            raise BusyError("mount", point, f"{SYS_POINT} is the kernel's own")
        below = [p for p in self._router.points_below(point, zone_id) if p != SYS_POINT]
        if below:
            raise BusyError("mount", point, f"{below[0]} is mounted beneath it")
        check = partial(self._check_place, point, zone_id)
        opened = self._drivers.open(point, backend, check)
        driver, description = opened.driver, opened.description
        volume = None
        try:
            self._check_unused(point, zone_id, driver)
            under = self._ensure_point(point, actor)
            volume = self._drivers.make_volume(point, driver, actor.context.user_id, actor)
            self._remember(point, driver, description, under, actor)
        except BaseException:
            self._drivers.discard(driver, volume, is_ours=description is not None)
            raise
        persistent = description is not None and driver.capabilities.persistent
        row = _row(point, opened, volume, description, persistent=persistent)
        self._router.add(zone_id, point, row)
        self._drivers.mounted(point, opened, actor.context)
        return volume

    def unmount(self, point: str, actor: Actor) -> int:
        """Take a mount away and forget it; return the revision.

        Errors: BusyError where it carries others, or while a collection or a check uses it.
        """
        with self._changing:
            return self._unmount_locked(point, actor)

    def _unmount_locked(self, point: str, actor: Actor) -> int:
        zone_id = actor.context.zone_id
        if point in ("/", SYS_POINT):
            raise BusyError("unmount", point, "this mount carries the filesystem itself")
        below = self._router.points_below(point, zone_id)
        if below:
            raise BusyError("unmount", point, f"{below[0]} is mounted beneath it")
        mounted = self._router.at(point, zone_id)
        if mounted is not None and mounted.volume is not None:
            if mounted.volume in self._in_use:
                raise BusyError(
                    "unmount",
                    point,
                    "a collection or a check is using it",
                    hint="retry when it is done",
                )
            mounted.volume.sync()  # no later sync of the filesystem reaches it
        with Transaction(self._store) as txn:
            record = self._store.get(_record_key(zone_id, point))
            if record is not None:
                txn.delete_record(record)
            txn.event(actor.event(UNMOUNT, point))
            revision = txn.commit(durable=self._durable)
        mount = self._router.remove(zone_id, point)
        if mount.volume is not None:
            mount.volume.close()
        if mount.opened is not None:
            self._drivers.unmounted(point, mount.opened, actor.context, revision)
        return revision

    def restore(self, context: OperationContext, now_ns: int) -> None:
        """Mount everything that is remembered, outermost first."""
        prefix = _MOUNT_PREFIX + context.zone_id.encode() + b"\0"
        for key, sealed in self._store.iterate_unverified(prefix):
            point = key[len(prefix) :].decode("utf-8", "replace")
            record = None if sealed is None else _decoded(sealed.payload)
            if record is None:
                # Refusing calls there is right: what the mount shadows is not what was asked for.
                problem = "its mount record is damaged; `nexus fsck --repair` drops it"
                mount = Mount(point, "unknown", f"damaged at {point}", None, None, problem, True)
            else:
                mount = self._restored(point, record, context, now_ns)
            self._router.add(context.zone_id, point, mount)
            if mount.opened is not None:
                self._drivers.mounted(point, mount.opened, context)
        self._drivers.tell()

    def _restored(
        self, point: str, record: MountRecord, context: OperationContext, now_ns: int
    ) -> Mount:
        name = str(record.backend.get("driver"))
        try:
            check = partial(self._check_place, point, context.zone_id)
            opened = self._drivers.open(point, record.backend, check)
            driver = opened.driver
        except NexusError as error:
            return Mount(point, name, record.volume_id, None, record.backend, str(error), True)
        if driver.volume_id != record.volume_id:
            driver.close()
            problem = "another volume is there now; unmount, then mount it anew"
            return Mount(point, name, record.volume_id, None, record.backend, problem, True)
        actor = Actor(context, now_ns)
        volume = self._drivers.make_volume(point, driver, record.owner_id, actor)
        return _row(point, opened, volume, record.backend, persistent=True)

    def rows(self, zone_id: str) -> list[Stat]:
        """Return the mount table as dicts, sorted by path."""
        return [
            {
                "path": point,
                "driver": mount.driver_name,
                "volume_id": mount.volume_id,
                "backend": mount.description,
                "persistent": mount.persistent,
                "state": "unavailable" if mount.problem else "mounted",
                "problem": mount.problem,
            }
            for point, mount in self._router.mounts(zone_id)
            if point != SYS_POINT
        ]

    def _check_unused(self, point: str, zone_id: str, driver: ObjectStoreABC) -> None:
        for other, mount in self._router.mounts(zone_id):
            if mount.volume_id == driver.volume_id:
                raise BusyError("mount", point, f"the same volume is mounted at {other}")

    def _check_place(self, point: str, zone_id: str, place: tuple[str, ...]) -> None:
        for other, mount in self._router.mounts(zone_id):
            if places_overlap(mount.place, place):
                raise BusyError(
                    "mount",
                    point,
                    f"what is to be mounted and what is mounted at {other} lie in one another",
                    hint=f"use {other}, or unmount it first",
                )

    def _ensure_point(self, point: str, actor: Actor) -> Volume | None:
        """Create the directory to mount on, in the volume beneath; None for the root."""
        if point == "/":
            return None
        mount, above, relative = self._router.route(point, actor.context.zone_id)
        under = mount.volume
        if under is None:
            raise StorageError("mount", point, f"{above} is unavailable")
        stat = under.stat(relative)
        if stat is None or not stat["is_directory"]:
            with Transaction(self._store) as txn:
                under.create_directory(txn, relative, False, True, actor)
                txn.commit(durable=self._durable)
        return under

    def _remember(
        self,
        point: str,
        driver: ObjectStoreABC,
        description: dict[str, Any] | None,
        under: Volume | None,
        actor: Actor,
    ) -> None:
        if under is None:
            return
        with Transaction(self._store) as txn:
            if description is not None and driver.capabilities.persistent:
                record = MountRecord(description, actor.context.user_id, driver.volume_id)
                key = _record_key(actor.context.zone_id, point)
                txn.put_record(key, msgspec.json.encode(record), self._store.get(key))
            txn.event(actor.event(MOUNT, point))
            txn.commit(durable=self._durable)


def _decoded(payload: bytes) -> MountRecord | None:
    """Return the record of a mount, None where the bytes are none though sealed."""
    try:
        return msgspec.json.decode(payload, type=MountRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _row(
    point: str,
    opened: OpenedDriver,
    volume: Volume,
    description: dict[str, Any] | None,
    *,
    persistent: bool,
) -> Mount:
    return Mount(
        point,
        opened.driver.name,
        opened.driver.volume_id,
        volume,
        description,
        persistent=persistent,
        opened=opened,
        place=opened.driver.place,
    )


def _record_key(zone_id: str, point: str) -> bytes:
    return _MOUNT_PREFIX + zone_id.encode() + b"\0" + point.encode()
