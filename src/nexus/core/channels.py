"""Channels: the pipes and streams of one volume, found by their records.

Layer: core, between a volume and the managers of pipes and streams. A record names its channel
by an id that is never used again, as a record of a file names content: so a channel follows its
record wherever that is moved, and a new one at the same path is another. What a message means to
a system call is said here; waiting and buffering are not. Unix counterpart: ``fs/pipe.c``.

Invariants:

1. A channel is opened under a lock of its path, so none is opened once its record is gone.
2. A removed record's channel is ended after the commit that removed it, under the same lock.
3. What a caller waits for, it waits for without any lock.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from nexus.contracts.errors import ClosedError, InvalidArgumentError, NotSupportedError
from nexus.contracts.metadata import DT_PIPE, DT_STREAM, FileMetadata
from nexus.contracts.object_store import Leftovers
from nexus.contracts.stream_backend import StreamStore
from nexus.core.pipe_manager import DEFAULT_PIPE_BYTES, Pipe, PipeManager
from nexus.core.stream_manager import DEFAULT_STREAM_BYTES, Stream, StreamManager
from nexus.lib.steps import Steps, off_loop


class Channel(ABC):
    """What carries messages. Shared by all threads and event loops."""

    entry_type: ClassVar[int]

    @abstractmethod
    def read(self, path: str, offset: int, timeout_s: float | None) -> bytes:
        """Return a message, waiting for it. Errors: as sys_read."""

    @abstractmethod
    def reading(self, path: str, offset: int, timeout_s: float | None) -> Steps[bytes]:
        """As :meth:`read`, for a thread or a task."""

    @abstractmethod
    def write(self, path: str, message: bytes, timeout_s: float | None) -> dict[str, Any]:
        """Add a message; return what a write answers. Errors: as sys_write."""

    @abstractmethod
    def writing(self, path: str, message: bytes, timeout_s: float | None) -> Steps[dict[str, Any]]:
        """As :meth:`write`, for a thread or a task."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what a stat shows of it."""


class PipeChannel(Channel):
    """A pipe as the system calls see it."""

    entry_type = DT_PIPE

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def read(self, path: str, offset: int, timeout_s: float | None) -> bytes:
        _check_no_offset("read", path, offset)
        return self._pipe.read(path, timeout_s)

    def reading(self, path: str, offset: int, timeout_s: float | None) -> Steps[bytes]:
        _check_no_offset("read", path, offset)
        return self._pipe.reading(path, timeout_s)

    def write(self, path: str, message: bytes, timeout_s: float | None) -> dict[str, Any]:
        self._pipe.write(path, message, timeout_s)
        return {"path": path, "bytes_written": len(message)}

    def writing(self, path: str, message: bytes, timeout_s: float | None) -> Steps[dict[str, Any]]:
        yield from self._pipe.writing(path, message, timeout_s)
        return {"path": path, "bytes_written": len(message)}

    def describe(self) -> dict[str, Any]:
        info = self._pipe.info()
        return {"size": info.queued_bytes} | info._asdict()


class StreamChannel(Channel):
    """A stream as the system calls see it."""

    entry_type = DT_STREAM

    def __init__(self, stream: Stream, backend_name: str) -> None:
        self._stream = stream
        self._backend_name = backend_name

    def read(self, path: str, offset: int, timeout_s: float | None) -> bytes:
        return self._stream.read(path, offset, timeout_s)

    def reading(self, path: str, offset: int, timeout_s: float | None) -> Steps[bytes]:
        return self._stream.reading(path, offset, timeout_s)

    def write(self, path: str, message: bytes, timeout_s: float | None) -> dict[str, Any]:
        offset = self._stream.append(path, message)
        return {"path": path, "bytes_written": len(message), "offset": offset}

    def writing(self, path: str, message: bytes, timeout_s: float | None) -> Steps[dict[str, Any]]:
        # An append never waits for readers, but it may for the disk.
        return off_loop(lambda: self.write(path, message, timeout_s))

    def describe(self) -> dict[str, Any]:
        info = self._stream.info()
        return {
            "size": info.used_bytes,
            "stream": self._backend_name,
            "waiting_readers": self._stream.waiting(),
        } | info._asdict()


