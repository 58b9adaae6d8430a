"""How the agent registry is made; see :mod:`nexus.contracts.protocols.brick`."""

from __future__ import annotations

from nexus.contracts.protocols.agents import AgentRegistryProtocol
from nexus.contracts.protocols.brick import INDEPENDENT, BrickContext
from nexus.services.agents.agent_registry import AgentRegistry

BRICK_NAME = "agent_registry"
TIER = INDEPENDENT
RESULT_KEY = "agent_registry"
PROTOCOL = AgentRegistryProtocol


def create(context: BrickContext) -> AgentRegistry:
    """Return the service, which keeps everything in the filesystem."""
    return AgentRegistry(context.nx, context.clock_ns, context.caller)
