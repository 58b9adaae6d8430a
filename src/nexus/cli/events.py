"""The command that shows what happened lately. Layer: cli.

The journal is read from its end: a window before the newest revision, made larger until it holds
what is asked for, so that the cost does not grow with the journal.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from nexus.cli.context import JsonOption, session
from nexus.cli.listing import event_row, print_events
from nexus.cli.output import Output
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DirectoryPage
from nexus.lib.paths import is_same_or_below, normalize

_DEFAULT_LIMIT = 20
_FIRST_WINDOW = 64
_WHOLE_REVISION = (1 << 32) - 1

Wanted = Callable[[dict[str, Any]], bool]


def events(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="Only what concerns it.")] = "/",
    kind: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND", help="Such as file_write.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="By whom.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="In which run.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="How many recent ones.")
    ] = _DEFAULT_LIMIT,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with changes as they are committed.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="With --follow: end after a pause."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the most recent changes, oldest first, and with --follow those to come.

    Where `watch` misses nothing from a revision on, this shows the end of the journal.
    """
    wanted = _filter(path, kind, user, run)
    with session(ctx, as_json) as (nx, output):
        newest = newest_revision(nx)
        found = DirectoryPage(recent(nx, newest, limit, wanted), str(newest))
        coming = _coming(nx, newest, timeout, wanted) if follow else iter(())
        if output.as_json:
            output.listing(_flushed(found, coming))
            return
        if found or not follow:
            print_events(output, found)
        for page in coming:
            _print(output, page)


def newest_revision(nx: NexusFilesystem) -> int:
    """Return the revision of the last commit."""
    journal = nx.sys_stat("/__sys__/journal")
    return int(journal["revision"]) if journal else 0


def recent(
    nx: NexusFilesystem, newest: int, limit: int, wanted: Wanted = lambda event: True
) -> list[dict[str, Any]]:
    """Return the last events up to a revision that are wanted, oldest first."""
    window = max(limit, _FIRST_WINDOW)
    while True:
        after = max(newest - window, 0)
        found = deque((e for e in _journal(nx, after, newest) if wanted(e)), maxlen=limit)
        if len(found) == limit or after == 0:
            return list(found)
        window *= 4


def _journal(nx: NexusFilesystem, after: int, newest: int) -> Iterator[dict[str, Any]]:
    cursor: str | None = f"{after}.{_WHOLE_REVISION}"
    while cursor is not None:
        page = nx.history(cursor=cursor)
        for event in page:
            if event["revision"] > newest:
                return
            yield event
        cursor = page.next_cursor


def _coming(
    nx: NexusFilesystem, newest: int, timeout: float | None, wanted: Wanted
) -> Iterator[DirectoryPage]:
    for event in nx.watch("/", since=newest, timeout=timeout):
        row = event.as_dict()
        if wanted(row):
            yield DirectoryPage([row], event.cursor)


def _flushed(found: DirectoryPage, coming: Iterator[DirectoryPage]) -> Iterator[DirectoryPage]:
    yield found
    for page in coming:
        sys.stdout.flush()  # who reads the pipe wants each change when it comes
        yield page


def _print(output: Output, page: DirectoryPage) -> None:
    for event in page:
        fields = event_row(event, output.is_terminal)
        if output.is_terminal:
            output.line("  ".join(fields))
        else:
            output.row(*fields)
            sys.stdout.flush()


def _filter(path: str, kinds: list[str] | None, user: str | None, run: str | None) -> Wanted:
    place = normalize("events", path)

    def wanted(event: dict[str, Any]) -> bool:
        paths = [event["path"]] + ([event["new_path"]] if event["new_path"] else [])
        return (
            any(is_same_or_below(found, place) for found in paths)
            and (not kinds or event["kind"] in kinds)
            and (user is None or event["user_id"] == user)
            and (run is None or event["run_id"] == run)
        )

    return wanted
