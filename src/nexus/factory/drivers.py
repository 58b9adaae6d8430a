"""Storage drivers by name: what a mount's description can ask for.

Layer: factory. The one place where names of drivers meet their classes; the kernel gets
:meth:`DriverRegistry.open` handed in and knows none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nexus.contracts.errors import BusyError, ConfigError, CorruptionError, NexusError
from nexus.contracts.object_store import ObjectStoreABC, TransportABC
from nexus.lib.disk import Disk, places_overlap
from nexus.lib.hashing import hex_digest
from nexus.storage.object_store.cas_store import CasStore
from nexus.storage.object_store.local_transport import LocalTransport
from nexus.storage.object_store.loose_objects import LooseObjects
from nexus.storage.object_store.object_database import ObjectDatabase
from nexus.storage.object_store.segment_objects import SegmentObjects

if TYPE_CHECKING:
    from nexus.contracts.stream_backend import StreamStore

DEFAULT_STREAMS: Final = "memory"
"""Where a content store keeps streams unless another place is asked for."""

LABEL_KEY = "volume.json"
SEGMENTS = "segments"
"""The folder of packed objects within a content store on a local disk."""


class VolumeLabel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a content store says of itself: its volume, and the metastore its records are in.

    ``checksum`` covers the other fields: under another volume id no record would be found.
    """

    volume_id: str
    owner_id: str
    checksum: str = ""

    def sealed(self) -> VolumeLabel:
        """Return the same with its checksum filled in."""
        plain = msgspec.json.encode(msgspec.structs.replace(self, checksum=""))
        return msgspec.structs.replace(self, checksum=hex_digest(plain)[:16])


def read_label(transport: TransportABC, name: str, hint: str | None = None) -> VolumeLabel | None:
    """Return the label of a content store, None where there is none. Errors: CorruptionError."""
    if transport.info(LABEL_KEY) is None:
        return None
    try:
        label = msgspec.json.decode(transport.fetch(LABEL_KEY), type=VolumeLabel)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = f"{name}: its label {LABEL_KEY} is damaged: {error}"
        raise CorruptionError("mount", None, reason, hint=hint) from error
    if label != label.sealed():
        reason = f"{name}: its label {LABEL_KEY} is damaged: its checksum does not match"
        raise CorruptionError("mount", None, reason, hint=hint)
    return label


