"""How the metrics service is made; see :mod:`nexus.contracts.protocols.brick`."""

from __future__ import annotations

from nexus.contracts.protocols.brick import INDEPENDENT, BrickContext
from nexus.contracts.protocols.metrics import MetricsProtocol
from nexus.services.metrics.metrics import Metrics

BRICK_NAME = "metrics"
TIER = INDEPENDENT
RESULT_KEY = "metrics"
PROTOCOL = MetricsProtocol


def create(context: BrickContext) -> Metrics:
    """Return the service, which counts nothing before it is enlisted."""
    return Metrics(context.nx, context.clock_ns, context.folder)
