from __future__ import annotations

import pytest


@pytest.fixture
def durable(nexus, monkeypatch):
    monkeypatch.setenv("NEXUS_STREAM", "durable_log")
    return nexus


def test_a_pipe_is_made_and_shown(nexus):
    made = nexus.ok("pipe", "create", "/p", "--capacity", "500", "--json").json
    assert (made["type"], made["capacity_bytes"]) == ("pipe", 500)
    nexus.ok("pipe", "create", "/p")
    assert nexus.ok("stat", "/p", "--json").json["type"] == "pipe"
    assert nexus.ok("ls", "-l", "/").lines[0].startswith("prw")


def test_messages_of_a_durable_stream_outlive_the_command(durable):
    durable.ok("stream", "create", "/s")
    assert durable.ok("stream", "write", "/s", "zero").lines == ["0"]
    assert durable.ok("stream", "write", "/s", "--lines", stdin="one\ntwo\n").lines == ["1", "2"]
    assert durable.ok("stream", "write", "/s", stdin="three").lines == ["3"]
    assert durable.ok("stream", "read", "/s").lines == ["zero", "one", "two", "three"]
    assert durable.ok("stream", "read", "/s", "--offset", "1", "--limit", "2").lines == [
        "one",
        "two",
    ]


def test_messages_are_shown_as_json_with_their_offsets(durable):
    durable.ok("stream", "create", "/s")
    durable.ok("stream", "write", "/s", stdin=b"\xff\xfe")
    durable.ok("stream", "write", "/s", "text")
    shown = durable.ok("stream", "read", "/s", "--json").json
    assert shown["next_cursor"] == "2"
    assert [(e["offset"], e["encoding"], e["content"]) for e in shown["entries"]] == [
        (0, "base64", "//4="),
        (1, "utf-8", "text"),
    ]


def test_tail_ends_after_a_number_of_messages_or_a_time_without_any(durable):
    durable.ok("stream", "create", "/s")
    durable.ok("stream", "write", "/s", "--lines", stdin="a\nb\nc\n")
    assert durable.ok("stream", "tail", "/s", "--limit", "2").lines == ["a", "b"]
    words = ("stream", "tail", "/s", "--offset", "1", "--timeout", "0.01")
    assert durable.ok(*words).lines == ["b", "c"]


def test_an_offset_that_is_not_kept_is_not_found(durable):
    durable.ok("stream", "create", "/s")
    answer = durable("stream", "read", "/s", "--offset", "7", "--json")
    assert answer.code == 3
    assert answer.error["class"] == "StreamOffsetError"
    assert durable("stream", "read", "/s", "--offset", "0").code == 7


def test_what_would_end_with_the_command_is_refused(nexus):
    nexus.ok("stream", "create", "/s")
    answer = nexus("stream", "write", "/s", "lost")
    assert answer.code == 2
    assert "hint: nexus config set stream durable_log" in answer.stderr
    nexus.ok("write", "/f", "x")
    assert nexus("stream", "read", "/f").code == 2
    assert nexus("stream", "read", "/none").code == 3


def test_printing_a_pipe_as_a_file_is_refused_and_waits_for_nothing(nexus):
    nexus.ok("pipe", "create", "/p")
    assert nexus("cat", "/p").code == 2
    assert nexus("cat", "/p", "--json").code == 2


def test_an_export_leaves_pipes_and_streams_out_and_counts_them(nexus, tmp_path):
    nexus.ok("write", "/d/f", "x")
    nexus.ok("pipe", "create", "/d/p")
    nexus.ok("stream", "create", "/d/s")
    done = nexus.ok("export", "/d", str(tmp_path / "out"), "--json").json
    assert (done["files"], done["skipped"]) == (1, 2)
    assert [found.name for found in (tmp_path / "out").iterdir()] == ["f"]
