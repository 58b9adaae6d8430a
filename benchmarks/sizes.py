"""``make sizes``: how large files, functions and classes are. Printed, never enforced."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
TREES = ("src/nexus", "benchmarks", "examples", "tests")
LARGEST = 12

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class Function(NamedTuple):
    """A function and its length, without decorators and docstring."""

    lines: int
    name: str


class ClassSize(NamedTuple):
    """A class and its count of public methods and of all."""

    public: int
    methods: int
    name: str


class Sizes(NamedTuple):
    """What is in one tree."""

    files: list[tuple[int, str]]
    functions: list[Function]
    classes: list[ClassSize]


def measure(tree: Path) -> Sizes:
    """Return the sizes of every Python file beneath a folder."""
    sizes = Sizes([], [], [])
    for path in sorted(tree.rglob("*.py")):
        text = path.read_text()
        name = str(path.relative_to(REPOSITORY))
        sizes.files.append((text.count("\n"), name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, FunctionNode):
                sizes.functions.append(Function(length(node), f"{name}:{node.lineno} {node.name}"))
            elif isinstance(node, ast.ClassDef):
                sizes.classes.append(class_size(node, name))
    return sizes


def length(node: FunctionNode) -> int:
    """Return the lines of a function from ``def`` to its end, without the docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def class_size(node: ast.ClassDef, file: str) -> ClassSize:
    """Return how many methods a class defines itself."""
    methods = [item.name for item in node.body if isinstance(item, FunctionNode)]
    public = sum(not name.startswith("_") for name in methods)
    return ClassSize(public, len(methods), f"{file}:{node.lineno} {node.name}")


def percentile(values: Iterable[int], share: float) -> int:
    """Return the value that a share of the values does not exceed."""
    ordered = sorted(values) or [0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def describe(tree: str, sizes: Sizes) -> Iterator[str]:
    """Yield the lines that tell of a tree."""
    lines = [count for count, _ in sizes.files]
    lengths = [function.lines for function in sizes.functions]
    public = [one.public for one in sizes.classes]
    yield f"{tree}: {len(lines)} files, {sum(lines):,} lines"
    for what, values in (
        ("lines a file", lines),
        ("lines a function", lengths),
        ("public methods a class", public),
    ):
        yield (
            f"  {what:24} p50 {percentile(values, 0.5):4}   p90 {percentile(values, 0.9):4}"
            f"   max {max(values, default=0):4}   of {len(values):,}"
        )


def largest(sizes: Sizes) -> Iterator[str]:
    """Yield the largest of each kind."""
    yield "largest files (lines)"
    yield from (f"  {count:5}  {name}" for count, name in sorted(sizes.files)[: -LARGEST - 1 : -1])
    yield "longest functions (lines)"
    for function in sorted(sizes.functions)[: -LARGEST - 1 : -1]:
        yield f"  {function.lines:5}  {function.name}"
    yield "classes with most methods (public/all)"
    for one in sorted(sizes.classes)[: -LARGEST - 1 : -1]:
        yield f"  {one.public:2}/{one.methods:2}  {one.name}"


def main() -> int:
    """Print the sizes of every tree, and the largest of the package."""
    measured = {name: measure(REPOSITORY / name) for name in TREES}
    for name, sizes in measured.items():
        print("\n".join(describe(name, sizes)))
    print("\n".join(largest(measured[TREES[0]])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
