"""AgentRegistry: one run of an id, leases that expire, children that outlive their parents."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    AccessDeniedError,
    BusyError,
    ConflictError,
    CorruptionError,
    InvalidArgumentError,
    NexusError,
    PathExistsError,
    PathNotFoundError,
)
from nexus.contracts.protocols.agents import AgentRegistryProtocol
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.services.agents.agent_registry import FOLDER, MAX_DEPTH, AgentRegistry

ADA = OperationContext("ada", run_id="r1")
EVE = OperationContext("eve")
START_NS = 1_700_000_000 * 10**9


class Clock:
    """Unix time in nanoseconds, which passes when told."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def pass_time(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nx(clock: Clock) -> Iterator[NexusFS]:
    settings = Settings(data_dir=":memory:", enable=("agent_registry",))
    with boot(settings, clock_ns=clock) as filesystem:
        yield filesystem


@pytest.fixture
def agents(nx: NexusFS) -> AgentRegistryProtocol:
    registry: AgentRegistryProtocol = nx.service("agent_registry")
    return registry


def ids(found: Any) -> list[str]:
    return [agent.agent_id for agent in found]


def test_an_agent_is_found_as_it_was_spawned(agents: AgentRegistryProtocol) -> None:
    spawned = agents.spawn("indexer", ttl_s=10, attributes={"model": "m", "n": 1}, context=ADA)
    assert agents.get("indexer") == spawned
    assert (spawned.state, spawned.owner_id, spawned.run_id) == ("running", "ada", "r1")
    assert (spawned.started_at, spawned.expires_at) == (1_700_000_000.0, 1_700_000_010.0)
    assert spawned.attributes == {"model": "m", "n": 1}


def test_an_agent_that_nobody_in_particular_spawned_belongs_to_the_user_of_the_filesystem(
    clock: Clock,
) -> None:
    settings = Settings(data_dir=":memory:", enable=("agent_registry",), user="bob")
    with boot(settings, clock_ns=clock) as nx:
        agents = nx.service("agent_registry")
        assert agents.spawn("a").owner_id == "bob"
        with pytest.raises(AccessDeniedError):
            agents.kill("a", context=EVE)
        assert agents.kill("a", context=OperationContext("bob")) == ("a",)


def test_an_agent_without_an_id_gets_a_new_one(agents: AgentRegistryProtocol) -> None:
    one, two = agents.spawn(), agents.spawn()
    assert one.agent_id != two.agent_id
    assert ids(agents.list()) == sorted([one.agent_id, two.agent_id])


def test_an_unknown_agent_is_not_found(agents: AgentRegistryProtocol) -> None:
    for call in (agents.get, agents.heartbeat, agents.kill, agents.unregister):
        with pytest.raises(PathNotFoundError, match="no agent nobody"):
            call("nobody")
    assert agents.list() == ()


def test_a_running_agent_keeps_its_id_to_itself(agents: AgentRegistryProtocol) -> None:
    first = agents.spawn("a")
    with pytest.raises(PathExistsError, match="is running"):
        agents.spawn("a")
    assert agents.get("a") == first


@pytest.mark.parametrize("bad", ["", "a/b", "..", ".hidden", "ü", "x" * 129, 7])
def test_a_bad_id_is_refused(agents: AgentRegistryProtocol, bad: Any) -> None:
    for call in (agents.spawn, agents.get, agents.heartbeat, agents.kill, agents.unregister):
        with pytest.raises(InvalidArgumentError, match="is no agent id"):
            call(bad)


def test_bad_terms_are_refused_and_leave_nothing_behind(
    nx: NexusFS, agents: AgentRegistryProtocol
) -> None:
    bad: Any
    for bad in (0, -1, "1", True, 1e9, float("nan")):
        with pytest.raises(InvalidArgumentError, match="ttl"):
            agents.spawn("a", ttl_s=bad)
    for bad in ({"x": object()}, {"x": "y" * 70_000}):
        with pytest.raises(InvalidArgumentError):
            agents.spawn("a", attributes=bad)
    with pytest.raises(InvalidArgumentError, match="its own parent"):
        agents.spawn("a", parent="a")
    with pytest.raises(InvalidArgumentError, match="no state"):
        agents.list(state="tired")
    assert agents.list() == ()
    assert nx.list("/__sys__/locks") == []


# -- heartbeats -------------------------------------------------------------------------------


def test_an_agent_lives_from_heartbeat_to_heartbeat(
    agents: AgentRegistryProtocol, clock: Clock
) -> None:
    agents.spawn("a", ttl_s=10)
    for _ in range(5):
        clock.pass_time(9)
        assert agents.heartbeat("a").expires_at == clock() / 1e9 + 10
    clock.pass_time(10)
    assert agents.get("a").state == "expired"
    assert ids(agents.list(state="expired")) == ["a"]
    with pytest.raises(ConflictError, match="is expired"):
        agents.heartbeat("a")


