"""CacheStoreABC: values that may go at any time, and messages that reach whoever listens.

Layer: contracts, the third pillar of storage and the only optional one. The kernel needs none;
services use it for what can be computed or asked for again, and to tell one another of events.
Nothing in it survives a restart. Unix counterparts: ``/dev/shm`` and a message bus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, NamedTuple

import msgspec

MAX_NAME_BYTES: Final = 4608
"""The longest key, topic or pattern: a longest path with room for what stands before it."""


class CacheCapabilities(msgspec.Struct, frozen=True):
    """What a store does. ``shared``: other processes have the same values and messages."""

    keeps: bool = True
    delivers: bool = True
    shared: bool = False


class Message(NamedTuple):
    """One message as a subscriber gets it."""

    topic: str
    payload: bytes


class Subscription(ABC):
    """The messages on their way to one subscriber, in a bounded queue. Shared by all threads.

    A message goes to one of the callers that wait. A publisher is never held up: what does not
    fit is counted, and the count stands where the messages are missing.
    """

    @abstractmethod
    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message, or None when none came in time: None waits, 0 only looks.

        Errors: MessagesLost where messages did not fit, once, and the next call goes on behind
        them; ClosedError once this or the store is closed; InvalidArgumentError.
        """

    @abstractmethod
    async def receive_async(self, timeout_s: float | None = None) -> Message | None:
        """As :meth:`receive`, holding no thread while it waits."""

    @abstractmethod
    def close(self) -> None:
        """End every wait and let go of what is queued. Idempotent."""

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class CacheStoreABC(ABC):
    """Keys with values for a while, and topics with subscribers. Shared by all threads.

    A store is bounded: a value may be gone before its time, never changed. Keys and topics are
    text of at most :data:`MAX_NAME_BYTES`; they do not meet.
    """

    name: str
    capabilities: CacheCapabilities

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None where there is none, or none any more.

        Errors: InvalidArgumentError, ClosedError.
        """

    @abstractmethod
    def set(self, key: str, value: bytes, ttl_s: float | None = None) -> None:
        """Keep a value, for ``ttl_s`` seconds at most; it replaces the one before with its time.

        Errors: InvalidArgumentError also for a value over what the store holds, ClosedError.
        """

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Forget a key; return whether it had a value. Errors: as :meth:`get`."""

    @abstractmethod
    def publish(self, topic: str, payload: bytes) -> int:
        """Hand a message to whoever subscribes to its topic now; return how many those are.

        A subscriber that falls behind counts: it is told. The messages of one publisher arrive
        in the order in which it published them. Errors: as :meth:`get`.
        """

    @abstractmethod
    def subscribe(self, pattern: str) -> Subscription:
        """Return the messages from now on whose topic matches a pattern.

        ``*`` in it stands for any text, also none, and everything else for itself. Errors:
        NotSupportedError where nothing is delivered, InvalidArgumentError, ClosedError.
        """

    @abstractmethod
    def close(self) -> None:
        """Forget everything and end every subscription. Idempotent."""
