from __future__ import annotations

import pytest


@pytest.fixture
def tree(nexus):
    nexus.ok("write", "/docs/a.md", "Alpha\nbeta\n")
    nexus.ok("write", "/docs/deep/b.md", "gamma\n")
    nexus.ok("write", "/top.txt", "alpha\n")
    return nexus


def test_ls_prints_names_and_recursive_paths(tree):
    assert tree.ok("ls").lines == ["docs", "top.txt"]
    assert tree.ok("ls", "/docs").lines == ["a.md", "deep"]
    assert tree.ok("ls", "/top.txt").lines == ["top.txt"]
    assert tree.ok("ls", "-R", "/docs").lines == ["/docs/a.md", "/docs/deep", "/docs/deep/b.md"]
    assert tree("ls", "/none").code == 3


def test_ls_long_is_tab_separated_for_a_pipe(tree):
    fields = tree.ok("ls", "-l", "/").lines[1].split("\t")
    assert (fields[0], fields[2], fields[4], fields[5]) == ("-rw-r--r--", "6", "1", "top.txt")


def test_ls_goes_on_from_a_cursor(tree):
    first = tree.ok("ls", "-R", "--limit", "2")
    assert "--cursor /docs/a.md" in first.stderr
    rest = tree.ok("ls", "-R", "--cursor", "/docs/a.md").lines
    assert [*first.lines, *rest] == tree.ok("ls", "-R").lines


def test_ls_as_json_before_and_after_the_command(tree):
    page = tree.ok("--json", "ls", "--limit", "1").json
    assert page["entries"][0]["path"] == "/docs"
    assert page["next_cursor"] == "/docs"
    assert tree.ok("ls", "--json", "/docs").json["next_cursor"] is None


def test_an_empty_listing_is_a_document_too(nexus):
    assert nexus.ok("ls", "--json").json == {"entries": [], "next_cursor": None}
    assert nexus.ok("ls").stdout == ""


def test_ls_of_the_kernels_own_views(tree):
    views = ["channels", "hooks", "journal", "locks", "mounts"]
    views += ["records", "services", "versions", "watches"]
    assert tree.ok("ls", "/__sys__").lines == views
    tree.ok("ls", "-l", "/__sys__/journal")


def test_tree_draws_depth_and_limit(tree):
    assert tree.ok("tree").lines == [
        "/",
        "├── docs",
        "│   ├── a.md",
        "│   └── deep",
        "│       └── b.md",
        "└── top.txt",
        "",
        "2 directories, 3 files",
    ]
    assert "a.md" not in tree.ok("tree", "--depth", "1").stdout
    cut = tree.ok("tree", "--limit", "2")
    assert "1 directory, 1 file" in cut.stdout
    assert "more follows" in cut.stderr


def test_tree_as_json_is_nested(tree):
    document = tree.ok("tree", "/docs", "--json").json
    assert [entry["path"] for entry in document["entries"]] == ["/docs/a.md", "/docs/deep"]
    assert document["truncated"] is False
    assert tree.ok("tree", "--json", "--limit", "1").json["truncated"] is True
    assert tree("tree", "/none").code == 3


def test_glob_prints_paths_or_exits_1(tree):
    assert tree.ok("glob", "*.md").lines == ["/docs/a.md", "/docs/deep/b.md"]
    assert tree.ok("glob", "deep/*", "/docs", "--json").json["entries"] == ["/docs/deep/b.md"]
    assert tree("glob", "*.png").code == 1
    nothing = tree("glob", "*.png", "--json")
    assert (nothing.code, nothing.json["entries"]) == (1, [])


def test_grep_prints_matches_or_exits_1(tree):
    assert tree.ok("grep", "alpha").lines == ["/top.txt:1:alpha"]
    assert len(tree.ok("grep", "-i", "alpha").lines) == 2
    assert tree.ok("grep", "a$", "/docs", "--include", "b.*").lines == ["/docs/deep/b.md:1:gamma"]
    assert tree("grep", "zzz").code == 1
    assert tree("grep", "(").code == 2
    assert tree("grep", "a", "/none").code == 3


def test_grep_says_that_the_limit_cut_it(tree):
    document = tree.ok("grep", "a", "--limit", "1", "--json").json
    assert document["truncated"] is True
    assert document["entries"] == [{"path": "/docs/a.md", "line_number": 1, "line": "Alpha"}]
    assert "--limit 1" in tree.ok("grep", "a", "--limit", "1").stderr


def test_log_of_everything_and_of_a_path(tree):
    tree.ok("write", "/top.txt", "two")
    kinds = [line.split("\t")[2] for line in tree.ok("log").lines]
    assert kinds == ["dir_create", "file_write", "dir_create", *["file_write"] * 3]
    versions = tree.ok("log", "/top.txt", "--json").json["entries"]
    assert [version["version"] for version in versions] == [1, 2]
    tree.ok("rm", "/top.txt")
    assert tree.ok("log", "/top.txt").lines[-1].split("\t")[3] == "removed"
    assert tree("log", "/none").code == 3
    assert tree("log", "none").code == 2


def test_log_goes_on_from_a_cursor(tree):
    first = tree.ok("log", "--limit", "2", "--json").json
    rest = tree.ok("log", "--cursor", first["next_cursor"], "--json").json
    everything = tree.ok("log", "--json").json
    assert first["entries"] + rest["entries"] == everything["entries"]
    assert tree("log", "--cursor", "nonsense").code == 2
