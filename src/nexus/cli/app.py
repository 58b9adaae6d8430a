"""The program ``nexus``: its commands, its common options, and how it ends.

Layer: cli. :class:`NexusGroup` is the one place where errors become lines and exit codes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from nexus import __version__
from nexus.cli import (
    agents,
    audit,
    channels,
    doctor,
    events,
    files,
    listing,
    locks,
    maintenance,
    mounts,
    services,
    settings,
    top,
    transfer,
    tree,
    watch,
)
from nexus.cli.context import Options, output_of
from nexus.cli.errors import (
    EXIT_INTERRUPTED,
    EXIT_PIPE_CLOSED,
    EXIT_USAGE,
    UsageError,
    exit_code,
    host_error,
    report,
)
from nexus.contracts.errors import NexusError

# Typer brings its own copy of click in newer releases, so the class is found through its child.
_CommandLineError: type[Exception] = typer.BadParameter.__bases__[0]


class NexusGroup(TyperGroup):
    """Runs one command line and ends the process as documented."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run, report an error if there is one, and exit."""
        words = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
        try:
            code = super().main(words, prog_name, complete_var, standalone_mode=False, **extra)
        except NexusError as error:
            report(error, as_json=as_json)
            sys.exit(exit_code(error))
        except _CommandLineError as error:
            report(_usage_error(error), as_json=as_json)
            sys.exit(EXIT_USAGE)
        except typer.Abort:
            sys.exit(EXIT_INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a reader that went away, as in ``nexus ls | head``, is no error."""
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()
        except NexusError:
            raise
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(EXIT_PIPE_CLOSED) from None
        except OSError as error:
            # The host's own: its streams, or a file that no command expected to fail.
            _drop_output()
            place = os.fsdecode(error.filename) if error.filename else None
            raise host_error(ctx.invoked_subcommand or "nexus", place, error) from error
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None
        return answer


def _drop_output() -> None:
    # Whatever is still buffered would fail again when the interpreter shuts down.
    fd = os.open(os.devnull, os.O_WRONLY)
    os.dup2(fd, sys.stdout.fileno())
    os.close(fd)


def _usage_error(error: Any) -> UsageError:
    words = error.ctx.command_path.split() if error.ctx is not None else ["nexus"]
    operation = " ".join(words[1:]) or "usage"
    message = str(error.format_message()).rstrip(".")
    reason = message[:1].lower() + message[1:]
    return UsageError(operation, None, reason, hint=f"{' '.join(words)} --help")


app = typer.Typer(
    cls=NexusGroup,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def common(
    ctx: typer.Context,
    data_dir: Annotated[
        str | None,
        typer.Option("--data-dir", metavar="DIR", help="Directory of the data, or :memory:."),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Configuration file to use.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; also after the command.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """NexusFS: a virtual filesystem for agents and the services around them.

    Works on the data directory of this user, or the one named by --data-dir. Paths are absolute.
    """
    ctx.obj = Options(data_dir, config, as_json)
    if version:
        if as_json:
            output_of(ctx, as_json).document({"version": __version__})
        else:
            sys.stdout.write(f"nexus {__version__}\n")
        raise typer.Exit
    settings.need_command(ctx)


_FILES, _TREES, _MOUNTS, _UPKEEP = "Files", "Listings", "Mounts and transfer", "Upkeep"
_TOGETHER = "Working together"

for _panel, _commands in {
    _FILES: (
        files.cat,
        files.write,
        files.append,
        files.stat,
        files.cp,
        files.mv,
        files.rm,
        files.mkdir,
    ),
    _TREES: (listing.ls, tree.tree, listing.glob, listing.grep, listing.log),
    _TOGETHER: (locks.lock, locks.unlock, locks.locks, watch.watch, events.events),
    _MOUNTS: (mounts.mount, mounts.unmount, mounts.mounts),
    _UPKEEP: (
        services.services,
        top.top,
        audit.audit,
        maintenance.fsck,
        maintenance.gc,
        maintenance.convert,
        doctor.doctor,
    ),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)

app.command("import", rich_help_panel=_MOUNTS)(transfer.import_)
app.command(rich_help_panel=_MOUNTS)(transfer.export)
app.add_typer(agents.app, name="agents", rich_help_panel=_TOGETHER)
app.add_typer(channels.pipe, name="pipe", rich_help_panel="Messages")
app.add_typer(channels.stream, name="stream", rich_help_panel="Messages")
app.add_typer(settings.app, name="config", rich_help_panel=_UPKEEP)
