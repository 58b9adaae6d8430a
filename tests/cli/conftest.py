"""A command line over a data directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nexus.cli.app import app


@dataclass
class Answer:
    code: int
    stdout: str
    stderr: str
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def error(self) -> Any:
        return json.loads(self.stderr)["error"]

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


class Program:
    """Runs ``nexus`` inside this process, and where it matters as a process of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir

    def __call__(self, *words: str, stdin: bytes | str | None = None) -> Answer:
        result = CliRunner().invoke(
            app, ["--data-dir", str(self.data_dir), *words], input=stdin, prog_name="nexus"
        )
        error = result.exception
        assert error is None or isinstance(error, SystemExit), repr(error)
        return Answer(result.exit_code, result.stdout, result.stderr, result.stdout_bytes)

    def ok(self, *words: str, stdin: bytes | str | None = None) -> Answer:
        answer = self(*words, stdin=stdin)
        assert answer.code == 0, answer
        return answer

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "nexus.cli", "--data-dir", str(self.data_dir), *words]

    def process(self, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*words), input=stdin, capture_output=True, timeout=60, check=False
        )


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("NEXUS_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def nexus(tmp_path: Path, _own_home: None) -> Program:
    return Program(tmp_path / "data")


MakeTree = Callable[[dict[str, bytes]], Path]


@pytest.fixture
def host(tmp_path: Path) -> MakeTree:
    """Return a maker of host directories from relative paths and contents."""

    def make(files: dict[str, bytes]) -> Path:
        top = tmp_path / "host"
        top.mkdir(exist_ok=True)
        for name, content in files.items():
            target = top / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return top

    return make
