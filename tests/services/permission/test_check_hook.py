"""PermissionCheckHook: strangers may do nothing, and everybody else what the mode says."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import AccessDeniedError
from nexus.contracts.filesystem import NexusFilesystem, WriteRequest
from nexus.contracts.metadata import DT_MOUNT, DT_PIPE, DT_REG, DT_STREAM
from nexus.contracts.protocols.permission import WRITE_ACCESS
from nexus.contracts.vfs_hooks import POINTS, HookSpec, post
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.sdk.aio import AsyncView

STRANGER = OperationContext("stranger")
OWNER = OperationContext("ada")
MATE = OperationContext("bob", groups=("crew",))


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:", profile="lite")) as filesystem:
        filesystem.write("/home/ada/f", b"secret")
        filesystem.write("/home/ada/d/g", b"deep")
        filesystem.sys_setattr("/m", entry_type=DT_MOUNT, backend={"driver": "cas_memory"})
        filesystem.sys_setattr("/home/ada/q", entry_type=DT_PIPE)
        for path in (*("/home/ada", "/home/ada/f", "/home/ada/d", "/home/ada/d/g"), "/home/ada/q"):
            filesystem.sys_setattr(path, owner_id="ada")
        yield filesystem


MEMORY_MOUNT = {"driver": "cas_memory"}

OPERATIONS: dict[str, list[Callable[[NexusFilesystem], Any]]] = {
    "sys_read": [
        lambda nx: nx.sys_read("/home/ada/f"),
        lambda nx: nx.sys_read("/home/ada/q", timeout=0.0),
        lambda nx: asyncio.run(AsyncView(nx).sys_read("/home/ada/q", timeout=0.0)),
    ],
    "sys_write": [
        lambda nx: nx.sys_write("/home/ada/f", b"x"),
        lambda nx: nx.sys_write("/home/ada/q", b"x", timeout=0.0),
        lambda nx: asyncio.run(AsyncView(nx).sys_write("/home/ada/q", b"x", timeout=0.0)),
    ],
    "sys_stat": [lambda nx: nx.sys_stat("/home/ada/f"), lambda nx: nx.sys_stat("/home/ada/none")],
    "sys_setattr": [
        lambda nx: nx.sys_setattr("/home/ada/f", mode=0o777),
        lambda nx: nx.sys_setattr("/home/ada/f", owner_id="stranger"),
        lambda nx: nx.sys_setattr("/home/ada/f", attributes={"public": True}),
        lambda nx: nx.sys_setattr("/home/ada/new", entry_type=DT_REG),
        lambda nx: nx.sys_setattr("/home/ada/pipe", entry_type=DT_PIPE),
        lambda nx: nx.sys_setattr("/home/ada/stream", entry_type=DT_STREAM),
        lambda nx: nx.sys_setattr("/home/ada/m", entry_type=DT_MOUNT, backend=MEMORY_MOUNT),
        lambda nx: nx.sys_setattr("/__sys__/services/permission", service=object()),
    ],
    "sys_unlink": [
        lambda nx: nx.sys_unlink("/home/ada/f"),
        lambda nx: nx.sys_unlink("/home/ada/d", recursive=True),
        lambda nx: nx.sys_unlink("/m"),
        lambda nx: nx.sys_unlink("/__sys__/services/permission"),
    ],
    "sys_rename": [lambda nx: nx.sys_rename("/home/ada/f", "/home/ada/g")],
    "sys_copy": [lambda nx: nx.sys_copy("/home/ada/f", "/home/ada/g")],
    "sys_readdir": [
        lambda nx: nx.sys_readdir("/home/ada"),
        lambda nx: nx.sys_readdir("/", recursive=True),
        lambda nx: nx.sys_readdir("/__sys__/journal"),
        lambda nx: nx.sys_readdir("/__sys__/versions/home/ada/f"),
    ],
    "read": [lambda nx: nx.read("/home/ada/f"), lambda nx: nx.read("/home/ada/f", version=1)],
    "write": [lambda nx: nx.write("/home/ada/f", b""), lambda nx: nx.write("/mine", b"")],
    "append": [lambda nx: nx.append("/home/ada/f", b"x")],
    "edit": [lambda nx: nx.edit("/home/ada/f", lambda old: old)],
    "write_batch": [
        lambda nx: nx.write_batch({"/home/ada/f": b"", "/home/ada/h": b""}),
        lambda nx: nx.write_batch([WriteRequest("/home/ada/f", b"", append=True)]),
    ],
    "read_batch": [lambda nx: nx.read_batch(["/home/ada/f"])],
    "mkdir": [lambda nx: nx.mkdir("/home/ada/sub"), lambda nx: nx.mkdir("/top")],
    "rmdir": [lambda nx: nx.rmdir("/home/ada/d", recursive=True)],
    "exists": [lambda nx: nx.exists("/home/ada/f")],
    "is_directory": [lambda nx: nx.is_directory("/home/ada")],
    "list": [lambda nx: nx.list("/home/ada")],
    "walk": [lambda nx: list(nx.walk("/home/ada"))],
    "glob": [lambda nx: nx.glob("*", "/home/ada")],
    "grep": [lambda nx: nx.grep("secret", "/home/ada")],
    "history": [lambda nx: list(nx.history("/home/ada/f"))],
    "read_content": [lambda nx: nx.read_content("b3:" + "0" * 64)],
    "write_content": [lambda nx: nx.write_content(b"x")],
    "stream": [lambda nx: list(nx.stream("b3:" + "0" * 64))],
    "stream_range": [lambda nx: list(nx.stream_range("b3:" + "0" * 64, 0, 1))],
    "write_stream": [lambda nx: nx.write_stream([b"x"])],
    "sys_lock": [lambda nx: nx.sys_lock("/home/ada/f"), lambda nx: nx.sys_lock("/home/ada/none")],
    "sys_unlock": [
        lambda nx: nx.sys_unlock("/home/ada/f", "0" * 32),
        lambda nx: nx.sys_unlock("/home/ada/f", force=True),
    ],
    "sys_watch": [
        lambda nx: nx.sys_watch("/home/ada/f", 0.0, since=0),
        lambda nx: nx.sys_watch("/", 0.0, recursive=True, since=0),
    ],
    "lock": [lambda nx: nx.lock("/home/ada/f", timeout=0.0)],
    "unlock": [lambda nx: nx.unlock("/home/ada/f", "0" * 32)],
    "locked": [lambda nx: nx.locked("/home/ada/f", timeout=0.0).__enter__()],
    "watch": [lambda nx: next(nx.watch("/home/ada", timeout=0.0))],
}
"""Every call of the contract, with arguments that an administrator may use."""

HARMLESS = {"access", "bind", "close", "service", "sync"}
"""Calls that touch no entry, or that answer whether another would be refused."""


def test_every_call_of_the_contract_is_tried() -> None:
    public = {
        name
        for name, member in inspect.getmembers(NexusFilesystem, inspect.isfunction)
        if not name.startswith("_")
    }
    assert set(OPERATIONS) == public - HARMLESS


@pytest.mark.parametrize(
    ("name", "number"),
    [(name, number) for name, calls in OPERATIONS.items() for number in range(len(calls))],
)
def test_a_stranger_is_refused_and_nothing_changes(nx: NexusFS, name: str, number: int) -> None:
    revision = nx.store.head().revision
    with pytest.raises(AccessDeniedError, match="stranger"):
        OPERATIONS[name][number](nx.bind(STRANGER))
    assert nx.store.head().revision == revision


def test_every_point_is_guarded(nx: NexusFS) -> None:
    passed: list[str] = []
    spec = HookSpec(
        interceptors=tuple(
            post(point, lambda ctx, result, point=point: passed.append(point.name))
            for point in POINTS
        )
    )
    guarded = {row["point"] for row in nx.dispatch.rows() if row["owner"] == "permission"}
    assert guarded == {point.name for point in POINTS}
    nx.dispatch.register("after", spec)
    for calls in OPERATIONS.values():
        for call in calls:
            with pytest.raises(AccessDeniedError):
                call(nx.bind(STRANGER))
    # What the checks themselves look up, they look up as an administrator.
    assert set(passed) <= {"stat", "readdir"}


def test_access_answers_instead_of_refusing(nx: NexusFS) -> None:
    assert not nx.bind(STRANGER).access("/home/ada/f")
    assert nx.bind(OWNER).access("/home/ada/f")


def test_an_owner_may_do_what_the_mode_says(nx: NexusFS) -> None:
    ada = nx.bind(OWNER)
    assert ada.read("/home/ada/f") == b"secret"
    ada.write("/home/ada/f", b"changed")
    ada.write("/home/ada/new/file", b"made")
    ada.sys_rename("/home/ada/new", "/home/ada/moved")
    ada.sys_copy("/home/ada/moved", "/home/ada/copied")
    assert ada.list("/home/ada", recursive=True)
    ada.sys_unlink("/home/ada/copied", recursive=True)
    ada.sys_setattr("/home/ada/f", mode=0o400)
    with pytest.raises(AccessDeniedError, match="write access"):
        ada.write("/home/ada/f", b"read-only now")


def test_an_owner_may_not_go_beyond_what_is_theirs(nx: NexusFS) -> None:
    ada = nx.bind(OWNER)
    with pytest.raises(AccessDeniedError):
        ada.sys_rename("/home/ada/f", "/elsewhere")
    with pytest.raises(AccessDeniedError):
        ada.sys_unlink("/home/ada", recursive=True)
    with pytest.raises(AccessDeniedError):
        ada.sys_readdir("/", recursive=True)


def test_a_group_that_owns_an_entry_has_the_middle_bits(nx: NexusFS) -> None:
    nx.sys_setattr("/home/ada/f", owner_id="crew", mode=0o640)
    mate = nx.bind(MATE)
    assert mate.read("/home/ada/f") == b"secret"
    with pytest.raises(AccessDeniedError):
        mate.write("/home/ada/f", b"")


def test_others_have_their_bits_only_of_what_is_public(nx: NexusFS) -> None:
    stranger = nx.bind(STRANGER)
    nx.sys_setattr("/home/ada/f", mode=0o644, attributes={"public": True})
    assert stranger.read("/home/ada/f") == b"secret"
    with pytest.raises(AccessDeniedError):
        stranger.write("/home/ada/f", b"")
    nx.sys_setattr("/home/ada/f", mode=0o600)
    with pytest.raises(AccessDeniedError):
        stranger.read("/home/ada/f")


def test_an_owner_may_lock_watch_and_pass_messages(nx: NexusFS) -> None:
    ada = nx.bind(OWNER)
    with ada.locked("/home/ada/f"):
        ada.write("/home/ada/f", b"locked")
    assert next(ada.watch("/home/ada", timeout=0.0), None) is None
    assert ada.sys_watch("/home/ada/f", 0.0, since=0) is not None
    ada.sys_write("/home/ada/q", b"message")
    assert ada.sys_read("/home/ada/q") == b"message"
    ada.sys_setattr("/home/ada/s", entry_type=DT_STREAM)
    assert ada.sys_write("/home/ada/s", b"message")["offset"] == 0


def test_a_holder_may_end_its_own_lock_and_nobody_elses(nx: NexusFS) -> None:
    nx.sys_setattr("/home/ada/f", owner_id="crew", mode=0o660)
    lock_id = nx.bind(MATE).sys_lock("/home/ada/f", "shared")
    other = nx.sys_lock("/home/ada/f", "shared")
    nx.sys_setattr("/home/ada/f", mode=0o600)
    with pytest.raises(AccessDeniedError, match="hold the lock"):
        nx.bind(MATE).sys_unlock("/home/ada/f", other)
    with pytest.raises(AccessDeniedError, match="hold the lock"):
        nx.bind(STRANGER).sys_unlock("/home/ada/f", lock_id)
    assert nx.bind(MATE).sys_unlock("/home/ada/f", lock_id)


def test_locks_are_ended_by_force_by_the_owner_of_the_path(nx: NexusFS) -> None:
    assert nx.sys_lock("/home/ada/f") is not None
    nx.sys_setattr("/home/ada/d/g", owner_id="crew", mode=0o660)
    with pytest.raises(AccessDeniedError, match="by force"):
        nx.bind(MATE).sys_unlock("/home/ada/d/g", force=True)
    assert nx.bind(OWNER).sys_unlock("/home/ada/f", force=True)


def test_a_copy_of_a_tree_takes_reading_all_of_it(nx: NexusFS) -> None:
    nx.sys_setattr("/home/ada/d/g", owner_id="someone")
    with pytest.raises(AccessDeniedError, match="/home/ada/d/g"):
        nx.bind(OWNER).sys_copy("/home/ada/d", "/home/ada/e")


def test_nobody_is_checked_after_the_service_has_gone(nx: NexusFS) -> None:
    nx.sys_unlink("/__sys__/services/permission")
    assert nx.bind(STRANGER).read("/home/ada/f") == b"secret"


def test_the_service_answers_questions(nx: NexusFS) -> None:
    permission = nx.service("permission")
    assert permission.is_allowed("/home/ada/f", 6, OWNER)
    assert not permission.is_allowed("/home/ada/f", 4, STRANGER)


def test_a_path_is_judged_however_it_is_spelled(nx: NexusFS) -> None:
    nx.mkdir("/open")
    nx.sys_setattr("/open", owner_id="eve")
    nx.write("/open/secret", b"")
    permission = nx.service("permission")
    eve = OperationContext("eve")
    for path in ("/open/secret", "//open/./secret", "/open//secret/"):
        assert not permission.is_allowed(path, WRITE_ACCESS, eve)


def test_only_what_lies_beneath_the_views_of_the_kernel_is_the_administrators_alone(
    nx: NexusFS,
) -> None:
    nx.mkdir("/__sys__tem")
    nx.sys_setattr("/__sys__tem", owner_id="ada")
    owner = nx.bind(OWNER)
    owner.write("/__sys__tem/f", b"x")
    assert owner.read("/__sys__tem/f") == b"x"
    for path in ("/__sys__", "/__sys__/mounts"):
        with pytest.raises(AccessDeniedError):
            owner.sys_readdir(path)
