"""The shape of the code: what may import what, and what must be nowhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "src" / "nexus"
OPTIONAL = frozenset({"typer", "rich", "yaml", "hypothesis", "pytest"})

OUTSIDE_WORLD = {
    *("asyncio", "http", "io", "multiprocessing", "os", "pathlib", "selectors", "shutil"),
    *("socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "urllib"),
}
"""Modules through which a contract could reach a disk, a network, a process or another thread."""

LIFECYCLE_AND_LOOKUP = frozenset(
    {
        *("sync", "barrier", "close", "bind", "volumes", "volumes_in_use"),
        *("on_closing", "on_close", "in_forked_child", "bootstrap", "service"),
    }
)
"""Public methods of the kernel that are not system calls."""

PARTS = frozenset({"collector", "dispatch", "services", "waiting"})
"""Parts of the kernel that are made on the first use: attributes, as the others are."""

PROCESS_WORDS = re.compile(
    r"\b(TODO|FIXME|XXX|HACK)\b"  # what is left to do belongs to the tracker
    r"|(?<![\w&#])#\d+\b|\bGH-\d+\b|\b(?:[Ii]ssue|PR|[Pp]ull request|[Pp]hase) #?\d+\b"
)
BANNER = re.compile(r"^\s*#\s*(?:[=#*~_+]{4,}|-{4,}\s*$|-{4,}.*-{4,}\s*$)")

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def place(path: Path, node: ast.AST | int) -> str:
    line = node if isinstance(node, int) else getattr(node, "lineno", 0)
    return f"{path.relative_to(REPOSITORY)}:{line}"


def imported(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node


def docstrings(tree: ast.Module) -> set[int]:
    """The ids of string constants that stand alone: documentation, not values."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def called_name(call: ast.Call) -> str:
    """``pytest.mark.skip`` of ``pytest.mark.skip(...)``; empty for calls of something computed."""
    return dotted_name(call.func)


def dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted_name(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_imports_point_down() -> None:
    code = "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"
    finished = run_python(code)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_contracts_do_no_input_or_output() -> None:
    found = []
    for path in modules(SOURCE / "contracts"):
        tree = tree_of(path)
        for name, node in imported(tree):
            if name.partition(".")[0] in OUTSIDE_WORLD:
                found.append(f"{place(path, node)} imports {name}")
        found += [
            f"{place(path, call)} calls {called_name(call)}"
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and called_name(call) in {"open", "print", "input"}
        ]
    assert not found


def driver_names() -> set[str]:
    """Names by which drivers are known: their classes, their names, and what a mount asks for."""
    found: set[str] = set()
    for path in modules(SOURCE / "storage"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.add(node.name)
                found |= {
                    str(item.value.value)
                    for item in node.body
                    if isinstance(item, ast.Assign)
                    and isinstance(item.value, ast.Constant)
                    and dotted_name(item.targets[0]) == "name"
                }
    drivers = ast.walk(tree_of(SOURCE / "factory" / "drivers.py"))
    for node in drivers:
        if isinstance(node, ast.Dict):
            found |= {
                key.value
                for key in node.keys
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    return found


def test_the_kernel_names_no_driver() -> None:
    drivers = driver_names()
    assert {"CasStore", "SqliteMetastore", "sqlite", "cas_local", "path_local"} <= drivers
    found = []
    for path in modules(SOURCE / "core"):
        tree = tree_of(path)
        prose = docstrings(tree)
        for node in ast.walk(tree):
            name = None
            if isinstance(node, ast.Name):
                name = node.id
            elif isinstance(node, ast.Attribute):
                name = node.attr
            elif isinstance(node, ast.Constant) and id(node) not in prose:
                name = str(node.value)
            if name in drivers:
                found.append(f"{place(path, node)} names {name}")
        found += [
            f"{place(path, node)} imports {name}"
            for name, node in imported(tree)
            if name.startswith(("nexus.storage", "sqlite3"))
        ]
    assert not found


def test_the_kernel_has_syscalls_lifecycle_and_nothing_else() -> None:
    body = next(
        node
        for node in tree_of(SOURCE / "core" / "nexus_fs.py").body
        if isinstance(node, ast.ClassDef) and node.name == "NexusFS"
    ).body
    public = {
        node.name
        for node in body
        if isinstance(node, FunctionNode) and not node.name.startswith("_")
    }
    extra = {name for name in public if not name.startswith("sys_")} - LIFECYCLE_AND_LOOKUP - PARTS
    assert not extra
    assert {"sys_read", "sys_write", "sys_stat", "sync", "close"} <= public


def source_files() -> list[Path]:
    return [
        *modules(SOURCE),
        *modules(REPOSITORY / "benchmarks"),
        *modules(REPOSITORY / "examples"),
        *modules(REPOSITORY / "fuzz"),
    ]


def test_source_holds_no_issue_numbers_banners_or_unfinished_work() -> None:
    found = [
        f"{place(path, number)} {line.strip()}"
        for path in source_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PROCESS_WORDS.search(line) or BANNER.search(line)
    ]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "# TODO: later",
        "see issue 12",
        "fixes #12",
        "#########",
        "# =====",
        "# ---- Reading ----",
        "    # -----------",
    ],
)
def test_what_source_must_not_hold_is_recognised(line: str) -> None:
    assert PROCESS_WORDS.search(line) or BANNER.search(line)


@pytest.mark.parametrize("line", ["# -- reading ------", "#: a note", "&#39;", "x = 1  # 12 bytes"])
def test_what_source_may_hold_is_left_alone(line: str) -> None:
    assert PROCESS_WORDS.search(line) is None
    assert BANNER.search(line) is None


def files_of_tests() -> list[Path]:
    return [*modules(REPOSITORY / "tests"), *modules(SOURCE / "testing")]


def test_no_test_sleeps() -> None:
    found = [
        place(path, node)
        for path in files_of_tests()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and called_name(node).rpartition(".")[2] == "sleep"
    ]
    assert not found


def lacks_reason(node: ast.Call) -> bool:
    if any(word.arg == "reason" and not is_empty(word.value) for word in node.keywords):
        return False
    # pytest.skip("why") and friends take it first; marks of that name would take a condition.
    is_mark = ".mark." in called_name(node)
    return is_mark or not node.args or is_empty(node.args[0])


def is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not str(node.value).strip()


SKIPS = frozenset(
    {"pytest.skip", "pytest.xfail", "pytest.importorskip"}
    | {f"pytest.mark.{kind}" for kind in ("skip", "skipif", "xfail")}
)


def test_no_test_is_skipped_without_a_reason() -> None:
    found = []
    for path in files_of_tests():
        tree = tree_of(path)
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                if called_name(node) in SKIPS and lacks_reason(node):
                    found.append(place(path, node))
            elif (
                isinstance(node, ast.Attribute)
                and id(node) not in called
                and dotted_name(node) in SKIPS
            ):
                found.append(place(path, node))
    assert not found


def test_the_way_in_loads_no_optional_dependency() -> None:
    finished = run_python(
        "import sys, nexus.sdk\n"
        "nexus.sdk.connect({'data_dir': ':memory:'}).close()\n"
        f"print(*sorted(set(sys.modules) & {set(OPTIONAL)!r}))"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []
