"""The lines of a child: what every stream holds, with cat(1) as an echo, and how a child ends."""

import os
import sys
from pathlib import Path

import pytest

from nexus.contracts.errors import (
    EndOfStreamError,
    InvalidArgumentError,
    StorageError,
    WouldBlock,
)
from nexus.contracts.stream_backend import StreamStore
from nexus.core.stream_manager import Stream
from nexus.storage.stream.subprocess_stdio import StdioStream, StdioStreams
from nexus.testing.stream_backend import PATH, PATIENT_S, StreamBackendSuite


class TestStdioStreams(StreamBackendSuite):
    numbered = False
    binary = False

    def make(self, folder: Path) -> StreamStore:
        return StdioStreams(["cat"])


def opened(code: str, capacity_bytes: int = 4096) -> tuple[StdioStream, Stream]:
    """Return a child that runs some Python, and the stream of what it says."""
    store = StdioStreams([sys.executable, "-c", code])
    backend = store.open("id", capacity_bytes)
    assert isinstance(backend, StdioStream)
    return backend, Stream(backend)


def pid_said(stream: Stream) -> int:
    return int(stream.read(PATH, 0, PATIENT_S))


def is_gone(pid: int) -> bool:
    """Whether no process has this id, not even one that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def write_until_it_fails(backend: StdioStream, message: bytes) -> None:
    for _ in range(10_000):
        backend.append(PATH, message)
        backend._writer.join(0.001)


def test_a_child_answers_line_by_line():
    backend, stream = opened("for line in open(0): print(line.strip().upper(), flush=True)")
    for number, word in enumerate(["one", "two"]):
        at = stream.append(PATH, word.encode())
        assert at == number
        assert stream.read(PATH, at, PATIENT_S) == word.upper().encode()
    backend.close()


def test_1_an_unfinished_last_line_is_a_message_and_then_the_end_is_told():
    backend, stream = opened("import sys; sys.stdout.write('whole\\ncut'); sys.exit(3)")
    assert [stream.read(PATH, offset, PATIENT_S) for offset in range(2)] == [b"whole", b"cut"]
    with pytest.raises(EndOfStreamError) as caught:
        stream.read(PATH, 2, PATIENT_S)
    assert isinstance(caught.value, EOFError)
    assert stream.info().ended
    backend.close()


def test_2_writing_to_a_child_that_does_not_read_never_waits():
    backend, stream = opened("import time; print(1, flush=True); input = None; time.sleep(600)")
    assert stream.read(PATH, 0, PATIENT_S) == b"1"
    with pytest.raises(WouldBlock, match="does not read"):
        write_until_it_fails(backend, b"x" * 1000)
    backend.close()


def test_a_message_is_one_line():
    backend, stream = opened("input()")
    with pytest.raises(InvalidArgumentError, match="one line"):
        stream.append(PATH, b"two\nlines")
    backend.close()


def test_a_child_that_takes_no_input_is_an_error():
    backend, stream = opened("import os; os.close(0); print(1, flush=True); os.read(1 << 20, 1)")
    assert stream.read(PATH, 0, PATIENT_S) == b"1"
    with pytest.raises(StorageError, match="takes no input"):
        write_until_it_fails(backend, b"x")
    backend.close()


def test_4_closing_ends_and_reaps_a_child_that_reads_to_its_end():
    backend, stream = opened("import os, sys; print(os.getpid(), flush=True); sys.stdin.read()")
    pid = pid_said(stream)
    backend.close()
    assert is_gone(pid)


def test_4_closing_ends_a_stubborn_child_and_what_it_started(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nexus.storage.stream.subprocess_stdio.GRACE_S", 0.05)
    backend, stream = opened(
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: print(os.getpid(), flush=True); print(child, flush=True)\n"
        "time.sleep(600)"
    )
    pid, grandchild = pid_said(stream), int(stream.read(PATH, 1, PATIENT_S))
    backend.close()
    assert is_gone(pid)
    # The grandchild is init's to reap, or that of whoever stands in for it.
    stat = Path(f"/proc/{grandchild}/stat")
    assert is_gone(grandchild) or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_program_that_is_not_there_is_an_error():
    with pytest.raises(StorageError):
        StdioStreams(["/no/such/program"]).open("id", 4096)


def test_arguments_are_handed_over_without_a_shell():
    store = StdioStreams(["echo", "$HOME; exit 1"])
    stream = Stream(store.open("id", 4096))
    assert stream.read(PATH, 0, PATIENT_S) == b"$HOME; exit 1"
    stream.close(StorageError, PATH, "over")
