"""nexus doctor: whether this installation and its data directory are in order. Layer: cli.

Looks, and changes nothing: a data directory that does not exist is not created.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import typer

from nexus import __version__
from nexus.cli.context import (
    CONFIG_VARIABLE,
    IN_MEMORY,
    JsonOption,
    Options,
    config_file,
    data_directory,
    environment,
    open_filesystem,
    options_of,
    output_of,
)
from nexus.cli.errors import EXIT_DIFFERS
from nexus.cli.mounts import mount_table
from nexus.cli.output import Output, human_size
from nexus.contracts.errors import (
    ConfigError,
    CorruptionError,
    DataDirectoryLockedError,
    NexusError,
)
from nexus.lib import native

OK, WARN, FAIL = "ok", "warn", "fail"
LOW_SPACE_BYTES = 1 << 30
NO_SPACE_BYTES = 64 << 20
_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, how it is, and what to do about it."""

    name: str
    state: str
    detail: str
    advice: str | None = None


def doctor(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Check the installation and the data directory; exit 1 when a check fails."""
    output = output_of(ctx, as_json)
    checks = _checks(options_of(ctx))
    failed = any(check.state == FAIL for check in checks)
    if output.as_json:
        rows = [asdict(check) for check in checks]
        output.document({"ok": not failed, "version": __version__, "checks": rows})
    else:
        for check in checks:
            _print(output, check)
    if failed:
        raise typer.Exit(EXIT_DIFFERS)


def _print(output: Output, check: Check) -> None:
    output.line(f"{check.state:<4}  {check.name}: {check.detail}", style=_STYLES[check.state])
    if check.advice:
        output.line(f"      advice: {check.advice}")


def _checks(options: Options) -> list[Check]:
    checks = [
        Check("nexus", OK, f"version {__version__}"),
        Check("python", OK, f"{platform.python_version()} at {sys.executable}"),
        Check("platform", OK, f"{platform.system()} {platform.release()} {platform.machine()}"),
        _kernel(),
    ]
    if checks[-1].state == FAIL:
        return checks
    settings, check = _configuration(options)
    checks.append(check)
    if settings is None:
        return checks
    directory = data_directory(settings.data_dir)
    if directory == IN_MEMORY:
        return [*checks, Check("data directory", OK, "in memory: nothing is kept")]
    checks.append(_durability(settings.durability))
    checks.append(_space(directory))
    checks.extend(_data_directory(options, directory, settings.metastore))
    return checks


def _kernel() -> Check:
    try:
        choice = native.chosen()
    except ConfigError as error:
        return Check("kernel", FAIL, error.reason, error.hint)
    return Check("kernel", OK, f"{choice.name} implementations: {choice.reason}")


def _configuration(options: Options) -> tuple[Any, Check]:
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.sdk.connect import read_settings

    variables = environment(options)
    try:
        settings = read_settings(options.explicit, variables)
    except ConfigError as error:
        place = error.path or config_file(options)
        return None, Check("configuration", FAIL, f"{place}: {error.reason}", error.hint)
    file = variables.get(CONFIG_VARIABLE)
    return settings, Check("configuration", OK, file or f"none; {config_file(options)} is missing")


def _durability(durability: str) -> Check:
    detail = {
        "ordered": "ordered: a killed process loses nothing; a power cut may lose the last moments",
        "strict": "strict: what was acknowledged survives a power cut",
    }.get(durability)
    if detail is None:
        return Check("durability", FAIL, repr(durability), "nexus config set durability ordered")
    return Check("durability", OK, detail)


def _space(directory: str) -> Check:
    existing = directory
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    try:
        usage = shutil.disk_usage(existing)
    except OSError as error:
        return Check("disk space", WARN, error.strerror or str(error))
    detail = f"{human_size(usage.free)} free of {human_size(usage.total)}"
    advice = "delete something, or run `nexus gc`"
    if usage.free < NO_SPACE_BYTES:
        return Check("disk space", FAIL, detail, advice)
    if usage.free < LOW_SPACE_BYTES:
        return Check("disk space", WARN, detail, advice)
    return Check("disk space", OK, detail)


def _data_directory(options: Options, directory: str, metastore: str) -> list[Check]:
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.factory.data_directory import metastore_of

    try:
        there = bool(os.listdir(directory))
    except FileNotFoundError:
        there = False
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return [Check("data directory", FAIL, f"{directory}: {reason}", "--data-dir names another")]
    try:
        choice = metastore_of(directory, metastore)
    except NexusError as error:
        return [Check("data directory", FAIL, f"{directory}: {error.reason}", error.hint)]
    described = f"{choice.name} ({choice.reason})"
    if not there:
        detail = f"{directory}: not there yet; the first command creates it"
        return [Check("data directory", OK, detail), Check("metastore", OK, described)]
    return _attempt(options, directory, described)


def _attempt(options: Options, directory: str, metastore: str) -> list[Check]:
    """Open the directory, as every command would, and look inside."""
    failed: dict[type[NexusError], Callable[[NexusError], list[Check]]] = {
        DataDirectoryLockedError: lambda error: [
            Check("data directory", OK, directory),
            Check("owner", WARN, error.reason, error.hint),
            Check("metastore", OK, f"{metastore}; not looked at while another process owns it"),
        ],
        CorruptionError: lambda error: [
            Check("data directory", OK, directory),
            Check("metastore", FAIL, f"{metastore}: {error.reason}", error.hint or "nexus fsck"),
        ],
    }
    try:
        with open_filesystem(options) as nx:
            mounts = mount_table(nx)
    except NexusError as error:
        explain = failed.get(type(error))
        if explain is not None:
            return explain(error)
        return [Check("data directory", FAIL, f"{directory}: {error.reason}", error.hint)]
    checks = [
        Check("data directory", OK, directory),
        Check("owner", OK, "no other process has it open"),
        Check("metastore", OK, f"{metastore}; opens; `nexus fsck` verifies what is in it"),
    ]
    for row in mounts:
        if row["problem"]:
            advice = f"bring its storage back, or `nexus unmount {row['path']}`"
            if "nexus fsck" in row["problem"]:
                advice = "`nexus fsck --repair`, then mount it again"
            checks.append(Check(f"mount {row['path']}", WARN, str(row["problem"]), advice))
    return checks
