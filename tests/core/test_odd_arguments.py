"""Whatever a caller hands in, a call answers or raises a NexusError; a builtin never escapes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.errors import InvalidArgumentError, NexusError, shown
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.metadata import DT_DIR, DT_MOUNT
from nexus.sdk import OperationContext, collect, connect, fsck

RELEASED = memoryview(b"x")
RELEASED.release()

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 5, 2**40, 2**63 - 1, 2**64, 2**70, -(2**70), 1 << 20_000),
    *(0.5, float("nan"), float("inf"), 1e300, 1j),
    *("", "x", "*", "[z-a]", "[", "{{}", "{" * 3000 + "}" * 3000, "(", "(?P<", "\ud800", "\0"),
    *("/", "/f", "/\ud800", "/..", "/__sys__", "/__sys__/journal", "/f/below", "/" + "a" * 300),
    *("99999999999999999999.1", "1.99999999999", "²", "b3:" + "0" * 64, "b3:zz", "fp:", "/" * 5000),
    *(b"", b"/f", bytearray(b"x"), memoryview(b"abcd").cast("I")),
    [WriteRequest("/f", b"x", precondition=5)],  # type: ignore[arg-type]
    *([], [1], [("/f",)], [("/f", 5)], [(5, b"")], [("", "")], [("a", 5)], (), {}, {5: b""}),
    *(
        {"/f": 5},
        {"driver": 5},
        {"driver": "path_local", "root": 5},
        {"driver": "cas_local"},
        set(),
    ),
    *({"driver": "path_local", "root": "\0"}, {"driver": "path_local", "root": "/\ud800"}),
    *(object(), int, len, iter(()), Path("/f"), Precondition(), OperationContext("\ud800")),
    *(OperationContext("a", zone_id="\0"), OperationContext("a", zone_id="/"), WriteRequest(5, 5)),  # type: ignore[arg-type]
]

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "read": ("read", {"path": "/f", "count": 1, "offset": 0, "version": 1, "context": None}),
    "sys_write": (
        "sys_write",
        {"path": "/f", "buf": b"x", "count": 1, "offset": 0, "precondition": None},
    ),
    "write": (
        "write",
        {"path": "/f", "buf": b"x", "if_match": None, "if_none_match": None, "lock_token": None},
    ),
    "append": ("append", {"path": "/f", "buf": b"x", "lock_token": None, "context": None}),
    "edit": ("edit", {"path": "/f", "change": [], "context": None}),
    "write_batch": ("write_batch", {"items": [], "context": None}),
    "read_batch": ("read_batch", {"paths": [], "missing_ok": True, "context": None}),
    "mkdir": ("mkdir", {"path": "/d", "parents": True, "exist_ok": True, "context": None}),
    "rmdir": ("rmdir", {"path": "/none", "recursive": False, "context": None}),
    "exists": ("exists", {"path": "/f", "context": None}),
    "is_directory": ("is_directory", {"path": "/f", "context": None}),
    "access": ("access", {"path": "/f", "context": None}),
    "list": ("list", {"path": "/", "recursive": True, "details": True, "context": None}),
    "walk": ("walk", {"path": "/", "context": None}),
    "glob": ("glob", {"pattern": "*", "path": "/", "context": None}),
    "grep": (
        "grep",
        {"pattern": "x", "path": "/", "include": None, "ignore_case": True, "limit": 9},
    ),
    "history": ("history", {"path": "/f", "limit": 1, "cursor": None, "context": None}),
    "journal": ("history", {"path": None, "limit": 1, "cursor": "1.1", "context": None}),
    "readdir": (
        "sys_readdir",
        {"path": "/", "recursive": False, "limit": 1, "cursor": "/a", "details": False},
    ),
    "mounts": ("sys_readdir", {"path": "/__sys__/mounts", "limit": 1, "cursor": None}),
    "locks": ("sys_readdir", {"path": "/__sys__/locks", "limit": 1, "cursor": None}),
    "stat": ("sys_stat", {"path": "/f", "include_lock": True, "context": None}),
    "setattr": (
        "sys_setattr",
        {"path": "/f", "mode": 1, "owner_id": "x", "mime_type": "x", "modified_at": 1.0},
    ),
    "attributes": ("sys_setattr", {"path": "/f", "attributes": {}}),
    "attribute": ("sys_setattr", {"path": "/f", "attributes": {"a": "x"}}),
    "entry type": ("sys_setattr", {"path": "/new", "entry_type": DT_DIR}),
    "mount": ("sys_setattr", {"path": "/m", "entry_type": DT_MOUNT, "backend": None}),
    "unlink": ("sys_unlink", {"path": "/none", "recursive": False, "context": None}),
    "rename": ("sys_rename", {"old": "/f", "new": "/f", "context": None}),
    "copy": ("sys_copy", {"src": "/f", "dst": "/copy", "context": None}),
    "sys_lock": (
        "sys_lock",
        {"path": "/f", "mode": "shared", "ttl": 1.0, "timeout": 0.0, "context": None},
    ),
    "counting lock": ("sys_lock", {"path": "/c", "mode": "counting", "max_holders": 5}),
    "extended lock": ("sys_lock", {"path": "/f", "ttl": 1.0, "lock_id": "x", "context": None}),
    "sys_unlock": (
        "sys_unlock",
        {"path": "/f", "lock_id": "x", "force": False, "context": None},
    ),
    "lock": (
        "lock",
        {"path": "/f", "mode": "shared", "ttl": 1.0, "max_holders": None, "timeout": 1.0},
    ),
    "unlock": ("unlock", {"path": "/f", "lock_id": "x", "force": False, "context": None}),
    "locked": (
        "locked",
        {"path": "/f", "mode": "shared", "ttl": 1.0, "timeout": 1.0, "context": None},
    ),
    "sys_watch": (
        "sys_watch",
        {"path": "/f", "timeout": 0.0, "recursive": False, "since": 0, "context": None},
    ),
    "watch": (
        "watch",
        {"path": "/", "recursive": True, "since": 0, "timeout": 0.0, "context": None},
    ),
    "read_content": ("read_content", {"etag": "b3:", "mount": "/", "context": None}),
    "write_content": ("write_content", {"data": b"x", "mount": "/", "context": None}),
    "stream": ("stream", {"etag": "b3:", "piece_bytes": 1, "mount": "/", "context": None}),
    "stream_range": (
        "stream_range",
        {"etag": "b3:", "offset": 0, "count": 1, "piece_bytes": 1, "mount": "/"},
    ),
    "write_stream": ("write_stream", {"pieces": [b"x"], "mount": "/", "context": None}),
    "bind": ("bind", {"context": OperationContext("a")}),
}


@pytest.fixture(params=["cas", "path"])
def nx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NexusFilesystem]:
    with connect({"data_dir": ":memory:"}) as filesystem:
        if request.param == "path":
            root = tmp_path / "root"
            root.mkdir()
            backend = {"driver": "path_local", "root": str(root)}
            filesystem.sys_setattr("/p", entry_type=DT_MOUNT, backend=backend)
        yield filesystem


def escapes(call: Callable[[], Any]) -> str | None:
    """Run a call to the end of what it answers; say which builtin exception came out."""
    try:
        answer = call()
        if inspect.isgenerator(answer):
            for _ in answer:
                pass
        elif isinstance(answer, AbstractContextManager):
            with answer:
                pass
    except NexusError as error:
        str(error)
    except Exception as error:  # noqa: BLE001 - any other one is what is looked for
        return f"{type(error).__name__}: {str(error)[:80]}"
    return None


@pytest.mark.parametrize("name", CALLS)
def test_odd_values_of_any_argument_raise_only_documented_errors(
    nx: NexusFilesystem, name: str
) -> None:
    method, usual = CALLS[name]
    on_mount = {
        key: "/p" + value if key in ("path", "old", "src") and value in ("/f", "/none") else value
        for key, value in usual.items()
    }
    has_mount = nx.exists("/p")
    found = []
    for argument in usual:
        for value in ODD:
            if argument == "change" and callable(value):
                continue  # what it raises is the caller's own
            if name == "watch" and argument == "timeout" and value in (None, 0.5, 1, 5):
                continue  # as usual as any, and it waits
            if not nx.exists("/f"):
                nx.write("/f", b"content")
            arguments = dict(usual)
            if has_mount:
                if not nx.exists("/p/f"):
                    nx.write("/p/f", b"content")
                arguments = dict(on_mount)
            arguments[argument] = {"a": value} if name == "attribute" else value
            escaped = escapes(lambda arguments=arguments: getattr(nx, method)(**arguments))  # type: ignore[misc]
            if escaped is not None:
                found.append(f"{argument}={shown(value)}: {escaped}")
    assert not found


def test_odd_configurations_and_limits_raise_only_documented_errors(
    nx: NexusFilesystem, tmp_path: Path
) -> None:
    found = []
    for value in ODD:
        if value in (None, "", "x", "/", "/f") or isinstance(value, Path) or value == {}:
            continue  # a configuration, or the name of a file
        for call in (
            lambda value=value: connect(value).close(),
            lambda value=value: connect({"data_dir": ":memory:", "user": value}).close(),
            lambda value=value: connect({"data_dir": ":memory:", "lock_timeout_s": value}).close(),
            lambda value=value: connect({"data_dir": ":memory:", "durability": value}).close(),
            lambda value=value: collect(nx, retention_s=value, grace_s=0, dry_run=True),
            lambda value=value: collect(nx, retention_s=0, grace_s=value, dry_run=True),
            lambda value=value: collect(value, retention_s=0, grace_s=0),
            lambda value=value: fsck(value),
        ):
            escaped = escapes(call)
            if escaped is not None:
                found.append(f"{shown(value)}: {escaped}")
    assert not found


def test_a_released_buffer_is_refused(nx: NexusFilesystem) -> None:
    nx.write("/f", b"content")
    for call in (nx.write, nx.append, nx.sys_write):
        with pytest.raises(InvalidArgumentError):
            call("/f", RELEASED)
    assert nx.read("/f") == b"content"


class MyError(Exception):
    """A caller's own."""


