"""Any history, any loss of what was not synced: what comes back is a state that there was."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from nexus.contracts.errors import CorruptionError, NexusError
from nexus.contracts.metadata import DT_MOUNT
from nexus.contracts.metastore import Batch
from nexus.core.fsck import Checker
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.factory.drivers import LABEL_KEY
from nexus.factory.metastores import AUTO, FILES, metastore_class
from nexus.lib.disk import Disk

CHUNKED_BYTES = (1 << 20) + 3000
NAMES = ("/a", "/b", "/top", "/top/a", "/top/in", "/top/in/a", "/second/a", "/second/top")
OPERATIONS = 14
State = dict[str, bytes | None]


def opened(path: Path, *, metastore: str = AUTO, accept_loss: bool = False) -> NexusFS:
    ticks = count(1_700_000_000 * 10**9, 10**9)
    settings = Settings(
        data_dir=str(path), user="tester", metastore=metastore, accept_loss=accept_loss
    )
    return boot(settings, clock_ns=lambda: next(ticks))


def state_of(nx: NexusFS) -> State:
    return {
        stat["path"]: None if stat["is_directory"] else nx.read(stat["path"])
        for stat in nx.walk("/")
    }


class History:
    """A filesystem of two volumes, the states it went through, and what of it is on the disk."""

    def __init__(self, folder: Path, metastore: str, rng: random.Random) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.rng = rng
        self.metastore = metastore
        self.nx = opened(self.data_dir, metastore=metastore)
        backend = {"driver": "cas_local", "root": str(folder / "second")}
        self.nx.sys_setattr("/second", entry_type=DT_MOUNT, backend=backend)
        self.states: list[State] = []
        self.synced_states = 0
        self.synced_sizes: dict[Path, int] = {}
        self.sync()

    def sync(self) -> None:
        self.nx.sync()
        self.states.append(state_of(self.nx))
        self.synced_states = len(self.states) - 1
        self.synced_sizes = {file: file.stat().st_size for file in self.content_files()}

    def content_files(self) -> list[Path]:
        """Return the files whose newest bytes may be lost: all but the labels."""
        return [
            file
            for root in (self.data_dir / "content", self.folder / "second")
            for file in sorted(root.rglob("*"))
            if file.is_file() and file.name != LABEL_KEY
        ]

    def act(self) -> None:
        nx, rng = self.nx, self.rng
        one, other = rng.sample(NAMES, 2)
        data = rng.randbytes(rng.choice((0, 9, 500, 500, CHUNKED_BYTES)))
        operation = rng.choice(
            [
                lambda: nx.write(one, data),
                lambda: nx.append(one, data[:20]),
                lambda: nx.write_batch({one: data, other: data[:7]}),
                lambda: nx.sys_write(one, data[:30], offset=rng.randrange(600)),
                lambda: nx.mkdir(one),
                lambda: nx.sys_rename(one, other),
                lambda: nx.sys_copy(one, other),
                lambda: nx.sys_unlink(one, recursive=True),
                lambda: nx.sys_setattr(one, attributes={"colour": str(rng.random())}),
            ]
        )
        try:
            operation()
        except NexusError:
            return  # a file in the way, nothing there: then nothing was committed
        self.states.append(state_of(nx))

    def cut_power(self, lose: Callable[[Path, int, random.Random], None]) -> list[Path]:
        """Put the folder in the state a machine finds it in after it went down; return the losses.

        ``lose`` damages a file of which the first so many bytes had been synced.
        """
        unsynced = [
            file
            for file in self.content_files()
            if file.stat().st_size > self.synced_sizes.get(file, -1)
        ]
        lost = self.rng.sample(unsynced, self.rng.randint(0, min(4, len(unsynced))))
        saved = self.folder.with_name(self.folder.name + "-saved")
        shutil.copytree(self.folder, saved)
        self.nx.close()
        shutil.rmtree(self.folder)
        os.rename(saved, self.folder)
        pid = (self.data_dir / "LOCK").read_text().split()[0]
        (self.data_dir / "LOCK").write_text(f"{pid}\nanother-uptime\n")
        for file in lost:
            lose(file, self.synced_sizes.get(file, -1), self.rng)
        return lost


def lose_tail(file: Path, synced: int, rng: random.Random) -> None:
    if synced < 0 and rng.random() < 0.5:
        file.unlink()
    else:
        os.truncate(file, rng.randint(max(synced, 0), file.stat().st_size - 1))


def lose_blocks(file: Path, synced: int, rng: random.Random) -> None:
    """Leave the size and not the bytes, as a filesystem that writes sizes first."""
    size = file.stat().st_size
    start = max(synced, 0)
    with open(file, "r+b") as opened_file:
        opened_file.seek(start)
        opened_file.write(bytes(size - start))


@pytest.mark.parametrize("lose", [lose_tail, lose_blocks])
@pytest.mark.parametrize("seed", range(8))
def test_after_a_power_cut_the_state_is_one_there_was_since_the_last_barrier(
    tmp_path: Path, metastore: str, seed: int, lose: Callable[[Path, int, random.Random], None]
) -> None:
    rng = random.Random(seed)
    history = History(tmp_path / "machine", metastore, rng)
    for _ in range(OPERATIONS):
        history.act()
        if rng.random() < 0.15:
            history.sync()
    lost = history.cut_power(lose)
    with opened(history.data_dir) as nx:
        found = state_of(nx)
        possible = history.states[history.synced_states :]
        assert found in possible
        if not lost:
            assert found == history.states[-1]
        assert Checker(nx.store, nx.volumes()).run().problems == []
        nx.write("/goes/on", b"after the cut")
        final = state_of(nx)
    with opened(history.data_dir) as nx:
        assert state_of(nx) == final


def test_a_damaged_record_beside_a_power_cut_is_repaired_before_the_recovery_reads_it(
    tmp_path: Path, metastore: str
) -> None:
    history = History(tmp_path / "machine", metastore, random.Random(1))
    history.nx.write("/kept", b"synced")
    history.sync()
    history.nx.write("/kept", b"not synced")
    history.cut_power(lose_tail)
    kind = metastore_class(history.metastore, str(history.data_dir))
    file = str(history.data_dir / FILES[history.metastore])
    with closing(kind(file, disk=Disk(), create=False)) as store:
        key, value, _ = next(entry for entry in store.scan(b"V") if b"/kept" in entry.key)
        store.commit(Batch([(key, bytes(len(value)))]))
    with pytest.raises(CorruptionError) as caught:
        opened(history.data_dir).close()
    assert "--repair" in str(caught.value.hint)
    with opened(history.data_dir, accept_loss=True) as nx:
        assert Checker(nx.store, nx.volumes()).run().problems == []
        assert nx.read("/kept") in (b"synced", b"not synced")
    with opened(history.data_dir) as nx:
        assert Checker(nx.store, nx.volumes()).run().problems == []