def test_a_heartbeat_is_no_change_of_a_file(nx: NexusFS, agents: AgentRegistryProtocol) -> None:
    agents.spawn("a")
    before = len(nx.history())
    agents.heartbeat("a")
    assert len(nx.history()) == before


def test_an_id_whose_agent_has_ended_can_be_spawned_again_and_old_leases_are_refused(
    agents: AgentRegistryProtocol, clock: Clock
) -> None:
    old = agents.spawn("a", ttl_s=10)
    clock.pass_time(10)
    new = agents.spawn("a", ttl_s=10)
    assert new.lease != old.lease
    with pytest.raises(ConflictError, match="another run"):
        agents.heartbeat("a", old.lease)
    assert agents.heartbeat("a", new.lease).state == "running"
    agents.kill("a")
    assert agents.spawn("a").state == "running"


# -- parents and children ---------------------------------------------------------------------


def family(agents: AgentRegistryProtocol) -> None:
    agents.spawn("top")
    agents.spawn("mid", parent="top")
    agents.spawn("leaf", parent="mid")
    agents.spawn("other")


def test_a_child_knows_its_parent_and_a_parent_its_children(
    agents: AgentRegistryProtocol,
) -> None:
    family(agents)
    assert agents.get("leaf").parent == "mid"
    assert agents.get("leaf").lineage == ("top", "mid")
    assert ids(agents.list(parent="top")) == ["mid"]


def test_children_of_a_killed_agent_go_to_its_parent(agents: AgentRegistryProtocol) -> None:
    family(agents)
    assert agents.kill("mid", reason="done") == ("mid",)
    assert (agents.get("mid").state, agents.get("mid").reason) == ("killed", "done")
    assert (agents.get("leaf").state, agents.get("leaf").parent) == ("running", "top")
    agents.kill("top")
    assert agents.get("leaf").parent is None


def test_children_of_an_expired_agent_go_to_its_parent(
    agents: AgentRegistryProtocol, clock: Clock
) -> None:
    family(agents)
    clock.pass_time(59)
    for name in ("top", "leaf"):
        agents.heartbeat(name)
    clock.pass_time(2)
    assert agents.get("mid").state == "expired"
    assert ids(agents.list(state="running", parent="top")) == ["leaf"]
    assert agents.get("leaf").parent == "top"


def test_killing_recursively_ends_all_that_descend(agents: AgentRegistryProtocol) -> None:
    family(agents)
    assert sorted(agents.kill("top", recursive=True)) == ["leaf", "mid", "top"]
    assert ids(agents.list(state="running")) == ["other"]


def test_killing_what_has_ended_does_nothing(agents: AgentRegistryProtocol, clock: Clock) -> None:
    agents.spawn("a", ttl_s=10)
    agents.spawn("b")
    clock.pass_time(11)
    assert agents.kill("a") == ()
    assert agents.kill("b") == ("b",)
    assert agents.kill("b") == ()


def test_nothing_is_spawned_under_an_agent_that_has_ended(
    nx: NexusFS, agents: AgentRegistryProtocol, clock: Clock
) -> None:
    agents.spawn("killed")
    agents.kill("killed")
    agents.spawn("expired", ttl_s=1)
    clock.pass_time(2)
    for parent in ("killed", "expired"):
        with pytest.raises(ConflictError, match=f"{parent}, not running"):
            agents.spawn("child", parent=parent)
    with pytest.raises(PathNotFoundError):
        agents.spawn("child", parent="nobody")
    assert not nx.exists(f"{FOLDER}/child")
    assert nx.list("/__sys__/locks") == []


def test_generations_are_bounded(agents: AgentRegistryProtocol) -> None:
    agents.spawn("g0")
    for depth in range(1, MAX_DEPTH + 1):
        agents.spawn(f"g{depth}", parent=f"g{depth - 1}")
    with pytest.raises(InvalidArgumentError, match="generations"):
        agents.spawn("last", parent=f"g{MAX_DEPTH}")


# -- forgetting -------------------------------------------------------------------------------


def test_an_agent_that_has_ended_can_be_forgotten(agents: AgentRegistryProtocol) -> None:
    agents.spawn("a")
    with pytest.raises(BusyError, match="is running"):
        agents.unregister("a")
    agents.kill("a")
    agents.unregister("a")
    with pytest.raises(PathNotFoundError):
        agents.get("a")


def test_tidying_forgets_what_ended_long_ago_and_never_what_runs(
    agents: AgentRegistryProtocol, clock: Clock
) -> None:
    agents.spawn("killed")
    agents.kill("killed")
    agents.spawn("expired", ttl_s=1)
    agents.spawn("running", ttl_s=1000)
    clock.pass_time(100)
    assert agents.tidy(50) == ("killed",)
    assert agents.tidy(50) == ()
    clock.pass_time(50)
    assert agents.tidy(50) == ("expired",)
    assert ids(agents.list()) == ["running"]


# -- who may ----------------------------------------------------------------------------------


