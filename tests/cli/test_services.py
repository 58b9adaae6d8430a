"""``nexus services``."""


def test_services_of_the_profile_are_listed(nexus, monkeypatch):
    assert nexus.ok("services").lines == []
    monkeypatch.setenv("NEXUS_ENABLE", "permission")
    assert nexus.ok("services").lines == ["permission\trunning\t18\t"]
    (row,) = nexus.ok("services", "--json").json["entries"]
    assert (row["name"], row["state"], row["type"]) == ("permission", "running", "file")
