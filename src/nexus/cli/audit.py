"""Commands on the audit log. Layer: cli."""

from __future__ import annotations

from typing import Annotated

import typer

from nexus.cli.context import JsonOption, session


def audit(
    ctx: typer.Context,
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="Only what concerns this path.")
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="NAME", help="Only what this user did.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="ID", help="Only what this run did.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain of all records instead.")
    ] = False,
    tip: Annotated[
        str | None,
        typer.Option("--tip", metavar="DIGEST", help="With --verify: the newest record's digest."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show who changed what, or verify that no record was changed.

    Needs the service audit: nexus config set enable audit.
    """
    with session(ctx, as_json) as (nx, output):
        log = nx.service("audit")
        if verify or tip is not None:
            report = log.verify(tip)
            row = {"records": report.records, "tip": report.tip, "problems": list(report.problems)}
            lines = [*report.problems, f"{report.records} records, the newest is {report.tip}"]
            output.done("\n".join(lines), row)
            raise typer.Exit(1 if report.problems else 0)
        rows = list(log.query(path=path, user_id=user, run_id=run))
        if output.as_json:
            output.listing([rows])
            return
        for row in rows:
            where = row["path"] + (f" -> {row['new_path']}" if row["new_path"] else "")
            output.row(
                str(row["revision"]), row["user_id"], row["run_id"] or "", row["kind"], where
            )
