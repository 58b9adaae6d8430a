"""Commands on mounts. Layer: cli."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from nexus.cli.context import JsonOption, PathArgument, session
from nexus.cli.files import existing
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_MOUNT, Stat
from nexus.lib.paths import normalize

_WORDS = {"true": True, "false": False}


def mount(
    ctx: typer.Context,
    path: PathArgument,
    local: Annotated[
        str | None,
        typer.Option("--local", metavar="FOLDER", help="Show a host folder (driver path_local)."),
    ] = None,
    driver: Annotated[
        str | None, typer.Option("--driver", metavar="NAME", help="Use this storage driver.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="KEY=VALUE", help="Set an option of the driver."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Mount a storage at a path; it stays mounted until it is unmounted.

    nexus mount /work --local ~/work, or
    nexus mount /big --driver cas_local --option root=/disk2/nexus
    """
    backend = _description(path, local, driver, option or [])
    with session(ctx, as_json) as (nx, output):
        nx.sys_setattr(path, entry_type=DT_MOUNT, backend=backend)
        row = next(row for row in mount_table(nx) if row["path"] == normalize("mount", path))
        output.done(f"{row['path']}: {row['driver']} mounted", row)


def _description(
    path: str, local: str | None, driver: str | None, options: list[str]
) -> dict[str, Any]:
    if (local is None) == (driver is None):
        raise InvalidArgumentError(
            "mount", path, "give either --local FOLDER or --driver NAME", hint="nexus mount --help"
        )
    description: dict[str, Any] = {"driver": driver or "path_local"}
    if local is not None:
        description["root"] = local
    for item in options:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise InvalidArgumentError("mount", path, f"option {item!r} is not KEY=VALUE")
        description[key] = _WORDS.get(value, value)
    if isinstance(description.get("root"), str):
        # The description outlives this process and its working directory.
        description["root"] = os.path.abspath(os.path.expanduser(description["root"]))
    return description


def unmount(ctx: typer.Context, path: PathArgument, as_json: JsonOption = False) -> None:
    """Unmount what is mounted at a path; what is stored there stays."""
    with session(ctx, as_json) as (nx, output):
        point = normalize("unmount", path)
        if all(row["path"] != point for row in mount_table(nx)):
            existing(nx, "unmount", path)
            raise InvalidArgumentError(
                "unmount", path, "is not a mount point", hint="`nexus mounts` lists them"
            )
        output.done(f"{point}: unmounted", nx.sys_unlink(point))


def mounts(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List what is mounted where."""
    with session(ctx, as_json) as (nx, output):
        rows = mount_table(nx)
        if output.as_json:
            output.listing([rows])
            return
        cells = [
            (row["path"], row["driver"], _source(row), row["state"], row["problem"] or "")
            for row in rows
        ]
        if output.is_terminal:
            output.table(("path", "driver", "source", "state", "problem"), cells)
            return
        for cell in cells:
            output.row(*cell)


def mount_table(nx: NexusFilesystem) -> list[Stat]:
    """Return the mounts, sorted by path."""
    return list(nx.sys_readdir("/__sys__/mounts", details=True))


def _source(row: Stat) -> str:
    backend = row["backend"]
    if backend is None:
        return "the data directory" if row["path"] == "/" else ""
    return str(backend.get("root", ""))
