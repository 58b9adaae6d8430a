"""Boot: from a configuration to a running filesystem, in a straight list of steps.

Layer: factory. The one layer that imports the kernel and the drivers. It decides what is built;
what the parts do is theirs.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.deployment_profile import AUTO, bricks_of
from nexus.contracts.errors import ConfigError, PathNotFoundError, StorageError
from nexus.contracts.metadata import Stat
from nexus.contracts.metastore import MetastoreABC
from nexus.contracts.object_store import TransportABC
from nexus.core import fork_guard
from nexus.core.flusher import Flusher
from nexus.core.nexus_fs import NexusFS
from nexus.core.volume import Actor
from nexus.factory.caches import DEFAULT_CACHE_STORE, check_cache_store, open_cache_store
from nexus.factory.data_directory import CONTENT, DataDirectory, default_path
from nexus.factory.drivers import DEFAULT_STREAMS, DriverRegistry, read_label
from nexus.factory.metastores import AUTO as BEST_METASTORE
from nexus.factory.metastores import check_metastore, metastore_class
from nexus.lib.disk import Disk, folder_place
from nexus.lib.logs import log_of
from nexus.lib.paths import parent
from nexus.storage.object_store.local_transport import LocalTransport

if TYPE_CHECKING:
    from nexus.contracts.protocols.brick import Brick, Look

IN_MEMORY = ":memory:"


class Settings(msgspec.Struct, frozen=True):
    """What an embedded filesystem can be told. Every field has a default that works."""

    data_dir: str | None = None
    metastore: str = BEST_METASTORE
    durability: str = "ordered"
    retention_days: float = 7.0
    grace_s: float = 3600.0
    lock_timeout_s: float | None = None
    """None: as long as the lock waits by itself."""
    stream: str = DEFAULT_STREAMS
    user: str | None = None
    profile: str = AUTO
    enable: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()
    cache_store: str = DEFAULT_CACHE_STORE
    accept_loss: bool = False


def boot(
    settings: Settings,
    *,
    disk: Disk | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> NexusFS:
    """Return a running embedded filesystem. Errors: those of the steps, with nothing left open."""
    durable = _durable(settings)
    bricks = _planned(settings)
    check_cache_store(settings.cache_store)
    context = OperationContext(settings.user or _local_user(), is_admin=True)
    disk = disk or Disk()
    with ExitStack() as undo:
        storage = (
            _in_memory(clock_ns) if settings.data_dir == IN_MEMORY else _on_disk(settings, disk)
        )
        undo.callback(storage.release)
        registry = DriverRegistry(
            storage.owner_id,
            disk,
            clock_ns,
            durable=storage.was_left_synced,
            data_directory=storage.place,
            strict=durable,
        )
        nx = NexusFS(
            storage.metastore,
            context=context,
            open_driver=registry.open,
            clock_ns=clock_ns,
            durable=durable,
            lock_timeout_s=settings.lock_timeout_s,
        )
        root = registry.root_store(storage.transport, storage.name, settings.stream)
        # Not by sys_setattr, which answers with a stat: a damaged root record must not keep the
        # filesystem from opening, or nobody could repair it.
        actor = Actor(context, clock_ns())
        nx.mounts.mount("/", root, actor)
        nx.mounts.restore(context, actor.now_ns)
        if storage.was_cut_off:
            _recover(nx, actor, accept_loss=settings.accept_loss)
        storage.finish()
        undo.pop_all()
    if storage.metastore.capabilities.persistent and not durable:
        nx.on_closing(Flusher(nx.sync).stop)
    nx.on_close(lambda: storage.release(synced=nx.closed_cleanly))
    if bricks:
        try:
            _start(nx, bricks, settings, clock_ns, context, storage.folder)
        except BaseException:
            nx.close()
            raise
    else:
        nx.bootstrap()
    return nx


def _planned(settings: Settings) -> list[Brick]:
    """Return the bricks to boot. Errors: ConfigError."""
    if not (bricks_of(settings.profile) or settings.enable or settings.disable):
        return []
    from nexus.factory import orchestrator  # start-up time that others need not pay

    return orchestrator.plan(settings.profile, settings.enable, settings.disable)


def _start(
    nx: NexusFS,
    bricks: list[Brick],
    settings: Settings,
    clock_ns: Callable[[], int],
    caller: OperationContext,
    folder: str | None,
) -> None:
    from nexus.contracts.protocols.brick import BrickContext  # as above
    from nexus.factory import orchestrator

    cache = open_cache_store(settings.cache_store)
    nx.on_close(cache.close)
    made_from = BrickContext(nx, clock_ns, look_of(nx), cache, caller, folder)
    orchestrator.start(nx, bricks, made_from)


def look_of(nx: NexusFS) -> Look:
    """Return how hooks look at what is there."""

    def look(path: str, zone_id: str) -> Stat | None:
        try:
            mount, point, relative = nx.router.route(path, zone_id)
        except PathNotFoundError:
            return None  # a zone in which nothing is mounted
        if mount.volume is None:
            reason = f"the mount {point} is unavailable: {mount.problem}"
            raise StorageError("stat", path, reason)
        stat = mount.volume.look(relative)
        if stat is None and point != "/":
            return look(parent(point), zone_id)  # the folder behind the mount has gone
        return stat

    return look


def _recover(nx: NexusFS, actor: Actor, *, accept_loss: bool) -> None:
    # Start-up time that only the start after a power cut has to pay.
    from nexus.core.fsck import Checker
    from nexus.core.recovery import recover

    if accept_loss:
        # Repairs the records that recovery is going to read: one it cannot read would stop it.
        for problem in Checker(nx.store, nx.volumes()).run(repair=True, content=False).problems:
            log_of(__name__).warning("%s: %s: %s", problem.object, problem.problem, problem.advice)
    recover(nx, actor)


def _durable(settings: Settings) -> bool:
    if settings.durability not in ("ordered", "strict"):
        raise ConfigError(
            "connect", None, f"durability is {settings.durability!r}, not 'ordered' or 'strict'"
        )
    return settings.durability == "strict"


class _Storage:
    """The metastore and the content transport of the root mount, and how to let go of them."""

    def __init__(
        self,
        metastore: MetastoreABC,
        transport: TransportABC,
        name: str,
        directory: DataDirectory | None,
        undo: ExitStack,
    ) -> None:
        self.metastore = metastore
        self.transport = transport
        self.name = name
        self.owner_id = directory.descriptor.id if directory else os.urandom(8).hex()
        self.was_left_synced = directory is None or directory.was_left_synced
        self.was_cut_off = directory is not None and directory.was_cut_off
        self.folder = directory.path if directory else None
        self.place = folder_place(os.path.realpath(directory.path)) if directory else ()
        self._directory = directory
        self._undo = undo
        fork_guard.watch(self)

    def in_forked_child(self) -> None:
        """Let go of the lock, which a child would keep when its parent has ended."""
        self.metastore.in_forked_child()
        if self._directory is not None:
            self._directory.close()

    def finish(self) -> None:
        """End a creation or a recovery, now that everything is there."""
        if self._directory is not None and self._directory.is_new:
            self._directory.finish_creation()
        if self._directory is not None and self._directory.was_cut_off:
            self._directory.note_recovered()

    def release(self, *, synced: bool = False) -> None:
        """Close everything, the data directory's lock last."""
        if synced and self._directory is not None:
            self._directory.leave_synced()
        self._undo.close()


