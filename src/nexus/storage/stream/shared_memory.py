"""SharedMemoryStream: a stream in a mapped file, which several processes append to and read.

Layer: storage. The file is a page of state and a ring of bytes; docs/formats.md has both. Where it
lies in ``/dev/shm`` it lives until the machine goes down. Unix counterpart: shm_open(3).

Invariants:

1. The state is written in two slots in turn, each with a checksum, so a writer that is killed at
   any moment leaves the state before its message or the one after it, never a mix.
2. A record that the state names is whole. The state first lets go of what a new record will
   overwrite, then the record is written, then the state names it.
3. Writers take turns: those of one process by ``_writing``, those of several by flock(2), which
   the death of a process releases.
4. A reader takes no lock. What it copied is returned only if its checksum holds; where it does
   not, the reader looks again with writers kept out, and then it is damage.

Waiting for another process is polling: first after a millisecond, then less and less often.

Locks, in order: ``_writing``, flock(2) on the file, ``_mutex`` (the index, a leaf).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import xxhash

from nexus.contracts.errors import (
    AccessDeniedError,
    ClosedError,
    CorruptionError,
    NexusError,
    StreamOffsetError,
)
from nexus.contracts.stream_backend import RECORD_BYTES, StreamBackend, StreamInfo, StreamStore
from nexus.lib.disk import Disk, storage_error
from nexus.storage.stream.charging import charge
from nexus.storage.stream.log_record import decode, encode, header_at, identity_of

HEADER_BYTES: Final = 4096
_SLOTS: Final = (0, 512)
_SLOT: Final = struct.Struct("<4sIQQQQQQ")
_MAGIC: Final = b"NXSM"
_FORMAT: Final = 1
_PIECE_BYTES: Final = 1 << 20
_ATTEMPTS: Final = 3


class _State(NamedTuple):
    """What the ring holds. Positions count every byte ever written; the ring wraps them."""

    serial: int
    capacity_bytes: int
    begin: int
    begin_position: int
    end: int
    end_position: int


class SharedMemoryStream(StreamBackend):
    """The messages of one stream, shared with whoever opens the same file."""

    poll_s = (0.001, 0.05)

    def __init__(self, path: str, stream_id: str, capacity_bytes: int, *, disk: Disk) -> None:
        """Open the file, making it when absent; an existing one keeps its capacity.

        Errors: StorageError; CorruptionError where the file is not this stream.
        """
        self._file = path
        self._identity = identity_of(stream_id)
        self._writing = threading.Lock()
        self._mutex = threading.Lock()
        self._positions: deque[int] = deque()  # this and the next two guarded by _mutex
        self._first = 0  # the offset whose position comes first
        self._known_end = 0  # where the record after the last known one is
        self._closed = False
        try:
            self._fd = disk.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._ring = self._map(capacity_bytes, disk)
            except BaseException:
                disk.close(self._fd)
                raise
        except NexusError:
            raise
        except OSError as error:
            raise storage_error("open", None, error) from error
        self._disk = disk
        self._capacity_bytes = len(self._ring) - HEADER_BYTES

    def _map(self, capacity_bytes: int, disk: Disk) -> mmap.mmap:
        with self._others_out():
            size = os.fstat(self._fd).st_size
            head = disk.pread(self._fd, HEADER_BYTES, 0)
            state = self._newest(head)
            if state is None:
                if head.strip(b"\0"):
                    raise CorruptionError("open", None, f"{self._file} is not this stream")
                state = _State(1, capacity_bytes, 0, 0, 0, 0)
                size = HEADER_BYTES + capacity_bytes
                # Written, not only sized: a store into a hole is SIGBUS on a full disk.
                for start in range(0, size, _PIECE_BYTES):
                    disk.pwrite_all(self._fd, bytes(min(_PIECE_BYTES, size - start)), start)
                disk.pwrite_all(self._fd, self._slot(state), _SLOTS[state.serial % 2])
            if size != HEADER_BYTES + state.capacity_bytes:
                raise CorruptionError("open", None, f"{self._file} has lost its end")
            return mmap.mmap(self._fd, size)

    # -- the interface ------------------------------------------------------------------------

    def append(self, path: str, message: bytes) -> int:
        cost = charge(path, message, self._capacity_bytes)
        with self._writing:
            self._check_open("write", path)
            with self._others_out():
                state = self._state("write", path)
                room = self._making_room(path, state, cost)
                if room is not state:
                    self._publish(room)
                self._put(room.end_position, encode(message, room.end, self._identity))
                self._publish(
                    room._replace(
                        serial=room.serial + 1,
                        end=room.end + 1,
                        end_position=room.end_position + cost,
                    )
                )
                return state.end

    def read(self, path: str, offset: int) -> bytes | None:
        for _ in range(_ATTEMPTS):
            self._check_open("read", path)
            try:
                return self._read(path, offset)
            except CorruptionError:
                continue  # a writer may have been about to overwrite it
        with self._writing, self._others_out():
            self._check_open("read", path)
            return self._read(path, offset)

    def info(self) -> StreamInfo:
        self._check_open("stat", None)
        state = self._state("stat", None)
        used_bytes = state.end_position - state.begin_position
        return StreamInfo(state.begin, state.end, used_bytes, state.capacity_bytes)

    def sync(self) -> None:
        with self._writing:
            self._check_open("sync", None)
            try:
                self._ring.flush()
            except OSError as error:
                raise storage_error("sync", None, error) from error

    def close(self) -> None:
        with self._writing, self._mutex:
            if not self._closed:
                self._closed = True
                self._ring.close()
                self._disk.close(self._fd)

    # -- the state ----------------------------------------------------------------------------

    def _slot(self, state: _State) -> bytes:
        fields = _SLOT.pack(_MAGIC, _FORMAT, *state)
        return fields + xxhash.xxh3_64_intdigest(fields, self._identity).to_bytes(8, "little")

    def _newest(self, head: bytes) -> _State | None:
        """Return the newest state whose checksum holds."""
        newest = None
        for start in _SLOTS:
            fields = head[start : start + _SLOT.size]
            if len(fields) < _SLOT.size:
                continue
            magic, format_, *numbers = _SLOT.unpack(fields)
            state = _State(*numbers)
            own = head[start : start + _SLOT.size + 8] == self._slot(state)
            if own and magic == _MAGIC and format_ == _FORMAT:
                newest = state if newest is None else max(newest, state)
        return newest

    def _state(self, operation: str, path: str | None) -> _State:
        # While one slot is written the other one is whole; twice in a row only damage fails.
        for _ in range(_ATTEMPTS):
            try:
                state = self._newest(self._ring[: _SLOTS[1] + _SLOT.size + 8])
            except ValueError as error:
                raise ClosedError(operation, path, "the stream is closed") from error
            if state is not None:
                return state
        raise CorruptionError(operation, path, "neither copy of the stream's state is whole")

    def _publish(self, state: _State) -> None:
        slot = self._slot(state)
        start = _SLOTS[state.serial % 2]
        self._ring[start : start + len(slot)] = slot

    def _making_room(self, path: str, state: _State, cost: int) -> _State:
        """Return the state without the oldest messages, as many as a new one takes the room of."""
        begin, position = state.begin, state.begin_position
        while state.end_position + cost - position > state.capacity_bytes:
            header = header_at(self._get(position, RECORD_BYTES), 0, self._identity)
            if header is None or header.offset != begin:
                # Where the next one begins is unknown, so let go of all of them.
                begin, position = state.end, state.end_position
                break
            begin, position = begin + 1, position + RECORD_BYTES + header.length
        if begin == state.begin:
            return state
        return state._replace(serial=state.serial + 1, begin=begin, begin_position=position)

    # -- messages -----------------------------------------------------------------------------

    def _read(self, path: str, offset: int) -> bytes | None:
        state = self._state("read", path)
        if offset == state.end:
            return None
        if not state.begin <= offset < state.end:
            raise StreamOffsetError("read", path, offset, begin=state.begin, end=state.end)
        with self._mutex:
            self._check_open("read", path)
            position = self._position_locked(state, offset)
            message = None if position is None else self._message(position, offset)
        if message is None:
            raise CorruptionError(
                "read",
                path,
                f"the message at offset {offset} is damaged: its checksum does not match",
                hint=f"read on from offset {offset + 1}",
            )
        return message

    def _message(self, position: int, offset: int) -> bytes | None:
        head = self._get(position, RECORD_BYTES)
        header = header_at(head, 0, self._identity)
        if header is None:
            return None
        message = self._get(position + RECORD_BYTES, header.length)
        return decode(head + message, offset, self._identity)

    def _position_locked(self, state: _State, offset: int) -> int | None:
        """Return where a message is, None where a damaged header is in the way."""
        positions = self._positions
        while positions and self._first < state.begin:
            positions.popleft()
            self._first += 1
        if not positions:
            self._first, self._known_end = state.begin, state.begin_position
        while self._first + len(positions) <= offset:
            head = self._get(self._known_end, RECORD_BYTES)
            header = header_at(head, 0, self._identity)
            if header is None or header.offset != self._first + len(positions):
                positions.clear()
                return None
            positions.append(self._known_end)
            self._known_end += RECORD_BYTES + header.length
        return positions[offset - self._first]

    def _get(self, position: int, count: int) -> bytes:
        start = position % self._capacity_bytes
        piece = self._ring[HEADER_BYTES + start : HEADER_BYTES + start + count]
        left = count - len(piece)
        return piece + self._ring[HEADER_BYTES : HEADER_BYTES + left] if left else piece

    def _put(self, position: int, data: bytes) -> None:
        start = position % self._capacity_bytes
        first = min(len(data), self._capacity_bytes - start)
        self._ring[HEADER_BYTES + start : HEADER_BYTES + start + first] = data[:first]
        if first < len(data):
            self._ring[HEADER_BYTES : HEADER_BYTES + len(data) - first] = data[first:]

    # -- helpers ------------------------------------------------------------------------------

    @contextmanager
    def _others_out(self) -> Iterator[None]:
        """Keep the writers of other processes out."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _check_open(self, operation: str, path: str | None) -> None:
        if self._closed:
            raise ClosedError(operation, path, "the stream is closed")


class SharedMemoryStreams(StreamStore):
    """Streams in files of a folder, each named by its id."""

    name = "shared_memory"

    def __init__(self, folder: str, *, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk

    def open(self, stream_id: str, capacity_bytes: int, *, strict: bool = False) -> StreamBackend:
        path = f"{self._folder}/{stream_id}"
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            if os.stat(self._folder).st_uid != os.geteuid():
                # Whoever owns the folder can put files of theirs in place of the stream's.
                raise AccessDeniedError("open", self._folder, "the folder is another user's")
        except NexusError:
            raise
        except OSError as error:
            raise storage_error("open", None, error) from error
        return SharedMemoryStream(path, stream_id, capacity_bytes, disk=self._disk)

    def remove(self, stream_id: str) -> None:
        try:
            self._disk.unlink(f"{self._folder}/{stream_id}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error("remove", None, error) from error
