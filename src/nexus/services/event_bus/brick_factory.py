"""How the event bus is made; see :mod:`nexus.contracts.protocols.brick`."""

from __future__ import annotations

from nexus.contracts.protocols.brick import INDEPENDENT, BrickContext
from nexus.contracts.protocols.event_bus import EventBusProtocol
from nexus.services.event_bus.event_bus import EventBus

BRICK_NAME = "event_bus"
TIER = INDEPENDENT
RESULT_KEY = "event_bus"
PROTOCOL = EventBusProtocol


def create(context: BrickContext) -> EventBus:
    """Return the service, which observes nothing before it is enlisted."""
    return EventBus(context.nx, context.cache)
