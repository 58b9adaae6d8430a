"""What every command starts from: the common options, the filesystem they name, the output.

Layer: cli. Where settings come from, first found first: options, ``NEXUS_*`` variables, one file:
``--config``, else ``NEXUS_CONFIG``, else the user's own where it exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nexus.cli.output import Output
from nexus.contracts.filesystem import NexusFilesystem

CONFIG_VARIABLE = "NEXUS_CONFIG"
IN_MEMORY = ":memory:"

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Path in the filesystem.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Print at most this many entries.")
]
CursorOption = Annotated[
    str | None, typer.Option("--cursor", help="Go on where a limited listing stopped.")
]


@dataclass(slots=True)
class Options:
    """The options given before the command."""

    data_dir: str | None = None
    config: str | None = None
    as_json: bool = False

    @property
    def explicit(self) -> dict[str, Any]:
        """The settings that options give, which beat all others."""
        return {} if self.data_dir is None else {"data_dir": self.data_dir}


def options_of(ctx: typer.Context) -> Options:
    """Return the common options of this run."""
    options = ctx.obj
    if not isinstance(options, Options):
        raise TypeError("the command was called without its group")
    return options


def output_of(ctx: typer.Context, as_json: bool) -> Output:
    """Return the output; ``--json`` counts before the command and after it."""
    return Output(as_json=as_json or options_of(ctx).as_json)


def user_config_file() -> str:
    """Return where the user's own configuration file is, or would be."""
    # Costs 15 ms of start-up, and many runs name a file.
    from platformdirs import user_config_path

    return str(user_config_path("nexusfs") / "config.toml")


def config_file(options: Options) -> str:
    """Return the configuration file in force; it may not exist."""
    return options.config or os.environ.get(CONFIG_VARIABLE) or user_config_file()


def environment(options: Options) -> dict[str, str]:
    """Return the environment with the configuration file in force named in it."""
    variables = dict(os.environ)
    file = config_file(options)
    named = options.config or os.environ.get(CONFIG_VARIABLE)
    if named or os.path.exists(file):
        variables[CONFIG_VARIABLE] = file
    return variables


def data_directory(data_dir: str | None) -> str:
    """Return the absolute path of a data directory setting; ``:memory:`` as it is."""
    if data_dir == IN_MEMORY:
        return data_dir
    if data_dir is None:
        # Costs 15 ms of start-up, and only some commands ask.
        from platformdirs import user_data_path

        data_dir = str(user_data_path("nexusfs"))
    return os.path.abspath(os.path.expanduser(data_dir))


@contextmanager
def config_variable(file: str | None) -> Iterator[None]:
    """Set ``NEXUS_CONFIG``, which is how ``connect`` is told a file beneath the environment."""
    before = os.environ.get(CONFIG_VARIABLE)
    _set_config_variable(file)
    try:
        yield
    finally:
        _set_config_variable(before)


def _set_config_variable(file: str | None) -> None:
    if file is None:
        os.environ.pop(CONFIG_VARIABLE, None)
    else:
        os.environ[CONFIG_VARIABLE] = file


def open_filesystem(options: Options, *, accept_loss: bool = False) -> NexusFilesystem:
    """Open what the options name, with ``accept_loss`` even where the newest commits are missing.

    Errors: as :func:`nexus.sdk.connect`.
    """
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.sdk import connect

    with config_variable(environment(options).get(CONFIG_VARIABLE)):
        loss = {"accept_loss": True} if accept_loss else {}
        return connect(dict(options.explicit) | loss)


@contextmanager
def session(ctx: typer.Context, as_json: bool) -> Iterator[tuple[NexusFilesystem, Output]]:
    """Open the filesystem for one command."""
    output = output_of(ctx, as_json)
    with open_filesystem(options_of(ctx)) as nx:
        yield nx, output
