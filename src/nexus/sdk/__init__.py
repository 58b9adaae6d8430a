"""The way in: :func:`connect` returns a filesystem, whatever stands behind it.

What maintains a filesystem is loaded when it is named, so that a program that only connects does
not wait for it.
"""

from typing import TYPE_CHECKING, Any

from nexus.contracts.context import OperationContext
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.metadata import (
    DT_DIR,
    DT_EXTERNAL_STORAGE,
    DT_MOUNT,
    DT_PIPE,
    DT_REG,
    DT_STREAM,
)
from nexus.sdk.connect import connect

if TYPE_CHECKING:
    from nexus.factory.conversion import convert
    from nexus.factory.maintenance import collect, fsck

__all__ = [
    "DT_DIR",
    "DT_EXTERNAL_STORAGE",
    "DT_MOUNT",
    "DT_PIPE",
    "DT_REG",
    "DT_STREAM",
    "NexusFilesystem",
    "OperationContext",
    "Precondition",
    "WriteRequest",
    "collect",
    "connect",
    "convert",
    "fsck",
]


def __getattr__(name: str) -> Any:
    if name == "convert":
        from nexus.factory.conversion import convert as found
    elif name in ("collect", "fsck"):
        from nexus.factory import maintenance

        found = getattr(maintenance, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
