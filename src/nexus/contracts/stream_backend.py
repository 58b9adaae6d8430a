"""StreamBackend: what keeps the messages of one stream; StreamStore: where streams are kept.

Layer: contracts. A backend neither waits nor knows who reads: that is the stream manager's. Unix
counterpart: an append-only file, read by record.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

RECORD_BYTES: Final = 32
"""What a message takes up beside its bytes, so that empty ones are bounded too."""


class StreamInfo(NamedTuple):
    """What a stream keeps at a moment: the messages at offsets from ``begin`` to before ``end``.

    ``ended`` says that nothing will follow; ``cut_bytes`` is the length of the incomplete end
    that opening found and cut off.
    """

    begin: int
    end: int
    used_bytes: int
    capacity_bytes: int
    ended: bool = False
    cut_bytes: int = 0


class StreamBackend(ABC):
    """The messages of one stream. Shared by all threads.

    Offsets number the messages, from 0, and are never used twice. A backend keeps at most its
    capacity, each message charged its length and ``RECORD_BYTES``, and lets go of the oldest
    messages first, of several at once if it likes; a reader never holds it up. ``path`` is for
    errors alone.
    """

    poll_s: tuple[float, float] | None = None
    """How long to wait, at first and at most, before looking for messages that other processes
    appended. None: every message comes through this object, or is announced to ``notify``."""

    def attach(self, notify: Callable[[], None]) -> None:  # noqa: B027 - few append by themselves
        """Have ``notify`` called after each message that did not come through :meth:`append`."""

    @abstractmethod
    def append(self, path: str, message: bytes) -> int:
        """Add a message; return its offset. It is kept as durably as the backend promises.

        Errors: InvalidArgumentError for one that exceeds the capacity; StorageError, with nothing
        appended; StorageFailedError while an earlier failure lasts; ClosedError.
        """

    @abstractmethod
    def read(self, path: str, offset: int) -> bytes | None:
        """Return the message at an offset; None at the end, where the next one will be.

        Errors: StreamOffsetError below the beginning and past the end; EndOfStreamError at the
        end of a stream that has ended; CorruptionError for a message whose bytes are damaged,
        others stay readable; ClosedError.
        """

    @abstractmethod
    def info(self) -> StreamInfo:
        """Return what the stream keeps. Errors: ClosedError."""

    @abstractmethod
    def sync(self) -> None:
        """Make every message appended so far as durable as it gets. Errors: StorageError."""

    @abstractmethod
    def close(self) -> None:
        """Release what the backend holds; what is stored stays. Idempotent."""


class StreamStore(ABC):
    """Where the streams of one mount are kept. Shared by all threads."""

    name: str

    @abstractmethod
    def open(self, stream_id: str, capacity_bytes: int, *, strict: bool = False) -> StreamBackend:
        """Return the stream with an id, made when absent. One object at a time has it open.

        With ``strict`` a message is synced before it is acknowledged, where it is stored at all.
        Errors: StorageError; CorruptionError where what is stored is no stream of this id.
        """

    @abstractmethod
    def remove(self, stream_id: str) -> None:
        """Remove what is stored of a stream that is not open. Absent is fine."""

    def stored(self) -> Mapping[str, int]:
        """Return the ids of what is stored here for this mount alone, with their bytes."""
        return {}
