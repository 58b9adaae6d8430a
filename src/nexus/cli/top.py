"""The command that shows what the owner of a data directory is doing. Layer: cli.

It opens no filesystem, since the owner has it: it reads the file that the service metrics keeps in
the data directory while it runs.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexus.cli.context import (
    IN_MEMORY,
    JsonOption,
    data_directory,
    environment,
    options_of,
    output_of,
)
from nexus.cli.errors import UsageError, host_error
from nexus.cli.output import Output, human_size, local_time, plural, printable
from nexus.contracts.errors import CorruptionError, NotSupportedError, PathNotFoundError
from nexus.contracts.protocols.metrics import STATISTICS_FILE, STATISTICS_VERSION

if TYPE_CHECKING:
    from rich.console import Group

STALE_S = 5.0
"""A sample is older only where its process has ended or is stuck: it writes one a second."""

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]
"""A title, headers (one that ends in ``>`` is aligned right), and rows."""


def top(
    ctx: typer.Context,
    directory: Annotated[
        str | None,
        typer.Argument(metavar="[DIR]", help="Data directory; else that of the options."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one sample and end.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="How often to look.")
    ] = 1.0,
    as_json: JsonOption = False,
) -> None:
    """Show calls, latencies, locks, watchers, queues and events of a running filesystem.

    The process that has the data directory open must run the service: nexus config set enable
    metrics. With --json it prints one sample.
    """
    output = output_of(ctx, as_json)
    file = os.path.join(_directory(ctx, directory), STATISTICS_FILE)
    if output.as_json:
        sample = read_sample(file)
        output.document(sample | {"is_stale": is_stale(sample, time.time())})
    elif once or not output.is_terminal:
        _print(output, read_sample(file))
        while not once:
            _pause(interval)
            _print(output, read_sample(file))
    else:
        _live(output, file, interval)


def _directory(ctx: typer.Context, directory: str | None) -> str:
    if directory is not None:
        return data_directory(directory)
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.sdk.connect import read_settings

    options = options_of(ctx)
    settings = read_settings(options.explicit, environment(options))
    found = data_directory(settings.data_dir)
    if found == IN_MEMORY:
        raise UsageError("top", None, "a filesystem in memory is seen by its own process alone")
    return found


def read_sample(file: str) -> dict[str, Any]:
    """Return the last sample. Errors: PathNotFoundError without one, CorruptionError."""
    try:
        with open(file, "rb") as opened:
            data = opened.read()
    except FileNotFoundError as error:
        raise PathNotFoundError(
            "top",
            file,
            "nobody publishes statistics here",
            hint="the process that has it open needs the service metrics",
        ) from error
    except OSError as error:
        raise host_error("top", file, error) from error
    try:
        sample = json.loads(data)
    except ValueError as error:
        raise CorruptionError("top", file, f"is no sample: {error}") from error
    version = sample.get("version") if isinstance(sample, dict) else None
    if version != STATISTICS_VERSION:
        raise NotSupportedError("top", file, f"version {version}, not {STATISTICS_VERSION}")
    return dict(sample)


def is_stale(sample: dict[str, Any], now: float) -> bool:
    """Return whether the process behind a sample writes no more."""
    return bool(now - sample["time"] > STALE_S)


def _live(output: Output, file: str, interval: float) -> None:
    # Start-up cost: only a terminal needs it.
    from rich.live import Live

    with Live(console=output.console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_screen(read_sample(file)), refresh=True)
            _pause(interval)


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def _screen(sample: dict[str, Any]) -> Group:
    # Start-up cost, as above.
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    parts: list[Any] = [Text(headline(sample, time.time()), style="bold")]
    for title, headers, rows in tables(sample):
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        for header in headers:
            table.add_column(header.rstrip(">"), justify="right" if header[-1] == ">" else "left")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        parts.append(table)
    return Group(*parts)


def _print(output: Output, sample: dict[str, Any]) -> None:
    output.line(headline(sample, time.time()))
    for title, headers, rows in tables(sample):
        output.line(title)
        if output.is_terminal:
            output.table(headers, rows)
            continue
        output.row(*(header.rstrip(">") for header in headers))
        for row in rows:
            output.row(*row)
    sys.stdout.flush()


def headline(sample: dict[str, Any], now: float) -> str:
    """Return the first line: who, since when, and how much goes on."""
    rate = sum(row["per_s"] or 0.0 for row in sample["calls"].values())
    up_s = int(sample["time"] - sample["started"])
    text = (
        f"pid {sample['pid']}  up {up_s // 3600}:{up_s // 60 % 60:02}:{up_s % 60:02}  "
        f"{rate:,.1f} calls/s  revision {sample['events']['count']:,}"
    )
    if is_stale(sample, now):
        text += f"  STALE: the last sample is of {local_time(sample['time'])}"
    return text


def tables(sample: dict[str, Any]) -> Iterator[Table]:
    """Yield the tables of a sample; those that have no rows but the first are left out."""
    calls: list[tuple[str, ...]] = [
        (
            name,
            f"{row['per_s'] or 0.0:,.1f}",
            f"{row['total']:,}",
            f"{row['failed']:,}",
            _micros(row["mean_us"]),
            _micros(row["p50_us"]),
            _micros(row["p99_us"]),
        )
        for name, row in sample["calls"].items()
    ]
    headers = ("call", "per s>", "total>", "failed>", "mean>", "half below>", "99% below>")
    yield "Calls", headers, calls
    yield from (table for table in _details(sample) if table[2])


def _details(sample: dict[str, Any]) -> Iterator[Table]:
    rows: list[tuple[str, ...]]
    rows = [(r["path"], r["mode"], _who(r)) for r in sample["locks"]["rows"]]
    yield f"Locks: {sample['locks']['count']}", ("path", "mode", "by"), rows
    rows = [
        (r["path"], "all beneath" if r["recursive"] else "entries", str(r["waiting"]))
        for r in sample["watches"]["rows"]
    ]
    title = plural(sample["watches"]["count"], "watched path")
    yield f"Watchers: {title}", ("path", "what", "waiting>"), rows
    rows = [
        (r["name"], _waiting(r), "" if r["lost"] is None else str(r["lost"]))
        for r in sample["queues"]["rows"]
    ]
    yield f"Queues: {sample['queues']['count']}", ("queue", "waiting>", "lost>"), rows
    rows = [(r["name"], r["state"], str(r["calls"])) for r in sample["services"]["rows"]]
    yield f"Services: {sample['services']['count']}", ("service", "state", "calls>"), rows
    rows = [
        (str(r["revision"]), r["kind"], _place(r), _who(r))
        for r in reversed(sample["events"]["rows"])
    ]
    yield "Events: the latest first", ("revision>", "kind", "path", "by"), rows


def _waiting(row: dict[str, Any]) -> str:
    is_channel = row["lost"] is None
    return human_size(row["waiting"]) if is_channel else str(row["waiting"])


def _place(row: dict[str, Any]) -> str:
    return f"{row['path']} -> {row['new_path']}" if row["new_path"] else str(row["path"])


def _who(row: dict[str, Any]) -> str:
    return f"{row['user_id']}/{row['agent_id']}" if row["agent_id"] else str(row["user_id"])


def _micros(micros: float | None) -> str:
    if micros is None:
        return ""
    if micros < 1000:
        return f"{micros:.0f} us"
    return f"{micros / 1000:.1f} ms" if micros < 1e6 else f"{micros / 1e6:.1f} s"
