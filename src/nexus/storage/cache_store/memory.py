"""InMemoryCacheStore: values and messages in the memory of this process.

Layer: storage. It is empty after a restart. Unix counterpart: a tmpfs with a size limit.

Invariants:

1. There are at most ``max_entries`` values of together at most ``max_bytes``. Room is made from
   what has expired, then from what was used longest ago.
2. A queue holds at most ``queue_messages`` of together ``queue_bytes``; where messages did not
   fit, their number stands in their place.

Lock order: the store's ``_mutex``; that of a subscription; that of its wait queue. Publishing
takes none of the store's: the subscriptions are a tuple that is replaced whole.
"""

from __future__ import annotations

import heapq
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from nexus.contracts.cache_store import CacheCapabilities, CacheStoreABC, Message, Subscription
from nexus.contracts.errors import ClosedError, InvalidArgumentError, MessagesLost
from nexus.lib.topics import check_name, check_payload, check_timeout, check_ttl, topic_matcher
from nexus.lib.waiting import WaitQueue

MAX_ENTRIES: Final = 100_000
MAX_BYTES: Final = 64 << 20
QUEUE_MESSAGES: Final = 4096
QUEUE_BYTES: Final = 4 << 20


class _Entry(NamedTuple):
    value: bytes
    expires: float
    cost: int


class InMemoryCacheStore(CacheStoreABC):
    """The store of one process. Shared by all threads."""

    name = "memory"
    capabilities = CacheCapabilities()

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        queue_messages: int = QUEUE_MESSAGES,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._queue_messages = queue_messages
        self._queue_bytes = queue_bytes
        self._mutex = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # all below changed under _mutex
        self._expiries: list[tuple[float, str]] = []
        self._used_bytes = 0
        self._subscriptions: tuple[_Subscription, ...] = ()
        self._closed = False

    # -- values -------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        check_name("get", "key", key)
        with self._mutex:
            self._check_open("get")
            entry = self._entries.get(key)
            if entry is None:
                return None
            if entry.expires <= self._clock():
                self._drop_locked(key)
                return None
            self._entries.move_to_end(key)
            return entry.value

    def set(self, key: str, value: bytes, ttl_s: float | None = None) -> None:
        check_name("set", "key", key)
        check_payload("set", value)
        check_ttl(ttl_s)
        cost = len(key) + len(value)
        if cost > self._max_bytes:
            raise InvalidArgumentError(
                "set", None, f"the value has {len(value)} bytes; the store holds {self._max_bytes}"
            )
        with self._mutex:
            self._check_open("set")
            if key in self._entries:
                self._drop_locked(key)
            expires = float("inf") if ttl_s is None else self._clock() + ttl_s
            self._make_room_locked(cost)
            self._entries[key] = _Entry(value, expires, cost)
            self._used_bytes += cost
            if ttl_s is not None:
                self._note_expiry_locked(expires, key)

    def delete(self, key: str) -> bool:
        check_name("delete", "key", key)
        with self._mutex:
            self._check_open("delete")
            entry = self._entries.get(key)
            if entry is None:
                return False
            self._drop_locked(key)
            return entry.expires > self._clock()

    def _make_room_locked(self, cost: int) -> None:
        if self._fits_locked(cost):
            return
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            expires, key = heapq.heappop(self._expiries)
            entry = self._entries.get(key)
            if entry is not None and entry.expires == expires:
                self._drop_locked(key)
        while not self._fits_locked(cost):
            self._drop_locked(next(iter(self._entries)))

    def _fits_locked(self, cost: int) -> bool:
        count = len(self._entries)
        return count < self._max_entries and self._used_bytes + cost <= self._max_bytes

    def _note_expiry_locked(self, expires: float, key: str) -> None:
        heapq.heappush(self._expiries, (expires, key))
        if len(self._expiries) > 2 * len(self._entries) + 64:
            # Most of it is of entries that were replaced since.
            self._expiries = [
                (entry.expires, key)
                for key, entry in self._entries.items()
                if entry.expires != float("inf")
            ]
            heapq.heapify(self._expiries)

    def _drop_locked(self, key: str) -> None:
        self._used_bytes -= self._entries.pop(key).cost

    # -- messages -----------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes) -> int:
        check_name("publish", "topic", topic)
        check_payload("publish", payload)
        self._check_open("publish")
        message = Message(topic, payload)
        return sum(
            subscription.offer(message)
            for subscription in self._subscriptions
            if subscription.matches(topic)
        )

    def subscribe(self, pattern: str) -> Subscription:
        matcher = topic_matcher(pattern)
        limits = self._queue_messages, self._queue_bytes
        subscription = _Subscription(pattern, matcher, *limits, self._forget)
        with self._mutex:
            self._check_open("subscribe")
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def _forget(self, gone: _Subscription) -> None:
        with self._mutex:
            self._subscriptions = tuple(kept for kept in self._subscriptions if kept is not gone)

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            self._entries.clear()
            self._expiries.clear()
            self._used_bytes = 0
            subscriptions = self._subscriptions
        for subscription in subscriptions:
            subscription.close()

    def _check_open(self, operation: str) -> None:
        if self._closed:
            raise ClosedError(operation, None, "the cache store is closed")


