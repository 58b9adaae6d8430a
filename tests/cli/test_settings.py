from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / ".config" / "nexusfs" / "config.toml"


def rows(answer):
    return {row["key"]: row for row in answer.json["entries"]}


def test_set_is_read_back_by_every_command(nexus, file, monkeypatch):
    assert nexus.ok("config", "path").lines == [str(file)]
    assert nexus.ok("config", "path", "--json").json == {"file": str(file), "exists": False}
    nexus.ok("config", "set", "retention_days", "3")
    nexus.ok("config", "set", "user", 'ann "q"')
    assert tomllib.loads(file.read_text()) == {"retention_days": 3, "user": 'ann "q"'}
    assert nexus.ok("config", "get", "retention_days").lines == ["3"]
    assert nexus.ok("config", "get", "user", "--json").json["source"] == str(file)
    nexus.ok("write", "/a", "1")
    assert nexus.ok("stat", "/a", "--json").json["modified_by"] == 'ann "q"'


def test_set_keeps_comments_and_unset_takes_a_key_out(nexus, file):
    file.parent.mkdir(parents=True)
    file.write_text("# ours\ngrace_s = 5\nuser = 'x'  # me\n")
    nexus.ok("config", "set", "grace_s", "7.5")
    assert file.read_text() == "# ours\ngrace_s = 7.5\nuser = 'x'  # me\n"
    document = nexus.ok("config", "unset", "grace_s", "--json").json
    assert document == {"file": str(file), "key": "grace_s", "value": None}
    assert file.read_text() == "# ours\nuser = 'x'  # me\n"
    assert [path.name for path in file.parent.iterdir()] == ["config.toml"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("retention_day", "3"),
        ("retention_days", "soon"),
        ("accept_loss", "perhaps"),
        ("durability", "maybe"),
        ("metastore", "floppy"),
        ("profile", "huge"),
    ],
)
def test_set_refuses_what_connect_would(nexus, file, key, value):
    assert nexus("config", "set", key, value).code == 2
    assert not file.exists()


def test_a_relative_data_dir_is_stored_absolute(nexus, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nexus.ok("config", "set", "data_dir", "here")
    assert tomllib.loads(file.read_text()) == {"data_dir": str(tmp_path / "here")}


def test_an_unknown_key_is_named_with_the_nearest(nexus):
    answer = nexus("config", "get", "retention_day")
    assert answer.code == 2
    assert "hint: did you mean retention_days?" in answer.stderr


def test_list_says_where_each_value_comes_from(nexus, file, monkeypatch):
    nexus.ok("config", "set", "grace_s", "5")
    monkeypatch.setenv("NEXUS_USER", "bob")
    found = rows(nexus.ok("config", "list", "--json"))
    sources = {key: found[key]["source"] for key in ("data_dir", "grace_s", "user", "profile")}
    assert sources == {
        "data_dir": "--data-dir",
        "grace_s": str(file),
        "user": "NEXUS_USER",
        "profile": "default",
    }
    assert f"grace_s\t5\t{file}" in nexus.ok("config", "list").lines


def test_the_option_beats_the_variable_which_beats_the_users_file(nexus, tmp_path, monkeypatch):
    nexus.ok("config", "set", "user", "own")
    variable, option = tmp_path / "v.toml", tmp_path / "o.toml"
    variable.write_text("user = 'variable'\nretention_days = 1\n")
    option.write_text("user = 'option'\n")
    monkeypatch.setenv("NEXUS_CONFIG", str(variable))
    assert nexus.ok("config", "get", "user").lines == ["variable"]
    assert nexus.ok("--config", str(option), "config", "get", "user").lines == ["option"]
    assert nexus.ok("--config", str(option), "config", "get", "retention_days").lines == ["7"]
    nexus.ok("--config", str(option), "write", "/a", "1")
    assert nexus.ok("stat", "/a", "--json").json["owner_id"] == "option"


def test_a_broken_file_is_an_error_that_set_does_not_hide(nexus, file):
    file.parent.mkdir(parents=True)
    file.write_text("grace_s = = 5\n")
    answer = nexus("ls")
    assert answer.code == 2
    assert answer.stderr.startswith(f"nexus: connect: {file}: cannot be parsed")
    assert nexus("config", "set", "grace_s", "5").code == 2
    assert nexus("--config", str(file.parent / "none.toml"), "ls").code == 2


def test_a_yaml_file_is_read_but_not_changed(nexus, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("grace_s: 5\n")
    assert nexus.ok("--config", str(file), "config", "get", "grace_s").lines == ["5"]
    assert nexus("--config", str(file), "config", "set", "grace_s", "6").code == 2


def test_the_default_data_directory_is_the_one_that_connect_uses(nexus, tmp_path):
    from typer.testing import CliRunner

    from nexus.cli.app import app

    shown = CliRunner().invoke(app, ["config", "get", "data_dir"])
    assert CliRunner().invoke(app, ["write", "/a", "1"]).exit_code == 0
    assert Path(shown.stdout.strip(), "nexus.json").exists()
