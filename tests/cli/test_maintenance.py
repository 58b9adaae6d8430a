from __future__ import annotations

import shutil

import pytest

from nexus.cli import doctor
from nexus.lib import native
from nexus.lib.content_id import object_id_of
from nexus.testing.damage import lose_object


def test_fsck_of_a_whole_filesystem(nexus):
    nexus.ok("write", "/a", "hello")
    answer = nexus.ok("fsck")
    assert answer.lines[-1] == "clean"
    report = nexus.ok("fsck", "--json", "--repair").json
    assert (report["clean"], report["files"], report["problems"]) == (True, 1, [])
    assert report["bytes_verified"] == 5
    assert nexus.ok("fsck", "--no-content", "--json").json["bytes_verified"] == 0


def test_fsck_names_what_is_missing_and_exits_1(nexus):
    nexus.ok("write", "/a", "hello")
    lose_object(nexus.data_dir / "content", object_id_of(b"hello"))
    (nexus.data_dir / "content" / "segments" / "objects.idx").unlink()
    answer = nexus("fsck", "--json")
    assert (answer.code, answer.json["clean"]) == (1, False)
    assert answer.json["problems"][0]["object"] == "/a"
    text = nexus("fsck")
    assert text.lines[0].startswith("/a: its content is missing (object ")
    assert text.lines[1].startswith("  advice: ")
    assert text.lines[-1] == "1 problem left"
    assert nexus("cat", "/a").code == 6


def test_fsck_reports_a_directory_that_cannot_be_opened(nexus):
    nexus.ok("write", "/a", "hello")
    (nexus.data_dir / "nexus.json").write_text("{}")
    assert nexus("ls").code == 6
    answer = nexus("fsck", "--json")
    assert answer.code == 1
    [problem] = answer.json["problems"]
    assert "descriptor is damaged" in problem["problem"]
    assert problem["advice"]
    failed = nexus("doctor", "--json")
    assert (failed.code, failed.json["ok"]) == (1, False)


def test_fsck_of_a_metastore_with_a_damaged_page_says_how_to_rebuild_it_and_does(
    nexus, monkeypatch
):
    monkeypatch.setenv("NEXUS_METASTORE", "sqlite")
    nexus.ok("write", "/a", "hello")
    metastore = nexus.data_dir / "meta.db"
    data = bytearray(metastore.read_bytes())
    leaf = max(at for at in range(4096, len(data), 4096) if data[at] == 0x0A)
    data[leaf + 8 : leaf + 10] = b"\xff\xff"
    metastore.write_bytes(data)
    answer = nexus("fsck")
    assert answer.code == 1
    assert "`nexus fsck --repair`" in answer.lines[1]
    nexus("fsck", "--repair")
    assert nexus.ok("fsck").lines[-1] == "clean"
    assert (nexus.data_dir / "meta.db.damaged").read_bytes() == data
    assert nexus.ok("cat", "/a").lines == ["hello"]


def test_gc_frees_what_nothing_names(nexus):
    nexus.ok("write", "/a", "hello")
    nexus.ok("rm", "/a")
    dry = nexus.ok("gc", "--dry-run", "--keep", "0", "--grace", "0", "--json").json
    assert (dry["dry_run"], dry["objects_quarantined"], dry["bytes_freed"]) == (True, 1, 0)
    spared = nexus.ok("gc", "--json").json
    assert (spared["objects_quarantined"], spared["objects_kept"]) == (0, 1)
    gone = nexus.ok("gc", "--keep", "0", "--grace", "0", "--json").json
    assert gone["objects_quarantined"] == 1
    assert nexus.ok("gc", "--keep", "0").lines[0].startswith("history: ")


def test_gc_takes_its_defaults_from_the_settings(nexus):
    nexus.ok("config", "set", "retention_days", "0")
    nexus.ok("config", "set", "grace_s", "0")
    nexus.ok("write", "/a", "hello")
    nexus.ok("rm", "/a")
    assert nexus.ok("gc", "--dry-run", "--json").json["objects_quarantined"] == 1


def checks(answer):
    return {check["name"]: check for check in answer.json["checks"]}


