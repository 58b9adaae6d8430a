"""Which kernel runs: what is asked for, what is there, and what is said about it."""

import subprocess
import sys
from types import ModuleType

import pytest

from nexus.contracts.errors import ConfigError
from nexus.lib.native import choose

KERNEL = ModuleType("nexus._kernel")


def built() -> ModuleType:
    return KERNEL


def missing() -> ModuleType:
    raise ImportError("no module here")


@pytest.mark.parametrize("wanted", ["auto", "rust"])
def test_rust_runs_where_it_is_built(wanted: str) -> None:
    choice = choose(wanted, built)
    assert (choice.module, choice.name) == (KERNEL, "rust")


def test_the_twins_run_where_they_are_asked_for() -> None:
    choice = choose("python", built)
    assert (choice.module, choice.name) == (None, "python")
    assert choice.reason == "NEXUS_KERNEL=python"


def test_the_twins_run_where_nothing_is_built_and_the_reason_is_told() -> None:
    choice = choose("auto", missing)
    assert choice.name == "python"
    assert choice.reason.startswith("nexus._kernel is not built: ")


def test_who_insists_on_rust_is_told_that_it_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"NEXUS_KERNEL is rust, but nexus\._kernel is not built"):
        choose("rust", missing)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match="NEXUS_KERNEL is 'fast'"):
        choose("fast", built)


def test_a_filesystem_runs_on_the_twins_alone() -> None:
    code = (
        "import os, sys\n"
        "os.environ['NEXUS_KERNEL'] = 'python'\n"
        "import nexus.sdk\n"
        "with nexus.sdk.connect({'data_dir': ':memory:'}) as nx:\n"
        "    nx.write('/a', b'1')\n"
        "    print(nx.read('/a'), 'nexus._kernel' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "b'1' False\n"
