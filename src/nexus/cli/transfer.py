"""import and export: trees between the host's filesystem and this one. Layer: cli."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from nexus.cli.context import (
    IN_MEMORY,
    JsonOption,
    PathArgument,
    data_directory,
    environment,
    options_of,
    session,
)
from nexus.cli.exporter import Exporter
from nexus.cli.importer import Importer, count_bytes
from nexus.cli.mounts import mount_table
from nexus.cli.output import Output, human_size, plural
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.filesystem import NexusFilesystem

HostArgument = Annotated[
    str, typer.Argument(metavar="HOST_DIR", help="A directory of the host's own filesystem.")
]


def import_(
    ctx: typer.Context, host_dir: HostArgument, path: PathArgument, as_json: JsonOption = False
) -> None:
    """Copy what is in a host directory into PATH, replacing files of the same name.

    Symbolic links, special files and names that a path cannot hold are passed over and counted.
    Contents and names are copied, not owners, modes or times.
    """
    host = os.path.abspath(os.path.expanduser(host_dir))
    with session(ctx, as_json) as (nx, output):
        started = time.monotonic()
        total = count_bytes(host) if output.shows_progress else None
        with output.progress(total) as progress:
            importer = Importer(nx, host, path, _data_dir(ctx), progress)
            importer.run()
        _print_summary(output, importer.summary, started, f"imported into {path}")


def export(
    ctx: typer.Context,
    path: PathArgument,
    host_dir: HostArgument,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace files that exist on the host.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy what is at PATH into a host directory, which is created where it is missing.

    Without --force nothing is written if any file exists already. Every byte is verified as it is
    read; a file appears on the host whole or not at all.
    """
    host = os.path.abspath(os.path.expanduser(host_dir))
    with session(ctx, as_json) as (nx, output):
        _check_host(nx, path, host, _data_dir(ctx))
        started = time.monotonic()
        exporter = Exporter(nx, path, host, force)
        total = exporter.check()
        with output.progress(total) as progress:
            exporter.run(progress)
        _print_summary(output, exporter.summary, started, f"exported to {host}")


def _print_summary(output: Output, summary: dict[str, Any], started: float, what: str) -> None:
    summary["seconds"] = round(time.monotonic() - started, 3)
    if output.as_json:
        output.document(summary)
        return
    files = plural(summary["files"], "file")
    directories = plural(summary["directories"], "directory", "directories")
    output.line(f"{files}, {directories}, {human_size(summary['bytes'])} {what}")
    reasons = summary.get("skipped_reasons")
    if reasons:
        detail = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(reasons.items()))
        output.line(f"{summary['skipped']:,} skipped ({detail})", style="yellow")


def _data_dir(ctx: typer.Context) -> str | None:
    # The kernel's import is paid for already: the filesystem is open.
    from nexus.sdk.connect import read_settings

    options = options_of(ctx)
    found = data_directory(read_settings(options.explicit, environment(options)).data_dir)
    return None if found == IN_MEMORY else os.path.realpath(found)


def _check_host(nx: NexusFilesystem, path: str, host: str, data_dir: str | None) -> None:
    """Refuse a target that is part of what is exported, or of our own storage."""
    real = os.path.realpath(host)
    if data_dir is not None and _within(real, data_dir):
        raise InvalidArgumentError("export", host, "lies in the data directory itself")
    for row in mount_table(nx):
        root = (row["backend"] or {}).get("root")
        if isinstance(root, str) and _within(real, os.path.realpath(root)):
            raise InvalidArgumentError("export", host, f"lies in the storage of {row['path']}")


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
