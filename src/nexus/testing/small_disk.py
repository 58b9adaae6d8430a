"""A disk of a few megabytes, to fill for real.

Layer: testing, Linux only. A tmpfs is mounted where the process may mount; else the test's body
runs in a child inside a user and mount namespace of its own (``unshare -rm``).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

_NO_RIGHT = 32
"""mount(8)'s exit status for a mount that failed."""


def run_on_small_disk(body: Callable[[str], None], mount_point: str, *, size_bytes: int) -> None:
    """Call ``body(mount_point)`` with an empty disk of ``size_bytes`` mounted there.

    ``body`` is a function at the top of its module, and closes all that it opens. In a child it
    is found again by file and name, so it sees nothing of the caller but its argument.

    Errors: those of the body; AssertionError with the child's output when it fails there.
    """
    if os.geteuid() == 0 and _mount(mount_point, size_bytes):
        try:
            body(mount_point)
        finally:
            # Lazy: a file that a failed body left open must not hide its error.
            subprocess.run(["umount", "--lazy", mount_point], check=True)
        return
    source = body.__code__.co_filename
    command = ["unshare", "-rm", sys.executable, "-m", __name__]
    command += [source, body.__name__, mount_point, str(size_bytes)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, (
        f"{body.__name__} failed in a child:\n{child.stdout}{child.stderr}"
    )


def _mount(mount_point: str, size_bytes: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", mount_point]
    status = subprocess.run(command, capture_output=True, check=False).returncode
    assert status in (0, _NO_RIGHT, 1), f"mount failed with status {status}"
    return status == 0


def _load(source: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("small_disk_body", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _main(source: str, name: str, mount_point: str, size_bytes: str) -> None:
    assert _mount(mount_point, int(size_bytes)), "no right to mount even in a namespace"
    getattr(_load(source), name)(mount_point)


if __name__ == "__main__":
    _main(*sys.argv[1:])
