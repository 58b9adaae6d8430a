"""PermissionProtocol: who may do what. Layer: contracts. Unix counterpart: ``inode_permission``."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from nexus.contracts.context import OperationContext

READ_ACCESS = 4
WRITE_ACCESS = 2


@runtime_checkable
class PermissionProtocol(Protocol):
    """Decides on access to paths. Shared by all threads."""

    def is_allowed(self, path: str, access: int, context: OperationContext) -> bool:
        """Return whether an identity has all of ``access`` (of READ_ACCESS, WRITE_ACCESS).

        For a path where nothing is, the nearest directory above it decides.
        """
