"""The program as a whole: help, errors, exit codes, pipes, terminals, other processes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from nexus import __version__
from nexus.cli import context
from nexus.cli.errors import exit_code
from nexus.cli.output import human_size, printable
from nexus.contracts import errors
from nexus.sdk import connect

_COMMANDS_TEXT = (
    "cat write append stat cp mv rm mkdir ls tree glob grep log mount unmount mounts "
    "import export fsck gc doctor config"
)
COMMANDS = _COMMANDS_TEXT.split()


def test_the_help_names_every_command(nexus):
    text = nexus.ok("--help").stdout
    assert all(f" {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_takes_json(nexus, command):
    words = [command, "list"] if command == "config" else [command]
    text = nexus.ok(*words, "--help").stdout
    assert "--json" in text
    assert "Usage: nexus " in text


def test_the_version(nexus):
    assert nexus.ok("--version").lines == [f"nexus {__version__}"]
    assert nexus.ok("--json", "--version").json == {"version": __version__}


@pytest.mark.parametrize("words", [(), ("config",)])
def test_without_a_command_the_help_is_shown_and_the_exit_is_2(nexus, words):
    answer = nexus(*words)
    assert answer.code == 2
    assert "Usage: nexus" in answer.stdout


@pytest.mark.parametrize(
    ("words", "operation"),
    [
        (("lss",), "usage"),
        (("ls", "--nope"), "ls"),
        (("cat",), "cat"),
        (("ls", "--limit", "0"), "ls"),
        (("ls", "--limit", "x"), "ls"),
        (("config", "get"), "config get"),
    ],
)
def test_a_wrong_command_line_is_one_error_with_a_hint(nexus, words, operation):
    answer = nexus(*words)
    assert (answer.code, answer.stdout) == (2, "")
    error, hint = answer.stderr.splitlines()
    assert error.startswith(f"nexus: {operation}: ")
    assert hint.startswith("hint: nexus")
    assert nexus("--json", *words).error["class"] == "UsageError"


def test_an_error_is_exactly_two_lines(nexus):
    nexus.ok("write", "/d/a", "1")
    assert nexus("rm", "/d").stderr == (
        "nexus: rm: /d: is a directory\nhint: -r removes it with everything beneath it\n"
    )
    assert nexus("cat", "/none").stderr == "nexus: read: /none: no such file or directory\n"


@pytest.mark.parametrize("words", [("--json", "rm", "/d"), ("rm", "/d", "--json")])
def test_an_error_as_json_has_every_field(nexus, words):
    nexus.ok("write", "/d/a", "1")
    answer = nexus(*words)
    assert answer.stdout == ""
    assert answer.error == {
        "class": "PathIsDirectoryError",
        "operation": "rm",
        "path": "/d",
        "reason": "is a directory",
        "hint": "-r removes it with everything beneath it",
        "errno": 21,
        "retryable": False,
    }


def test_json_after_two_dashes_is_text(nexus):
    nexus.ok("write", "/a", "--", "--json")
    assert nexus.ok("cat", "/a").raw == b"--json"
    assert nexus("cat", "--", "/none", "--json").stderr.startswith("nexus: read: /none")


def test_every_error_class_has_its_documented_code():
    codes = {
        2: "InvalidPath NameTooLong InvalidArgument Config NotSupported Closed",
        3: "PathNotFound EndOfStream",
        4: "PathExists Conflict DirectoryNotEmpty Busy PathIsDirectory PathNotDirectory",
        5: "AccessDenied ReadOnly",
        6: "Storage NoSpace StorageFailed Corruption ContentNotFound",
        7: "DataDirectoryLocked LockTimeout LockOrder WaitTimeout",
    }
    named = {f"{name}Error": code for code, names in codes.items() for name in names.split()}
    named |= {"EventsLost": 4, "MessagesLost": 4, "WouldBlock": 7}
    for name, code in named.items():
        assert exit_code(getattr(errors, name)("read", "/a", "reason")) == code, name
    assert exit_code(errors.StreamOffsetError("read", "/a", 1, begin=2, end=3)) == 3
    named["StreamOffsetError"] = 3
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.NexusError)
    }
    assert kinds - {"NexusError"} == set(named)


def test_bad_paths_and_the_kernels_own(nexus):
    assert nexus("cat", "relative").code == 2
    assert nexus("cat", "/a/../b").code == 2
    assert nexus("write", "/__sys__/x", "1").code == 5


def test_odd_names_are_harmless_on_one_line():
    assert printable("a\nb\x1b[31m\u202eé") == "a\\nb\\x1b[31m\\u202eé"
    assert printable("\udc80") == "\\udc80"


def test_sizes_for_people():
    sizes = [0, 1023, 1024, 1536, 1 << 20, (1 << 40) * 3000]
    assert [human_size(size) for size in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "3000.0 TiB",
    ]


def test_an_interrupt_exits_130(nexus, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "open_filesystem", interrupted)
    assert nexus("ls").code == 130


def test_opening_leaves_the_environment_as_it_was(nexus, tmp_path):
    before = dict(os.environ)
    file = tmp_path / "c.toml"
    file.write_text("")
    nexus.ok("--config", str(file), "ls")
    assert dict(os.environ) == before


# -- as a process of its own


def test_binary_content_passes_through_pipes_untouched(nexus):
    data = bytes(range(256)) * 5000
    assert nexus.process("write", "/b", stdin=data).returncode == 0
    read = nexus.process("cat", "/b")
    assert (read.returncode, read.stdout, read.stderr) == (0, data, b"")


def test_a_process_exits_with_the_documented_code(nexus):
    missing = nexus.process("cat", "/none")
    assert missing.returncode == 3
    assert missing.stderr == b"nexus: read: /none: no such file or directory\n"


def test_a_second_process_is_told_who_owns_the_directory(nexus):
    with connect({"data_dir": str(nexus.data_dir)}):
        answer = nexus.process("ls")
        assert answer.returncode == 7
        error, hint = answer.stderr.decode().splitlines()
        assert error.startswith(f"nexus: open: {nexus.data_dir}: ")
        assert f"pid {os.getpid()} " in error
        assert hint.startswith("hint: ")
        doctor = nexus.process("doctor")
        assert doctor.returncode == 0
        assert f"warn  owner: the process with pid {os.getpid()}" in doctor.stdout.decode()


def test_a_reader_that_goes_away_ends_the_program_quietly(nexus):
    nexus.ok("write", "/big", stdin=b"x" * 4_000_000)
    with subprocess.Popen(
        nexus.command("cat", "/big"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_an_error_without_a_traceback(nexus):
    nexus.ok("write", "/a", "1")
    with open("/dev/full", "wb") as full:
        answer = subprocess.run(
            nexus.command("ls"), stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert answer.returncode == 6
    assert answer.stderr == b"nexus: ls: no space left on device\n"


def test_names_that_stdout_cannot_encode_are_escaped(nexus):
    nexus.ok("write", "/é", "1")
    listed = subprocess.run(
        nexus.command("ls"),
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert listed.stdout == b"\\xe9\n"


def test_help_is_quick_because_it_imports_neither_kernel_nor_tables():
    code = (
        "import sys, nexus.cli.app; "
        "print([name for name in sys.modules if name in ('nexus.core', 'rich.table', 'sqlite3')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout == b"[]\n"


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_tells_what_to_install(missing):
    code = (
        "import sys, importlib.util as util; real = util.find_spec; "
        f"util.find_spec = lambda name: None if name == {missing!r} else real(name); "
        "from nexus.cli.__main__ import main; main()"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.decode() == (
        f"nexus: {missing} not installed: pip install 'nexusfs[cli]'\n"
    )


def on_a_terminal(command: list[str]) -> str:
    """Return what a command prints where stdout and stderr are a terminal."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"},
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # what Linux says when the other end is closed
                break
            if not piece:
                break
            shown += piece
        assert process.wait() == 0
    finally:
        os.close(ours)
    return shown.decode()


