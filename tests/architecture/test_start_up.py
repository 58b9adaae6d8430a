"""What a first read does not load: each of these costs the start of every program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nexus.lib import native
from nexus.sdk import connect

# msgspec loads typing_extensions where it is installed, and with it inspect, ast, dis and tokenize.
FOREIGN = {
    *("asyncio", "bisect", "concurrent.futures", "copy", "ctypes", "dataclasses", "difflib"),
    *("hashlib", "heapq", "importlib.metadata", "json", "logging", "mimetypes"),
    *("multiprocessing", "pathlib", "pkgutil", "queue", "random", "selectors", "shutil", "socket"),
    *("string", "subprocess", "tempfile", "tomllib", "traceback", "urllib"),
    *("platformdirs", "pyfastcdc", "sortedcontainers"),
}
OURS = {
    *("cli", "services", "testing", "contracts.vfs_hooks", "contracts.stream_backend"),
    *("core.bound", "core.channels", "core.collector", "core.dispatch", "core.file_watcher"),
    *("core.fsck", "core.hook_shapes", "core.hook_tables", "core.hooked_calls", "core.listing"),
    *("core.lock_manager", "core.observers", "core.path_volume", "core.pipe_manager"),
    *("core.recovery", "core.service_registry", "core.stream_manager", "core.tree_calls"),
    *("core.waiting_calls", "factory.conversion", "factory.maintenance", "factory.orchestrator"),
    *("factory.store_switch", "factory.streams", "lib.manifest", "lib.semaphore", "lib.waiting"),
    *("sdk.aio", "storage.metastore.memory", "storage.object_store.local_listing"),
    *("storage.object_store.local_removal", "storage.object_store.memory_transport"),
    *("storage.object_store.path_store", "storage.stream"),
}
OF_THE_TWINS = {
    *("sqlite3", "nexus.core.path_trie", "nexus.core.router", "nexus.core.vfs_lock"),
    "nexus.storage.metastore.sqlite",
    *("nexus.storage.object_store.object_index", "nexus.storage.object_store.waiting_entries"),
}
"""What the Rust kernel stands in for."""

FIRST_READ = """
import sys
from nexus.sdk import connect
with connect({"data_dir": sys.argv[1]}) as nx:
    assert nx.read("/file") == b"content"
    print(*sys.modules)
"""


def loaded_by_a_first_read(data_dir: Path, kernel: str) -> set[str]:
    environment = {name: value for name, value in os.environ.items() if "NEXUS" not in name}
    with connect({"data_dir": str(data_dir), "metastore": metastore_of(kernel)}) as nx:
        nx.write("/file", b"content")
    finished = subprocess.run(
        [sys.executable, "-c", FIRST_READ, str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"NEXUS_KERNEL": kernel},
    )
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.split())


def metastore_of(kernel: str) -> str:
    return "redb" if kernel == "rust" else "sqlite"


def of_any(loaded: set[str], unwanted: set[str]) -> list[str]:
    return sorted(name for name in loaded for root in unwanted if f"{name}.".startswith(f"{root}."))


@pytest.mark.parametrize("kernel", ["python", "rust"])
def test_a_first_read_loads_nothing_that_it_does_not_use(tmp_path: Path, kernel: str) -> None:
    if kernel == "rust" and native.chosen().module is None:
        pytest.skip("the Rust kernel is not built, or not asked for")
    loaded = loaded_by_a_first_read(tmp_path / "data", kernel)
    # The twins keep their waits in Python, and index content with what the Rust kernel has inside.
    used = {"bisect", "copy", "heapq", "lib.waiting", "storage.stream", "contracts.stream_backend"}
    unwanted = FOREIGN | OURS if kernel == "rust" else (FOREIGN | OURS) - used
    assert of_any(loaded, unwanted & FOREIGN) == []
    assert of_any(loaded, {f"nexus.{name}" for name in unwanted & OURS}) == []


def test_a_first_read_on_the_rust_kernel_loads_no_twin(tmp_path: Path) -> None:
    if native.chosen().module is None:
        pytest.skip("the Rust kernel is not built, or not asked for")
    assert of_any(loaded_by_a_first_read(tmp_path / "data", "rust"), OF_THE_TWINS) == []


def test_what_maintains_a_filesystem_is_loaded_when_it_is_named() -> None:
    code = """
import sys
import nexus.sdk
assert set(nexus.sdk.__all__) <= set(dir(nexus.sdk))
assert "nexus.factory.conversion" not in sys.modules
from nexus.sdk import collect, convert, fsck
from nexus.factory import conversion, maintenance
assert (collect, convert, fsck) == (maintenance.collect, conversion.convert, maintenance.fsck)
try:
    nexus.sdk.reconnect
except AttributeError as error:
    print(error)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "module 'nexus.sdk' has no attribute 'reconnect'" in finished.stdout
