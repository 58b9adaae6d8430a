"""``nexus agents``."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _enabled(_own_home, monkeypatch):
    monkeypatch.setenv("NEXUS_ENABLE", "agent_registry")


def test_agents_live_across_commands(nexus):
    spawned = nexus.ok(
        "agents", "spawn", "top", "--ttl", "86400", "--attribute", "model=m", "--json"
    ).json
    assert spawned["attributes"] == {"model": "m"}
    (line,) = nexus.ok("agents", "spawn", "child", "--parent", "top").lines
    assert line.split("\t")[0] == "child"
    rows = [line.split("\t")[:4] for line in nexus.ok("agents", "list").lines]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("child", "running", "top"),
        ("top", "running", ""),
    ]
    beat = nexus.ok("agents", "heartbeat", "top", "--lease", spawned["lease"], "--json").json
    assert beat["expires_at"] > spawned["expires_at"]
    assert nexus("agents", "heartbeat", "top", "--lease", "another").code == 4


def test_an_agent_belongs_to_who_spawned_it(nexus, monkeypatch):
    monkeypatch.setenv("NEXUS_USER", "ada")
    assert nexus.ok("agents", "spawn", "a", "--json").json["owner_id"] == "ada"


def test_killing_names_who_ended(nexus):
    nexus.ok("agents", "spawn", "top")
    nexus.ok("agents", "spawn", "child", "--parent", "top")
    assert nexus.ok("agents", "kill", "top", "-r", "--reason", "late", "--json").json == {
        "killed": ["top", "child"]
    }
    shown = dict(line.split("\t") for line in nexus.ok("agents", "show", "top").lines)
    assert (shown["state"], shown["reason"]) == ("killed", "late")
    assert nexus.ok("agents", "list", "--state", "running", "--json").json["entries"] == []
    assert nexus.ok("agents", "tidy", "--older-than", "0").lines == ["child", "top"]


def test_errors_are_told_as_elsewhere(nexus, monkeypatch):
    assert nexus("agents", "show", "nobody").code == 3
    assert nexus("agents", "spawn", "a/b").code == 2
    assert nexus("agents", "spawn", "a", "--attribute", "novalue").code == 2
    assert nexus("agents").code == 2
    nexus.ok("agents", "spawn", "a")
    assert nexus("agents", "spawn", "a").code == 4
    monkeypatch.delenv("NEXUS_ENABLE")
    assert "no service 'agent_registry'" in nexus("agents", "list").stderr
