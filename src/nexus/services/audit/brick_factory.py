"""How the audit service is made; see :mod:`nexus.contracts.protocols.brick`."""

from __future__ import annotations

from nexus.contracts.protocols.audit import AuditProtocol
from nexus.contracts.protocols.brick import INDEPENDENT, BrickContext
from nexus.services.audit.audit_log import AuditLog

BRICK_NAME = "audit"
TIER = INDEPENDENT
RESULT_KEY = "audit"
PROTOCOL = AuditProtocol


def create(context: BrickContext) -> AuditLog:
    """Return the service, which records nothing before it is enlisted."""
    return AuditLog(context.nx)
