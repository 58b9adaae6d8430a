"""Commands on services. Layer: cli."""

from __future__ import annotations

import typer

from nexus.cli.context import JsonOption, session


def services(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the services that the profile starts, with their states and hooks."""
    with session(ctx, as_json) as (nx, output):
        rows = list(nx.sys_readdir("/__sys__/services", details=True))
        if output.as_json:
            output.listing([rows])
            return
        cells = [
            (row["name"], row["state"], str(row["hooks"]), ", ".join(row["depends_on"]))
            for row in rows
        ]
        if output.is_terminal:
            output.table(("service", "state", "hooks", "depends on"), cells)
            return
        for cell in cells:
            output.row(*cell)
