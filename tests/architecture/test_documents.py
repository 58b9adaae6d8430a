"""What the documents say exists: names, make targets, links and figures."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
NAMED = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "GLOSSARY.md")
DOCUMENTS = [
    *(REPOSITORY / name for name in NAMED if (REPOSITORY / name).exists()),
    *sorted(DOCS.glob("*.md")),
]
CODE = ("src", "benchmarks", "examples", "tests")

ELSEWHERE = frozenset(
    {
        "BytesIO",  # io
        "CamelCase",
        "FastCDC",  # pyfastcdc
        "GitHub",
        "MiB",
        "KiB",
        "GiB",
        "ThreadPoolExecutor",  # concurrent.futures
        "TypedDict",
    }
)
"""CamelCase words of other people's; builtins need not be here."""

FILE_ENDINGS = frozenset({"db", "json", "lock", "md", "py", "toml", "txt", "yaml", "yml"})
"""``nexus.json`` is a file, not a module."""

FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1[^\n]*$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^|\n)\n((?: {4,}[^\n]*\n+)+)")
INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
DOTTED = re.compile(r"(?<![\w./-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?![\w/-])")
CAMEL = re.compile(r"(?=\w*[a-z])[A-Z][A-Za-z0-9]*[A-Z][A-Za-z0-9]*")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)\b")
TABLE = re.compile(r"(?:^\|[^\n]*\n)+", re.MULTILINE)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def prose_and_code(text: str) -> tuple[str, str]:
    """Split a document into what is outside of code blocks, and the blocks."""
    blocks = [found[0] for found in FENCE.finditer(text)]
    prose = FENCE.sub("", text)
    blocks += [found[1] for found in INDENTED.finditer(prose)]
    return INDENTED.sub("\n", prose), "\n".join(blocks)


def inline_code(text: str) -> list[str]:
    return [found[2] for found in INLINE.finditer(prose_and_code(text)[0])]


def names_in(code: str) -> Iterator[str]:
    """Yield the dotted and single names that stand in a piece of inline code."""
    for found in DOTTED.finditer(re.sub(r"\"[^\"]*\"|'[^']*'", "", code)):
        yield found[0]


@cache
def classes() -> dict[str, tuple[set[str], set[str]]]:
    """Every class in the repository's code: what its bodies define, and the names of its bases."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for folder in CODE:
        for path in (REPOSITORY / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    members, bases = found.setdefault(node.name, (set(), set()))
                    members |= set(_members(node))
                    bases |= {ast.unparse(base).partition("[")[0] for base in node.bases}
    return found


def _members(node: ast.ClassDef) -> Iterator[str]:
    for item in ast.walk(node):
        if isinstance(item, FunctionNode):
            yield item.name
        elif isinstance(item, ast.AnnAssign | ast.Assign):
            targets = [item.target] if isinstance(item, ast.AnnAssign) else item.targets
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id
                elif isinstance(target, ast.Attribute):
                    yield target.attr


@cache
def aliases() -> frozenset[str]:
    """CamelCase names that code binds without ``class``: type aliases."""
    return frozenset(
        target.id
        for folder in CODE
        for path in (REPOSITORY / folder).rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    )


def has_member(name: str, member: str) -> bool:
    if name not in classes():
        return True  # a base of another library's: beyond what can be told
    members, bases = classes()[name]
    own_bases = [base for base in bases if base in classes()]
    return member in members or any(has_member(base, member) for base in own_bases)


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def resolves(dotted: str) -> bool:
    """Whether a dotted name starting with ``nexus`` leads to a module or to something in one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        if is_module(module):
            found: object = importlib.import_module(module)
            for position, part in enumerate(parts[count:], count):
                if not hasattr(found, part):
                    # A field without a default is no attribute of its class.
                    return position == len(parts) - 1 and has_field(found, part)
                found = getattr(found, part)
            return True
    return False


def has_field(found: object, name: str) -> bool:
    return (
        isinstance(found, type) and found.__name__ in classes() and has_member(found.__name__, name)
    )