def failing() -> Iterator[Any]:
    yield b"piece"
    raise MyError


@pytest.mark.parametrize(
    "call",
    [
        lambda nx: nx.write("/g", failing()),
        lambda nx: nx.append("/g", failing()),
        lambda nx: nx.write_stream(failing()),
        lambda nx: nx.edit("/f", lambda content: next(iter(MyIterable()))),
        lambda nx: nx.write_batch(MyIterable()),
        lambda nx: nx.read_batch(MyIterable()),
    ],
)
def test_what_a_callers_own_iterable_or_callable_raises_passes_through(
    nx: NexusFilesystem, call: Callable[[NexusFilesystem], object]
) -> None:
    nx.write("/f", b"content")
    with pytest.raises(MyError):
        call(nx)
    assert nx.read("/f") == b"content"
    assert not nx.exists("/g")


class MyIterable:
    """Raises when it is iterated over."""

    def __iter__(self) -> Iterator[Any]:
        raise MyError


@pytest.mark.parametrize("zone_id", ["\ud800", "a\udfff"])
def test_a_zone_id_that_is_not_utf8_is_refused_by_name(zone_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"zone_id is .*, not UTF-8"):
        OperationContext("ann", zone_id=zone_id)
    assert OperationContext("ann", zone_id="zöne").zone_id == "zöne"
