"""How a figure is measured: rounds of the filesystem and of plain os calls, taken in turns.

Whatever else the machine does disturbs both sides of a round alike, so the figure that counts is
the median over the rounds of the ratio within a round. The spread of the ratios is kept: a wide
one says that the median means little. Who goes first alternates, since whoever does finds other
caches.

A figure without a counterpart is the quickest of many short rounds: a busy machine only adds to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Literal, NamedTuple

import msgspec

from nexus.lib.native import chosen

Unit = Literal["µs", "ms", "s", "MiB/s", "MiB", "files/s", "messages/s"]
_HIGHER_IS_BETTER = frozenset({"MiB/s", "files/s", "messages/s"})
MIB = 1 << 20


class Row(msgspec.Struct, frozen=True):
    """One figure. ``measured`` and ``reference`` are in ``unit``; ratios are between the two."""

    section: str
    name: str
    unit: Unit
    measured: float
    against: str = ""
    reference: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    target: str = ""
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on a ratio, or, with ``absolute``, on the measured figure itself."""

    limit: float
    at_most: bool = True
    absolute: bool = False

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def text(self, unit: Unit) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.limit:g} {unit}" if self.absolute else f"{sign} {self.limit:g}x"


def by_kernel(*, rust: Target, python: Target | None = None) -> Target | None:
    """Return the bound for the kernel that runs; the readable twins have wider ones, or none."""
    return python if chosen().module is None else rust


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to work and how long. ``rounds`` is for cheap figures, ``few_rounds`` for dear ones."""

    directory: Path
    quick: bool

    @property
    def rounds(self) -> int:
        return 5 if self.quick else 15

    @property
    def few_rounds(self) -> int:
        return 3 if self.quick else 5

    @property
    def entries(self) -> int:
        """How many entries the large filesystem of the growth figures has."""
        return 100_000 if self.quick else 1_000_000

    def folder(self, name: str) -> Path:
        """Return a new folder to work in."""
        path = self.directory / name
        path.mkdir(parents=True)
        return path


class Samples(NamedTuple):
    """What the rounds gave, in seconds an operation; the two lists run side by side."""

    measured: list[float]
    reference: list[float]


Measurement = Callable[[int], float]
"""Do the work of one round, given its number; return seconds an operation."""


def interleave(measured: Measurement, reference: Measurement, rounds: int) -> Samples:
    """Run the two in turns, after one round of each that does not count."""
    measured(-1)
    reference(-1)
    samples = Samples([], [])
    sides = [(measured, samples.measured), (reference, samples.reference)]
    for number in range(rounds):
        for measure, figures in sides:
            figures.append(measure(number))
        sides.reverse()
    return samples


def quickest(measure: Measurement, rounds: int) -> float:
    """Return what the quickest of many rounds took, after one that does not count."""
    measure(-1)
    return min(measure(number) for number in range(rounds))


def compare(
    section: str,
    name: str,
    samples: Samples,
    *,
    against: str,
    unit: Unit = "µs",
    units_per_operation: float = 1.0,
    target: Target | None = None,
) -> Row:
    """Return the row of two interleaved measurements.

    ``units_per_operation`` is what one operation moves (MiB, files), for units that are a rate.
    """
    pairs = zip(samples.measured, samples.reference, strict=True)
    if unit in _HIGHER_IS_BETTER:
        ratios = [reference / measured for measured, reference in pairs]
    else:
        ratios = [measured / reference for measured, reference in pairs]
    ratio = median(ratios)
    return Row(
        section,
        name,
        unit,
        _in_unit(median(samples.measured), unit, units_per_operation),
        against,
        _in_unit(median(samples.reference), unit, units_per_operation),
        ratio,
        min(ratios),
        max(ratios),
        target.text(unit) if target else "",
        target.holds(ratio) if target else None,
    )


def single(
    section: str,
    name: str,
    unit: Unit,
    measured: float,
    *,
    against: str = "",
    reference: float | None = None,
    target: Target | None = None,
) -> Row:
    """Return the row of a figure that is not a ratio; ``target`` bounds the figure itself."""
    return Row(
        section,
        name,
        unit,
        measured,
        against,
        reference,
        target=target.text(unit) if target else "",
        ok=target.holds(measured) if target else None,
    )


def _in_unit(seconds: float, unit: Unit, units_per_operation: float) -> float:
    if unit in _HIGHER_IS_BETTER:
        return units_per_operation / seconds
    return seconds * {"µs": 1e6, "ms": 1e3, "s": 1.0}[unit]


def timed(work: Callable[[], object], operations: int = 1) -> float:
    """Return the seconds an operation of ``work``, which does that many."""
    start = perf_counter()
    work()
    return (perf_counter() - start) / operations


def each(call: Callable[[str], object], paths: list[str]) -> float:
    """Return the seconds a call over all paths."""
    start = perf_counter()
    for path in paths:
        call(path)
    return (perf_counter() - start) / len(paths)


def random_pieces(count: int, size_bytes: int) -> list[bytes]:
    """Return pieces that neither repeat nor compress."""
    return [os.urandom(size_bytes) for _ in range(count)]


def settle() -> None:
    """Wait until what earlier work left to be written is on disk, so that nobody else pays."""
    os.sync()


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say on stderr what is going on, and how long it took."""
    print(f"  {what} …", end="", file=sys.stderr, flush=True)
    start = perf_counter()
    yield
    print(f" {perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def filesystem_type(path: Path) -> str:
    """Return the type of the filesystem that holds a path, ``unknown`` where the system is mum."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    found = ("", "unknown")
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split()
        if path.resolve().is_relative_to(point) and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]
