"""The tree command. Layer: cli. Memory: one page a level, however wide the tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from nexus.cli.context import JsonOption, session
from nexus.cli.files import existing
from nexus.cli.output import Output, plural, printable
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import Stat

_PAGE = 500
DEFAULT_LIMIT = 1000


def tree(
    ctx: typer.Context,
    path: Annotated[
        str, typer.Argument(metavar="[PATH]", help="The top of the tree.", show_default="/")
    ] = "/",
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, help="Go at most this many levels down.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Show at most this many entries.")
    ] = DEFAULT_LIMIT,
    as_json: JsonOption = False,
) -> None:
    """Show a directory and what is beneath it as a tree."""
    with session(ctx, as_json) as (nx, output):
        top = existing(nx, "tree", path)
        walk = _Walk(nx, depth, limit)
        if output.as_json:
            node = walk.nested(top, 0)
            output.document(node | {"truncated": walk.truncated})
            return
        output.line(top["path"], style="bold blue")
        for prefix, stat in walk.drawn(top, "", 0):
            _print(output, prefix, stat)
        output.line("")
        counts = (plural(walk.directories, "directory", "directories"), plural(walk.files, "file"))
        output.line(", ".join(counts))
        if walk.truncated:
            output.note(f"more follows: --limit {limit} cut it")


def _print(output: Output, prefix: str, stat: Stat) -> None:
    name = stat["path"].rpartition("/")[2]
    if not output.is_terminal or not stat["is_directory"]:
        output.line(f"{prefix}{name}")
        return
    # Start-up cost: a pipe does without rich.
    from rich.text import Text

    output.console.print(Text.assemble(prefix, (printable(name), "bold blue")))


@dataclass(slots=True)
class _Walk:
    """One walk, depth first, that stops after ``limit`` entries."""

    nx: NexusFilesystem
    depth: int | None
    limit: int
    files: int = 0
    directories: int = 0
    truncated: bool = False

    def children(self, top: Stat, level: int) -> Iterator[Stat]:
        """Yield what is directly beneath an entry, as far as depth and limit allow."""
        if not top["is_directory"] or (self.depth is not None and level >= self.depth):
            return
        cursor = None
        while True:
            page = self.nx.sys_readdir(top["path"], False, _PAGE, cursor, True)
            for stat in page:
                if self.files + self.directories >= self.limit:
                    self.truncated = True
                    return
                yield stat
            cursor = page.next_cursor
            if cursor is None:
                return

    def _count(self, stat: Stat) -> None:
        if stat["is_directory"]:
            self.directories += 1
        else:
            self.files += 1

    def drawn(self, top: Stat, indent: str, level: int) -> Iterator[tuple[str, Stat]]:
        """Yield each entry with the lines to draw before its name."""
        children = self.children(top, level)
        stat = next(children, None)
        while stat is not None:
            self._count(stat)
            following = next(children, None)
            last = following is None
            yield indent + ("└── " if last else "├── "), stat
            yield from self.drawn(stat, indent + ("    " if last else "│   "), level + 1)
            stat = following if not self.truncated else None

    def nested(self, top: Stat, level: int) -> dict[str, Any]:
        """Return an entry with its children in it."""
        node = {"path": top["path"], "type": top["type"], "size": top["size"]}
        if top["is_directory"]:
            entries = node["entries"] = []
            for stat in self.children(top, level):
                self._count(stat)
                entries.append(self.nested(stat, level + 1))
        return node
