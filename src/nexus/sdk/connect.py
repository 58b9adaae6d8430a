"""connect(): from a configuration to a filesystem. Layer: sdk.

A configuration comes from three places; explicit beats environment beats file. Unknown keys of a
mapping or a file, and values of the wrong shape, are errors; variables that start with ``NEXUS_``
and name no key are left to whom they belong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from nexus.contracts.deployment_profile import PROFILES
from nexus.contracts.errors import ConfigError, shown
from nexus.contracts.filesystem import NexusFilesystem
from nexus.factory.boot import Settings, boot

_ENVIRONMENT_PREFIX = "NEXUS_"
_OTHER_VARIABLES = frozenset({"NEXUS_CONFIG", "NEXUS_LOG_LEVEL", "NEXUS_KERNEL"})
"""Variables that are not keys of the configuration."""


def _text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ValueError("not text")
    return os.fspath(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("not a number")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError("too large a number") from error
    if not 0 <= number < float("inf"):
        raise ValueError("not a finite number of 0 or more")
    return number


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise ValueError("neither true nor false")


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError("neither a list of names nor text with commas between them")
    return tuple(value)


KEYS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "data_dir": (_text, "folder of the data, or :memory:"),
    "profile": (_text, f"which services to start: auto, {', '.join(PROFILES)}"),
    "enable": (_names, "services to start besides those of the profile"),
    "disable": (_names, "services of the profile not to start"),
    "cache_store": (
        _text,
        "where services keep values for a while and exchange messages; memory, null",
    ),
    "metastore": (_text, "driver of the metastore in the data directory; auto, redb or sqlite"),
    "durability": (_text, "ordered or strict"),
    "retention_days": (_number, "how long history is kept"),
    "grace_s": (_number, "how long unreferenced content is kept, in seconds"),
    "lock_timeout_s": (_number, "how long a call waits for another on the same path, in seconds"),
    "stream": (_text, "where the root mount keeps streams; memory, durable_log or shared_memory"),
    "user": (_text, "identity of calls that name none"),
    "accept_loss": (_flag, "open although the newest commits are missing"),
}
"""Configuration keys: how a value is read, and what it means."""


def connect(config: Mapping[str, Any] | str | os.PathLike[str] | None = None) -> NexusFilesystem:
    """Return a filesystem, a context manager; everything has a default.

    ``config`` is a mapping of :data:`KEYS`, or the path of a TOML or YAML file. ``NEXUS_CONFIG``
    names a file when ``config`` does not; ``NEXUS_DATA_DIR`` and the like set single keys.

    Errors: ConfigError, DataDirectoryLockedError, CorruptionError, AccessDeniedError.
    """
    return boot(read_settings(config, os.environ))


def read_settings(
    config: Mapping[str, Any] | str | os.PathLike[str] | None, environment: Mapping[str, str]
) -> Settings:
    """Return the settings from an explicit configuration, an environment and a file."""
    explicit: Mapping[str, Any] = {}
    file = environment.get("NEXUS_CONFIG")
    if isinstance(config, Mapping):
        explicit = config
    elif config is not None:
        if not isinstance(config, str | os.PathLike):
            reason = f"it is {shown(config)}, neither a mapping nor the path of a file"
            raise ConfigError("connect", None, reason)
        file = os.fspath(config)
    merged = _checked(read_file(file), file) if file else {}
    merged |= _checked(_from_environment(environment), "the environment")
    merged |= _checked(explicit, "the configuration")
    return Settings(**merged)


def read_file(path: str) -> dict[str, Any]:
    """Return the keys in a TOML (``.toml``) or YAML (``.yaml``, ``.yml``) file, unchecked."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        found = _parse_yaml(path, data) if path.endswith((".yaml", ".yml")) else _parse_toml(data)
    except OSError as error:
        raise ConfigError("connect", path, error.strerror or str(error)) from error
    except ValueError as error:
        raise ConfigError("connect", path, f"cannot be parsed: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError("connect", path, "is not a mapping of keys to values")
    return found


def _parse_toml(data: bytes) -> Any:
    import tomllib  # costs start-up time, and many programs have no such file

    return tomllib.loads(data.decode())


def _parse_yaml(path: str, data: bytes) -> Any:
    # An extra: most configurations are TOML, which the standard library reads.
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            "connect", path, "reading YAML needs PyYAML", hint="pip install 'nexusfs[yaml]'"
        ) from error
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix(_ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_ENVIRONMENT_PREFIX)
        and name not in _OTHER_VARIABLES
        and name.removeprefix(_ENVIRONMENT_PREFIX).lower() in KEYS
    }


def _checked(found: Mapping[str, Any], source: str | None) -> dict[str, Any]:
    settings = {}
    for key, value in found.items():
        known = KEYS.get(key)
        if known is None:
            import difflib  # costs start-up time, for an error only

            close = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(KEYS)}"
            raise ConfigError("connect", None, f"{source}: unknown key {shown(key)}", hint=hint)
        if value is None:
            continue
        try:
            settings[key] = known[0](value)
        except ValueError as error:
            raise ConfigError(
                "connect", None, f"{source}: {key} is {shown(value)}: {error}"
            ) from error
    return settings
