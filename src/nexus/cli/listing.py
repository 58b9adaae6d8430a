"""Commands that list: ls, glob, grep and log. Layer: cli.

All page through the filesystem, so that memory stays bounded however much there is.
"""

from __future__ import annotations

import re
import stat as mode_bits
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any

import typer

from nexus.cli.context import CursorOption, JsonOption, LimitOption, session
from nexus.cli.errors import EXIT_DIFFERS
from nexus.cli.files import existing
from nexus.cli.output import Output, human_size, iso_time, local_time, printable
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import CHANNEL_TYPES, DirectoryPage, Stat

PAGE = 1000

StartArgument = Annotated[
    str, typer.Argument(metavar="[PATH]", help="Where to start.", show_default="/")
]


def ls(
    ctx: typer.Context,
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="A directory or a file.", show_default="/")
    ] = "/",
    long: Annotated[bool, typer.Option("--long", "-l", help="Show attributes.")] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-R", help="List everything beneath, by full path.")
    ] = False,
    limit: LimitOption = None,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a directory."""
    with session(ctx, as_json) as (nx, output):
        pages = _pages(nx, path, recursive, long or as_json or output.as_json, limit, cursor)
        if output.as_json:
            output.listing(pages)
            return
        for page in pages:
            if long:
                _print_long(output, page, full_path=recursive)
            else:
                for entry in page:
                    output.line(
                        _shown(entry["path"] if isinstance(entry, dict) else entry, recursive)
                    )
            _tell_more(output, page.next_cursor, limited=limit is not None)


def _pages(
    nx: NexusFilesystem,
    path: str,
    recursive: bool,
    details: bool,
    limit: int | None,
    cursor: str | None,
) -> Iterator[DirectoryPage]:
    found = nx.sys_stat(path)
    if found is not None and not found["is_directory"]:
        yield DirectoryPage([found if details else found["path"]])
        return
    while True:
        size = PAGE if limit is None else limit
        page = nx.sys_readdir(path, recursive, size, cursor, details)
        yield page
        cursor = page.next_cursor
        if limit is not None or cursor is None:
            return


def _shown(path: str, full_path: bool) -> str:
    return path if full_path else path.rpartition("/")[2] or path


def _tell_more(output: Output, cursor: str | None, *, limited: bool) -> None:
    if limited and cursor is not None:
        output.note(f"more follows: --cursor {cursor}")


def _print_long(output: Output, page: list[Stat], *, full_path: bool) -> None:
    if output.is_terminal:
        headers = ("mode", "owner", "size>", "modified", "version>", "name")
        output.table(headers, (_long(stat, full_path, for_people=True) for stat in page))
        return
    for stat in page:
        output.row(*_long(stat, full_path, for_people=False))


def _long(stat: Stat, full_path: bool, *, for_people: bool) -> tuple[str, ...]:
    name = _shown(str(stat.get("path")), full_path)
    if "mode" not in stat:  # a view of the kernel, beneath /__sys__
        return ("", "", "", "", "", name)
    kind = mode_bits.S_IFDIR if stat["is_directory"] else mode_bits.S_IFREG
    if stat["entry_type"] in CHANNEL_TYPES:
        kind = mode_bits.S_IFIFO
    mode = mode_bits.filemode(kind | stat["mode"])
    size, time = stat["size"], stat["modified_at"]
    if for_people:
        shown = "" if stat["is_directory"] else human_size(size)
        return (mode, stat["owner_id"], shown, local_time(time), str(stat["version"]), name)
    return (mode, stat["owner_id"], str(size), iso_time(time), str(stat["version"]), name)


def glob(
    ctx: typer.Context,
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Such as '*.md' or 'docs/**/*.{png,svg}'.")
    ],
    path: StartArgument = "/",
    as_json: JsonOption = False,
) -> None:
    """Print the paths that match a shell pattern; exit 1 when none does.

    * and ? match within a name, ** across directories. A pattern without / matches names at any
    depth, one with / the path beneath the start.
    """
    with session(ctx, as_json) as (nx, output):
        paths = nx.glob(pattern, path)
        if output.as_json:
            output.listing([paths])
        else:
            for found in paths:
                output.line(found)
    if not paths:
        raise typer.Exit(EXIT_DIFFERS)


def grep(
    ctx: typer.Context,
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="A regular expression.")],
    path: StartArgument = "/",
    ignore_case: Annotated[
        bool, typer.Option("--ignore-case", "-i", help="Let a match a and A.")
    ] = False,
    include: Annotated[
        str | None,
        typer.Option("--include", metavar="GLOB", help="Search files with such names only."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Stop after this many lines.")
    ] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Print the lines of text files that match; exit 1 when none does."""
    with session(ctx, as_json) as (nx, output):
        result = nx.grep(pattern, path, include=include, ignore_case=ignore_case, limit=limit)
        if output.as_json:
            output.listing(
                [[match._asdict() for match in result]],
                truncated=result.truncated,
                skipped=result.skipped,
            )
        else:
            for match in result:
                _print_match(output, match, pattern, ignore_case)
        for skipped in result.skipped:
            output.note(f"nexus: grep: {skipped}: not searched, it is too large")
        if result.truncated:
            output.note(f"more lines match: --limit {limit} cut them")
    if not result:
        raise typer.Exit(EXIT_DIFFERS)