class _Subscription(Subscription):
    """One queue. Fields after ``_mutex`` are guarded by it."""

    def __init__(
        self,
        pattern: str,
        matcher: re.Pattern[str],
        queue_messages: int,
        queue_bytes: int,
        on_close: Callable[[_Subscription], None],
    ) -> None:
        self._pattern = pattern
        self._matches = matcher.fullmatch
        self._queue_messages = queue_messages
        self._queue_bytes = queue_bytes
        self._on_close = on_close
        self._mutex = threading.Lock()
        self._waiting: deque[Message | int] = deque()  # a number counts messages that are missing
        self._messages = 0
        self._used_bytes = 0
        self._closed = False
        self._readers: WaitQueue[bool] = WaitQueue(lambda _: self._pass_on())

    def matches(self, topic: str) -> bool:
        """Return whether it wants the messages of a topic."""
        return self._matches(topic) is not None

    def offer(self, message: Message) -> bool:
        """Queue or count a message; return False where the subscription is closed. Never waits."""
        cost = _cost(message)
        with self._mutex:
            if self._closed:
                return False
            fits = self._messages < self._queue_messages
            if fits and self._used_bytes + cost <= self._queue_bytes:
                self._waiting.append(message)
                self._messages += 1
                self._used_bytes += cost
            elif self._waiting and isinstance(self._waiting[-1], int):
                self._waiting[-1] += 1
            else:
                self._waiting.append(1)
            self._readers.wake_one(True)
            return True

    def receive(self, timeout_s: float | None = None) -> Message | None:
        check_timeout(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._mutex:
                message = self._take_locked()
                if message is not None:
                    return message
                waiter = self._readers.enter()
            if waiter.wait(_left(deadline)) is None:
                with self._mutex:
                    return self._take_locked()

    async def receive_async(self, timeout_s: float | None = None) -> Message | None:
        check_timeout(timeout_s)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._mutex:
                message = self._take_locked()
                if message is not None:
                    return message
                waiter = self._readers.enter()
            if await waiter.wait_async(_left(deadline)) is None:
                with self._mutex:
                    return self._take_locked()

    def _take_locked(self) -> Message | None:
        if not self._waiting:
            return None
        found = self._waiting.popleft()
        if isinstance(found, int):
            raise MessagesLost(
                "receive",
                None,
                f"{found} messages of {self._pattern} did not fit the queue",
                hint="receive again for those after them",
                missed=found,
            )
        self._messages -= 1
        self._used_bytes -= _cost(found)
        return found

    def _pass_on(self) -> None:
        """Wake another reader in the place of one that was interrupted."""
        with self._mutex:
            if self._waiting:
                self._readers.wake_one(True)

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            self._waiting.clear()
        self._readers.close(ClosedError("receive", None, "the subscription is closed"))
        self._on_close(self)


def _cost(message: Message) -> int:
    return len(message.topic) + len(message.payload)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)
