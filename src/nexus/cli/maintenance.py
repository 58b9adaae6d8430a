"""fsck, gc and convert. Layer: cli."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated, Any

import msgspec
import typer

from nexus.cli.context import (
    JsonOption,
    environment,
    open_filesystem,
    options_of,
    output_of,
    session,
)
from nexus.cli.errors import EXIT_DIFFERS
from nexus.cli.output import Output, human_size, plural
from nexus.contracts.errors import CorruptionError

SECONDS_PER_DAY = 86_400
_RESTORE = "restore the data directory from a backup"


def fsck(
    ctx: typer.Context,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what has a second copy.")] = False,
    content: Annotated[
        bool, typer.Option("--content/--no-content", help="Read and verify all content too.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check everything stored; exit 1 when something harmful is left.

    While records are checked, changes wait; reads go on, and everything while content is checked.
    With --repair, a metastore whose structure is damaged is built anew; the old file stays
    beside it, as .damaged.
    """
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.sdk import fsck as check

    output = output_of(ctx, as_json)
    with ExitStack() as opened:
        try:
            options = options_of(ctx)
            nx = opened.enter_context(open_filesystem(options, accept_loss=repair))
        except CorruptionError as error:
            _print_check(output, _unopened(error, repair=repair))
            raise typer.Exit(EXIT_DIFFERS) from error
        with output.progress(unit="mixed") as progress:
            report = check(nx, repair=repair, content=content, progress=progress)
    _print_check(output, {"clean": report.clean} | msgspec.to_builtins(report))
    if not report.clean:
        raise typer.Exit(EXIT_DIFFERS)


def _unopened(error: CorruptionError, *, repair: bool) -> dict[str, Any]:
    """Return the report on a data directory too damaged to open."""
    hint = error.hint or _RESTORE
    if repair and "--repair" in hint:
        hint = _RESTORE  # this was the repair
    problem = {
        "object": error.path or "data directory",
        "problem": f"cannot be opened: {error.reason}",
        "advice": hint,
        "repaired": False,
    }
    counts = {"records": 0, "files": 0, "objects": 0, "bytes_verified": 0}
    return {"clean": False} | counts | {"problems": [problem]}


def _print_check(output: Output, report: dict[str, Any]) -> None:
    if output.as_json:
        output.document(report)
        return
    for problem in report["problems"]:
        line = f"{problem['object']}: {problem['problem']}"
        if problem["repaired"]:
            output.line(f"{line} (repaired)", style="yellow")
        else:
            output.line(line, style="red")
            output.line(f"  advice: {problem['advice']}")
    verified = human_size(report["bytes_verified"])
    output.line(
        f"{plural(report['records'], 'record')}, {plural(report['files'], 'file')}, "
        f"{plural(report['objects'], 'object')} verified ({verified})"
    )
    harmful = sum(not problem["repaired"] for problem in report["problems"])
    verdict = "clean" if report["clean"] else f"{plural(harmful, 'problem')} left"
    output.line(verdict, style="green" if report["clean"] else "bold red")


def gc(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep: Annotated[
        float | None,
        typer.Option("--keep", min=0, metavar="DAYS", help="Keep this much history."),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option("--grace", min=0, metavar="SECONDS", help="Spare content this young."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Forget old history, and free content that nothing names any more.

    Defaults are the settings retention_days and grace_s. Content goes in two steps: one run sets
    it aside, a run at least the grace period later deletes it.
    """
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.sdk import collect
    from nexus.sdk.connect import read_settings

    options = options_of(ctx)
    settings = read_settings(options.explicit, environment(options))
    keep_days = settings.retention_days if keep is None else keep
    with session(ctx, as_json) as (nx, output):
        with output.progress(unit="items") as progress:
            report = collect(
                nx,
                retention_s=keep_days * SECONDS_PER_DAY,
                grace_s=settings.grace_s if grace is None else grace,
                dry_run=dry_run,
                progress=progress,
            )
        _print_collection(output, msgspec.to_builtins(report))


def _print_collection(output: Output, report: dict[str, Any]) -> None:
    if output.as_json:
        output.document(report)
        return
    would = "would be " if report["dry_run"] else ""
    entries = plural(report["journal_entries"], "journal entry", "journal entries")
    output.line(
        f"history: {entries}, {plural(report['version_records'], 'version')} {would}removed"
    )
    aside = plural(report["objects_quarantined"], "object")
    size = human_size(report["bytes_quarantined"])
    output.line(f"content: {aside} ({size}) {would}set aside, {report['objects_kept']:,} in use")
    if report["leftovers_removed"]:
        left = plural(report["leftovers_removed"], "unfinished file")
        output.line(f"leftovers: {left} ({human_size(report['leftover_bytes'])}) {would}removed")
    if not report["dry_run"]:
        compacted = human_size(report["bytes_compacted"])
        output.line(f"freed: {human_size(report['bytes_freed'])}, {compacted} of segments emptied")


def convert(
    ctx: typer.Context,
    to: Annotated[str, typer.Option("--to", metavar="STORE", help="redb or sqlite.")],
    keep: Annotated[bool, typer.Option("--keep", help="Keep the old store's file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert the data directory to another metastore, with all records and their history.

    Nothing else may have it open. The new store is compared with the old one before it takes its
    place; until then a failure leaves everything as it was. --keep sets the old one aside as
    meta.db.kept or meta.redb.kept.
    """
    # The kernel costs 60 ms of start-up, which --help need not pay.
    from nexus.sdk import convert as convert_store
    from nexus.sdk.connect import read_settings

    output = output_of(ctx, as_json)
    options = options_of(ctx)
    settings = read_settings(options.explicit, environment(options))
    with output.progress(unit="items") as progress:
        report = convert_store(settings.data_dir, to, keep=keep, progress=progress)
    advice = None
    if settings.metastore not in ("auto", to):
        advice = f"metastore is set to {settings.metastore}: `nexus config set metastore auto`"
    if output.as_json:
        output.document(msgspec.to_builtins(report) | {"advice": advice})
        return
    output.line(
        f"{report.source} -> {report.target}: {plural(report.records, 'record')}, "
        f"revision {report.revision}, checksum {report.checksum}"
    )
    if report.kept:
        output.line(f"kept: {report.kept}")
    if advice:
        output.line(f"advice: {advice}", style="yellow")
