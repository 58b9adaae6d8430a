"""What was measured, as text on the screen and in the documents.

``docs/benchmarks.json`` holds the figures, ``docs/benchmarks.md`` the same as tables, and
``docs/performance.md`` quotes those tables between ``<!-- figures: section -->`` and
``<!-- end -->``, which this file keeps up to date.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from benchmarks.harness import Row

COMMAND = "make bench"
SECTIONS = {
    "small_files": "Small files",
    "large_files": "Large files",
    "growth": "Growth",
    "startup": "Start-up",
    "primitives": "Primitives and other calls",
    "dispatch": "Dispatch",
    "waiting": "Waiting",
    "ipc": "Pipes and streams",
}
_HEADER = ("figure", "target", "measured", "against", "theirs", "ratio (spread)", "")
_QUOTE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Results(msgspec.Struct, frozen=True):
    """A run, as stored."""

    python: str
    kernel: str
    cpus: int
    filesystem: str
    rows: list[Row]


def table(rows: list[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [_HEADER, ("---", "---", "---:", "---", "---:", "---:", "---"), *map(_cells, rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def document(results: Results) -> str:
    """Return the generated document."""
    parts = [
        "# Benchmarks\n\n",
        f"Written by `{COMMAND}`; do not edit. Python {results.python}, {results.kernel} kernel, "
        f"{results.cpus} CPUs, {results.filesystem}. [performance.md](performance.md) says what "
        "bounds each figure.\n",
    ]
    for section, title in SECTIONS.items():
        rows = [row for row in results.rows if row.section == section]
        parts.append(f"\n## {title}\n\n{table(rows)}")
    return "".join(parts)


def quoted(text: str, results: Results) -> str:
    """Return a document with the tables that it quotes replaced by those of the results."""

    def replace(found: re.Match[str]) -> str:
        rows = [row for row in results.rows if row.section == found[2]]
        return f"{found[1]}{table(rows)}{found[3]}"

    return _QUOTE.sub(replace, text)


def write(results: Results, docs: Path) -> None:
    """Write the figures, their tables, and the quotes of them."""
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=1)
    (docs / "benchmarks.json").write_bytes(encoded + b"\n")
    (docs / "benchmarks.md").write_text(document(results))
    performance = docs / "performance.md"
    if performance.exists():
        performance.write_text(quoted(performance.read_text(), results))


def read(docs: Path) -> Results:
    """Return the figures that are written down."""
    return msgspec.json.decode((docs / "benchmarks.json").read_bytes(), type=Results)


def lines(rows: list[Row]) -> str:
    """Return rows as aligned text for the screen."""
    cells = [_HEADER, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (2, 4, 5) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def _cells(row: Row) -> tuple[str, ...]:
    ratio = ""
    if row.ratio is not None:
        ratio = f"{row.ratio:.2f}x"
        if row.ratio_min is not None and row.ratio_max is not None:
            ratio += f" ({row.ratio_min:.2f} to {row.ratio_max:.2f})"
    return (
        row.name,
        row.target,
        f"{_number(row.measured)} {row.unit}",
        row.against,
        "" if row.reference is None else f"{_number(row.reference)} {row.unit}",
        ratio,
        {None: "", True: "ok", False: "MISSED"}[row.ok],
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