def problem_with(name: str) -> str | None:
    """Say what is wrong with a name, or None for one that exists or is none of ours."""
    first, _, rest = name.partition(".")
    if first == "nexus" and rest:
        if rest.rpartition(".")[2] in FILE_ENDINGS and not resolves(name):
            return None
        return None if resolves(name) else "leads nowhere"
    if not CAMEL.fullmatch(first) or first in ELSEWHERE or hasattr(builtins, first):
        return None
    if first in aliases():
        return None
    if first not in classes():
        return "is no class here"
    member = rest.partition(".")[0]
    return None if not member or has_member(first, member) else f"{first} has no {member}"


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_name_in_a_document_exists(path: Path) -> None:
    wrong = {
        f"`{name}` {problem}"
        for code in inline_code(path.read_text())
        for name in names_in(code)
        if (problem := problem_with(name)) is not None
    }
    assert not wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_import_in_an_example_of_a_document_works(path: Path) -> None:
    _, blocks = prose_and_code(path.read_text())
    imports = re.findall(r"^\s*(?:>>> )?from (nexus[\w.]*) import ([\w, ]+)", blocks, re.MULTILINE)
    wrong = [
        f"{module}.{name.strip()}"
        for module, names in imports
        for name in names.split(",")
        if not resolves(f"{module}.{name.split()[0]}")
    ]
    assert not wrong


def make_targets() -> set[str]:
    text = (REPOSITORY / "Makefile").read_text()
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_make_target_in_a_document_exists(path: Path) -> None:
    text = path.read_text()
    code = "\n".join([*inline_code(text), prose_and_code(text)[1]])
    assert set(MAKE.findall(code)) <= make_targets()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_relative_link_in_a_document_resolves(path: Path) -> None:
    prose, _ = prose_and_code(path.read_text())
    broken = []
    for target in LINK.findall(INLINE.sub("", prose)):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        file, _, fragment = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (
            fragment and linked.suffix == ".md" and fragment not in anchors(linked)
        ):
            broken.append(target)
    assert not broken


def anchors(path: Path) -> set[str]:
    """The fragments under which a Markdown file's headings can be linked."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", path.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.replace("`", "")) for heading in headings]
    return {heading.lower().replace(" ", "-") for heading in plain}


@pytest.fixture
def from_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks are run from the repository, not installed."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.mark.usefixtures("from_repository")
def test_the_document_of_figures_is_what_its_data_gives() -> None:
    report = importlib.import_module("benchmarks.report")
    assert (DOCS / "benchmarks.md").read_text() == report.document(report.read(DOCS))


@pytest.mark.usefixtures("from_repository")
def test_quoted_figures_are_those_that_were_measured() -> None:
    report = importlib.import_module("benchmarks.report")
    text = (DOCS / "performance.md").read_text()
    assert text == report.quoted(text, report.read(DOCS))
    measured = TABLE.findall((DOCS / "benchmarks.md").read_text())
    quoted = TABLE.findall(text)
    assert quoted
    assert all(table in measured for table in quoted)


def test_the_document_about_figures_has_none_outside_its_tables() -> None:
    prose = TABLE.sub("", prose_and_code((DOCS / "performance.md").read_text())[0])
    assert not re.findall(r"\b\d[\d.,]*\s*(?:µs|ms|s|x|MiB/s|files/s)(?!\w)", prose)


@pytest.mark.parametrize(
    "name",
    [
        "nexus.sdk.connect",
        "nexus.core.vfs_lock",
        "NexusFS.sys_read",
        "NexusFS.write_batch",
        "nexus.contracts.metadata.FileMetadata.size",
        "nexus.json",
        "FileNotFoundError",
    ],
)
def test_a_name_that_exists_is_accepted(name: str) -> None:
    assert problem_with(name) is None


@pytest.mark.parametrize(
    "name", ["nexus.sdk.disconnect", "nexus.nowhere", "NexusFS.sys_dance", "KernelDispatcher"]
)
def test_a_name_that_does_not_exist_is_found_out(name: str) -> None:
    assert problem_with(name) is not None
