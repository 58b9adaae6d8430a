"""What a command prints: one JSON document, plain text for a pipe, or colours for a person.

Layer: cli. A command says what it found; this module decides the form, and never mixes two.
Rich is imported only where a terminal is written to: it costs 60 ms of start-up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Report = Callable[[str, int], None]
"""Takes a stage and a count, as the maintenance calls report them."""


def printable(text: str) -> str:
    """Return text with everything that a terminal could act on, or hide, escaped."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def human_size(size_bytes: int) -> str:
    """Return a size as people read it: ``812 B``, ``1.5 MiB``."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    power = min((size_bytes.bit_length() - 1) // 10, 4)
    return f"{size_bytes / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def plural(count: int, singular: str, many: str | None = None) -> str:
    """Return ``1 file`` or ``2 files``."""
    return f"{count:,} {singular if count == 1 else many or singular + 's'}"


def iso_time(seconds: float) -> str:
    """Return a time since the epoch in UTC, to the second, as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def local_time(seconds: float) -> str:
    """Return a time since the epoch as a person's clock shows it."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


class Output:
    """Standard output of one command."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.is_terminal = not as_json and sys.stdout.isatty()
        self.shows_progress = not as_json and sys.stderr.isatty()
        self._console: Console | None = None

    @property
    def console(self) -> Console:
        """The terminal; only where ``is_terminal``."""
        if self._console is None:
            # Start-up cost, as above.
            from rich.console import Console

            self._console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
        return self._console

    def document(self, value: Any) -> None:
        """Print one JSON document."""
        sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def line(self, text: str, style: str | None = None) -> None:
        """Print a line: as it is for a pipe, made safe and styled for a terminal."""
        if self.is_terminal:
            self.console.print(printable(text), style=style)
        else:
            sys.stdout.write(text + "\n")

    def row(self, *fields: object) -> None:
        """Print one line of fields with tabs between, for a pipe."""
        sys.stdout.write("\t".join("" if item is None else str(item) for item in fields) + "\n")

    def done(self, message: str, document: Any) -> None:
        """Report a change: JSON, a sentence for a person, nothing for a pipe."""
        if self.as_json:
            self.document(document)
        else:
            self.step(message)

    def step(self, message: str) -> None:
        """Tell a person about one change of several."""
        if self.is_terminal:
            self.line(message)

    def done_all(self, documents: list[Any]) -> None:
        """Report several changes as a JSON listing; people were told step by step."""
        if self.as_json:
            self.listing([documents])

    def listing(
        self, pages: Iterable[Iterable[Any]], next_cursor: str | None = None, **more: Any
    ) -> None:
        """Print a JSON listing page by page, in bounded memory.

        ``next_cursor`` is that of the last page where pages are DirectoryPages.
        """
        # Nothing before the first page is there: a listing that fails prints no half document.
        opening, separator = '{"entries": [', "\n  "
        for page in pages:
            sys.stdout.write(opening)
            opening = ""
            for entry in page:
                sys.stdout.write(separator + json.dumps(entry))
                separator = ",\n  "
            next_cursor = getattr(page, "next_cursor", next_cursor)
        end = "]" if separator == "\n  " else "\n]"
        sys.stdout.write(f'{opening}{end}, "next_cursor": {json.dumps(next_cursor)}')
        for key, value in more.items():
            sys.stdout.write(f", {json.dumps(key)}: {json.dumps(value)}")
        sys.stdout.write("}\n")

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table on a terminal; a header that ends in ``>`` is aligned right."""
        # Start-up cost, as above.
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for header in headers:
            right = header.endswith(">")
            table.add_column(
                header.rstrip(">"), justify="right" if right else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.console.print(table, soft_wrap=False)

    def note(self, text: str) -> None:
        """Tell the reader something beside the answer, on stderr; not with JSON."""
        if not self.as_json:
            sys.stderr.write(f"{printable(text)}\n")

    @contextmanager
    def progress(self, total: int | None = None, *, unit: str = "bytes") -> Iterator[Report]:
        """Show a progress bar on stderr while a person watches; yield (stage, count) -> None."""
        if not self.shows_progress:
            yield lambda stage, count: None
            return
        # Start-up cost, as above.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total, shown="")

            def show(stage: str, count: int) -> None:
                sized = unit == "bytes" or (unit == "mixed" and stage == "content")
                shown = human_size(count) if sized else f"{count:,}"
                bar.update(task, description=stage, completed=count, shown=shown)

            yield show
