"""The way in: :func:`connect` returns a filesystem, whatever stands behind it."""

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
from nexus.factory.conversion import convert
from nexus.factory.maintenance import collect, fsck
from nexus.sdk.connect import connect

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
