"""The command that follows changes. Layer: cli."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import typer

from nexus.cli.context import JsonOption, LimitOption, session
from nexus.cli.output import Output, iso_time, local_time
from nexus.contracts.file_events import FileEvent
from nexus.contracts.metadata import DirectoryPage


def watch(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="What to watch.")] = "/",
    recursive: Annotated[
        bool, typer.Option("--recursive/--flat", "-r/-f", help="Everything beneath, or entries.")
    ] = True,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="REVISION", help="Go on after a revision or a cursor."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Stop when nothing came for this long."),
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print changes as they are committed, without missing one; --since goes on where it stopped.

    Ends by an interrupt, after --limit changes, or --timeout seconds without one.
    """
    start = int(since) if since is not None and since.isdecimal() else since
    with session(ctx, as_json) as (nx, output):
        events = nx.watch(path, recursive, start, timeout=timeout)
        taken = islice(events, limit)
        if output.as_json:
            output.listing(_pages(taken), since)
            return
        for event in taken:
            _print(output, event)


def _pages(events: Iterator[FileEvent]) -> Iterator[DirectoryPage]:
    for event in events:
        yield DirectoryPage([event.as_dict() | {"cursor": event.cursor}], event.cursor)
        sys.stdout.flush()  # who reads the pipe wants each change when it comes


def _print(output: Output, event: FileEvent) -> None:
    moment = event.timestamp_ns / 1e9
    who = f"{event.user_id}/{event.agent_id}" if event.agent_id else event.user_id
    place = event.path if event.new_path is None else f"{event.path} -> {event.new_path}"
    if output.is_terminal:
        output.line(f"{event.cursor}  {local_time(moment)}  {event.kind}  {place}  {who}")
    else:
        output.row(event.cursor, iso_time(moment), event.kind, place, who)
        sys.stdout.flush()