def _in_memory(clock_ns: Callable[[], int]) -> _Storage:
    # Sorted containers cost start-up time that a filesystem on disk need not pay.
    from nexus.storage.metastore.memory import MemoryMetastore
    from nexus.storage.object_store.memory_transport import MemoryTransport

    undo = ExitStack()
    metastore = MemoryMetastore()
    undo.callback(metastore.close)
    transport = MemoryTransport(clock_ns=clock_ns)
    return _Storage(metastore, transport, "cas_memory", None, undo)


def _on_disk(settings: Settings, disk: Disk) -> _Storage:
    check_metastore(settings.metastore)
    path = os.path.abspath(os.path.expanduser(settings.data_dir or default_path()))
    with ExitStack() as undo:
        directory = DataDirectory(path, disk, settings.metastore)
        undo.callback(directory.close)
        file = directory.metastore_file
        metastore = metastore_class(directory.descriptor.metastore, path)(
            file,
            disk=disk,
            create=directory.is_new and not os.path.exists(file),
            accept_loss=settings.accept_loss,
        )
        undo.callback(metastore.close)
        transport = LocalTransport(
            directory.subdirectory(CONTENT), disk=disk, durable=directory.was_left_synced
        )
        undo.callback(transport.close)
        if directory.is_new and (label := read_label(transport, "cas_local")):
            # A creation that was cut short, or the descriptor is lost: the content is its own.
            directory.keep_id(label.owner_id)
        return _Storage(metastore, transport, "cas_local", directory, undo.pop_all())


def _local_user() -> str:
    # By the uid alone: the environment is anybody's to set.
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
