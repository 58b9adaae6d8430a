"""Who may open a data directory, and what is said to everyone else; and bad configurations."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.errors import ConfigError, CorruptionError, DataDirectoryLockedError
from nexus.factory.boot import Settings
from nexus.factory.data_directory import metastore_of
from nexus.factory.metastores import FILES, Choice
from nexus.lib import native
from nexus.sdk import connect, fsck
from nexus.sdk.connect import read_settings

OWNER = """
import sys
from nexus.sdk import connect
with connect({"data_dir": sys.argv[1]}) as nx:
    nx.write("/mine", b"acknowledged")
    print("ready", flush=True)
    sys.stdin.readline()
"""


needs_redb = pytest.mark.skipif(
    native.chosen().module is None, reason="the Rust kernel is not built, or not asked for"
)


@contextmanager
def owner_of(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", OWNER, str(path)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    with child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        yield child
        child.kill()


def test_a_second_process_is_told_who_owns_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with owner_of(path) as child:
        with pytest.raises(DataDirectoryLockedError, match=f"pid {child.pid} ") as caught:
            connect({"data_dir": str(path)})
        assert caught.value.retryable
        assert caught.value.hint
        assert caught.value.path == str(path)
        # Being refused changed nothing for the owner.
        with pytest.raises(DataDirectoryLockedError, match=f"pid {child.pid} "):
            connect({"data_dir": str(path)})


def test_a_killed_owner_leaves_the_directory_free(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with owner_of(path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        with connect({"data_dir": str(path)}) as nx:
            assert nx.read("/mine") == b"acknowledged"
            assert fsck(nx).clean


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    with connect({"data_dir": str(tmp_path)}) as nx:
        nx.write("/file", b"data")
    with connect({"data_dir": str(tmp_path)}) as nx:
        assert nx.read("/file") == b"data"


@needs_redb
@pytest.mark.parametrize(("made", "asked"), [("sqlite", "redb"), ("redb", "sqlite")])
def test_another_metastore_than_the_one_that_is_there_is_refused_with_how_to_convert(
    tmp_path: Path, made: str, asked: str
) -> None:
    connect({"data_dir": str(tmp_path), "metastore": made}).close()
    with pytest.raises(ConfigError, match=f"its metastore is {made}, not {asked}") as caught:
        connect({"data_dir": str(tmp_path), "metastore": asked})
    assert caught.value.path == str(tmp_path)
    assert f"nexus convert --to {asked}" in str(caught.value.hint)


def test_a_new_directory_has_the_best_metastore_there_is(tmp_path: Path) -> None:
    connect({"data_dir": str(tmp_path)}).close()
    best = "redb" if native.chosen().module else "sqlite"
    assert metastore_of(str(tmp_path), "auto") == Choice(best, "recorded in nexus.json")


def test_a_directory_keeps_the_metastore_it_records(tmp_path: Path, metastore: str) -> None:
    with connect({"data_dir": str(tmp_path), "metastore": metastore}) as nx:
        nx.write("/file", b"data")
    with connect({"data_dir": str(tmp_path)}) as nx:
        assert nx.read("/file") == b"data"
    assert metastore_of(str(tmp_path), "auto").name == metastore


def test_a_lost_descriptor_is_made_anew_for_the_store_that_is_there(
    tmp_path: Path, metastore: str
) -> None:
    with connect({"data_dir": str(tmp_path), "metastore": metastore}) as nx:
        nx.write("/file", b"data")
    before = (tmp_path / "nexus.json").read_bytes()
    (tmp_path / "nexus.json").unlink()
    with connect({"data_dir": str(tmp_path)}) as nx:
        assert nx.read("/file") == b"data"
    assert (tmp_path / "nexus.json").read_bytes() == before


def test_a_log_without_its_store_is_no_new_directory(tmp_path: Path, metastore: str) -> None:
    connect({"data_dir": str(tmp_path), "metastore": metastore}).close()
    log = {"sqlite": "meta.db-wal", "redb": "meta.redb.log"}[metastore]
    (tmp_path / "nexus.json").unlink()
    (tmp_path / FILES[metastore]).unlink()
    (tmp_path / log).write_bytes(b"commits")
    with pytest.raises(CorruptionError, match="the store is gone but its log"):
        connect({"data_dir": str(tmp_path)})


@needs_redb
def test_two_stores_and_no_descriptor_are_refused(tmp_path: Path) -> None:
    for name in ("sqlite", "redb"):
        connect({"data_dir": str(tmp_path), "metastore": name}).close()
        (tmp_path / "nexus.json").rename(tmp_path / f"{name}.json")
        (tmp_path / FILES[name]).rename(tmp_path / f"{name}.store")
        for left in tmp_path.glob("meta.*"):
            left.unlink()
    for name in ("sqlite", "redb"):
        (tmp_path / f"{name}.store").rename(tmp_path / FILES[name])
    with pytest.raises(ConfigError, match=r"it has meta\.db and meta\.redb, and no nexus\.json"):
        connect({"data_dir": str(tmp_path)})


OPEN = """
import sys
from nexus.contracts.errors import ConfigError
from nexus.sdk import connect
try:
    connect({"data_dir": sys.argv[1]}).close()
