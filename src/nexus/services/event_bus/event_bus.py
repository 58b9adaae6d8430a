"""EventBus: publishes every committed change, and events of others, to subscribers by topic.

Layer: services. Messages travel through a cache store and are kept by nobody: who must miss
nothing across a restart watches a path instead, from a revision on. Unix counterpart: a message
bus such as D-Bus.

Invariants:

1. Every change that the service observed is published, in commit order. What did not fit the
   observer's queue is read from the journal; what the journal has no longer is published as an
   event of the kind ``overflow``, whose ``size`` counts it.
2. A subscriber gets a change once, also a move, which is published under both of its paths.
3. Where the cache store delivers nothing the service observes nothing and costs nothing.

Lock: ``_mutex`` guards the set of subscriptions and is a leaf. ``_last`` is the observer's own,
which is called by one thread at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

import msgspec

from nexus.contracts.cache_store import CacheStoreABC, Message, Subscription
from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    ClosedError,
    CorruptionError,
    EventsLost,
    InvalidArgumentError,
    PathNotFoundError,
)
from nexus.contracts.file_events import OVERFLOW, FileEvent
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.protocols.event_bus import FILES_TOPIC, BusEvent, EventSubscription
from nexus.contracts.protocols.permission import READ_ACCESS
from nexus.contracts.vfs_hooks import HookSpec, Observation
from nexus.lib.topics import check_timeout

_PERMISSION: Final = "permission"
_JOURNAL: Final = "/__sys__/journal"
_WHOLE_REVISION: Final = (1 << 32) - 1

_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class EventBus:
    """Publishes and subscribes. Shared by all threads."""

    def __init__(self, nx: NexusFilesystem, cache: CacheStoreABC) -> None:
        self._nx = nx
        self._cache = cache
        self._last = (0, _WHOLE_REVISION)  # revision and sequence of the last published change
        self._mutex = threading.Lock()
        self._subscriptions: set[_BusSubscription] = set()  # this and below guarded by _mutex
        self._stopped = False

    @property
    def is_enabled(self) -> bool:
        return self._cache.capabilities.delivers

    def hook_spec(self) -> HookSpec:
        """Return the observer, this object, where there is anybody to tell."""
        return HookSpec(observers=(Observation(self),) if self.is_enabled else ())

    def start(self) -> None:
        """Note where the journal is; say so where the bus is disabled."""
        if not self.is_enabled:
            _log.warning("the event bus is disabled: cache store %s", self._cache.name)
            return
        journal = self._nx.sys_stat(_JOURNAL)
        if journal is not None:
            self._last = (journal["revision"], _WHOLE_REVISION)

    def stop(self) -> None:
        """End every subscription: who waits is told rather than left waiting."""
        with self._mutex:
            self._stopped = True
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            subscription.close()

    # -- publishing ---------------------------------------------------------------------------

    def publish(self, topic: str, data: Any) -> int:
        if isinstance(topic, str) and topic.startswith(FILES_TOPIC):
            raise InvalidArgumentError(
                "publish", None, f"topics that begin with {FILES_TOPIC} are those of changes"
            )
        try:
            payload = _encode(data)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidArgumentError("publish", None, f"data is not JSON: {error}") from error
        return self._cache.publish(topic, payload)

    def on_mutation(self, event: FileEvent, /) -> None:
        """Publish a change."""
        if event.kind == OVERFLOW:
            self._publish_missed(event)
        elif (event.revision, event.sequence) > self._last:
            self._publish_change(event)

    def _publish_missed(self, loss: FileEvent) -> None:
        """Publish from the journal what the observer's queue had no room for."""
        found = 0
        revision, sequence = self._last
        try:
            for event in self._nx.watch("/", True, f"{revision}.{sequence}", timeout=0):
                if event.revision > loss.revision:
                    break
                self._publish_change(event)
                found += 1
        except EventsLost as error:
            _log.warning("%s", error)
        if found < loss.size:
            self._send(msgspec.structs.replace(loss, size=loss.size - found), "/")

    def _publish_change(self, event: FileEvent) -> None:
        self._last = (event.revision, event.sequence)
        self._send(event, event.path)
        if event.new_path is not None:
            self._send(event, event.new_path)

    def _send(self, event: FileEvent, path: str) -> None:
        topic = f"{FILES_TOPIC}{event.zone_id}/{event.kind}{path}"
        self._cache.publish(topic, _encode(event.as_dict() | {"cursor": event.cursor}))

    # -- subscribing --------------------------------------------------------------------------

    def subscribe(
        self, pattern: str, *, context: OperationContext | None = None
    ) -> EventSubscription:
        subscription = _BusSubscription(self, self._cache.subscribe(pattern), context)
        with self._mutex:
            stopped = self._stopped
            self._subscriptions.add(subscription)
        if stopped:
            subscription.close()
            raise ClosedError("subscribe", None, "the event bus has stopped")
        return subscription

    def forget(self, subscription: _BusSubscription) -> None:
        """Let go of a subscription that was closed."""
        with self._mutex:
            self._subscriptions.discard(subscription)

    def may_see(self, change: dict[str, Any], context: OperationContext) -> bool:
        """Return whether an identity may read what a change is about."""
        if context.is_admin:
            return True
        try:
            permission = self._nx.service(_PERMISSION)
        except PathNotFoundError:
            return True  # permissions are off
        paths = [change["path"]] + ([change["new_path"]] if change["new_path"] else [])
        return all(permission.is_allowed(path, READ_ACCESS, context) for path in paths)


class _BusSubscription:
    """A subscription of the cache store, read as events."""

    def __init__(
        self, bus: EventBus, messages: Subscription, context: OperationContext | None
    ) -> None:
        self._bus = bus
        self._messages = messages
        self._context = context
        self._cursor = ""  # of the last change: the second message of a move has the same

    def receive(self, timeout_s: float | None = None) -> BusEvent | None:
        check_timeout(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := self._messages.receive(_left(deadline))) is not None:
            event = self._wanted(message)
            if event is not None:
                return event
        return None

    async def receive_async(self, timeout_s: float | None = None) -> BusEvent | None:
        check_timeout(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (message := await self._messages.receive_async(_left(deadline))) is not None:
            event = self._wanted(message)
            if event is not None:
                return event
        return None

    def _wanted(self, message: Message) -> BusEvent | None:
        event = BusEvent(message.topic, _parsed(message))
        if not message.topic.startswith(FILES_TOPIC):
            return event
        cursor = event.data["cursor"]
        is_repeated, self._cursor = cursor == self._cursor, cursor
        if is_repeated and event.data["kind"] != OVERFLOW:
            return None
        if self._context is not None and not self._bus.may_see(event.data, self._context):
            return None
        return event

    def close(self) -> None:
        self._messages.close()
        self._bus.forget(self)

    def __enter__(self) -> EventSubscription:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _parsed(message: Message) -> Any:
    try:
        return _decode(message.payload)
    except msgspec.DecodeError as error:
        raise CorruptionError("receive", None, f"a message of {message.topic}: {error}") from error


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
