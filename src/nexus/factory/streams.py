"""Places for streams by name: what the ``stream`` of a mount's description can ask for.

Layer: factory, beside :mod:`nexus.factory.drivers`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from nexus.contracts.errors import ConfigError
from nexus.contracts.stream_backend import StreamStore
from nexus.lib.disk import Disk
from nexus.storage.stream.memory import MemoryStreams

NAMES: Final = ("durable_log", "memory", "shared_memory", "stdio")
FOLDER: Final = "streams"
"""Where a content store on a disk keeps durable streams, beside its objects."""
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 - files go into a folder of the user's own


def open_streams(
    asked: str | Mapping[str, Any], root: str | None, disk: Disk
) -> tuple[StreamStore, str | dict[str, Any]]:
    """Return the place for streams that is asked for, and how to ask for it again.

    ``asked`` is a name, or a mapping with ``backend`` and its options; ``root`` is the folder of
    the content store, None for one in memory. Errors: ConfigError.
    """
    if not isinstance(asked, str | Mapping):
        raise _bad(f"it is {asked!r}, neither a name nor a mapping")
    options = {"backend": asked} if isinstance(asked, str) else dict(asked)
    name = options.pop("backend", None)
    store: StreamStore
    if name == "memory":
        store = MemoryStreams()
    elif name == "durable_log":
        store = _durable(root, disk)
    elif name == "shared_memory":
        folder = _folder(options.pop("folder", None))
        store = _shared_memory(folder, disk)
        asked = {"backend": name, "folder": folder}
    elif name == "stdio":
        store = _stdio(options.pop("command", None))
    else:
        raise _bad(f"no backend {name!r}; there are {', '.join(NAMES)}")
    if options:
        raise _bad(f"unknown option {next(iter(options))!r} of {name}")
    return store, asked if isinstance(asked, str) else dict(asked)


def _durable(root: str | None, disk: Disk) -> StreamStore:
    # Each of these costs start-up time that a mount without it need not pay.
    from nexus.storage.stream.durable_log import DurableStreams

    if root is None:
        raise _bad("a mount in memory keeps nothing durable", hint="mount a cas_local store")
    return DurableStreams(f"{root}/{FOLDER}", disk=disk)


def _shared_memory(folder: str, disk: Disk) -> StreamStore:
    from nexus.storage.stream.shared_memory import SharedMemoryStreams  # as above

    return SharedMemoryStreams(folder, disk=disk)


def _folder(asked: Any) -> str:
    if asked is None:
        if not os.path.isdir(_SHARED_MEMORY):
            raise _bad(f"there is no {_SHARED_MEMORY} here", hint="name a folder")
        return f"{_SHARED_MEMORY}/nexusfs-{os.getuid()}"
    if not isinstance(asked, str | os.PathLike):
        raise _bad(f"folder is {asked!r}, not text")
    from pathlib import Path  # as above

    try:
        return str(Path(asked).expanduser().resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise _bad(f"folder is {asked!r}: {error}") from error


def _stdio(command: Any) -> StreamStore:
    from nexus.storage.stream.subprocess_stdio import StdioStreams  # as above

    if (
        not isinstance(command, list | tuple)
        or not command
        or not all(isinstance(word, str) and word and "\0" not in word for word in command)
    ):
        hint = 'for example ["python", "-u", "agent.py"]; no shell reads it'
        raise _bad(f"command is {command!r}, not a list of a program and its arguments", hint=hint)
    return StdioStreams(command)


def _bad(reason: str, hint: str | None = None) -> ConfigError:
    return ConfigError("mount", None, f"stream: {reason}", hint=hint)
