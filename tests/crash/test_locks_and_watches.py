"""Locks that were granted and events that were committed before a kill are there after it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from nexus.sdk import connect, fsck

DIES = """
import os, signal, sys
from nexus.sdk import connect

nx = connect({"data_dir": sys.argv[1]})
gone = nx.lock("/gone", ttl=600)
nx.unlock("/gone", gone)
held = nx.lock("/held", ttl=600)
nx.write("/held", b"1", lock_token=held.token)
nx.write("/later", b"2")
print(held, held.token, nx.sys_stat("/held")["revision"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_lock_and_no_event(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    lock_id, token, revision = child.stdout.split()
    with connect({"data_dir": str(tmp_path)}) as nx:
        assert [row["path"] for row in nx.sys_readdir("/__sys__/locks", details=True)] == ["/held"]
        assert nx.sys_lock("/held") is None
        nx.write("/held", b"3", lock_token=int(token))
        paths = [event.path for event in nx.watch("/", since=int(revision), timeout=0)]
        assert paths == ["/later", "/held"]
        assert nx.sys_unlock("/held", lock_id)
        assert nx.lock("/held").token > int(token)
        assert nx.lock("/gone").token > int(token)
        assert fsck(nx).clean
