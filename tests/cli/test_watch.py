from __future__ import annotations


def test_changes_since_a_revision_are_printed_in_order(nexus):
    nexus.ok("write", "/a", "1")
    nexus.ok("mv", "/a", "/b")
    nexus.ok("rm", "/b")
    rows = [line.split("\t") for line in nexus.ok("watch", "--since", "0", "--timeout", "0").lines]
    assert [(row[2], row[3]) for row in rows] == [
        ("file_write", "/a"),
        ("file_rename", "/a -> /b"),
        ("file_delete", "/b"),
    ]
    assert all(row[1].endswith("Z") for row in rows)


def test_a_json_listing_can_be_gone_on_with(nexus):
    for name in ("a", "b", "c"):
        nexus.ok("write", f"/d/{name}", "1")
    first = nexus.ok("watch", "/d", "--since", "0", "--limit", "2", "--json").json
    rest = nexus.ok("watch", "/d", "--since", first["next_cursor"], "--timeout", "0", "--json").json
    seen = [event["path"] for event in first["entries"] + rest["entries"]]
    assert seen == ["/d", "/d/a", "/d/b", "/d/c"]
    last = rest["next_cursor"]
    empty = nexus.ok("watch", "/d", "--since", last, "--timeout", "0", "--json").json
    assert empty == {"entries": [], "next_cursor": last}


def test_flat_shows_entries_alone(nexus):
    nexus.ok("write", "/d/e/f", "1")
    lines = nexus.ok("watch", "/d", "--flat", "--since", "0", "--timeout", "0").lines
    assert [line.split("\t")[3] for line in lines] == ["/d", "/d/e"]


def test_a_position_outside_the_journal_is_told(nexus):
    nexus.ok("write", "/a", "1")
    assert nexus("watch", "--since", "9999", "--timeout", "0").code == 4
    assert nexus("watch", "--since", "soon", "--timeout", "0").code == 2
    assert nexus("watch", "--timeout", "-1").code == 2
