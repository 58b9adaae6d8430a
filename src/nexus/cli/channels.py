"""Commands on pipes and streams. Layer: cli.

A command is a process of its own, with a filesystem of its own while it runs. What is kept in its
memory would end with it, so messages of a pipe, and of a stream in memory, are not for commands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from nexus.cli.context import JsonOption, LimitOption, PathArgument, session
from nexus.cli.files import TextArgument, content_of, existing
from nexus.cli.output import Output
from nexus.contracts.errors import EndOfStreamError, NotSupportedError, WaitTimeoutError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_PIPE, DT_STREAM, DirectoryPage, Stat, StreamMessage

pipe = typer.Typer(help="Make pipes, which carry messages inside a process.")
stream = typer.Typer(help="Make, write, read and follow streams, which keep messages.")

CapacityOption = Annotated[
    int | None, typer.Option("--capacity", metavar="BYTES", help="How much it holds at most.")
]
OffsetOption = Annotated[
    int | None,
    typer.Option("--offset", min=0, help="Start at this message; else where the stream begins."),
]


@pipe.callback()
def _pipe() -> None:
    """Make pipes, which carry messages inside a process."""


@pipe.command("create")
def pipe_create(
    ctx: typer.Context,
    path: PathArgument,
    capacity: CapacityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a pipe, or make sure that it is there."""
    _create(ctx, path, DT_PIPE, capacity, as_json)


@stream.command("create")
def stream_create(
    ctx: typer.Context,
    path: PathArgument,
    capacity: CapacityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a stream, or make sure that it is there."""
    _create(ctx, path, DT_STREAM, capacity, as_json)


def _create(
    ctx: typer.Context, path: str, kind: int, capacity_bytes: int | None, as_json: bool
) -> None:
    with session(ctx, as_json) as (nx, output):
        stat = nx.sys_setattr(path, entry_type=kind, capacity_bytes=capacity_bytes)
        output.done(f"{path}: a {stat['type']} of {stat['capacity_bytes']} bytes", stat)


@stream.command("write")
def stream_write(
    ctx: typer.Context,
    path: PathArgument,
    text: TextArgument = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Make each line of stdin a message.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add a message to a stream, from an argument or stdin; print its offset."""
    with session(ctx, as_json) as (nx, output):
        _kept_stream(nx, "stream write", path)
        answers = [nx.sys_write(path, message) for message in _messages(text, lines)]
        if output.as_json:
            output.listing([answers])
            return
        for answer in answers:
            output.line(str(answer["offset"]))


def _messages(text: str | None, lines: bool) -> Iterator[bytes]:
    if text is not None and text != "-":
        yield text.encode("utf-8", "surrogateescape")
    elif lines:
        yield from (line.removesuffix(b"\n") for line in sys.stdin.buffer)
    else:
        yield sys.stdin.buffer.read()


@stream.command("read")
def stream_read(
    ctx: typer.Context,
    path: PathArgument,
    offset: OffsetOption = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the messages that a stream keeps, a line each."""
    with session(ctx, as_json) as (nx, output):
        stat = _kept_stream(nx, "stream read", path)
        start: int = stat["begin"] if offset is None else offset
        end: int = max(stat["end"], start + 1) if offset is not None else stat["end"]
        if limit is not None:
            end = min(end, start + limit)
        _print(output, path, (_message(nx, path, at, 0) for at in range(start, end)))


@stream.command("tail")
def stream_tail(
    ctx: typer.Context,
    path: PathArgument,
    offset: OffsetOption = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Stop when nothing came for this long."),
    ] = None,
    limit: LimitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the messages of a stream, and go on as more come.

    Ends by an interrupt, after --limit messages, --timeout seconds without one, or when the
    stream has ended.
    """
    with session(ctx, as_json) as (nx, output):
        stat = _kept_stream(nx, "stream tail", path)
        start: int = stat["begin"] if offset is None else offset
        _print(output, path, _follow(nx, path, start, timeout, limit))


def _follow(
    nx: NexusFilesystem, path: str, offset: int, timeout: float | None, limit: int | None
) -> Iterator[StreamMessage]:
    last = None if limit is None else offset + limit
    while offset != last:
        try:
            message = _message(nx, path, offset, timeout)
        except (WaitTimeoutError, EndOfStreamError):
            return
        yield message
        offset = message.next_offset


def _message(nx: NexusFilesystem, path: str, offset: int, timeout: float | None) -> StreamMessage:
    message = nx.sys_read(path, offset=offset, timeout=timeout)
    assert isinstance(message, StreamMessage)
    return message


def _kept_stream(nx: NexusFilesystem, operation: str, path: str) -> Stat:
    """Return the stat of a stream that is kept outside of this process."""
    stat = existing(nx, operation, path)
    if stat["entry_type"] != DT_STREAM:
        raise NotSupportedError(operation, path, f"is a {stat['type']}, not a stream")
    if stat["stream"] == "memory":
        raise NotSupportedError(
            operation,
            path,
            "its messages are in memory, and end with each command",
            hint="nexus config set stream durable_log, or a mount with another place for streams",
        )
    return stat


def _print(output: Output, path: str, messages: Iterator[StreamMessage]) -> None:
    if output.as_json:
        output.listing(_pages(path, messages))
        return
    for message in messages:
        sys.stdout.buffer.write(message + b"\n")
        sys.stdout.buffer.flush()  # who reads wants each message when it comes


def _pages(path: str, messages: Iterator[StreamMessage]) -> Iterator[DirectoryPage]:
    for message in messages:
        entry = content_of(path, message) | {"offset": message.offset}
        yield DirectoryPage([entry], str(message.next_offset))
        sys.stdout.flush()  # as above
