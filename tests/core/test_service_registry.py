"""ServiceRegistry: order, lookup, exchange under load, and services as paths."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, Protocol, runtime_checkable

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    AccessDeniedError,
    BusyError,
    ClosedError,
    InvalidArgumentError,
    LockTimeoutError,
    PathExistsError,
    PathNotFoundError,
)
from nexus.contracts.vfs_hooks import WRITE, HookSpec, WriteContext, pre
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.storage.metastore.memory import MemoryMetastore

LONG_S = 30.0


@pytest.fixture
def nx() -> Iterator[NexusFS]:
    with boot(Settings(data_dir=":memory:")) as filesystem:
        yield filesystem


def bare_kernel() -> NexusFS:
    """A kernel with one metastore, no mount, and no service started yet."""

    def no_driver(description: Mapping[str, Any]) -> NoReturn:
        raise AssertionError(f"opened {description}")

    return NexusFS(
        MemoryMetastore(),
        context=OperationContext("root", is_admin=True),
        open_driver=no_driver,
        clock_ns=time.time_ns,
    )


@runtime_checkable
class Counts(Protocol):
    def count(self) -> int: ...


class Daemon:
    """A persistent service that writes down its life."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def start(self) -> None:
        self.log.append(f"start {self.name}")

    def stop(self) -> None:
        self.log.append(f"stop {self.name}")


class Counter:
    """A service that checks that it is alive whenever it is called."""

    def __init__(self) -> None:
        self.state = "made"
        self.calls = 0
        self._mutex = threading.Lock()

    def start(self) -> None:
        self.state = "started"

    def stop(self) -> None:
        self.state = "stopped"

    def count(self) -> int:
        assert self.state == "started"
        with self._mutex:
            self.calls += 1
            return self.calls


