"""EventBusProtocol: changes and other events, brought to many. Layer: contracts.

Topics are text. Those of changes are ``files/ZONE/KIND`` and the path, such as
``files/root/file_write/docs/a.txt``; all others belong to whoever publishes. In a pattern ``*``
stands for any text.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from nexus.contracts.context import OperationContext

FILES_TOPIC: Final = "files/"


class BusEvent(NamedTuple):
    """One event. Of a change ``data`` is the event as a dict, with its ``cursor``."""

    topic: str
    data: Any


class EventSubscription(Protocol):
    """The events of a pattern from when it was made. Shared by all threads; a context manager."""

    def receive(self, timeout_s: float | None = None) -> BusEvent | None:
        """Return the next event, or None when none came in time: None waits, 0 only looks.

        Errors: MessagesLost, once, where this subscriber fell behind; ClosedError once the
        subscription or the bus has ended: subscribe again.
        """

    async def receive_async(self, timeout_s: float | None = None) -> BusEvent | None:
        """As :meth:`receive`, holding no thread while it waits."""

    def close(self) -> None:
        """End the subscription and its waits. Idempotent."""

    def __enter__(self) -> EventSubscription: ...

    def __exit__(self, *exc_info: object) -> None: ...


@runtime_checkable
class EventBusProtocol(Protocol):
    """The event bus. Shared by all threads."""

    @property
    def is_enabled(self) -> bool:
        """Whether events reach anybody: False where there is no cache store that delivers."""

    def publish(self, topic: str, data: Any) -> int:
        """Send an event of one's own; return how many it reached: 0 where the bus is disabled.

        ``data`` is what JSON can say. Errors: InvalidArgumentError, also for a topic of changes.
        """

    def subscribe(
        self, pattern: str, *, context: OperationContext | None = None
    ) -> EventSubscription:
        """Return the events from now on whose topic matches.

        With a ``context``, changes that it may not read are left out, where permissions are on.
        Errors: NotSupportedError where the bus is disabled, InvalidArgumentError.
        """
