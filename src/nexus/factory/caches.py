"""Cache stores by name: what the setting ``cache_store`` can ask for. Layer: factory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nexus.contracts.errors import ConfigError

if TYPE_CHECKING:
    from nexus.contracts.cache_store import CacheStoreABC

DEFAULT_CACHE_STORE: Final = "memory"
CACHE_STORES: Final = (DEFAULT_CACHE_STORE, "null")


def check_cache_store(name: str) -> None:
    """Raise unless there is a cache store of this name. Errors: ConfigError."""
    if name not in CACHE_STORES:
        known = ", ".join(CACHE_STORES)
        raise ConfigError("connect", None, f"no cache store {name!r}; there are {known}")


def open_cache_store(name: str) -> CacheStoreABC:
    """Return a new cache store. Errors: ConfigError."""
    check_cache_store(name)
    # Either costs start-up time that a profile without services need not pay.
    if name == "null":
        from nexus.storage.cache_store.null import NullCacheStore

        return NullCacheStore()
    from nexus.storage.cache_store.memory import InMemoryCacheStore

    return InMemoryCacheStore()