def test_only_its_owner_and_administrators_act_on_an_agent(agents: AgentRegistryProtocol) -> None:
    agents.spawn("a", context=ADA)
    calls: list[Any] = [
        lambda: agents.kill("a", context=EVE),
        lambda: agents.heartbeat("a", context=EVE),
        lambda: agents.unregister("a", context=EVE),
        lambda: agents.spawn("b", parent="a", context=EVE),
    ]
    for call in calls:
        with pytest.raises(AccessDeniedError, match="eve does not own"):
            call()
    assert agents.heartbeat("a", context=ADA).state == "running"
    assert agents.kill("a") == ("a",)


def test_with_permissions_on_the_records_are_nobody_elses() -> None:
    settings = Settings(data_dir=":memory:", profile="lite")
    with boot(settings) as nx:
        agents = nx.service("agent_registry")
        agents.spawn("a", context=EVE)
        eve = nx.bind(EVE)
        calls: list[Any] = [
            lambda: eve.read(f"{FOLDER}/a"),
            lambda: eve.write(f"{FOLDER}/a", b"{}"),
            lambda: eve.sys_unlink(f"{FOLDER}/a"),
            lambda: eve.sys_lock(f"{FOLDER}/b"),
        ]
        for call in calls:
            with pytest.raises(AccessDeniedError):
                call()
        assert agents.kill("a", context=EVE) == ("a",)


# -- many at once, and later ------------------------------------------------------------------


def test_of_many_who_spawn_one_id_one_succeeds(agents: AgentRegistryProtocol) -> None:
    def spawn(number: int) -> bool:
        try:
            agents.spawn("a", attributes={"number": number})
        except PathExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(spawn, range(16))) == 1
    assert agents.get("a").state == "running"


def test_children_spawned_at_once_are_all_there(agents: AgentRegistryProtocol) -> None:
    agents.spawn("top")
    with ThreadPoolExecutor(8) as pool:
        spawned = [*pool.map(lambda n: agents.spawn(f"c{n}", parent="top"), range(16))]
    assert {agent.parent for agent in spawned} == {"top"}
    assert len(agents.list(parent="top")) == 16


@pytest.mark.parametrize("attempt", range(5))
def test_no_descendant_survives_a_recursive_kill(
    agents: AgentRegistryProtocol, attempt: int
) -> None:
    agents.spawn("top")

    def breed(number: int) -> None:
        parent = "top"
        for depth in range(8):
            child = f"c{number}-{depth}"
            try:
                agents.spawn(child, parent=parent)
            except ConflictError:
                return
            parent = child

    with ThreadPoolExecutor(8) as pool:
        breeding = [pool.submit(breed, number) for number in range(4)]
        agents.kill("top", recursive=True)
        for future in breeding:
            future.result()
    assert agents.list(state="running") == ()


def test_several_registries_of_one_filesystem_agree(
    nx: NexusFS, agents: AgentRegistryProtocol, clock: Clock
) -> None:
    other = AgentRegistry(nx, clock, ADA)
    agents.spawn("a")
    assert other.kill("a") == ("a",)
    assert agents.get("a").state == "killed"


def test_agents_outlive_their_process(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from nexus.sdk import connect\n"
        "nx = connect({'data_dir': sys.argv[1], 'enable': 'agent_registry'})\n"
        "print(nx.service('agent_registry').spawn('a', ttl_s=86400).lease, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    data = str(tmp_path / "data")
    finished = subprocess.run(
        [sys.executable, "-c", code, data], capture_output=True, text=True, check=False
    )
    lease = finished.stdout.strip()
    assert lease, finished.stderr
    with boot(Settings(data_dir=data, enable=("agent_registry",))) as nx:
        agents = nx.service("agent_registry")
        assert agents.heartbeat("a", lease).state == "running"
        assert agents.kill("a") == ("a",)


def test_a_record_that_is_none_is_named(nx: NexusFS, agents: AgentRegistryProtocol) -> None:
    agents.spawn("a")
    nx.write(f"{FOLDER}/a", b"rubbish")
    with pytest.raises(CorruptionError, match=f"{FOLDER}/a"):
        agents.get("a")


def test_the_registry_can_be_exchanged_and_taken_away_while_in_use(
    nx: NexusFS, agents: AgentRegistryProtocol, clock: Clock
) -> None:
    def spawn(number: int) -> str:
        return agents.spawn(f"a{number}").agent_id

    with ThreadPoolExecutor(4) as pool:
        spawned = pool.map(spawn, range(40))
        for _ in range(5):
            nx.sys_setattr(
                "/__sys__/services/agent_registry", service=AgentRegistry(nx, clock, ADA)
            )
        names = set(spawned)
    assert {agent.agent_id for agent in agents.list()} == names
    nx.sys_unlink("/__sys__/services/agent_registry")
    with pytest.raises(NexusError):
        agents.list()
    nx.write("/f", b"goes on")