class Channels:
    """The open channels of one volume. Shared by all threads."""

    def __init__(self, streams: StreamStore | None, *, strict: bool) -> None:
        self._pipes = PipeManager()
        self._streams = None if streams is None else StreamManager(streams, strict=strict)
        self._open: dict[str, Channel] = {}
        self._paths: dict[str, str] = {}  # where each was when it was opened

    def check_kind(self, path: str, kind: int) -> None:
        """Raise unless a channel of a kind can be made here. Errors: NotSupportedError."""
        if kind != DT_PIPE and self._streams is None:
            raise NotSupportedError("setattr", path, "this mount has no place for streams")

    def find(self, meta: FileMetadata) -> Channel | None:
        """Return the channel of a record where it is open."""
        return self._open.get(_id_of(meta))

    def open(self, path: str, meta: FileMetadata) -> Channel:
        """Return the channel of a record that is there as long as the caller's lock is held.

        Errors: those of the stream's store; NotSupportedError; ClosedError.
        """
        channel_id = _id_of(meta)
        channel = self._open.get(channel_id)
        if channel is not None:
            return channel
        if meta.entry_type == DT_PIPE:
            channel = PipeChannel(self._pipes.open(channel_id, meta.size))
        elif self._streams is None:
            raise NotSupportedError("open", path, "this mount has no place for streams")
        else:
            stream = self._streams.open(channel_id, meta.size)
            channel = StreamChannel(stream, self._streams.store.name)
        self._paths[channel_id] = path
        return self._open.setdefault(channel_id, channel)

    def remove(self, path: str, meta: FileMetadata) -> None:
        """End the channel of a record that is gone, with what is stored of it.

        Errors: StorageError, with the channel ended all the same.
        """
        channel_id = _id_of(meta)
        self._open.pop(channel_id, None)
        self._paths.pop(channel_id, None)
        if meta.entry_type == DT_PIPE:
            self._pipes.remove(channel_id, path)
        elif self._streams is not None:
            self._streams.remove(channel_id, path)

    def rows(self) -> list[dict[str, Any]]:
        """Return every channel that is open, with the path at which it was opened first."""
        rows = []
        for channel_id, channel in list(self._open.items()):
            row = {"path": self._paths.get(channel_id, ""), "entry_type": channel.entry_type}
            try:
                rows.append(row | channel.describe())
            except ClosedError:
                continue  # it was removed since
        return sorted(rows, key=lambda row: str(row["path"]))

    def remove_leftovers(self, named: Iterable[FileMetadata], *, dry_run: bool) -> Leftovers:
        """Remove stored streams that no record names: a kill came between their two ends.

        ``named`` has every record that was there when this was called. A record is committed
        before its stream is opened, so a stream being made is none of them.
        """
        stored = {} if self._streams is None else dict(self._streams.store.stored())
        if self._streams is None or not stored:
            return Leftovers(0, 0)
        for meta in named:
            stored.pop(meta.channel_id or "", None)
        if not dry_run:
            for stream_id in stored:
                self._streams.store.remove(stream_id)
        return Leftovers(len(stored), sum(stored.values()))

    def sync(self) -> None:
        """Make every stream durable. Errors: StorageError."""
        if self._streams is not None:
            self._streams.sync()

    def close(self, reason: str) -> None:
        """End every channel with ClosedError; what is stored stays. Idempotent."""
        self._pipes.close(reason)
        if self._streams is not None:
            self._streams.close(reason)


def new_channel_id() -> str:
    """Return what the record of a new channel names it by."""
    return os.urandom(16).hex()


def _id_of(meta: FileMetadata) -> str:
    assert meta.channel_id is not None
    return meta.channel_id


def default_capacity(kind: int) -> int:
    """Return the capacity of a channel that is made without one."""
    return DEFAULT_PIPE_BYTES if kind == DT_PIPE else DEFAULT_STREAM_BYTES


def _check_no_offset(operation: str, path: str, offset: int) -> None:
    if offset:
        raise InvalidArgumentError(
            operation, path, f"offset {offset}: a pipe gives its first message, whichever that is"
        )
