"""Commands on agents. Layer: cli. They need the service agent_registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer

from nexus.cli.context import JsonOption, session
from nexus.cli.errors import UsageError
from nexus.cli.output import Output, iso_time, local_time
from nexus.cli.settings import need_command
from nexus.contracts.protocols.agents import DEFAULT_AGENT_TTL_S, ENDED_KEPT_S, Agent

_SERVICE = "agent_registry"

app = typer.Typer(invoke_without_command=True)
AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent.")]


@app.callback()
def group(ctx: typer.Context) -> None:
    """List, spawn and end agents. Needs the service: nexus config set enable agent_registry."""
    need_command(ctx)


@app.command("list")
def list_(
    ctx: typer.Context,
    state: Annotated[
        str | None, typer.Option("--state", help="Only those: running, killed, expired.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option("--parent", metavar="AGENT", help="Only its children.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List agents, also those that have ended."""
    with session(ctx, as_json) as (nx, output):
        _show(output, nx.service(_SERVICE).list(state=state, parent=parent))


@app.command()
def spawn(
    ctx: typer.Context,
    agent_id: Annotated[
        str | None, typer.Argument(metavar="[AGENT]", help="Id; else a new one is made.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option("--parent", metavar="AGENT", help="Who spawns it.")
    ] = None,
    ttl: Annotated[
        float, typer.Option("--ttl", metavar="SECONDS", help="Longest pause between heartbeats.")
    ] = DEFAULT_AGENT_TTL_S,
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", metavar="KEY=VALUE", help="Kept with it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Enter an agent; print its id and the lease that its heartbeats name."""
    attributes = dict(_pair(text) for text in attribute or ())
    with session(ctx, as_json) as (nx, output):
        registry = nx.service(_SERVICE)
        agent = registry.spawn(agent_id, parent=parent, ttl_s=ttl, attributes=attributes)
        _report(output, agent, (agent.agent_id, agent.lease))


@app.command()
def show(ctx: typer.Context, agent_id: AgentArgument, as_json: JsonOption = False) -> None:
    """Show one agent."""
    with session(ctx, as_json) as (nx, output):
        agent = nx.service(_SERVICE).get(agent_id)
        if output.as_json:
            output.document(_fields(agent))
            return
        for name, value in _fields(agent).items():
            text = "" if value is None else str(value)
            if output.is_terminal:
                output.line(f"{name:12} {text}")
            else:
                output.row(name, text)


@app.command()
def heartbeat(
    ctx: typer.Context,
    agent_id: AgentArgument,
    lease: Annotated[
        str | None, typer.Option("--lease", help="As `spawn` printed it; refused for a later run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say that an agent is alive."""
    with session(ctx, as_json) as (nx, output):
        agent = nx.service(_SERVICE).heartbeat(agent_id, lease)
        until = iso_time(agent.expires_at) if agent.expires_at is not None else ""
        _report(output, agent, (agent.agent_id, until))


@app.command()
def kill(
    ctx: typer.Context,
    agent_id: AgentArgument,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="And all that descend from it.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with it.")] = "",
    as_json: JsonOption = False,
) -> None:
    """End an agent; its children go to its parent."""
    with session(ctx, as_json) as (nx, output):
        ended = nx.service(_SERVICE).kill(agent_id, recursive=recursive, reason=reason)
        _report_ids(output, "killed", ended)


@app.command()
def tidy(
    ctx: typer.Context,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="SECONDS", help="Ended so long ago.")
    ] = ENDED_KEPT_S,
    as_json: JsonOption = False,
) -> None:
    """Forget agents that ended long ago."""
    with session(ctx, as_json) as (nx, output):
        _report_ids(output, "forgotten", nx.service(_SERVICE).tidy(older_than))


def _report(output: Output, agent: Agent, cells: Sequence[str]) -> None:
    if output.as_json:
        output.document(_fields(agent))
    elif output.is_terminal:
        output.line("  ".join(cells))
    else:
        output.row(*cells)


def _report_ids(output: Output, what: str, ids: Sequence[str]) -> None:
    if output.as_json:
        output.document({what: ids})
        return
    for agent_id in ids:
        output.line(agent_id)


def _show(output: Output, agents: Sequence[Agent]) -> None:
    if output.as_json:
        output.listing([[_fields(agent) for agent in agents]])
        return
    show_time = local_time if output.is_terminal else iso_time
    cells = [
        (
            agent.agent_id,
            agent.state,
            agent.owner_id,
            agent.parent or "",
            show_time(agent.started_at),
            "" if agent.expires_at is None else show_time(agent.expires_at),
        )
        for agent in agents
    ]
    if output.is_terminal:
        output.table(("agent", "state", "owner", "parent", "started", "expires"), cells)
        return
    for row in cells:
        output.row(*row)


def _fields(agent: Agent) -> dict[str, Any]:
    return msgspec.structs.asdict(agent)


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise UsageError("agents spawn", None, f"{text!r} is not KEY=VALUE")
    return key, value
