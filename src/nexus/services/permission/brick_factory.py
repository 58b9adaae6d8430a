"""How the permission service is made; see :mod:`nexus.contracts.protocols.brick`."""

from __future__ import annotations

from nexus.contracts.protocols.brick import INDEPENDENT, BrickContext
from nexus.contracts.protocols.permission import PermissionProtocol
from nexus.services.permission.check_hook import PermissionCheckHook

BRICK_NAME = "permission"
TIER = INDEPENDENT
RESULT_KEY = "permission"
PROTOCOL = PermissionProtocol


def create(context: BrickContext) -> PermissionCheckHook:
    """Return the service, with no hook registered yet."""
    return PermissionCheckHook(context.nx, context.look)
