"""Every Python example of the documents runs and answers what it shows; tables list what is there.

The blocks of a document run in order in one namespace, in a directory of their own. A block with
``>>>`` prompts is compared with the output it shows. A block that begins with the comment
``# tests/…`` is a test module and is run by pytest.
"""

import builtins
import doctest
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from nexus.contracts import errors
from nexus.contracts.filesystem import NexusFilesystem
from nexus.sdk.connect import KEYS
from nexus.testing.filesystem.base import STAT_KEYS

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "docs/syscalls.md",
    "docs/drivers.md",
    "docs/dispatch.md",
    "docs/ipc.md",
    "docs/locking.md",
)

_block = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One example and the line of the document at which its code starts."""

    line: int
    code: str


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [Block(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in _block.finditer(text)]


def run_prompts(block: Block, namespace: dict[str, object], document: str) -> None:
    parsed = doctest.DocTestParser().get_doctest(
        block.code, namespace, document, document, block.line - 1
    )
    parsed.globs = namespace  # the parser copied it; later blocks see what this one defines
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(parsed, out=report.append, clear_globs=False)
    assert not runner.failures, "".join(report)


def run_test_module(block: Block, folder: Path) -> None:
    module = folder / "test_example.py"
    module.write_text(block.code, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(module)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert child.returncode == 0, child.stdout + child.stderr


def run_block(block: Block, namespace: dict[str, object], document: Path, folder: Path) -> None:
    if block.code.startswith("# tests/"):
        run_test_module(block, folder)
    elif block.code.startswith(">>> "):
        run_prompts(block, namespace, str(document))
    else:
        padded = "\n" * (block.line - 1) + block.code  # so that a traceback names the line
        exec(compile(padded, str(document), "exec"), namespace)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("NEXUS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NEXUS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_example_runs_and_answers_what_it_shows(name: str, folder: Path) -> None:
    document = ROOT / name
    namespace: dict[str, object] = {"__name__": "example"}
    try:
        for block in blocks_of(document) if document.exists() else []:
            run_block(block, namespace, document, folder)
    finally:
        for value in namespace.values():
            if isinstance(value, NexusFilesystem):
                value.close()


@pytest.mark.parametrize("name", DOCUMENTS[1:])
def test_a_reference_document_has_examples(name: str) -> None:
    assert blocks_of(ROOT / name)


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the first table beneath a heading of docs/syscalls.md."""
    text = (ROOT / "docs/syscalls.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_configuration_has_every_key_and_no_other() -> None:
    assert [row[0].strip("`") for row in rows_of("Configuration")] == list(KEYS)


def test_the_table_of_attributes_has_every_key_of_a_stat() -> None:
    names = [name for row in rows_of("sys_stat") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(names) == sorted(STAT_KEYS)


def test_the_table_of_errors_says_what_each_class_is() -> None:
    classes = {
        kind.__name__: kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.NexusError)
    }
    described = {re.findall(r"`(\w+)`", row[0])[0]: row for row in rows_of("Errors")}
    assert described.keys() == classes.keys() - {"NexusError"}
    for name, (first, bases, code, retry) in described.items():
        kind = classes[name]
        assert all(issubclass(kind, classes[base]) for base in re.findall(r"`(\w+)`", first))
        assert all(issubclass(kind, getattr(builtins, base)) for base in bases.split(", "))
        assert getattr(errno, code) == kind.code
        assert kind.retryable == retry.startswith("yes")
