"""Commands on advisory locks. Layer: cli."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nexus.cli.context import JsonOption, PathArgument, session
from nexus.cli.output import iso_time, local_time
from nexus.contracts.errors import ConflictError
from nexus.contracts.lock_manager import DEFAULT_TTL_S, EXCLUSIVE, LockId

_VIEW = "/__sys__/locks"


def lock(
    ctx: typer.Context,
    path: PathArgument,
    ttl: Annotated[
        float, typer.Option("--ttl", metavar="SECONDS", help="When the lock ends by itself.")
    ] = DEFAULT_TTL_S,
    mode: Annotated[
        str, typer.Option("--mode", help="exclusive, shared, or counting with --max-holders.")
    ] = EXCLUSIVE,
    max_holders: Annotated[
        int | None, typer.Option("--max-holders", help="How many may hold a counting lock.")
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for it.")
    ] = 0.0,
    lock_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Extend this lock, which is held.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take the advisory lock of a path; print its id and its fencing token.

    The lock outlives this command: it ends by `nexus unlock`, or after --ttl.
    """
    with session(ctx, as_json) as (nx, output):
        granted: LockId | None
        if lock_id is None:
            granted = nx.lock(path, mode, ttl, max_holders, timeout=wait)
        else:
            granted = nx.sys_lock(path, mode, ttl, max_holders, lock_id)
            if granted is None:
                raise ConflictError("lock", path, "no such lock is held", hint="`nexus locks`")
        if output.as_json:
            output.document(
                {
                    "path": path,
                    "lock_id": granted,
                    "token": granted.token,
                    "expires_at": granted.expires_at,
                }
            )
        elif output.is_terminal:
            until = local_time(granted.expires_at)
            output.line(f"{path}: locked until {until}, id {granted}, token {granted.token}")
        else:
            output.row(granted, granted.token, iso_time(granted.expires_at))


def unlock(
    ctx: typer.Context,
    path: PathArgument,
    lock_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The lock, as `nexus lock` named it.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="End every lock on the path, whoever holds it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """End an advisory lock."""
    with session(ctx, as_json) as (nx, output):
        if not nx.sys_unlock(path, lock_id, force):
            raise ConflictError("unlock", path, "no such lock is held", hint="`nexus locks`")
        output.done(f"{path}: unlocked", {"path": path, "unlocked": True})


def locks(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the advisory locks that are held."""
    with session(ctx, as_json) as (nx, output):
        rows = list(nx.sys_readdir(_VIEW, details=True))
        if output.as_json:
            output.listing([rows])
        elif output.is_terminal:
            headers = ("path", "mode", "token>", "by", "expires", "id")
            output.table(headers, (_cells(row, local_time(row["expires_at"])) for row in rows))
        else:
            for row in rows:
                output.row(*_cells(row, iso_time(row["expires_at"])))


def _cells(row: dict[str, Any], expires: str) -> tuple[str, ...]:
    who = f"{row['user_id']}/{row['agent_id']}" if row["agent_id"] else str(row["user_id"])
    return (row["path"], row["mode"], str(row["token"]), who, expires, row["lock_id"])
