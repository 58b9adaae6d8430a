"""AgentRegistryProtocol: which agents work here, who started whom. Layer: contracts.

States: ``running`` until the agent is killed, or misses its heartbeat for ``ttl_s`` seconds::

    spawn --> running --kill--> killed   --unregister, tidy--> (gone)
              running --no heartbeat--> expired --unregister, tidy--> (gone)
              killed, expired --spawn with the same id--> running

Unix counterpart: the process table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

import msgspec

from nexus.contracts.context import OperationContext

RUNNING: Final = "running"
KILLED: Final = "killed"
EXPIRED: Final = "expired"

DEFAULT_AGENT_TTL_S: Final = 60.0
ENDED_KEPT_S: Final = 86_400.0
"""How long ``tidy`` leaves agents that have ended."""


class Agent(msgspec.Struct, frozen=True):
    """One agent. Times are seconds since the Unix epoch.

    ``lease`` tells this run of the agent from later ones under the same id. ``parent`` is the
    nearest of those in ``lineage``, from the first ancestor to who spawned it, that is running:
    children of an agent that has ended belong to its parent. ``expires_at`` is None once it has
    ended.
    """

    agent_id: str
    state: str
    owner_id: str
    lease: str
    ttl_s: float
    started_at: float
    expires_at: float | None = None
    ended_at: float | None = None
    reason: str = ""
    parent: str | None = None
    lineage: tuple[str, ...] = ()
    run_id: str | None = None
    attributes: Mapping[str, Any] = msgspec.field(default_factory=dict)


@runtime_checkable
class AgentRegistryProtocol(Protocol):
    """The agents of a filesystem, across restarts. Shared by all threads.

    With a ``context`` that is no administrator's, calls on an agent are refused to all but its
    owner. Errors of every call: PathNotFoundError for an unknown agent, AccessDeniedError,
    InvalidArgumentError.
    """

    def spawn(
        self,
        agent_id: str | None = None,
        *,
        parent: str | None = None,
        ttl_s: float = DEFAULT_AGENT_TTL_S,
        attributes: Mapping[str, Any] | None = None,
        context: OperationContext | None = None,
    ) -> Agent:
        """Enter an agent, under a new id or one of its own choosing that no running agent has.

        Its owner is the user of the ``context``, else whoever the filesystem was opened by.
        Errors: PathExistsError where one is running; ConflictError where the parent is not.
        """

    def get(self, agent_id: str) -> Agent:
        """Return an agent, also one that has ended."""

    def list(self, *, state: str | None = None, parent: str | None = None) -> tuple[Agent, ...]:
        """Return all agents, by id, or those in a state, or the children of one."""

    def heartbeat(
        self, agent_id: str, lease: str | None = None, *, context: OperationContext | None = None
    ) -> Agent:
        """Let an agent live ``ttl_s`` seconds from now.

        Errors: ConflictError once it has ended, or where the lease is not that of its present run.
        """

    def kill(
        self,
        agent_id: str,
        *,
        recursive: bool = False,
        reason: str = "",
        context: OperationContext | None = None,
    ) -> tuple[str, ...]:
        """End an agent; return the ids of those that this call ended.

        Its children go to its parent, or with ``recursive`` all that descend from it end too,
        also those that are spawned meanwhile. One that has ended already is no error.
        """

    def unregister(self, agent_id: str, *, context: OperationContext | None = None) -> None:
        """Forget an agent that has ended. Errors: BusyError for one that is running."""

    def tidy(self, older_than_s: float = ENDED_KEPT_S) -> tuple[str, ...]:
        """Forget all that ended so long ago; return their ids. One that expired counts from now."""
