"""``nexus top``."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from nexus.cli import top
from nexus.contracts.protocols.metrics import STATISTICS_FILE
from nexus.factory.boot import Settings, boot


@pytest.fixture
def running(nexus):
    """A filesystem that another process would have open, and what it has published."""
    with boot(Settings(data_dir=str(nexus.data_dir), enable=("metrics",))) as nx:
        nx.write("/a", b"1")
        nx.sys_rename("/a", "/b")
        nx.lock("/locked", ttl=60)
        nx.service("metrics").publish()
        yield nx


def test_it_shows_a_directory_that_is_open_elsewhere(nexus, running):
    finished = nexus.process("top", "--json")
    assert finished.returncode == 0, finished.stderr
    sample = json.loads(finished.stdout)
    assert sample["calls"]["write"]["total"] == 1
    assert [row["path"] for row in sample["locks"]["rows"]] == ["/locked"]
    assert not sample["is_stale"]


def test_one_sample_in_a_pipe_is_stable_text(nexus, running):
    lines = nexus.ok("top", "--once").lines
    assert lines[0].startswith("pid ")
    assert lines[1:3] == ["Calls", "call\tper s\ttotal\tfailed\tmean\thalf below\t99% below"]
    assert any(line.startswith("write\t") and "\t1\t0\t" in line for line in lines)
    assert "/locked\texclusive" in "\n".join(lines)
    assert any(line.split("\t")[1:3] == ["file_rename", "/a -> /b"] for line in lines)


def test_a_directory_can_be_named(nexus, running, tmp_path):
    assert nexus.ok("top", str(nexus.data_dir), "--json").json["calls"]
    assert nexus("top", str(tmp_path / "elsewhere"), "--once").code == 3


def test_without_the_service_it_says_what_is_needed(nexus):
    nexus.ok("write", "/a", "1")
    answer = nexus("top", "--once")
    assert answer.code == 3
    assert "service metrics" in answer.stderr


def test_a_sample_that_is_no_longer_written_is_called_stale(nexus, running):
    sample = top.read_sample(str(nexus.data_dir / STATISTICS_FILE))
    assert "STALE" not in top.headline(sample, sample["time"] + 1)
    assert "STALE" in top.headline(sample, sample["time"] + 60)


def test_a_file_that_is_no_sample_is_refused(nexus, tmp_path):
    file = tmp_path / STATISTICS_FILE
    file.write_bytes(b"{")
    assert nexus("top", str(tmp_path), "--once").code == 6
    file.write_bytes(b'{"version": 99}')
    assert "version 99" in nexus("top", str(tmp_path), "--once").stderr


def test_a_terminal_gets_tables(nexus, running):
    sample = top.read_sample(str(nexus.data_dir / STATISTICS_FILE))
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(top._screen(sample))
    text = console.export_text()
    for word in ("calls/s", "write", "/locked", "metrics", "/a -> /b"):
        assert word in text


def test_in_memory_there_is_nothing_to_look_at(nexus, monkeypatch):
    assert nexus("--data-dir", ":memory:", "top", "--once").code == 2
