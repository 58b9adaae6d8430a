"""Profiles and bricks: what is enabled, how bricks are found, what a wrong one is told."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import nexus.services
from nexus.contracts.deployment_profile import PROFILES, bricks_of, selected_bricks
from nexus.contracts.errors import ConfigError, InvalidArgumentError
from nexus.contracts.protocols.permission import PermissionProtocol
from nexus.factory.boot import Settings, boot
from nexus.factory.orchestrator import discover, make, plan, read
from nexus.sdk import connect

MEMORY = {"data_dir": ":memory:"}


def services_of(config: dict[str, Any]) -> list[str]:
    with connect({**MEMORY, **config}) as nx:
        return [row["name"] for row in nx.list("/__sys__/services", details=True)]


def test_each_profile_holds_what_the_one_before_it_does() -> None:
    assert PROFILES == ("slim", "embedded", "lite", "full")
    for smaller, larger in pairwise(PROFILES):
        assert bricks_of(smaller) <= bricks_of(larger)
    assert bricks_of("auto") == bricks_of("embedded")


def test_every_brick_of_a_profile_exists() -> None:
    assert bricks_of(PROFILES[-1]) <= set(discover(nexus.services))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_boots_with_its_services_running(profile: str) -> None:
    with boot(Settings(data_dir=":memory:", profile=profile)) as nx:
        rows = nx.services.rows()
        assert {row["name"] for row in rows} == bricks_of(profile)
        assert all(row["state"] == "running" for row in rows)
        nx.write("/f", b"works")
        assert nx.read("/f") == b"works"


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no profile 'cloud'; there are auto, slim"):
        connect({**MEMORY, "profile": "cloud"})


def test_the_configuration_adds_services_and_takes_them_away() -> None:
    assert services_of({"profile": "slim", "enable": ["permission"]}) == ["permission"]
    assert "permission" not in services_of({"profile": "lite", "disable": "permission"})


def test_an_unknown_brick_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no brick 'perm' \(there are: .*permission"):
        connect({**MEMORY, "enable": "perm"})


def test_a_brick_cannot_be_both_enabled_and_disabled() -> None:
    with pytest.raises(ConfigError, match="both"):
        selected_bricks("slim", ["a"], ["a"], ["a"])


def test_a_profile_without_bricks_loads_no_service() -> None:
    assert plan("embedded", (), ()) == []


def test_a_service_passes_for_its_protocol_through_the_lookup() -> None:
    with connect({**MEMORY, "profile": "lite"}) as nx:
        assert isinstance(nx.service("permission"), PermissionProtocol)


# -- the convention ---------------------------------------------------------------------------

GOOD = """
from typing import Protocol, runtime_checkable

@runtime_checkable
class Greets(Protocol):
    def greet(self) -> str: ...

class Greeter:
    def greet(self) -> str:
        return "hello"

BRICK_NAME = "greeter"
TIER = "independent"
RESULT_KEY = "greeter"
PROTOCOL = Greets

def create(context):
    return Greeter()
"""


def package_of(folder: Path, monkeypatch: pytest.MonkeyPatch, **bricks: str) -> ModuleType:
    root = folder / "someones_services"
    for name, source in bricks.items():
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("")
        (root / name / "brick_factory.py").write_text(source)
    (root / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return __import__("someones_services")


def test_bricks_are_found_by_their_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = discover(package_of(tmp_path, monkeypatch, hello=GOOD))
    assert list(found) == ["greeter"]
    assert make(found["greeter"], None).greet() == "hello"  # type: ignore[arg-type]


def test_two_bricks_of_one_name_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(tmp_path, monkeypatch, one=GOOD, two=GOOD)
    with pytest.raises(InvalidArgumentError, match="the name greeter is taken"):
        discover(package)


@pytest.mark.parametrize(
    ("line", "instead", "rule"),
    [
        ('TIER = "independent"', 'TIER = "middle"', "TIER is 'middle'"),
        ('RESULT_KEY = "greeter"', "", "lacks RESULT_KEY"),
        ("PROTOCOL = Greets", "PROTOCOL = Greeter", "no runtime-checkable protocol"),
    ],
)
def test_a_factory_that_breaks_the_convention_is_told_how(
    line: str, instead: str, rule: str
) -> None:
    module = ModuleType("broken")
    exec(GOOD.replace(line, instead), module.__dict__)
    with pytest.raises(InvalidArgumentError, match=rule):
        read(module)


def test_a_service_that_is_not_what_its_factory_promises_is_refused() -> None:
    module = ModuleType("liar")
    exec(GOOD.replace("return Greeter()", "return object()"), module.__dict__)
    with pytest.raises(InvalidArgumentError, match="brick greeter: object is no Greets"):
        make(read(module), None)  # type: ignore[arg-type]
