"""NullCacheStore: keeps nothing and delivers nothing, and says so. Layer: storage.

What a service gets where no cache store is wanted. Unix counterpart: ``/dev/null``.
"""

from __future__ import annotations

from nexus.contracts.cache_store import CacheCapabilities, CacheStoreABC, Subscription
from nexus.contracts.errors import NotSupportedError
from nexus.lib.topics import check_name, check_payload, check_ttl


class NullCacheStore(CacheStoreABC):
    """Every get misses and every message reaches nobody. Shared by all threads."""

    name = "null"
    capabilities = CacheCapabilities(keeps=False, delivers=False)

    def get(self, key: str) -> bytes | None:
        check_name("get", "key", key)
        return None

    def set(self, key: str, value: bytes, ttl_s: float | None = None) -> None:
        check_name("set", "key", key)
        check_payload("set", value)
        check_ttl(ttl_s)

    def delete(self, key: str) -> bool:
        check_name("delete", "key", key)
        return False

    def publish(self, topic: str, payload: bytes) -> int:
        check_name("publish", "topic", topic)
        check_payload("publish", payload)
        return 0

    def subscribe(self, pattern: str) -> Subscription:
        # A subscription that is silent for ever would look like one to which nothing happens.
        raise NotSupportedError(
            "subscribe",
            None,
            "there is no cache store, so messages reach nobody",
            hint="set cache_store to memory",
        )

    def close(self) -> None:
        """Nothing is held here."""
