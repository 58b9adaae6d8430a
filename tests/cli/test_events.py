"""``nexus events``."""

from __future__ import annotations

import pytest

from nexus.cli import events
from nexus.factory.boot import Settings, boot


def paths(answer):
    return [line.split("\t")[3] for line in answer.lines]


def test_the_last_changes_are_shown_oldest_first(nexus):
    for name in "abcd":
        nexus.ok("write", f"/{name}", "1")
    assert paths(nexus.ok("events", "--limit", "3")) == ["/b", "/c", "/d"]
    listing = nexus.ok("events", "--limit", "1", "--json").json
    assert [event["path"] for event in listing["entries"]] == ["/d"]
    since = listing["next_cursor"]
    nexus.ok("write", "/later", "1")
    assert paths(nexus.ok("watch", "--since", since, "--timeout", "0")) == ["/later"]


def test_they_are_chosen_by_path_kind_user_and_run(nexus, monkeypatch):
    monkeypatch.setenv("NEXUS_USER", "ada")
    nexus.ok("write", "/d/a", "1")
    nexus.ok("mv", "/d/a", "/e")
    monkeypatch.setenv("NEXUS_USER", "eve")
    nexus.ok("write", "/e", "2")
    assert paths(nexus.ok("events", "/e")) == ["/d/a -> /e", "/e"]
    assert paths(nexus.ok("events", "--kind", "file_write", "--kind", "file_delete")) == [
        "/d/a",
        "/e",
    ]
    assert paths(nexus.ok("events", "--user", "eve")) == ["/e"]
    assert paths(nexus.ok("events", "--run", "r1")) == []
    assert nexus("events", "relative").code == 2


def test_following_goes_on_without_a_gap(nexus):
    nexus.ok("write", "/a", "1")
    assert paths(nexus.ok("events", "/a", "--follow", "--timeout", "0")) == ["/a"]
    listing = nexus.ok("events", "--follow", "--timeout", "0", "--limit", "0", "--json").json
    assert listing["entries"] == []


def test_what_is_committed_meanwhile_follows(nexus, monkeypatch):
    nexus.ok("write", "/a", "1")
    recent = events.recent

    def and_then(nx, *args):
        found = recent(nx, *args)
        nx.write("/b", b"")
        nx.write("/c", b"")
        return found

    monkeypatch.setattr(events, "recent", and_then)
    assert paths(nexus.ok("events", "--follow", "--timeout", "0", "--limit", "1")) == [
        "/a",
        "/b",
        "/c",
    ]


@pytest.mark.parametrize("limit", [1, 5, 200, 1000])
def test_the_window_grows_until_it_holds_what_is_wanted(limit):
    with boot(Settings(data_dir=":memory:")) as nx:
        nx.write("/old", b"")
        for number in range(300):
            nx.write(f"/{number}", b"")
        newest = events.newest_revision(nx)
        found = [event["path"] for event in events.recent(nx, newest, limit)]
        assert found == [row["path"] for row in nx.history()][-limit:]
        (old,) = events.recent(nx, newest, 1, lambda event: event["path"] == "/old")
        assert old["kind"] == "file_write"
