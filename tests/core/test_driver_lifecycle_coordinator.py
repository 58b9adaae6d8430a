"""DriverLifecycleCoordinator: a driver hears of its own mounts, by the rules of every hook."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nexus.contracts.errors import BusyError, InvalidArgumentError
from nexus.contracts.metadata import DT_MOUNT
from nexus.contracts.vfs_hooks import (
    MOUNT,
    UNMOUNT,
    WRITE,
    HookSpec,
    MountContext,
    UnmountContext,
    post,
    pre,
)
from nexus.core.nexus_fs import NexusFS
from nexus.factory import drivers
from nexus.factory.boot import Settings, boot
from nexus.storage.object_store.cas_store import CasStore
from nexus.storage.object_store.loose_objects import LooseObjects
from nexus.storage.object_store.memory_transport import MemoryTransport

PATIENT_S = 60.0


class HookedStore(CasStore):
    """A store that notes what it is told, and does more where a test asks for it."""

    def __init__(self, name: str = "hooked") -> None:
        objects = LooseObjects(MemoryTransport())
        super().__init__(objects, name=name, volume_id=f"{name}-1", clock_ns=time.time_ns)
        self.heard: list[str] = []
        self.asked = 0
        self.also: Any = lambda: None

    def hook_spec(self) -> HookSpec:
        self.asked += 1
        return HookSpec(interceptors=(post(MOUNT, self.on_mount), post(UNMOUNT, self.on_unmount)))

    def on_mount(self, ctx: MountContext, result: dict[str, Any]) -> None:
        self.heard.append(f"mounted at {ctx.path} as {result['driver']}")
        self.also()

    def on_unmount(self, ctx: UnmountContext, result: dict[str, Any]) -> None:
        self.heard.append(f"unmounted from {ctx.path}")
        self.also()


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


def mount(nx: NexusFS, point: str, store: Any) -> None:
    nx.sys_setattr(point, entry_type=DT_MOUNT, backend=store)


def test_a_driver_hears_of_its_own_mounts_alone_once_each(nx: NexusFS) -> None:
    store, other = HookedStore(), HookedStore("other")
    mount(nx, "/m", store)
    mount(nx, "/o", other)
    nx.rmdir("/o")
    nx.rmdir("/m")
    assert store.heard == ["mounted at /m as hooked", "unmounted from /m"]
    assert other.heard == ["mounted at /o as other", "unmounted from /o"]
    assert store.asked == 1


def test_hooks_of_services_at_mount_and_unmount_come_once_as_well(nx: NexusFS) -> None:
    seen: list[str] = []
    spec = HookSpec(
        interceptors=(
            post(MOUNT, lambda ctx, result: seen.append(f"mount {ctx.path}")),
            post(UNMOUNT, lambda ctx, result: seen.append(f"unmount {ctx.path}")),
        )
    )
    nx.dispatch.register("service", spec)
    store = HookedStore()
    mount(nx, "/m", store)
    nx.rmdir("/m")
    assert seen == ["mount /m", "unmount /m"]
    assert len(store.heard) == 2


def test_a_driver_may_use_its_mount_when_it_hears_of_it(nx: NexusFS) -> None:
    store = HookedStore()
    store.also = lambda: nx.write("/m/by-the-driver", b"1") if nx.router.at("/m", "root") else None
    mount(nx, "/m", store)
    assert nx.read("/m/by-the-driver") == b"1"
    assert nx.locks.held() == {}
    store.also = lambda: nx.write("/after", b"2")
    nx.rmdir("/m")
    assert nx.read("/after") == b"2"


def test_a_hook_that_raises_is_logged_and_the_mount_stays(
    nx: NexusFS, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    store = HookedStore()
    store.also = fail
    mount(nx, "/m", store)
    nx.write("/m/f", b"works")
    nx.rmdir("/m")
    text = caplog.text
    assert "post hook of driver hooked at /m failed after mount /m" in text
    assert "failed after unmount /m" in text


def test_a_hook_that_hangs_keeps_only_its_caller_and_is_reported(
    nx: NexusFS, caplog: pytest.LogCaptureFixture
) -> None:
    entered, opened = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        assert opened.wait(PATIENT_S)

    store = HookedStore()
    store.also = hang
    nx.dispatch._hang_timeout_s = -1.0
    mounting = threading.Thread(target=mount, args=(nx, "/m", store))
    mounting.start()
    assert entered.wait(PATIENT_S)
    nx.write("/m/f", b"goes on")
    with caplog.at_level(logging.ERROR):
        nx.dispatch.report_overdue()
    assert "post hook of driver hooked at /m at mount has not returned" in caplog.text
    opened.set()
    mounting.join()


def test_a_mount_that_is_refused_tells_nobody(nx: NexusFS) -> None:
    store = HookedStore()
    mount(nx, "/m", store)
    with pytest.raises(BusyError):
        mount(nx, "/again", store)
    mount(nx, "/m/inner", HookedStore("inner"))
    with pytest.raises(BusyError):
        nx.rmdir("/m")
    assert store.heard == ["mounted at /m as hooked"]


@pytest.mark.parametrize(
    "spec",
    [
        HookSpec(interceptors=(pre(WRITE, lambda ctx: None),)),
        HookSpec(interceptors=(pre(MOUNT, lambda ctx: None),)),
        HookSpec(interceptors=(post(MOUNT, lambda ctx: None),)),  # type: ignore[arg-type, misc]
        None,
    ],
)
def test_a_driver_whose_hooks_have_a_wrong_shape_is_not_mounted(nx: NexusFS, spec: Any) -> None:
    class Wrong(HookedStore):
        def hook_spec(self) -> HookSpec:
            return spec  # type: ignore[no-any-return]

    with pytest.raises(InvalidArgumentError, match="driver hooked at /m"):
        mount(nx, "/m", Wrong())
    assert [row["path"] for row in nx.mounts.rows("root")] == ["/"]


def test_a_driver_that_comes_back_with_the_filesystem_hears_of_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    class Telling(CasStore):
        def hook_spec(self) -> HookSpec:
            return HookSpec(interceptors=(post(MOUNT, self.on_mount),))

        def on_mount(self, ctx: MountContext, result: dict[str, Any]) -> None:
            heard.append(f"{self.name} {ctx.path}")

    settings = Settings(data_dir=str(tmp_path / "data"))
    monkeypatch.setattr(drivers, "CasStore", Telling)
    with boot(settings) as nx:
        mount(nx, "/big", {"driver": "cas_local", "root": str(tmp_path / "big")})
    with boot(settings):
        pass
    assert heard == ["cas_local /", "cas_local /big"] * 2
