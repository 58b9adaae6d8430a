"""Any sequence of calls does to a filesystem what the documentation says that it does."""

from pathlib import Path

from hypothesis import HealthCheck, settings

from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_MOUNT
from nexus.sdk import connect
from nexus.testing.model import FilesystemModelMachine

QUICK = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def mounted(nx: NexusFilesystem, **backend: str) -> tuple[NexusFilesystem, str]:
    stat = nx.sys_stat("/m")
    if stat is None:
        nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
    return nx, "/m"


def folder(directory: Path) -> str:
    directory.mkdir(exist_ok=True)
    return str(directory)


class MemoryMachine(FilesystemModelMachine):
    def open(self, directory: Path) -> tuple[NexusFilesystem, str]:
        return connect({"data_dir": ":memory:"}), ""


class SqliteAndLocalDiskMachine(FilesystemModelMachine):
    persistent = True

    def open(self, directory: Path) -> tuple[NexusFilesystem, str]:
        return connect({"data_dir": str(directory / "data")}), ""


class CasMemoryMountMachine(FilesystemModelMachine):
    def open(self, directory: Path) -> tuple[NexusFilesystem, str]:
        return mounted(connect({"data_dir": ":memory:"}), driver="cas_memory")


class CasLocalMountMachine(FilesystemModelMachine):
    persistent = True

    def open(self, directory: Path) -> tuple[NexusFilesystem, str]:
        nx = connect({"data_dir": str(directory / "data")})
        return mounted(nx, driver="cas_local", root=folder(directory / "cas"))


class PathMemoryMountMachine(FilesystemModelMachine):
    keeps_versions = False
    atomic_batch = False

    def open(self, directory: Path) -> tuple[NexusFilesystem, str]:
        return mounted(connect({"data_dir": ":memory:"}), driver="path_memory")


class PathLocalMountMachine(FilesystemModelMachine):
    keeps_versions = False
    atomic_batch = False
    persistent = True

    def open(self, directory: Path) -> tuple[NexusFilesystem, str]:
        nx = connect({"data_dir": str(directory / "data")})
        return mounted(nx, driver="path_local", root=folder(directory / "folder"))


MACHINES = (
    MemoryMachine,
    SqliteAndLocalDiskMachine,
    CasMemoryMountMachine,
    CasLocalMountMachine,
    PathMemoryMountMachine,
    PathLocalMountMachine,
)

for machine in MACHINES:
    machine.TestCase.settings = QUICK

TestMemory = MemoryMachine.TestCase
TestSqliteAndLocalDisk = SqliteAndLocalDiskMachine.TestCase
TestCasMemoryMount = CasMemoryMountMachine.TestCase
TestCasLocalMount = CasLocalMountMachine.TestCase
TestPathMemoryMount = PathMemoryMountMachine.TestCase
TestPathLocalMount = PathLocalMountMachine.TestCase
