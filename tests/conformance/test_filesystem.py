"""Every profile and every mount answers as the contract says."""

from pathlib import Path

import pytest

from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_MOUNT
from nexus.lib import native
from nexus.sdk import connect
from nexus.testing.filesystem import FilesystemSuite, MountSuite, PersistenceSuite


def in_memory() -> NexusFilesystem:
    return connect({"data_dir": ":memory:"})


def on_disk(data_dir: Path) -> NexusFilesystem:
    return connect({"data_dir": str(data_dir)})


def mounted(**backend: str) -> tuple[NexusFilesystem, str]:
    nx = in_memory()
    nx.sys_setattr("/m", entry_type=DT_MOUNT, backend=backend)
    return nx, "/m"


class TestMemory(FilesystemSuite):
    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        return in_memory(), ""


class TestDirectoryInMemory(FilesystemSuite):
    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        nx = in_memory()
        nx.mkdir("/work/here")
        return nx, "/work/here"


class TestSqliteAndLocalDisk(FilesystemSuite):
    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        return connect({"data_dir": str(tmp_path / "data"), "metastore": "sqlite"}), ""


@pytest.mark.skipif(
    native.chosen().module is None, reason="the Rust kernel is not built, or not asked for"
)
class TestRedbAndLocalDisk(FilesystemSuite):
    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        return connect({"data_dir": str(tmp_path / "data"), "metastore": "redb"}), ""


class TestCasMemoryMount(FilesystemSuite):
    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        return mounted(driver="cas_memory")


class TestCasLocalMount(FilesystemSuite):
    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        return mounted(driver="cas_local", root=str(tmp_path / "cas"))


class TestPathMemoryMount(FilesystemSuite):
    keeps_versions = False
    atomic_batch = False
    content_addressed = False

    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        return mounted(driver="path_memory")


class TestPathLocalMount(FilesystemSuite):
    keeps_versions = False
    atomic_batch = False
    content_addressed = False
    longest_paths = False

    def make(self, tmp_path: Path) -> tuple[NexusFilesystem, str]:
        root = tmp_path / "folder"
        root.mkdir()
        return mounted(driver="path_local", root=str(root))


class TestMountsInMemory(MountSuite):
    def make(self, tmp_path: Path) -> NexusFilesystem:
        return in_memory()


class TestMountsOnDisk(MountSuite):
    def make(self, tmp_path: Path) -> NexusFilesystem:
        return on_disk(tmp_path / "data")


class TestPersistence(PersistenceSuite):
    def open(self, data_dir: Path) -> NexusFilesystem:
        return on_disk(data_dir)