def test_doctor_of_a_directory_that_is_not_there_creates_nothing(nexus):
    found = checks(nexus.ok("doctor", "--json"))
    assert "not there yet" in found["data directory"]["detail"]
    best = "redb (the default with" if native.chosen().module else "sqlite (the default without"
    assert found["metastore"]["detail"] == f"{best} the Rust kernel)"
    assert not nexus.data_dir.exists()


def test_doctor_of_a_sound_installation(nexus):
    nexus.ok("write", "/a", "1")
    found = checks(nexus.ok("doctor", "--json"))
    assert {check["state"] for check in found.values()} == {"ok"}
    kernel = native.chosen()
    assert found["kernel"]["detail"] == f"{kernel.name} implementations: {kernel.reason}"
    assert set(found) >= {"python", "platform", "owner", "metastore", "durability", "disk space"}
    assert all(line.startswith("ok    ") for line in nexus.ok("doctor").lines)


def test_doctor_says_which_metastore_it_is_and_why(nexus, monkeypatch):
    monkeypatch.setenv("NEXUS_METASTORE", "sqlite")
    detail = checks(nexus.ok("doctor", "--json"))["metastore"]["detail"]
    assert detail == "sqlite (asked for by the configuration)"
    nexus.ok("write", "/a", "1")
    monkeypatch.delenv("NEXUS_METASTORE")
    detail = checks(nexus.ok("doctor", "--json"))["metastore"]["detail"]
    assert detail.startswith("sqlite (recorded in nexus.json); opens")


def test_doctor_fails_on_a_bad_configuration(nexus, monkeypatch):
    monkeypatch.setenv("NEXUS_DURABILITY", "maybe")
    answer = nexus("doctor")
    assert answer.code == 1
    assert "fail  durability: 'maybe'" in answer.lines
    monkeypatch.setenv("NEXUS_GRACE_S", "soon")
    assert checks(nexus("doctor", "--json"))["configuration"]["state"] == "fail"


def test_doctor_warns_of_a_mount_whose_folder_went_away(nexus, host):
    folder = host({})
    nexus.ok("mount", "/mnt", "--local", str(folder))
    shutil.rmtree(folder)
    answer = nexus.ok("doctor", "--json")
    assert checks(answer)["mount /mnt"]["state"] == "warn"
    assert nexus.ok("mounts").lines[1].split("\t")[3] == "unavailable"
    nexus.ok("unmount", "/mnt")


@pytest.mark.parametrize(("limit", "state", "code"), [(0, "ok", 0), (1 << 62, "fail", 1)])
def test_doctor_judges_the_disk_space(nexus, monkeypatch, limit, state, code):
    monkeypatch.setattr(doctor, "NO_SPACE_BYTES", limit)
    monkeypatch.setattr(doctor, "LOW_SPACE_BYTES", limit)
    answer = nexus("doctor", "--json")
    assert (answer.code, checks(answer)["disk space"]["state"]) == (code, state)


def test_doctor_of_a_filesystem_in_memory(nexus):
    nexus.data_dir = ":memory:"
    assert "in memory" in checks(nexus.ok("doctor", "--json"))["data directory"]["detail"]


@pytest.mark.skipif(
    native.chosen().module is None, reason="the Rust kernel is not built, or not asked for"
)
def test_convert_says_what_it_did_and_which_setting_stands_against_it(nexus, monkeypatch):
    monkeypatch.setenv("NEXUS_METASTORE", "sqlite")
    nexus.ok("write", "/a", "hello")
    report = nexus.ok("convert", "--to", "redb", "--keep", "--json").json
    assert (report["source"], report["target"], report["kept"]) == (
        "sqlite",
        "redb",
        "meta.db.kept",
    )
    assert "nexus config set metastore auto" in report["advice"]
    assert "nexus convert --to sqlite" in nexus("ls").stderr
    monkeypatch.delenv("NEXUS_METASTORE")
    assert nexus.ok("cat", "/a").lines == ["hello"]
    assert nexus.ok("fsck").lines[-1] == "clean"
    (nexus.data_dir / "meta.db.kept").unlink()
    back = nexus.ok("convert", "--to", "sqlite").lines
    assert back[0].startswith("redb -> sqlite: ")
    assert len(back) == 1
    assert nexus("convert", "--to", "sqlite").code == 2
