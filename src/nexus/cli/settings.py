"""``nexus config``: the settings, and the user's configuration file. Layer: cli.

What is read and written is checked by the code that ``connect`` itself uses. A change keeps the
comments and the order of the file, and replaces it in one rename.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from nexus.cli.context import (
    CONFIG_VARIABLE,
    IN_MEMORY,
    JsonOption,
    Options,
    config_file,
    config_variable,
    data_directory,
    environment,
    options_of,
    output_of,
)
from nexus.cli.errors import EXIT_USAGE, host_error
from nexus.contracts.errors import ConfigError

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Such as retention_days.")]

app = typer.Typer(invoke_without_command=True)


def need_command(ctx: typer.Context) -> None:
    """Without a command, print the help and exit as for any wrong usage."""
    if ctx.invoked_subcommand is None:
        sys.stdout.write(ctx.get_help() + "\n")
        raise typer.Exit(EXIT_USAGE)


@app.callback()
def group(ctx: typer.Context) -> None:
    """Show and change settings."""
    need_command(ctx)


@app.command("list")
def list_(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List every setting: its value, where that comes from, and what it means."""
    output = output_of(ctx, as_json)
    rows = effective(options_of(ctx))
    if output.as_json:
        output.listing([rows])
    elif output.is_terminal:
        cells = [(row["key"], _text(row["value"]), row["source"], row["meaning"]) for row in rows]
        output.table(("key", "value", "from", "meaning"), cells)
    else:
        for row in rows:
            output.row(row["key"], _text(row["value"]), row["source"])


@app.command()
def get(ctx: typer.Context, key: KeyArgument, as_json: JsonOption = False) -> None:
    """Print the value of one setting."""
    output = output_of(ctx, as_json)
    _check_key(key)
    row = next(row for row in effective(options_of(ctx)) if row["key"] == key)
    if output.as_json:
        output.document(row)
    else:
        output.line(_text(row["value"]))


@app.command("set")
def set_(
    ctx: typer.Context,
    key: KeyArgument,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The new value.")],
    as_json: JsonOption = False,
) -> None:
    """Set one setting in the configuration file."""
    output = output_of(ctx, as_json)
    file = config_file(options_of(ctx))
    checked = _checked(key, value)
    _rewrite(file, key, checked)
    document = {"file": file, "key": key, "value": checked}
    output.done(f"{file}: {key} = {_toml(checked)}", document)


@app.command()
def unset(ctx: typer.Context, key: KeyArgument, as_json: JsonOption = False) -> None:
    """Take one setting out of the configuration file."""
    output = output_of(ctx, as_json)
    _check_key(key)
    file = config_file(options_of(ctx))
    if os.path.exists(file):
        _rewrite(file, key, None)
    output.done(f"{file}: {key} is not set", {"file": file, "key": key, "value": None})


@app.command()
def path(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Print where the configuration file is, or would be."""
    output = output_of(ctx, as_json)
    file = config_file(options_of(ctx))
    if output.as_json:
        output.document({"file": file, "exists": os.path.exists(file)})
    else:
        output.line(file)


def effective(options: Options) -> list[dict[str, Any]]:
    """Return every setting with its value and source. Errors: ConfigError."""
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.sdk.connect import KEYS, read_file, read_settings

    variables = environment(options)
    settings = read_settings(options.explicit, variables)
    file = variables.get(CONFIG_VARIABLE)
    in_file = read_file(file) if file else {}
    rows = []
    for key, (_, meaning) in KEYS.items():
        if key in options.explicit:
            source = f"--{key.replace('_', '-')}"
        elif f"NEXUS_{key.upper()}" in variables:
            source = f"NEXUS_{key.upper()}"
        else:
            source = file if file and key in in_file else "default"
        value = getattr(settings, key, None)
        if key == "data_dir":
            value = data_directory(settings.data_dir)
        elif isinstance(value, tuple):
            value = ",".join(value)
        rows.append({"key": key, "value": value, "source": source, "meaning": meaning})
    return rows


def _check_key(key: str) -> None:
    # Start-up cost, as above.
    from nexus.sdk.connect import KEYS, read_settings

    if key not in KEYS:
        read_settings({key: ""}, {})  # refuses it, and says what comes close


def _checked(key: str, value: str) -> Any:
    """Return the value as it is stored, after a filesystem was opened with it."""
    # Start-up cost, as above.
    from nexus.sdk import connect
    from nexus.sdk.connect import KEYS, read_settings

    read_settings({key: value}, {})
    checked = KEYS[key][0](value)
    if key == "data_dir":
        return checked if checked == IN_MEMORY else data_directory(checked)
    with config_variable(None), tempfile.TemporaryDirectory(prefix="nexus-") as scratch:
        connect({"data_dir": scratch, key: checked}).close()
    return int(checked) if isinstance(checked, float) and checked.is_integer() else checked


def _rewrite(file: str, key: str, value: Any) -> None:
    """Set one key in a TOML file, or with None take it out."""
    # Start-up cost, as above.
    from nexus.sdk.connect import read_file

    if file.endswith((".yaml", ".yml")):
        raise ConfigError("config", file, "only TOML files are changed", hint="edit it by hand")
    before, text = {}, ""
    if os.path.exists(file):
        before = read_file(file)
        with open(file, encoding="utf-8") as opened:
            text = opened.read()
    wanted = {name: kept for name, kept in before.items() if name != key}
    if value is not None:
        wanted[key] = value
    changed = _edited(text, key, value)
    if not _says(changed, wanted):  # an unusual layout: give its comments up, not its meaning
        changed = "".join(f"{name} = {_toml(kept)}\n" for name, kept in wanted.items())
    _replace(file, changed)


def _edited(text: str, key: str, value: Any) -> str:
    is_key = re.compile(rf"\s*{re.escape(key)}\s*=").match
    lines = [line for line in text.splitlines() if value is not None or not is_key(line)]
    if value is not None:
        line = f"{key} = {_toml(value)}"
        at = [number for number, old in enumerate(lines) if is_key(old)]
        if at:
            lines[at[0]] = line
        else:
            lines.append(line)
    return "".join(f"{line}\n" for line in lines)


def _says(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


def _replace(file: str, text: str) -> None:
    target = os.path.realpath(file)
    folder = os.path.dirname(target)
    try:
        os.makedirs(folder, exist_ok=True)
        fd, staging = tempfile.mkstemp(prefix=".config-", dir=folder)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as opened:
                opened.write(text)
                opened.flush()
                os.fsync(fd)
            os.replace(staging, target)
        except BaseException:
            os.unlink(staging)
            raise
    except OSError as error:
        raise host_error("config", file, error) from error


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    return "" if value is None else str(value)
