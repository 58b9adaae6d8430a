"""NexusFilesystem, the published contract: abstract syscalls, and calls composed of them."""

from nexus.contracts.filesystem.convenience import NexusFilesystem
from nexus.contracts.filesystem.syscalls import Precondition, Syscalls, WriteRequest

__all__ = ["NexusFilesystem", "Precondition", "Syscalls", "WriteRequest"]
