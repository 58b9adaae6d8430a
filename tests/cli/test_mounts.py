from __future__ import annotations


def test_a_folder_is_mounted_listed_and_unmounted(nexus, host):
    folder = host({"a.txt": b"1"})
    row = nexus.ok("mount", "/mnt", "--local", str(folder), "--json").json
    assert (row["path"], row["driver"], row["state"]) == ("/mnt", "path_local", "mounted")
    assert nexus.ok("cat", "/mnt/a.txt").raw == b"1"
    assert [line.split("\t")[:3] for line in nexus.ok("mounts").lines] == [
        ["/", "cas_local", "the data directory"],
        ["/mnt", "path_local", str(folder)],
    ]
    nexus.ok("unmount", "/mnt", "--json")
    assert len(nexus.ok("mounts", "--json").json["entries"]) == 1
    assert (folder / "a.txt").read_bytes() == b"1"


def test_a_driver_is_mounted_by_name_with_options(nexus, tmp_path):
    root = f"root={tmp_path / 'store'}"
    nexus.ok("mount", "/big", "--driver", "cas_local", "--option", root, "-o", "adopt=false")
    nexus.ok("write", "/big/a", "1")
    assert nexus.ok("cat", "/big/a").raw == b"1"


def test_a_relative_folder_is_found_again_from_elsewhere(nexus, host, tmp_path, monkeypatch):
    monkeypatch.chdir(host({"a": b"1"}).parent)
    nexus.ok("mount", "/mnt", "--local", "host")
    monkeypatch.chdir("/")
    assert nexus.ok("cat", "/mnt/a").raw == b"1"


def test_mounts_that_make_no_sense_are_usage_errors(nexus, tmp_path):
    assert nexus("mount", "/mnt").code == 2
    assert nexus("mount", "/mnt", "--local", "/", "--driver", "path_local").code == 2
    assert nexus("mount", "/mnt", "--driver", "floppy").code == 2
    assert nexus("mount", "/mnt", "--driver", "path_local", "-o", "root").code == 2
    assert nexus("mount", "/mnt", "--local", str(tmp_path / "none")).code == 2


def test_only_a_mount_point_can_be_unmounted(nexus):
    nexus.ok("mkdir", "/d")
    assert nexus("unmount", "/d").code == 2
    assert nexus("unmount", "/none").code == 3
    assert nexus("unmount", "/").code == 4


def test_rm_does_not_unmount(nexus, host):
    nexus.ok("mount", "/mnt", "--local", str(host({})))
    answer = nexus("rm", "-r", "/mnt")
    assert answer.code == 4
    assert "hint: nexus unmount /mnt" in answer.stderr


def test_a_mount_point_that_is_taken_is_a_conflict(nexus, host):
    folder = str(host({}))
    nexus.ok("mount", "/mnt", "--local", folder)
    assert nexus("mount", "/other", "--local", folder).code == 4