class DriverRegistry:
    """Opens drivers for one filesystem.

    ``owner_id`` names the metastore that will hold the records; ``durable`` says that whoever had
    it open before left everything synced, ``strict`` that every write will be synced.
    ``data_directory`` is the place of what the filesystem itself consists of, in which and around
    which nothing is mounted.
    """

    def __init__(
        self,
        owner_id: str,
        disk: Disk,
        clock_ns: Callable[[], int],
        *,
        durable: bool,
        strict: bool = False,
        data_directory: tuple[str, ...] = (),
    ) -> None:
        self._data_directory = data_directory
        self._owner_id = owner_id
        self._disk = disk
        self._durable = durable
        self._strict = strict
        self._clock_ns = clock_ns
        self._openers: dict[str, Callable[[_Options], ObjectStoreABC]] = {
            "cas_local": self._cas_local,
            "cas_memory": self._cas_memory,
            "path_local": self._path_local,
            "path_memory": self._path_memory,
        }

    @property
    def names(self) -> list[str]:
        """The names that a description's ``driver`` can have."""
        return sorted(self._openers)

    def open(
        self, description: Mapping[str, Any], check_place: Callable[[tuple[str, ...]], None]
    ) -> tuple[ObjectStoreABC, dict[str, Any]]:
        """Open what a description asks for; return it with the description to remember.

        That one holds absolute paths, so that it means the same from any working directory.
        ``check_place`` raises where the folder is not free, before anything is written there.
        Errors: ConfigError, BusyError, StorageError.
        """
        options = _Options(description, check_place)
        name = options.take("driver", str)
        opener = self._openers.get(name)
        if opener is None:
            raise ConfigError("mount", None, f"no driver {name!r}; there are {self.names}")
        driver = opener(options)
        options.resolved.pop("adopt", None)  # said once, not at every start
        return driver, options.resolved

    def root_store(
        self, transport: TransportABC, name: str, streams: str = DEFAULT_STREAMS
    ) -> CasStore:
        """Return the content store of the root mount, with the place for streams asked for.

        Its volume id is the id of the data directory, so that a lost label is made anew. Errors:
        CorruptionError, BusyError.
        """
        label = read_label(transport, name, "delete the file: the next start writes it anew")
        if label is None:
            label = self._write_label(transport, self._owner_id)
        elif label.owner_id != self._owner_id:
            raise self._not_ours(name, label, "restore the data directory from a backup")
        store = self._store(transport, name, label)
        if streams != DEFAULT_STREAMS:
            from nexus.factory.streams import open_streams  # costs start-up time

            store.streams, _ = open_streams(streams, _root_of(transport), self._disk)
        return store

    def content_store(self, transport: TransportABC, name: str, *, adopt: bool) -> CasStore:
        """Return a content store over a transport, labelled on first use.

        Errors: BusyError when its records are in another metastore, unless ``adopt``;
        CorruptionError for a damaged label.
        """
        label = read_label(transport, name)
        if label is None:
            label = self._write_label(transport, os.urandom(8).hex())
        elif label.owner_id != self._owner_id:
            if not adopt:
                # Its collector would take another owner's content for garbage.
                hint = 'if that one is gone for good, mount with "adopt": true'
                raise self._not_ours(name, label, hint)
            label = self._write_label(transport, label.volume_id)
        return self._store(transport, name, label)

    def _store(self, transport: TransportABC, name: str, label: VolumeLabel) -> CasStore:
        loose = LooseObjects(transport)
        objects: ObjectDatabase = loose
        if isinstance(transport, LocalTransport):
            objects = SegmentObjects(
                f"{transport.root}/{SEGMENTS}",
                loose,
                disk=self._disk,
                clock_ns=self._clock_ns,
                zeros_ahead=self._strict,
            )
        return CasStore(objects, name=name, volume_id=label.volume_id, clock_ns=self._clock_ns)

    def _write_label(self, transport: TransportABC, volume_id: str) -> VolumeLabel:
        label = VolumeLabel(volume_id, self._owner_id).sealed()
        transport.store(LABEL_KEY, msgspec.json.encode(label))
        transport.sync()
        return label

    def _not_ours(self, name: str, label: VolumeLabel, hint: str) -> BusyError:
        reason = (
            f"{name}: the records of this store are in the data directory with id {label.owner_id}"
        )
        return BusyError("mount", None, reason, hint=hint)

    def _cas_local(self, options: _Options) -> ObjectStoreABC:
        root = options.folder("root", create=True)
        adopt = options.take("adopt", bool, False)
        streams = self._streams(options, root)
        options.finish()
        transport = self._local(root, options, confined=False)
        store = self.content_store(transport, "cas_local", adopt=adopt)
        if streams is not None:
            store.streams = streams
        return store

    def _cas_memory(self, options: _Options) -> ObjectStoreABC:
        streams = self._streams(options, None)
        options.finish()
        store = self.content_store(self._memory(), "cas_memory", adopt=False)
        if streams is not None:
            store.streams = streams
        return store

    def _streams(self, options: _Options, root: str | None) -> StreamStore | None:
        """Return the place for streams that is asked for, None for the one every store has."""
        asked = options.take("stream", object, DEFAULT_STREAMS)
        if asked == DEFAULT_STREAMS:
            return None
        from nexus.factory.streams import open_streams  # costs start-up time

        streams, options.resolved["stream"] = open_streams(asked, root, self._disk)
        return streams

    def _path_local(self, options: _Options) -> ObjectStoreABC:
        root = options.folder("root", create=False)
        options.finish()
        transport = self._local(root, options, confined=True)
        volume_id = "path-" + hex_digest(root.encode())[:16]
        return _path_store(transport, "path_local", volume_id)

    def _local(self, root: str, options: _Options, *, confined: bool) -> LocalTransport:
        transport = LocalTransport(root, disk=self._disk, confined=confined, durable=self._durable)
        try:
            options.check_place(transport.place)
            if places_overlap(transport.place, self._data_directory):
                reason = f"{root} and the data directory lie in one another"
                raise BusyError("mount", None, reason, hint="mount a folder that is apart")
        except BaseException:
            transport.close()
            raise
        return transport

    def _path_memory(self, options: _Options) -> ObjectStoreABC:
        options.finish()
        volume_id = "path-" + os.urandom(8).hex()
        return _path_store(self._memory(), "path_memory", volume_id)

    def _memory(self) -> TransportABC:
        # Sorted containers cost start-up time that few mounts are worth.
        from nexus.storage.object_store.memory_transport import MemoryTransport

        return MemoryTransport(clock_ns=self._clock_ns)


def _root_of(transport: TransportABC) -> str | None:
    return transport.root if isinstance(transport, LocalTransport) else None


def _path_store(transport: TransportABC, name: str, volume_id: str) -> ObjectStoreABC:
    from nexus.storage.object_store.path_store import PathStore  # start-up time, as above

    return PathStore(transport, name=name, volume_id=volume_id)


class _Options:
    """A description's keys, taken one by one; what nobody took is an error."""

    def __init__(
        self, description: Mapping[str, Any], check_place: Callable[[tuple[str, ...]], None]
    ) -> None:
        self.check_place = check_place
        self._left = dict(description)
        self.resolved = dict(description)

    def take(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._left.pop(key, default)
        if not isinstance(value, kind):
            raise ConfigError("mount", None, f"{key} is {value!r}, not a {kind.__name__}")
        return value

    def folder(self, key: str, *, create: bool) -> str:
        path: str = os.path.expanduser(self.take(key, str))
        try:
            if create:
                os.makedirs(path, exist_ok=True)
            if not os.path.isdir(path):
                raise ConfigError("mount", None, f"{key}: {path} is not a folder")
            resolved = os.path.realpath(path)
        except NexusError:
            raise
        except (OSError, ValueError) as error:
            raise ConfigError("mount", None, f"{key}: {path}: {error}") from error
        self.resolved[key] = resolved
        return resolved

    def finish(self) -> None:
        if self._left:
            raise ConfigError("mount", None, f"unknown option {next(iter(self._left))!r}")