def test_a_person_gets_tables_sentences_and_colours(nexus, host):
    assert "/[b]: 5 B, version 1" in on_a_terminal(nexus.command("write", "/[b]", "hello"))
    table = on_a_terminal(nexus.command("ls", "-l"))
    assert "modified" in table
    assert "[b]" in table
    assert "\x1b[" in on_a_terminal(nexus.command("grep", "ell"))
    summary = on_a_terminal(nexus.command("import", str(host({"a": b"1"})), "/in"))
    assert "1 file, 0 directories" in summary
    for words in (["tree"], ["log"], ["log", "/[b]"], ["mounts"], ["fsck"], ["gc"], ["doctor"]):
        assert on_a_terminal(nexus.command(*words))
    assert "retention_days" in on_a_terminal(nexus.command("config", "list"))


def test_json_stays_json_on_a_terminal(nexus):
    shown = on_a_terminal(nexus.command("ls", "--json"))
    assert shown.replace("\r\n", "\n") == '{"entries": [], "next_cursor": null}\n'


def test_a_name_cannot_steer_the_terminal(nexus):
    nexus.ok("write", "/a\u202eb", "text\x1b[2J")
    assert "\u202e" not in on_a_terminal(nexus.command("ls"))
    assert "\x1b[2J" not in on_a_terminal(nexus.command("grep", "text"))
