"""``nexus audit``."""


def test_audit_needs_its_service(nexus):
    answer = nexus("audit")
    assert answer.code != 0
    assert "no service 'audit'" in answer.stderr


def test_audit_queries_and_verifies(nexus, monkeypatch):
    monkeypatch.setenv("NEXUS_ENABLE", "audit")
    monkeypatch.setenv("NEXUS_USER", "ada")
    nexus.ok("write", "/f", "hello")
    (line,) = nexus.ok("audit", "/f", "--user", "ada").lines
    assert line.split("\t")[1:] == ["ada", "", "file_write", "/f"]
    assert nexus.ok("audit", "--user", "eve").lines == []
    report = nexus.ok("audit", "--verify", "--json").json
    assert (report["records"], report["problems"]) == (1, [])
    assert nexus("audit", "--tip", report["tip"]).code == 0
    assert nexus("audit", "--tip", "other").code == 1
