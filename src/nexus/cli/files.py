"""Commands on single files and directories. Layer: cli.

They follow their Unix namesakes: a target that is a directory receives the source under its
name, ``rm`` needs ``-r`` for a directory and ``mkdir`` needs ``-p`` for missing parents.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO

import typer

from nexus.cli.context import JsonOption, PathArgument, session
from nexus.cli.output import Output, human_size, iso_time, local_time, plural
from nexus.contracts.errors import (
    BusyError,
    InvalidArgumentError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_MOUNT, Stat
from nexus.lib.paths import name, normalize

PIECE_BYTES = 1 << 20

PathsArgument = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Paths in the filesystem.")
]
TextArgument = Annotated[
    str | None, typer.Argument(metavar="[TEXT]", help="The content; '-' or nothing: read stdin.")
]
SourcesArgument = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="What to take: files or whole trees.")
]
TargetArgument = Annotated[
    str, typer.Argument(metavar="TARGET", help="A new path, or a directory to put it in.")
]


def stat(ctx: typer.Context, path: PathArgument, as_json: JsonOption = False) -> None:
    """Show the attributes of a file or directory."""
    with session(ctx, as_json) as (nx, output):
        found = existing(nx, "stat", path)
        if output.as_json:
            output.document(found)
            return
        for key, value in found.items():
            output.line(f"{key}: {_attribute(output, key, value)}")


def _attribute(output: Output, key: str, value: Any) -> str:
    if key == "mode":
        return f"{value:04o}"
    if key.endswith("_at"):
        return local_time(value) if output.is_terminal else iso_time(value)
    if key == "size" and output.is_terminal:
        return f"{value} ({human_size(value)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def cat(
    ctx: typer.Context,
    paths: PathsArgument,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="Read an earlier version.")
    ] = None,
    offset: Annotated[int, typer.Option("--offset", min=0, help="Start at this byte.")] = 0,
    count: Annotated[
        int | None, typer.Option("--count", min=0, help="Print at most this many bytes.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print files, byte for byte, one after the other."""
    with session(ctx, as_json) as (nx, output):
        if output.as_json:
            data = [
                (path, b"".join(read_pieces(nx, path, offset=offset, count=count, version=version)))
                for path in paths
            ]
            output.listing([[content_of(path, content) for path, content in data]])
            return
        for path in paths:
            for piece in read_pieces(nx, path, offset=offset, count=count, version=version):
                sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


def content_of(path: str, data: bytes) -> dict[str, Any]:
    """Return what ``--json`` shows of bytes: as text where they are text, else in base64."""
    try:
        text, encoding = data.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = base64.b64encode(data).decode(), "base64"
    return {"path": path, "size": len(data), "encoding": encoding, "content": text}


def read_pieces(
    nx: NexusFilesystem,
    path: str,
    *,
    offset: int = 0,
    count: int | None = None,
    version: int | None = None,
) -> Iterator[bytes]:
    """Yield a file, or a part of it, in pieces of at most 1 MiB; each is verified."""
    left = count
    while True:
        wanted = PIECE_BYTES if left is None else min(PIECE_BYTES, left)
        piece = nx.read(path, wanted, offset, version=version)
        yield piece
        if left is not None:
            left -= len(piece)
        offset += len(piece)
        if len(piece) < PIECE_BYTES or left == 0:
            return


