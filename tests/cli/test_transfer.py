from __future__ import annotations

import os

import pytest

from nexus.cli import importer
from nexus.lib.content_id import object_id_of
from nexus.testing.damage import flip_bit


def contents(top):
    return {
        str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()
    }


def test_a_tree_comes_back_as_it_went_in(nexus, host, tmp_path):
    files = {"a": b"1", "d/b": b"x" * 3_000_000, "d/e/c": b"", "ü/é": bytes(range(256))}
    top = host(files)
    (top / "empty" / "deep").mkdir(parents=True)
    summary = nexus.ok("import", str(top), "/in", "--json").json
    assert (summary["files"], summary["directories"], summary["skipped"]) == (4, 5, 0)
    assert summary["bytes"] == sum(map(len, files.values()))
    assert summary["seconds"] >= 0
    exported = nexus.ok("export", "/in", str(tmp_path / "out"), "--json").json
    assert {key: exported[key] for key in ("files", "directories", "bytes")} == {
        key: summary[key] for key in ("files", "directories", "bytes")
    }
    assert contents(tmp_path / "out") == files
    assert (tmp_path / "out" / "empty" / "deep").is_dir()


def test_import_goes_in_bounded_batches(nexus, host, monkeypatch):
    monkeypatch.setattr(importer, "BATCH_FILES", 3)
    nexus.ok("import", str(host({f"f{number}": b"x" for number in range(8)})), "/in")
    events = nexus.ok("log", "--json").json["entries"]
    writes = [event["revision"] for event in events if event["kind"] == "file_write"]
    assert sorted(writes.count(revision) for revision in set(writes)) == [2, 3, 3]


def test_import_follows_no_link_and_counts_what_it_skips(nexus, host, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("private")
    top = host({"a": b"1"})
    (top / "link").symlink_to(secret / "key")
    (top / "folder").symlink_to(secret)
    os.mkfifo(top / "pipe")
    (top / "bad\nname").write_text("x")
    summary = nexus.ok("import", str(top), "/in", "--json").json
    assert summary["skipped"] == 4
    assert summary["skipped_reasons"] == {
        "symbolic links": 2,
        "special files": 1,
        "unusable names": 1,
    }
    assert nexus.ok("ls", "/in").lines == ["a"]
    assert "4 skipped (" in nexus.ok("import", str(top), "/in").stdout


def test_import_leaves_its_own_data_directory_out(nexus, tmp_path):
    nexus.ok("write", "/a", "1")
    reasons = nexus.ok("import", str(tmp_path), "/in", "--json").json["skipped_reasons"]
    assert reasons == {"own data": 1}


def test_import_into_a_mount_that_shows_a_folder(nexus, host, tmp_path):
    (tmp_path / "shown").mkdir()
    nexus.ok("mount", "/mnt", "--local", str(tmp_path / "shown"))
    nexus.ok("import", str(host({"a": b"1", "d/b": b"2"})), "/mnt/in")
    assert contents(tmp_path / "shown" / "in") == {"a": b"1", "d/b": b"2"}


def test_import_of_what_is_no_directory(nexus, host):
    top = host({"a": b"1"})
    assert nexus("import", str(top / "a"), "/in").code == 4
    assert nexus("import", str(top / "none"), "/in").code == 3
    assert nexus("import", str(top), "relative").code == 2


def test_export_replaces_nothing_unless_forced(nexus, tmp_path):
    nexus.ok("write", "/in/a", "new")
    nexus.ok("write", "/in/b", "new")
    out = tmp_path / "out"
    out.mkdir()
    (out / "b").write_text("old")
    refused = nexus("export", "/in", str(out))
    assert refused.code == 4
    assert "hint: --force" in refused.stderr
    assert contents(out) == {"b": b"old"}
    nexus.ok("export", "/in", str(out), "--force")
    assert contents(out) == {"a": b"new", "b": b"new"}


def test_export_writes_through_no_link_out_of_its_directory(nexus, tmp_path):
    nexus.ok("write", "/in/d/a", "1")
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "d").symlink_to(outside)
    assert nexus("export", "/in", str(out), "--force").code == 4
    assert list(outside.iterdir()) == []


def test_a_forced_export_replaces_a_link_and_not_its_target(nexus, tmp_path):
    nexus.ok("write", "/in/a", "new")
    (tmp_path / "target").write_text("old")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to(tmp_path / "target")
    nexus.ok("export", "/in", str(out), "--force")
    assert (tmp_path / "target").read_text() == "old"
    assert (out / "a").read_text() == "new"


def test_export_of_one_file_and_of_nothing(nexus, tmp_path):
    nexus.ok("write", "/d/a", "1")
    nexus.ok("export", "/d/a", str(tmp_path / "out"))
    assert contents(tmp_path / "out") == {"a": b"1"}
    assert nexus("export", "/none", str(tmp_path / "out")).code == 3


def test_export_stays_out_of_its_own_storage(nexus, tmp_path):
    nexus.ok("write", "/a", "1")
    (tmp_path / "shown").mkdir()
    nexus.ok("mount", "/mnt", "--local", str(tmp_path / "shown"))
    assert nexus("export", "/", str(nexus.data_dir)).code == 2
    assert nexus("export", "/", str(tmp_path / "shown" / "x")).code == 2


def test_damaged_content_is_not_exported(nexus, tmp_path):
    nexus.ok("write", "/in/a", "x" * 100)
    flip_bit(nexus.data_dir / "content", object_id_of(b"x" * 100))
    answer = nexus("export", "/in", str(tmp_path / "out"))
    assert answer.code == 6
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["import", "export"])
def test_the_summary_is_one_line_for_a_person(nexus, host, tmp_path, name):
    top = host({"a": b"1"})
    summary = nexus.ok("import", str(top), "/in").stdout
    assert summary == "1 file, 0 directories, 1 B imported into /in\n"
    if name == "export":
        out = tmp_path / "out"
        assert nexus.ok("export", "/in", str(out)).stdout == (
            f"1 file, 0 directories, 1 B exported to {out}\n"
        )
