"""What is known of an entry: sys_stat, sys_setattr, and who did it. Layer: testing."""

from __future__ import annotations

from typing import Any

import pytest

from nexus.contracts.errors import (
    InvalidArgumentError,
    PathExistsError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem
from nexus.contracts.metadata import DT_DIR, DT_MOUNT, DT_REG, Stat
from nexus.testing.filesystem.base import STAT_KEYS, SuiteBase

BAD_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "unknown": {"colour": "red"},
    "size": {"size": 3},
    "etag": {"etag": "b3:0"},
    "path": {"version": 9},
    "mode as text": {"mode": "rw"},
    "negative mode": {"mode": -1},
    "mode with a file type": {"mode": 0o100644},
    "mode as a float": {"mode": 384.0},
    "owner_id as a number": {"owner_id": 5},
    "owner_id None": {"owner_id": None},
    "mime_type as a number": {"mime_type": 5},
    "modified_at as text": {"modified_at": "now"},
    "modified_at not a number": {"modified_at": float("nan")},
    "modified_at infinite": {"modified_at": float("inf")},
    "attributes as a list": {"attributes": ["a"]},
    "attributes as text": {"attributes": "a"},
    "attribute name not text": {"attributes": {1: "a"}},
    "attribute value not data": {"attributes": {"a": object()}},
    "entry_type unknown": {"entry_type": 99},
    "entry_type as text": {"entry_type": "directory"},
    "mount without a backend": {"entry_type": DT_MOUNT},
}


