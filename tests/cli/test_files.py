from __future__ import annotations

import base64

import pytest

BINARY = bytes(range(256)) * 3


def test_write_from_an_argument_and_cat(nexus):
    nexus.ok("write", "/a/b.txt", "hello")
    assert nexus.ok("cat", "/a/b.txt").raw == b"hello"


@pytest.mark.parametrize("words", [(), ("-",)])
def test_write_reads_binary_from_stdin(nexus, words):
    nexus.ok("write", "/b", *words, stdin=BINARY)
    assert nexus.ok("cat", "/b").raw == BINARY


def test_empty_text_makes_an_empty_file(nexus):
    nexus.ok("write", "/e", "")
    assert nexus.ok("cat", "/e").raw == b""


def test_cat_joins_several_files_and_reads_a_range(nexus):
    nexus.ok("write", "/a", "0123456789")
    nexus.ok("write", "/b", "abc")
    assert nexus.ok("cat", "/a", "/b").raw == b"0123456789abc"
    assert nexus.ok("cat", "/a", "--offset", "2", "--count", "3").raw == b"234"
    assert nexus.ok("cat", "/a", "--offset", "20").raw == b""


def test_cat_streams_a_file_larger_than_a_piece(nexus):
    data = b"0123456789abcdef" * 150_000
    nexus.ok("write", "/big", stdin=data)
    assert nexus.ok("cat", "/big").raw == data
    assert nexus.ok("cat", "/big", "--count", "2000000", "--offset", "5").raw == data[5:2_000_005]


def test_cat_of_an_earlier_version(nexus):
    nexus.ok("write", "/a", "one")
    nexus.ok("write", "/a", "two")
    assert nexus.ok("cat", "/a", "--version", "1").raw == b"one"


def test_cat_as_json_is_text_or_base64(nexus):
    nexus.ok("write", "/t", "grün")
    nexus.ok("write", "/b", stdin=BINARY)
    text, binary = nexus.ok("cat", "/t", "/b", "--json").json["entries"]
    assert (text["encoding"], text["content"]) == ("utf-8", "grün")
    assert base64.b64decode(binary["content"]) == BINARY


def test_a_failing_cat_prints_no_half_document(nexus):
    answer = nexus("cat", "--json", "/missing")
    assert (answer.code, answer.stdout) == (3, "")


def test_append_creates_and_adds(nexus):
    nexus.ok("append", "/log", "a\n")
    nexus.ok("append", "/log", stdin=b"b\n")
    assert nexus.ok("cat", "/log").raw == b"a\nb\n"
    assert nexus.ok("append", "/log", "c", "--json").json["size"] == 5


def test_write_with_preconditions(nexus):
    etag = nexus.ok("write", "/a", "one", "--if-none-match", "*", "--json").json["etag"]
    assert nexus("write", "/a", "two", "--if-none-match", "*").code == 4
    assert nexus("write", "/a", "two", "--if-match", "b3:00").code == 4
    nexus.ok("write", "/a", "two", "--if-match", etag)
    assert nexus.ok("cat", "/a").raw == b"two"


def test_changes_say_nothing_to_a_pipe(nexus):
    for words in (("write", "/a", "x"), ("mkdir", "/d"), ("cp", "/a", "/d"), ("rm", "/a")):
        answer = nexus.ok(*words)
        assert (answer.stdout, answer.stderr) == ("", "")


def test_stat_as_lines_and_as_json(nexus):
    nexus.ok("write", "/a", "abc")
    assert {"path: /a", "size: 3", "mode: 0644", "is_directory: no"} <= set(
        nexus.ok("stat", "/a").lines
    )
    assert nexus.ok("stat", "/a", "--json").json["size"] == 3
    assert nexus("stat", "/b").code == 3


def test_copy_and_move_into_a_directory_or_to_a_new_name(nexus):
    nexus.ok("write", "/t/a", "1")
    nexus.ok("mkdir", "/d")
    nexus.ok("cp", "/t", "/d")
    assert nexus.ok("cat", "/d/t/a").raw == b"1"
    nexus.ok("mv", "/t/a", "/t/b", "--json")
    nexus.ok("mv", "/t/b", "/d")
    assert nexus.ok("ls", "-R", "/").lines == ["/d", "/d/b", "/d/t", "/d/t/a", "/t"]


def test_several_sources_need_a_directory(nexus):
    nexus.ok("write", "/a", "1")
    nexus.ok("write", "/b", "2")
    assert nexus("cp", "/a", "/b", "/missing").code == 3
    assert nexus("cp", "/a", "/b", "/a").code == 4
    assert nexus("mv", "/a", "/new/").code == 3
    nexus.ok("mkdir", "/d")
    moved = nexus.ok("mv", "/a", "/b", "/d", "--json").json
    assert [entry["path"] for entry in moved["entries"]] == ["/d/a", "/d/b"]


def test_copy_and_move_errors(nexus):
    assert nexus("cp", "/missing", "/b").code == 3
    nexus.ok("mkdir", "/d")
    assert nexus("mv", "/d", "/d").code == 2
    assert nexus("cp", "/", "/d").code == 2


def test_rm_needs_r_for_a_directory(nexus):
    nexus.ok("write", "/d/a", "1")
    refused = nexus("rm", "/d")
    assert (refused.code, refused.lines) == (4, [])
    assert "hint: -r" in refused.stderr
    assert nexus.ok("rm", "-r", "/d", "--json").json["entries"][0]["removed"] == 2
    assert nexus("rm", "/d").code == 3
    nexus.ok("rm", "-f", "/d")
    assert nexus("rm", "-r", "/").code == 2


def test_mkdir_needs_p_for_parents_and_for_what_is_there(nexus):
    assert nexus("mkdir", "/a/b").code == 3
    nexus.ok("mkdir", "-p", "/a/b")
    assert nexus("mkdir", "/a").code == 4
    made = nexus.ok("mkdir", "-p", "/a", "/c", "--json").json
    assert [entry["path"] for entry in made["entries"]] == ["/a", "/c"]