class Blocking(Counter):
    """A counter whose calls wait to be let through."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.opened = threading.Event()

    def count(self) -> int:
        self.entered.set()
        assert self.opened.wait(LONG_S)
        return super().count()


class Tagging:
    """A service that hooks writes."""

    def __init__(self, tag: bytes) -> None:
        self.tag = tag

    def hook_spec(self) -> HookSpec:
        return HookSpec(interceptors=(pre(WRITE, self.add_tag),))

    def add_tag(self, ctx: WriteContext) -> None:
        assert isinstance(ctx.buf, bytes)
        ctx.buf += self.tag


def wait_until_draining(nx: NexusFS) -> None:
    deadline = time.monotonic() + LONG_S
    while nx.services.rows()[0]["state"] != "draining":
        assert time.monotonic() < deadline, "the swap does not wait for calls under way"


# -- lifecycle --------------------------------------------------------------------------------


def test_services_start_in_dependency_order_and_stop_in_reverse() -> None:
    log: list[str] = []
    nx = bare_kernel()
    nx.services.enlist("a", Daemon("a", log), depends_on=["b", "c"])
    nx.services.enlist("b", Daemon("b", log), depends_on=["c"])
    nx.services.enlist("c", Daemon("c", log))
    nx.bootstrap()
    nx.close()
    assert log == ["start c", "start b", "start a", "stop a", "stop b", "stop c"]


def test_a_service_that_is_enlisted_after_the_bootstrap_starts_at_once(nx: NexusFS) -> None:
    log: list[str] = []
    nx.bootstrap()
    nx.services.enlist("late", Daemon("late", log))
    assert log == ["start late"]


def test_a_cycle_of_dependencies_is_an_error_and_nothing_starts() -> None:
    log: list[str] = []
    nx = bare_kernel()
    nx.services.enlist("a", Daemon("a", log), depends_on=["b"])
    nx.services.enlist("b", Daemon("b", log), depends_on=["a"])
    nx.services.enlist("free", Daemon("free", log))
    with pytest.raises(InvalidArgumentError, match="cycle: a, b"):
        nx.bootstrap()
    assert not log
    nx.close()


def test_a_missing_dependency_is_an_error(nx: NexusFS) -> None:
    with pytest.raises(InvalidArgumentError, match="depends on nobody, which is not enlisted"):
        nx.services.enlist("a", object(), depends_on=["nobody"])


def test_a_service_whose_start_fails_is_not_there(nx: NexusFS) -> None:
    class Failing(Tagging):
        def start(self) -> None:
            raise RuntimeError("no such device")

        def stop(self) -> None:
            raise AssertionError("never started")

    with pytest.raises(RuntimeError, match="no such device"):
        nx.services.enlist("failing", Failing(b""))
    with pytest.raises(PathNotFoundError):
        nx.service("failing")
    assert not nx.dispatch.live


def test_a_service_that_fails_to_stop_is_logged_and_the_others_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log: list[str] = []

    class Failing(Daemon):
        def stop(self) -> None:
            raise RuntimeError("stuck")

    nx = boot(Settings(data_dir=":memory:"))
    nx.services.enlist("a", Daemon("a", log))
    nx.services.enlist("b", Failing("b", log), depends_on=["a"])
    with caplog.at_level(logging.ERROR):
        nx.close()
    assert log[-1] == "stop a"
    assert "service b failed to stop" in caplog.text
    with pytest.raises(ClosedError):
        nx.services.enlist("c", object())


# -- lookup -----------------------------------------------------------------------------------


def test_an_unknown_name_is_an_error_that_lists_the_known_ones(nx: NexusFS) -> None:
    nx.services.enlist("counter", Counter())
    with pytest.raises(PathNotFoundError, match=r"no service 'count' \(there are: counter\)"):
        nx.service("count")


def test_a_handle_passes_for_its_service_and_forwards_calls_and_fields(nx: NexusFS) -> None:
    counter = Counter()
    nx.services.enlist("counter", counter)
    handle = nx.service("counter")
    assert isinstance(handle, Counter)
    assert isinstance(handle, Counts)
    assert handle.count() == 1
    assert handle.state == "started"
    with pytest.raises(AttributeError, match="missing"):
        handle.missing  # noqa: B018


def test_a_bound_view_finds_services_too(nx: NexusFS) -> None:
    nx.services.enlist("counter", Counter())
    assert nx.bind(OperationContext("ada")).service("counter").count() == 1


def test_a_name_that_cannot_be_one_is_refused(nx: NexusFS) -> None:
    for name in ("", "a/b", "a b", None):
        with pytest.raises(InvalidArgumentError, match="no name for a service"):
            nx.services.enlist(name, object())  # type: ignore[arg-type]


def test_a_name_is_enlisted_once(nx: NexusFS) -> None:
    nx.services.enlist("a", object())
    with pytest.raises(PathExistsError):
        nx.services.enlist("a", object())


# -- hooks ------------------------------------------------------------------------------------


def test_hooks_come_with_the_service_and_go_with_it(nx: NexusFS) -> None:
    nx.services.enlist("tag", Tagging(b"1"))
    nx.write("/f", b"x")
    assert nx.read("/f") == b"x1"
    nx.services.unregister("tag")
    nx.write("/f", b"x")
    assert nx.read("/f") == b"x"
    assert not nx.dispatch.live


def test_a_wrong_hook_keeps_a_service_out_and_is_named(nx: NexusFS) -> None:
    class Wrong:
        def hook_spec(self) -> HookSpec:
            return HookSpec(interceptors=(pre(WRITE, lambda: None),))  # type: ignore[arg-type]

    with pytest.raises(InvalidArgumentError, match="service wrong"):
        nx.services.enlist("wrong", Wrong())
    assert not nx.services.rows()


# -- exchange ---------------------------------------------------------------------------------


def test_no_write_misses_the_hooks_of_a_service_that_is_swapped_under_load(nx: NexusFS) -> None:
    nx.services.enlist("tag", Tagging(b"0"))
    untagged: list[bytes] = []
    stop = threading.Event()

    def write(number: int) -> None:
        while not stop.is_set():
            nx.write(f"/{number}", b"")
            if len(content := nx.read(f"/{number}")) != 1:
                untagged.append(content)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 30):
        nx.services.swap("tag", Tagging(b"%d" % (number % 10)))
    stop.set()
    for thread in threads:
        thread.join()
    assert not untagged


def test_no_call_is_lost_and_none_meets_a_half_started_instance_under_load(nx: NexusFS) -> None:
    instances = [Counter()]
    nx.services.enlist("counter", instances[0])
    handle = nx.service("counter")
    stop = threading.Event()
    made: list[int] = []
    failures: list[BaseException] = []

    def call() -> None:
        count = 0
        try:
            while not stop.is_set():
                handle.count()
                count += 1
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            made.append(count)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        instances.append(Counter())
        nx.services.swap("counter", instances[-1])
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(instance.calls for instance in instances) == sum(made)
    assert [instance.state for instance in instances] == ["stopped"] * 50 + ["started"]


def test_a_swap_waits_for_calls_under_way_and_new_calls_wait_for_the_swap(nx: NexusFS) -> None:
    old, new = Blocking(), Counter()
    nx.services.enlist("counter", old)
    handle = nx.service("counter")
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(handle.count()))
    first.start()
    assert old.entered.wait(LONG_S)
    swapper = threading.Thread(target=nx.services.swap, args=("counter", new))
    swapper.start()
    wait_until_draining(nx)
    second = threading.Thread(target=lambda: answers.append(handle.count()))
    second.start()
    assert new.calls == 0
    old.opened.set()
    for thread in (first, swapper, second):
        thread.join()
    assert (old.calls, new.calls, old.state) == (1, 1, "stopped")


def test_a_swap_that_cannot_drain_in_time_leaves_the_old_instance_serving(nx: NexusFS) -> None:
    old, new = Blocking(), Counter()
    nx.services.enlist("counter", old)
    thread = threading.Thread(target=nx.service("counter").count)
    thread.start()
    assert old.entered.wait(LONG_S)
    with pytest.raises(LockTimeoutError, match="1 calls have not ended"):
        nx.services.swap("counter", new, timeout_s=0)
    assert new.state == "stopped"
    old.opened.set()
    thread.join()
    assert nx.service("counter").count() == 2


def test_a_call_within_a_call_goes_on_while_a_swap_waits(nx: NexusFS) -> None:
    entered, opened = threading.Event(), threading.Event()

    class Nested(Counter):
        def outer(self) -> int:
            entered.set()
            assert opened.wait(LONG_S)
            return int(nx.service("counter").count())

    old, new = Nested(), Counter()
    nx.services.enlist("counter", old)
    thread = threading.Thread(target=nx.service("counter").outer)
    thread.start()
    assert entered.wait(LONG_S)
    swapper = threading.Thread(target=nx.services.swap, args=("counter", new))
    swapper.start()
    wait_until_draining(nx)
    opened.set()
    thread.join()
    swapper.join()
    assert (old.calls, new.calls) == (1, 0)


def test_a_service_cannot_exchange_itself_from_within_a_call(nx: NexusFS) -> None:
    class Selfish:
        def go(self) -> None:
            nx.services.swap("selfish", Selfish())

    nx.services.enlist("selfish", Selfish())
    with pytest.raises(BusyError, match="a call of the service"):
        nx.service("selfish").go()


def test_a_service_that_others_need_is_not_unregistered(nx: NexusFS) -> None:
    nx.services.enlist("a", object())
    nx.services.enlist("b", object(), depends_on=["a"])
    with pytest.raises(BusyError, match="b depends on it"):
        nx.services.unregister("a")
    nx.services.unregister("b")
    nx.services.unregister("a")
    assert not nx.services.rows()


# -- as paths ---------------------------------------------------------------------------------


def test_services_are_enlisted_swapped_and_unregistered_by_path(nx: NexusFS) -> None:
    first, second = Counter(), Counter()
    stat = nx.sys_setattr("/__sys__/services/counter", service=first)
    assert (stat["name"], stat["state"]) == ("counter", "running")
    nx.sys_setattr("/__sys__/services/counter", service=second)
    assert (first.state, second.state) == ("stopped", "started")
    nx.sys_unlink("/__sys__/services/counter")
    assert second.state == "stopped"
    with pytest.raises(PathNotFoundError, match="no service 'counter'"):
        nx.sys_unlink("/__sys__/services/counter")


def test_services_are_listed_and_read_with_ordinary_calls(nx: NexusFS) -> None:
    nx.services.enlist("b", Counter())
    nx.services.enlist("a", Tagging(b""), depends_on=["b"])
    assert nx.sys_readdir("/__sys__/services/") == ["/__sys__/services/a", "/__sys__/services/b"]
    page = nx.sys_readdir("/__sys__/services", limit=1, details=True)
    assert [(row["name"], row["state"]) for row in page] == [("a", "running")]
    rest = nx.sys_readdir("/__sys__/services", cursor=page.next_cursor, details=True)
    assert [row["name"] for row in rest] == ["b"]
    read = json.loads(nx.read("/__sys__/services/a"))
    assert (read["depends_on"], read["hooks"], read["persistent"]) == (["b"], 1, False)
    stat = nx.sys_stat("/__sys__/services/a")
    assert stat is not None
    assert stat["size"] == len(nx.read("/__sys__/services/a"))
    assert nx.sys_stat("/__sys__/services/c") is None


def test_only_an_administrator_changes_services(nx: NexusFS) -> None:
    nx.services.enlist("a", object())
    ada = nx.bind(OperationContext("ada"))
    with pytest.raises(AccessDeniedError):
        ada.sys_setattr("/__sys__/services/b", service=object())
    with pytest.raises(AccessDeniedError):
        ada.sys_unlink("/__sys__/services/a")


def test_setting_a_service_needs_an_instance_and_nothing_else(nx: NexusFS) -> None:
    with pytest.raises(InvalidArgumentError, match="the instance to enlist is missing"):
        nx.sys_setattr("/__sys__/services/a")
    with pytest.raises(InvalidArgumentError, match="mode"):
        nx.sys_setattr("/__sys__/services/a", service=object(), mode=0o600)