class MetadataTests(SuiteBase):
    """The stat of every kind of entry, and what may be changed in it."""

    def stat(self, nx: NexusFilesystem, path: str) -> Stat:
        """Return the stat of what is there."""
        found = nx.sys_stat(path)
        assert found is not None
        return found

    # -- stat ---------------------------------------------------------------------------------

    def test_the_stat_of_a_file_has_every_field(self, nx: NexusFilesystem, base: str) -> None:
        written = nx.write(f"{base}/f", b"hello")
        stat = self.stat(nx, f"{base}/f")
        assert set(stat) >= STAT_KEYS
        assert stat["path"] == f"{base}/f"
        assert stat["entry_type"] == DT_REG
        assert stat["type"] == "file"
        assert stat["is_directory"] is False
        assert stat["size"] == 5
        assert stat["etag"] == written["etag"] != ""
        assert stat["attributes"] == {}
        assert stat["zone_id"] == "root"
        assert isinstance(stat["backend_name"], str)
        assert isinstance(stat["mime_type"], str)
        assert isinstance(stat["mode"], int)
        assert isinstance(stat["version"], int)
        assert isinstance(stat["revision"], int)

    def test_the_stat_of_a_directory_has_every_field(self, nx: NexusFilesystem, base: str) -> None:
        nx.mkdir(f"{base}/d")
        stat = self.stat(nx, f"{base}/d")
        assert set(stat) >= STAT_KEYS
        assert stat["entry_type"] == DT_DIR
        assert stat["type"] == "directory"
        assert stat["is_directory"] is True
        assert stat["etag"] == ""

    def test_the_root_is_a_directory(self, nx: NexusFilesystem) -> None:
        stat = self.stat(nx, "/")
        assert set(stat) >= STAT_KEYS
        assert stat["path"] == "/"
        assert stat["is_directory"] is True
        assert stat["etag"] == ""

    def test_the_stat_of_nothing_is_none(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        for name in ("none", "none/none", "f/below", "f/below/deep"):
            assert nx.sys_stat(f"{base}/{name}") is None
            assert not nx.exists(f"{base}/{name}")
            assert not nx.access(f"{base}/{name}")
            assert not nx.is_directory(f"{base}/{name}")

    def test_exists_and_is_directory_tell_files_from_directories(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/d/f", b"x")
        assert nx.exists(f"{base}/d")
        assert nx.is_directory(f"{base}/d")
        assert nx.exists(f"{base}/d/f")
        assert nx.access(f"{base}/d/f")
        assert not nx.is_directory(f"{base}/d/f")

    def test_times_are_seconds_and_creation_stays(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"1")
        first = self.stat(nx, f"{base}/f")
        nx.write(f"{base}/f", b"22")
        second = self.stat(nx, f"{base}/f")
        assert isinstance(first["created_at"], float)
        assert isinstance(first["modified_at"], float)
        assert 1.6e9 < first["created_at"] < 1e11
        assert second["modified_at"] >= first["modified_at"]
        if self.keeps_versions:
            assert first["created_at"] == first["modified_at"]
            assert second["created_at"] == first["created_at"]

    def test_changing_a_returned_stat_changes_nothing_stored(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"x")
        nx.sys_setattr(f"{base}/f", attributes={"kept": 1})
        changed = self.stat(nx, f"{base}/f")
        changed["size"] = 99
        changed["attributes"]["new"] = 1
        del changed["attributes"]["kept"]
        stat = self.stat(nx, f"{base}/f")
        assert (stat["size"], stat["attributes"]) == (1, {"kept": 1})

    # -- setattr ------------------------------------------------------------------------------

    def test_setattr_changes_the_mode_of_files_and_directories(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/d/f", b"x")
        for path, mode in ((f"{base}/d/f", 0o600), (f"{base}/d", 0o750)):
            assert nx.sys_setattr(path, mode=mode)["mode"] == mode
            assert self.stat(nx, path)["mode"] == mode

    def test_setattr_changes_owner_type_and_time(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        after = nx.sys_setattr(
            f"{base}/f", owner_id="carol", mime_type="text/x-poem", modified_at=1234567890.5
        )
        assert after["owner_id"] == "carol"
        assert after["mime_type"] == "text/x-poem"
        assert after["modified_at"] == 1234567890.5
        assert after == self.stat(nx, f"{base}/f")

    def test_setattr_takes_an_integer_time(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        assert nx.sys_setattr(f"{base}/f", modified_at=1_000_000_000)["modified_at"] == 1e9

    def test_attributes_are_merged_and_none_removes_one(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"x")
        nx.sys_setattr(f"{base}/f", attributes={"a": 1, "b": "two"})
        after = nx.sys_setattr(f"{base}/f", attributes={"b": None, "c": 4.5, "d": True, "n": None})
        assert after["attributes"] == {"a": 1, "c": 4.5, "d": True}
        assert self.stat(nx, f"{base}/f")["attributes"] == after["attributes"]

    def test_attributes_stay_with_a_file_that_is_written_or_moved(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"x")
        nx.sys_setattr(f"{base}/f", attributes={"a": 1}, mode=0o600, owner_id="carol")
        nx.write(f"{base}/f", b"y")
        nx.sys_rename(f"{base}/f", f"{base}/g")
        stat = self.stat(nx, f"{base}/g")
        assert (stat["attributes"], stat["mode"], stat["owner_id"]) == ({"a": 1}, 0o600, "carol")

    def test_a_change_of_attributes_changes_the_revision_and_not_version_or_etag(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        before = nx.write(f"{base}/f", b"x")
        after = nx.sys_setattr(f"{base}/f", attributes={"a": 1})
        assert (after["version"], after["etag"]) == (before["version"], before["etag"])
        assert after["revision"] > before["revision"]
        assert nx.read(f"{base}/f") == b"x"

    def test_the_attributes_of_a_file_may_change_under_its_precondition(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        etag = nx.write(f"{base}/f", b"x")["etag"]
        nx.sys_setattr(f"{base}/f", attributes={"a": 1})
        nx.write(f"{base}/f", b"y", if_match=etag)
        assert nx.read(f"{base}/f") == b"y"

    @pytest.mark.parametrize("attrs", BAD_ATTRIBUTES.values(), ids=BAD_ATTRIBUTES)
    def test_setattr_refuses_what_has_no_meaning_and_changes_nothing(
        self, nx: NexusFilesystem, base: str, attrs: dict[str, Any]
    ) -> None:
        nx.write(f"{base}/f", b"x")
        before = self.stat(nx, f"{base}/f")
        with pytest.raises(InvalidArgumentError):
            nx.sys_setattr(f"{base}/f", **attrs)
        assert self.stat(nx, f"{base}/f") == before

    def test_an_unknown_attribute_beside_a_known_one_changes_nothing(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"x")
        before = self.stat(nx, f"{base}/f")
        with pytest.raises(InvalidArgumentError):
            nx.sys_setattr(f"{base}/f", mode=0o600, colour="red")
        assert self.stat(nx, f"{base}/f") == before

    def test_setattr_refuses_an_unknown_attribute_while_creating(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        with pytest.raises(InvalidArgumentError):
            nx.sys_setattr(f"{base}/d", entry_type=DT_DIR, colour="red")
        assert nx.sys_stat(f"{base}/d") is None

    def test_setattr_of_what_is_missing_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        with pytest.raises(PathNotFoundError):
            nx.sys_setattr(f"{base}/none", mode=0o600)
        with pytest.raises((PathNotDirectoryError, PathNotFoundError)):
            nx.sys_setattr(f"{base}/f/below", mode=0o600)

    def test_creating_where_something_is_is_refused(self, nx: NexusFilesystem, base: str) -> None:
        nx.write(f"{base}/f", b"x")
        with pytest.raises(PathExistsError):
            nx.sys_setattr(f"{base}/f", entry_type=DT_DIR)

    # -- revisions ----------------------------------------------------------------------------

    def test_every_mutation_has_a_higher_revision_than_the_one_before(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        revisions = [
            nx.write(f"{base}/f", b"1")["revision"],
            nx.append(f"{base}/f", b"2")["revision"],
            nx.sys_write(f"{base}/f", b"3")["revision"],
            nx.edit(f"{base}/f", bytes.upper)["revision"],
            nx.mkdir(f"{base}/d")["revision"],
            nx.sys_rename(f"{base}/f", f"{base}/d/g")["revision"],
            nx.sys_copy(f"{base}/d/g", f"{base}/h")["revision"],
            nx.sys_unlink(f"{base}/d", recursive=True)["revision"],
        ]
        assert revisions == sorted(set(revisions))

    # -- identity -----------------------------------------------------------------------------

    def test_a_bound_view_records_its_identity(self, nx: NexusFilesystem, base: str) -> None:
        alice = nx.bind(self.someone("alice", run_id="run-1"))
        alice.write(f"{base}/f", b"x")
        alice.mkdir(f"{base}/d")
        for path in (f"{base}/f", f"{base}/d"):
            stat = self.stat(nx, path)
            assert (stat["owner_id"], stat["modified_by"]) == ("alice", "alice")
            assert stat["run_id"] == "run-1"

    def test_a_write_by_another_keeps_the_owner_and_records_the_writer(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        nx.write(f"{base}/f", b"x", context=self.someone("alice", run_id="run-1"))
        nx.write(f"{base}/f", b"y", context=self.someone("bob"))
        stat = self.stat(nx, f"{base}/f")
        assert (stat["owner_id"], stat["modified_by"], stat["run_id"]) == ("alice", "bob", None)

    def test_a_context_in_the_call_overrides_the_bound_one(
        self, nx: NexusFilesystem, base: str
    ) -> None:
        alice = nx.bind(self.someone("alice"))
        alice.write(f"{base}/f", b"x", context=self.someone("bob"))
        assert self.stat(nx, f"{base}/f")["owner_id"] == "bob"

    def test_a_bound_view_sees_the_same_files(self, nx: NexusFilesystem, base: str) -> None:
        alice = nx.bind(self.someone("alice"))
        alice.write(f"{base}/f", b"x")
        assert nx.read(f"{base}/f") == b"x"
        nx.write(f"{base}/f", b"y")
        assert alice.read(f"{base}/f") == b"y"
        assert alice.bind(self.someone("bob")).list(base or "/") == [f"{base}/f"]
