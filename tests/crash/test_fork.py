"""A child of fork(2) is told that the filesystem is its parent's, and harms nothing of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import asyncio, os, sys
from nexus.contracts.errors import ClosedError
from nexus.sdk.aio import AsyncView
from nexus.sdk import OperationContext, collect, connect, fsck

data_dir, end = sys.argv[1:]
nx = connect({"data_dir": data_dir})
nx.write("/f", b"before")
held = nx.sys_lock("/f")
view = nx.bind(OperationContext("ada"))
child = os.fork()
if child == 0:
    refused = 0
    calls = (
        lambda: nx.read("/f"), lambda: nx.write("/f", b"x"), lambda: nx.sys_stat("/f"),
        lambda: nx.list("/"), lambda: nx.sys_unlink("/f"), lambda: nx.sys_rename("/f", "/g"),
        lambda: nx.sys_copy("/f", "/g"), lambda: nx.mkdir("/d"), lambda: nx.sync(),
        lambda: nx.history(), lambda: nx.write_content(b"x"), lambda: nx.sys_setattr("/f", mode=1),
        lambda: nx.sys_write("/f", b"x"), lambda: view.read("/f"),
        lambda: collect(nx, retention_s=0, grace_s=0), lambda: fsck(nx),
        lambda: nx.sys_lock("/f"), lambda: nx.sys_lock("/f", lock_id=held),
        lambda: nx.sys_unlock("/f", force=True), lambda: nx.sys_watch("/f", 0, since=0),
        lambda: nx.lock("/f"), lambda: nx.unlock("/f", held),
        lambda: nx.locked("/g").__enter__(), lambda: next(nx.watch("/", since=0)),
        lambda: nx.sys_stat("/f", include_lock=True), lambda: nx.list("/__sys__/locks"),
        lambda: view.sys_lock("/f"), lambda: view.sys_watch("/f", 0),
        lambda: nx.write("/f", b"x", lock_token=held.token),
        lambda: asyncio.run(AsyncView(nx).lock("/f")),
        lambda: asyncio.run(AsyncView(nx).sys_watch("/f", 0)),
    )
    for call in calls:
        try:
            call()
        except ClosedError as error:
            refused += str(os.getppid()) in str(error)
    nx.close()
    if refused != len(calls):
        os._exit(3)
    if end == "exit":
        del nx, view, calls, call
        sys.exit(7)
    os._exit(7)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert nx.read("/f") == b"before"
assert nx.sys_watch("/f", 0, since=0) is not None
nx.write("/f", b"after", lock_token=held.token)
assert nx.sys_unlock("/f", held)
owner = open(os.path.join(data_dir, "LOCK")).read() if data_dir != ":memory:" else str(os.getpid())
assert owner.split()[0] == str(os.getpid())
assert fsck(nx).clean
nx.close()
if data_dir != ":memory:":
    with connect({"data_dir": data_dir}) as again:
        assert again.read("/f") == b"after"
        assert fsck(again).clean
"""


@pytest.mark.parametrize("end", ["exit", "at once"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_forked_child_is_refused_and_its_parent_goes_on(
    tmp_path: Path, place: str, end: str
) -> None:
    data_dir = ":memory:" if place == "memory" else str(tmp_path / "data")
    finished = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CHILD, data_dir, end],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr


HOOKED = """
import asyncio, os, sys, threading
from nexus.contracts.errors import ClosedError
from nexus.sdk.aio import AsyncView
from nexus.sdk import connect

nx = connect({"data_dir": ":memory:", "profile": "full"})
with nx.dispatch._mutex, nx.services._mutex, nx.dispatch.observers._mutex:
    child = os.fork()
if child == 0:
    nx.dispatch._mutex.acquire()
    nx.services._mutex.acquire()
    calls = (
        lambda: nx.read("/f"), lambda: nx.write("/f", b"x"), lambda: nx.sys_stat("/f"),
        lambda: nx.sys_lock("/f"), lambda: nx.sys_unlock("/f", "x"), lambda: nx.sys_watch("/f", 0),
        lambda: nx.sys_unlink("/f"), lambda: nx.list("/"), lambda: nx.service("audit"),
        lambda: nx.sys_setattr("/__sys__/services/x", service=object()),
        lambda: asyncio.run(AsyncView(nx).lock("/f")),
    )
    refused = 0
    for call in calls:
        try:
            call()
        except ClosedError as error:
            refused += str(os.getppid()) in str(error)
    nx.close()
    os._exit(7 if refused == len(calls) else 3)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
nx.write("/f", b"x")
nx.close()
"""


def test_a_forked_child_is_refused_before_any_hook_whose_locks_nobody_will_release() -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", HOOKED],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished.stderr


ORPHAN = """
import os, sys
from nexus.sdk import connect

nx = connect({"data_dir": sys.argv[1]})
nx.write("/f", b"x")
reader, writer = os.pipe()
if os.fork() == 0:
    os.close(1)
    os.close(2)
    os.write(writer, b"!")
    os.read(0, 1)
    os._exit(0)
os.read(reader, 1)
os._exit(0)
"""


def test_a_child_that_outlives_its_parent_does_not_keep_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metastore: str
) -> None:
    monkeypatch.setenv("NEXUS_METASTORE", metastore)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", ORPHAN, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
    )
    with process:
        assert process.wait(60) == 0
        look = (
            "import sys; from nexus.sdk import connect; connect({'data_dir': sys.argv[1]}).close()"
        )
        opened = subprocess.run(
            [sys.executable, "-c", look, str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert opened.returncode == 0, opened.stderr
