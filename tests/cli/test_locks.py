from __future__ import annotations


def test_a_lock_is_taken_listed_and_ended(nexus):
    taken = nexus.ok("lock", "/f", "--ttl", "600", "--json").json
    assert taken["path"] == "/f"
    (row,) = nexus.ok("locks", "--json").json["entries"]
    assert (row["path"], row["mode"], row["lock_id"], row["token"], row["expires_at"]) == (
        "/f",
        "exclusive",
        taken["lock_id"],
        taken["token"],
        taken["expires_at"],
    )
    assert nexus.ok("unlock", "/f", "--id", taken["lock_id"], "--json").json["unlocked"]
    assert nexus.ok("locks").lines == []


def test_a_pipe_gets_the_id_the_token_and_the_end_with_tabs_between(nexus):
    lock_id, token, expires = nexus.ok("lock", "/f").lines[0].split("\t")
    path, mode, listed_token, _, listed_expires, listed_id = nexus.ok("locks").lines[0].split("\t")
    assert (path, mode, listed_token, listed_id) == ("/f", "exclusive", token, lock_id)
    assert expires == listed_expires
    assert expires.endswith("Z")


def test_a_busy_lock_is_told_by_its_exit_code(nexus):
    nexus.ok("lock", "/f", "--ttl", "600")
    assert nexus("lock", "/f").code == 7
    answer = nexus("lock", "/f", "--wait", "0.01", "--json")
    assert answer.code == 7
    assert answer.error["class"] == "LockTimeoutError"


def test_a_lock_is_extended_by_its_id(nexus):
    first = nexus.ok("lock", "/f", "--ttl", "60", "--json").json
    again = nexus.ok("lock", "/f", "--ttl", "600", "--id", first["lock_id"], "--json").json
    assert again["token"] == first["token"]
    assert again["expires_at"] > first["expires_at"] + 400
    assert nexus("lock", "/f", "--id", "unknown").code == 4


def test_counting_and_shared_locks_have_several_holders(nexus):
    for _ in range(2):
        nexus.ok("lock", "/c", "--mode", "counting", "--max-holders", "2")
    assert nexus("lock", "/c", "--mode", "counting", "--max-holders", "2").code == 7
    assert nexus("lock", "/c", "--mode", "odd").code == 2


def test_unlocking_needs_an_id_or_force(nexus):
    nexus.ok("lock", "/f")
    assert nexus("unlock", "/f").code == 2
    assert nexus("unlock", "/f", "--id", "unknown").code == 4
    nexus.ok("unlock", "/f", "--force")
    assert nexus("unlock", "/f", "--force").code == 4