def write(
    ctx: typer.Context,
    path: PathArgument,
    text: TextArgument = None,
    if_match: Annotated[
        str | None,
        typer.Option("--if-match", metavar="ETAG", help="Only if the file still has this etag."),
    ] = None,
    if_none_match: Annotated[
        str | None,
        typer.Option(
            "--if-none-match",
            metavar="ETAG",
            help="Only if the file has another etag; '*': only if nothing is there.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Create or replace a file from TEXT or stdin; readers see the old file or the new one."""
    with session(ctx, as_json) as (nx, output):
        written = nx.write(
            path,
            _standard_input(output, path) if text in (None, "-") else text or "",
            if_match=if_match,
            if_none_match=if_none_match,
        )
        _report_written(output, written)


def append(
    ctx: typer.Context, path: PathArgument, text: TextArgument = None, as_json: JsonOption = False
) -> None:
    """Add TEXT or stdin to the end of a file, creating it where it is missing."""
    with session(ctx, as_json) as (nx, output):
        if text is None or text == "-":
            data = b"".join(_standard_input(output, path))
        else:
            data = text.encode("utf-8", "surrogateescape")
        _report_written(output, nx.append(path, data))


def _report_written(output: Output, written: Stat) -> None:
    size = human_size(written["size"])
    output.done(f"{written['path']}: {size}, version {written['version']}", written)


def _standard_input(output: Output, path: str) -> Iterator[bytes]:
    if sys.stdin is None:
        raise InvalidArgumentError("write", path, "there is no text, and stdin is closed")
    if sys.stdin.isatty():
        output.note("reading from the terminal; Ctrl-D on an empty line ends it")
    stream: BinaryIO = sys.stdin.buffer
    return iter(lambda: stream.read(PIECE_BYTES), b"")


def cp(
    ctx: typer.Context,
    sources: SourcesArgument,
    target: TargetArgument,
    as_json: JsonOption = False,
) -> None:
    """Copy files and whole trees."""
    with session(ctx, as_json) as (nx, output):
        copies = []
        for source, place in _places(nx, "cp", sources, target):
            copies.append(nx.sys_copy(source, place))
            output.step(f"{source} -> {place}: {_entries(copies[-1]['copied'])}")
        output.done_all(copies)


def mv(
    ctx: typer.Context,
    sources: SourcesArgument,
    target: TargetArgument,
    as_json: JsonOption = False,
) -> None:
    """Move or rename files and whole trees."""
    with session(ctx, as_json) as (nx, output):
        moves = []
        for source, place in _places(nx, "mv", sources, target):
            moves.append(nx.sys_rename(source, place))
            output.step(f"{source} -> {place}: {_entries(moves[-1]['renamed'])}")
        output.done_all(moves)


def _entries(count: int) -> str:
    return plural(count, "entry", "entries")


def _places(
    nx: NexusFilesystem, operation: str, sources: list[str], target: str
) -> list[tuple[str, str]]:
    """Return each source with the path it goes to."""
    canonical = normalize(operation, target)
    if nx.is_directory(canonical):
        base = canonical.rstrip("/")
        named = [(source, name(normalize(operation, source))) for source in sources]
        for source, last in named:
            if not last:
                raise InvalidArgumentError(operation, source, "the root stays where it is")
        return [(source, f"{base}/{last}") for source, last in named]
    if len(sources) > 1 or target.endswith("/"):
        kind = PathNotDirectoryError if nx.exists(canonical) else PathNotFoundError
        raise kind(operation, target, "there is no such directory")
    return [(sources[0], canonical)]


def rm(
    ctx: typer.Context,
    paths: PathsArgument,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Remove directories and all beneath them.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Pass over what does not exist.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove files, or with -r directories."""
    with session(ctx, as_json) as (nx, output):
        removed = []
        for path in paths:
            found = nx.sys_stat(path)
            if found is None and force:
                continue
            _check_removable(path, found, recursive)
            removed.append(nx.sys_unlink(path, recursive))
            output.step(f"{path}: {_entries(removed[-1]['removed'])} removed")
        output.done_all(removed)


def _check_removable(path: str, found: Stat | None, recursive: bool) -> None:
    if normalize("rm", path) == "/":
        raise InvalidArgumentError("rm", path, "the root cannot be removed")
    if found is None:
        raise PathNotFoundError("rm", path, "no such file or directory")
    if found["entry_type"] == DT_MOUNT:
        raise BusyError("rm", path, "is a mount point", hint=f"nexus unmount {path}")
    if found["is_directory"] and not recursive:
        raise PathIsDirectoryError(
            "rm", path, "is a directory", hint="-r removes it with everything beneath it"
        )


def mkdir(
    ctx: typer.Context,
    paths: PathsArgument,
    parents: Annotated[
        bool,
        typer.Option("--parents", "-p", help="Create missing parents; accept what is there."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create directories."""
    with session(ctx, as_json) as (nx, output):
        created = []
        for path in paths:
            created.append(nx.mkdir(path, parents=parents, exist_ok=parents))
            output.step(f"{path}: created")
        output.done_all(created)


def existing(nx: NexusFilesystem, operation: str, path: str) -> Stat:
    """Return the stat of a path. Errors: PathNotFoundError."""
    found = nx.sys_stat(path)
    if found is None:
        raise PathNotFoundError(operation, path, "no such file or directory")
    return found