except ConfigError as error:
    print(error)
"""


@needs_redb
def test_a_redb_directory_without_the_rust_kernel_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    connect({"data_dir": str(tmp_path / "redb"), "metastore": "redb"}).close()
    environment = os.environ | {"NEXUS_KERNEL": "python"}
    said = {
        name: subprocess.run(
            [sys.executable, "-c", OPEN, str(tmp_path / name)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in ("redb", "new")
    }
    assert "needs the Rust kernel, which is not in use: NEXUS_KERNEL=python" in said["redb"]
    assert "unset NEXUS_KERNEL; then `nexus convert --to sqlite`" in said["redb"]
    assert said["new"] == ""
    assert metastore_of(str(tmp_path / "new"), "auto").name == "sqlite"


# -- configuration -------------------------------------------------------------------------------


def test_a_misspelt_key_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'datadir'.*did you mean data_dir\?"):
        connect({"datadir": str(tmp_path)})
    file = tmp_path / "nexus.toml"
    file.write_text('durabilty = "strict"\n')
    with pytest.raises(ConfigError, match="did you mean durability") as caught:
        connect(file)
    assert str(file) in str(caught.value)


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"data_dir.*durability"):
        connect({"zzz": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_dir", 7),
        ("retention_days", "a week"),
        ("retention_days", -1),
        ("retention_days", True),
        ("grace_s", float("nan")),
        ("grace_s", float("inf")),
        ("grace_s", [1]),
        ("accept_loss", "perhaps"),
        ("durability", "none"),
        ("durability", 1),
        ("metastore", "lmdb"),
        ("profile", "cluster"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, key: str, value: Any
) -> None:
    config = {"data_dir": str(tmp_path / "data")} | {key: value}
    with pytest.raises(ConfigError, match=key.split("_")[0]):
        connect(config)
    assert os.listdir(tmp_path) == []


def test_explicit_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "nexus.toml"
    file.write_text('durability = "strict"\nuser = "file"\ngrace_s = 5\n')
    environment = {
        "NEXUS_CONFIG": str(file),
        "NEXUS_USER": "environment",
        "NEXUS_GRACE_S": "6.5",
        "NEXUS_ACCEPT_LOSS": "yes",
        "NEXUS_LOG_LEVEL": "debug",
        "HOME": "/nowhere",
    }
    expected = Settings(durability="strict", user="explicit", grace_s=6.5, accept_loss=True)
    assert read_settings({"user": "explicit"}, environment) == expected
    assert read_settings({"user": None}, environment).user == "environment"
    assert read_settings(None, {"NEXUS_CONFIG": str(file)}).user == "file"
    assert read_settings(None, {}) == Settings()


def test_a_file_given_explicitly_stands_in_for_the_one_of_the_environment(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(f'user = "{name}"\n')
    environment = {"NEXUS_CONFIG": str(tmp_path / "one.toml")}
    assert read_settings(tmp_path / "two.toml", environment).user == "two"


@pytest.mark.parametrize("text", ["user = ", "\x00", "user"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "nexus.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be parsed") as caught:
        connect(file)
    assert caught.value.path == str(file)
    with pytest.raises(ConfigError, match="No such file") as caught:
        connect(tmp_path / "missing.toml")
    assert caught.value.path == str(tmp_path / "missing.toml")
