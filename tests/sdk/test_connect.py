from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.contracts.errors import ConfigError, DataDirectoryLockedError
from nexus.sdk import OperationContext, collect, connect, fsck
from nexus.sdk.connect import read_settings

HOLDER = """
import sys
from nexus.sdk import connect
nx = connect({"data_dir": sys.argv[1]})
nx.write("/held", b"acknowledged")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the data directory open."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"open\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_has_the_data_directory(holder, tmp_path):
    with pytest.raises(DataDirectoryLockedError) as caught:
        connect({"data_dir": str(tmp_path / "data")})
    assert str(holder.pid) in str(caught.value)
    assert caught.value.retryable
    assert isinstance(caught.value, BlockingIOError)


def test_a_killed_owner_is_followed_by_the_next(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with connect({"data_dir": str(tmp_path / "data")}) as nx:
        assert nx.read("/held") == b"acknowledged"
        assert fsck(nx).clean


def test_a_second_opening_in_the_same_process_is_refused_too(tmp_path):
    with connect({"data_dir": str(tmp_path)}), pytest.raises(DataDirectoryLockedError):
        connect({"data_dir": str(tmp_path)})


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        connect({"data_dir": str(tmp_path)})
    assert caught.value.path == str(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError):
        connect({"data_dir": str(tmp_path / "file")})


def test_a_newer_format_is_refused_by_its_number(tmp_path):
    connect({"data_dir": str(tmp_path)}).close()
    descriptor = tmp_path / "nexus.json"
    text = descriptor.read_text().replace('"format": 1', '"format": 2, "more": true')
    descriptor.write_text(text)
    with pytest.raises(ConfigError, match="format 2 is newer"):
        connect({"data_dir": str(tmp_path)})


def test_explicit_beats_environment_beats_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('durability = "strict"\nuser = "file"\nretention_days = 1\n')
    environment = {"NEXUS_CONFIG": str(file), "NEXUS_USER": "environment", "NEXUS_GRACE_S": "5"}
    settings = read_settings({"retention_days": 3}, environment)
    assert settings.durability == "strict"
    assert settings.user == "environment"
    assert settings.retention_days == 3
    assert settings.grace_s == 5


def test_a_yaml_file_is_read_too(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("user: someone\naccept_loss: no\n")
    assert read_settings(str(file), {}).user == "someone"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"data_dirr": "/x"}, "did you mean data_dir"),
        ({"xyz": 1}, "unknown key 'xyz'"),
        ({"retention_days": "soon"}, "retention_days is 'soon'"),
        ({"retention_days": -1}, "retention_days is -1"),
        ({"lock_timeout_s": True}, "lock_timeout_s is True"),
        ({"data_dir": 7}, "data_dir is 7"),
        ({"accept_loss": "perhaps"}, "accept_loss is 'perhaps'"),
        ({"durability": "eventual"}, "durability is 'eventual'"),
        ({"profile": "cloud"}, "no profile 'cloud'"),
        ({"metastore": "oracle", "data_dir": "/nonexistent/x"}, "no metastore 'oracle'"),
    ],
)
def test_a_bad_configuration_is_refused_precisely(config, said):
    with pytest.raises(ConfigError) as caught:
        connect(config)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["= 1", "[a", "- x", '"just text"'])
@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, suffix):
    file = tmp_path / f"config{suffix}"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(str(file), {})
    assert str(file) in str(caught.value)


def test_a_missing_configuration_file_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        read_settings(str(tmp_path / "none.toml"), {})


def test_who_and_which_run_stand_in_every_change(tmp_path):
    context = OperationContext("ada", agent_id="planner", run_id="run-7")
    with connect({"data_dir": ":memory:"}) as nx:
        nx.bind(context).write("/f", b"x")
        assert nx.sys_stat("/f")["modified_by"] == "planner"
        assert nx.history()[-1]["run_id"] == "run-7"
        assert nx.history()[-1]["user_id"] == "ada"


def test_a_bound_view_does_not_close_what_it_is_a_view_of():
    with connect({"data_dir": ":memory:"}) as nx:
        nx.bind(OperationContext("ada")).close()
        nx.write("/f", b"x")


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(".nexus-tmp-*"))


def test_collecting_keeps_what_is_named(tmp_path):
    with connect({"data_dir": str(tmp_path)}) as nx:
        nx.write("/f", b"old")
        nx.write("/f", b"new")
        report = collect(nx, retention_s=0, grace_s=0)
        assert report.objects_quarantined == 1
        assert nx.read("/f") == b"new"
        assert leftovers(tmp_path) == []
        assert fsck(nx).clean