def _print_match(output: Output, match: Any, pattern: str, ignore_case: bool) -> None:
    if not output.is_terminal:
        output.line(f"{match.path}:{match.line_number}:{match.line}")
        return
    # Start-up cost: a pipe does without rich.
    from rich.text import Text

    shown = Text(printable(match.line))
    with suppress(re.error):  # a pattern that only bytes accept matches, but is not highlighted
        shown.highlight_regex(re.compile(pattern, re.IGNORECASE if ignore_case else 0), "bold red")
    place = Text.assemble(
        (printable(match.path), "magenta"), ":", (str(match.line_number), "green")
    )
    output.console.print(Text.assemble(place, ":", shown))


def log(
    ctx: typer.Context,
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="Show the versions of this file.")
    ] = None,
    limit: LimitOption = None,
    cursor: CursorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what happened, oldest first: to everything, or to one path (its versions)."""
    with session(ctx, as_json) as (nx, output):
        pages = _history(nx, path, limit, cursor)
        if output.as_json:
            output.listing(pages)
            return
        for page in pages:
            _print_history(output, page, of_path=path is not None)
            _tell_more(output, page.next_cursor, limited=limit is not None)


def _history(
    nx: NexusFilesystem, path: str | None, limit: int | None, cursor: str | None
) -> Iterator[DirectoryPage]:
    if path is not None and not path.startswith("/"):
        raise InvalidArgumentError("log", path, "a path starts with '/'")
    while True:
        page = nx.history(path, limit=limit or PAGE, cursor=cursor)
        if path is not None and not page and cursor is None:
            existing(nx, "log", path)
        yield page
        cursor = page.next_cursor
        if limit is not None or cursor is None:
            return


def print_events(output: Output, page: list[dict[str, Any]]) -> None:
    """Print rows of the journal."""
    _print_history(output, page, of_path=False)


def _print_history(output: Output, page: list[dict[str, Any]], *, of_path: bool) -> None:
    headers: tuple[str, ...] = ("revision>", "time", "kind", "path", "by", "run")
    rows = (event_row(event, output.is_terminal) for event in page)
    if of_path:
        headers = ("version>", "revision>", "time", "size>", "by", "run", "etag")
        rows = (_version_row(version, output.is_terminal) for version in page)
    if not output.is_terminal:
        for row in rows:
            output.row(*row)
    elif page:
        output.table(headers, rows)
    else:
        output.line("nothing is kept" if of_path else "nothing happened yet")


def event_row(event: dict[str, Any], for_people: bool) -> tuple[str, ...]:
    """Return the cells of one row of the journal."""
    moment = event["timestamp"]
    path = event["path"] if event["new_path"] is None else f"{event['path']} -> {event['new_path']}"
    time = local_time(moment) if for_people else iso_time(moment)
    return (str(event["revision"]), time, event["kind"], path, _who(event), event["run_id"] or "")


def _who(event: dict[str, Any]) -> str:
    agent = event["agent_id"]
    return f"{event['user_id']}/{agent}" if agent else str(event["user_id"])


def _version_row(version: dict[str, Any], for_people: bool) -> tuple[str, ...]:
    revision = str(version["revision"])
    if version["deleted"]:
        return ("", revision, "", "removed", "", "", "")
    moment, size, etag = version["modified_at"], version["size"], version["etag"]
    by, run = version["modified_by"], version["run_id"] or ""
    if for_people:
        shown = (local_time(moment), human_size(size), by, run, etag[:15])
    else:
        shown = (iso_time(moment), str(size), by, run, etag)
    return (str(version["version"]), revision, *shown)
