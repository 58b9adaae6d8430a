"""Advisory locks, as a user of the filesystem sees them. Layer: testing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nexus.contracts.errors import (
    ConflictError,
    InvalidArgumentError,
    InvalidPathError,
    LockTimeoutError,
)
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.testing.filesystem.base import SuiteBase, pages

LOCKS = "/__sys__/locks"


class LockTests(SuiteBase):
    """sys_lock, sys_unlock, what composes them, and writes that name a fencing token."""

    def test_a_lock_is_an_id_with_a_token_or_none_when_busy(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        lock_id = nx.sys_lock(f"{base}/f")
        assert lock_id is not None
        assert isinstance(lock_id, str)
        assert lock_id.token > 0
        assert nx.sys_lock(f"{base}/f") is None
        assert nx.sys_lock(f"{base}//f/./") is None
        assert nx.sys_unlock(f"{base}/f", str(lock_id))
        assert not nx.sys_unlock(f"{base}/f", lock_id)

    def test_a_lock_needs_nothing_at_its_path_and_covers_nothing_beneath(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        assert nx.sys_lock(f"{base}/none")
        assert nx.sys_lock(f"{base}/none/below")
        assert not nx.exists(f"{base}/none")

    def test_shared_and_counting_locks_have_several_holders(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        assert all(nx.sys_lock(f"{base}/s", "shared") for _ in range(3))
        assert nx.sys_lock(f"{base}/s") is None
        assert all(nx.sys_lock(f"{base}/c", "counting", max_holders=2) for _ in range(2))
        assert nx.sys_lock(f"{base}/c", "counting", max_holders=2) is None

    def test_a_held_lock_is_extended_by_its_id(self, nx: NexusFilesystem, base: str) -> None:
        lock_id = nx.sys_lock(f"{base}/f", ttl=10)
        assert lock_id is not None
        extended = nx.sys_lock(f"{base}/f", ttl=100, lock_id=lock_id)
        assert extended == lock_id
        assert extended.token == lock_id.token
        assert extended.expires_at > lock_id.expires_at
        assert nx.sys_lock(f"{base}/f", ttl=100, lock_id="unknown") is None

    def test_force_ends_every_hold(self, nx: NexusFilesystem, base: str) -> None:
        assert nx.sys_lock(f"{base}/f", "shared")
        assert nx.sys_lock(f"{base}/f", "shared")
        assert nx.sys_unlock(f"{base}/f", force=True)
        assert not nx.sys_unlock(f"{base}/f", force=True)
        assert nx.sys_lock(f"{base}/f")

    def test_unlocking_takes_an_id_or_force(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(InvalidArgumentError):
            nx.sys_unlock(f"{base}/f")
        with pytest.raises(InvalidPathError):
            nx.sys_unlock("relative", force=True)
        with pytest.raises(InvalidPathError):
            nx.sys_lock("relative")

    def test_a_lock_on_a_name_binds_nobody_who_does_not_ask(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        assert nx.sys_lock(f"{base}/f")
        nx.write(f"{base}/f", b"1")
        assert nx.read(f"{base}/f") == b"1"
        nx.sys_rename(f"{base}/f", f"{base}/g")
        assert nx.sys_lock(f"{base}/f") is None
        assert nx.sys_lock(f"{base}/g")

    # -- looking ------------------------------------------------------------------------------

    def test_stat_shows_locks_when_asked(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"1")
        ann = nx.bind(self.someone("ann", agent_id="indexer", run_id="run-1"))
        lock_id = ann.sys_lock(f"{base}/f", "shared", ttl=60)
        assert lock_id is not None
        plain, full = nx.sys_stat(f"{base}/f"), nx.sys_stat(f"{base}/f", include_lock=True)
        assert plain is not None
        assert full is not None
        assert full == plain | {
            "locks": [
                {
                    "path": f"{base}/f",
                    "lock_id": lock_id,
                    "mode": "shared",
                    "max_holders": None,
                    "token": lock_id.token,
                    "acquired_at": full["locks"][0]["acquired_at"],
                    "expires_at": lock_id.expires_at,
                    "user_id": "ann",
                    "agent_id": "indexer",
                    "run_id": "run-1",
                }
            ]
        }
        nx.sys_unlock(f"{base}/f", lock_id)
        assert nx.sys_stat(f"{base}/f", True) == plain | {"locks": []}
        assert nx.sys_stat(f"{base}/none", include_lock=True) is None

    def test_the_view_lists_active_locks_in_the_order_they_were_granted(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        paths = [f"{base}/{name}" for name in ("z", "a", "m")]
        granted = [nx.lock(path) for path in paths]
        nx.lock(f"{base}/gone")
        nx.sys_unlock(f"{base}/gone", force=True)
        details = nx.sys_readdir(f"{LOCKS}/", details=True)
        assert [row["path"] for row in details] == paths
        assert nx.sys_readdir(LOCKS) == [f"{LOCKS}/{lock.token}" for lock in granted]
        paged = pages(nx, LOCKS, 2, details=True)
        assert [len(page) for page in paged] == [2, 1]
        assert [row for page in paged for row in page] == details

    # -- waiting ------------------------------------------------------------------------------

    def test_lock_times_out(self, nx: NexusFilesystem, base: str) -> None:
        nx.lock(f"{base}/f")
        with pytest.raises(LockTimeoutError) as caught:
            nx.lock(f"{base}/f", timeout=0.001)
        assert caught.value.path == f"{base}/f"

    def test_locked_counts_without_losing_an_update(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/n", b"0")

        def count() -> None:
            for _ in range(5):
                with nx.locked(f"{base}/n", timeout=60) as lock:
                    number = int(nx.read(f"{base}/n")) + 1
                    nx.write(f"{base}/n", str(number), lock_token=lock.token)

        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(count) for _ in range(6)]:
                done.result()
        assert nx.read(f"{base}/n") == b"30"
        assert nx.sys_readdir(LOCKS) == []

    def test_locked_unlocks_when_the_block_raises(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(LookupError), nx.locked(f"{base}/f"):
            raise LookupError
        assert nx.sys_lock(f"{base}/f")

    def test_a_block_that_outlived_its_lock_is_told(self, nx: NexusFilesystem, base: str) -> None:
        with pytest.raises(ConflictError), nx.locked(f"{base}/f"):
            nx.sys_unlock(f"{base}/f", force=True)

    # -- fencing ------------------------------------------------------------------------------

    def test_a_write_with_a_current_token_is_written(self, nx: NexusFilesystem, base: str) -> None:
        lock = nx.lock(f"{base}/f")
        nx.write(f"{base}/f", b"one", lock_token=lock.token)
        nx.append(f"{base}/f", b" two", lock_token=lock.token)
        nx.edit(f"{base}/f", [("one", "One")], lock_token=lock.token)
        condition = Precondition(lock_token=lock.token)
        nx.sys_write(f"{base}/f", b"T", offset=4, precondition=condition)
        assert nx.read(f"{base}/f") == b"One Two"

    @pytest.mark.parametrize("stale", ["unlocked", "forced", "taken over", "of another path"])
    def test_a_write_with_a_stale_token_writes_nothing(
        self, nx: NexusFilesystem, base: str, stale: str
    ) -> None:
        nx.write(f"{base}/f", b"kept")
        lock = nx.lock(f"{base}/other" if stale == "of another path" else f"{base}/f")
        if stale == "unlocked":
            nx.sys_unlock(f"{base}/f", lock)
        elif stale != "of another path":
            nx.sys_unlock(f"{base}/f", force=True)
        if stale == "taken over":
            nx.lock(f"{base}/f")
        before = nx.sys_stat(f"{base}/f")
        condition = Precondition(lock_token=lock.token)
        with pytest.raises(ConflictError) as caught:
            nx.write(f"{base}/f", b"late", lock_token=lock.token)
        assert caught.value.path == f"{base}/f"
        with pytest.raises(ConflictError):
            nx.append(f"{base}/f", b"late", lock_token=lock.token)
        with pytest.raises(ConflictError):  # at once: trying again would not help
            nx.edit(f"{base}/f", lambda _: b"late", lock_token=lock.token)
        with pytest.raises(ConflictError):
            nx.sys_write(f"{base}/f", b"late", precondition=condition)
        assert nx.sys_stat(f"{base}/f") == before
        assert nx.read(f"{base}/f") == b"kept"

    def test_one_stale_token_stops_a_whole_batch(self, nx: NexusFilesystem, base: str) -> None:
        self.needs("atomic_batch")
        lock = nx.lock(f"{base}/b")
        nx.sys_unlock(f"{base}/b", lock)
        condition = Precondition(lock_token=lock.token)
        with pytest.raises(ConflictError):
            nx.write_batch(
                [(f"{base}/a", b"1"), WriteRequest(f"{base}/b", b"2", precondition=condition)]
            )
        assert nx.list(base or "/") == []

    def test_no_write_comes_after_the_lock_was_granted_to_the_next(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        self.needs("atomic_batch")
        nx.write(f"{base}/f", b"")
        tokens = [nx.lock(f"{base}/f").token]
        stopped = threading.Event()

        def write_with_whatever_token_is_known() -> None:
            while not stopped.is_set():
                token = tokens[-1]
                try:
                    nx.write(f"{base}/f", str(token), lock_token=token)
                except ConflictError:
                    continue

        with ThreadPoolExecutor(2) as pool:
            writers = [pool.submit(write_with_whatever_token_is_known) for _ in range(2)]
            try:
                for _ in range(100):
                    nx.sys_unlock(f"{base}/f", force=True)
                    tokens.append(nx.lock(f"{base}/f").token)
            finally:
                stopped.set()
            for writer in writers:
                writer.result()
        # A token is the revision of its grant, so both stand in one order.
        for version in nx.history(f"{base}/f")[1:]:
            token = int(nx.read(f"{base}/f", version=version["version"]))
            assert not [other for other in tokens if token < other < version["revision"]]
