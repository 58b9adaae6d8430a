"""AgentRegistry: a file for each agent, and an advisory lock on it that is its heartbeat.

Layer: services. It keeps nothing in memory, so any number of instances and processes may work on
one filesystem, and every state outlives them. Unix counterparts: ``struct task_struct`` and
``/proc``, with the lease of a DHCP server in the place of a parent that waits.

An agent is running while the lock on its file is held under the id in its record. A heartbeat
extends the lock; it is no change of the file, so the journal has an agent's beginning and end.

Invariants:

1. One run of an agent id at a time: spawning takes the lock, exclusively, before it writes.
2. A child is committed together with a mark in its parent's record, on condition that this is
   unchanged and the parent's lock held. So none comes into being under a parent that has ended.
3. A record is replaced only on condition that it is what was read, so no change is lost.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import (
    AccessDeniedError,
    BusyError,
    ConflictError,
    CorruptionError,
    InvalidArgumentError,
    PathExistsError,
    PathNotFoundError,
    shown,
)
from nexus.contracts.filesystem import NexusFilesystem, Precondition, WriteRequest
from nexus.contracts.lock_manager import MAX_TTL_S, LockId
from nexus.contracts.protocols.agents import (
    DEFAULT_AGENT_TTL_S,
    ENDED_KEPT_S,
    EXPIRED,
    KILLED,
    RUNNING,
    Agent,
)

FOLDER: Final = "/.nexus/agents"
MAX_DEPTH: Final = 32
MAX_RECORD_BYTES: Final = 64 << 10
_ATTEMPTS: Final = 1000
_PAGE: Final = 1000
_MOMENT_S: Final = 30.0
_AGENT_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,127}").fullmatch
_REGISTRY: Final = OperationContext("agent_registry", is_admin=True)


class AgentRecord(msgspec.Struct, frozen=True):
    """What is stored of an agent, as JSON. ``children`` counts those it has spawned."""

    agent_id: str
    owner_id: str
    lease: str
    ttl_s: float
    started_at: float
    lineage: tuple[str, ...] = ()
    run_id: str | None = None
    attributes: dict[str, Any] = {}
    children: int = 0
    ended_at: float | None = None
    state: str = RUNNING
    reason: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AgentRecord).decode


class _Found(NamedTuple):
    """A record with the etag of its file, and its lock where the agent is running."""

    record: AgentRecord
    etag: str
    hold: dict[str, Any] | None

    @property
    def state(self) -> str:
        if self.record.state != RUNNING:
            return self.record.state
        return RUNNING if self.hold is not None else EXPIRED


class AgentRegistry:
    """Spawns, finds and ends agents. Shared by all threads.

    ``caller`` owns what is spawned by a call without a context.
    """

    def __init__(
        self, nx: NexusFilesystem, clock_ns: Callable[[], int], caller: OperationContext
    ) -> None:
        self._nx = nx
        self._clock_ns = clock_ns
        self._caller = caller

    # -- spawning -----------------------------------------------------------------------------

    def spawn(
        self,
        agent_id: str | None = None,
        *,
        parent: str | None = None,
        ttl_s: float = DEFAULT_AGENT_TTL_S,
        attributes: Mapping[str, Any] | None = None,
        context: OperationContext | None = None,
    ) -> Agent:
        agent_id = uuid.uuid4().hex if agent_id is None else agent_id
        path = _path("spawn", agent_id)
        _check_ttl(ttl_s)
        if parent == agent_id:
            raise InvalidArgumentError("spawn", path, "an agent cannot be its own parent")
        owner = context or self._caller
        record = AgentRecord(
            agent_id,
            owner.user_id,
            "",
            float(ttl_s),
            self._now(),
            run_id=owner.run_id,
            attributes=dict(attributes or {}),
        )
        _encoded(record)  # refused before anything is locked
        lease = self._nx.sys_lock(path, ttl=ttl_s, context=_REGISTRY)
        if lease is None:
            raise PathExistsError("spawn", path, f"the agent {agent_id} is running")
        try:
            self._enter(msgspec.structs.replace(record, lease=str(lease)), parent, lease, context)
        except BaseException:
            self._nx.sys_unlock(path, str(lease), context=_REGISTRY)
            raise
        return self.get(agent_id)

    def _enter(
        self,
        record: AgentRecord,
        parent: str | None,
        lease: LockId,
        context: OperationContext | None,
    ) -> None:
        """Commit a new record, with a mark in its parent's."""
        path = _path("spawn", record.agent_id)
        for _ in range(_ATTEMPTS):
            stat = self._nx.sys_stat(path, context=_REGISTRY)
            known = (
                Precondition(if_none_match="*", lock_token=lease.token)
                if stat is None
                else Precondition(if_match=stat["etag"], lock_token=lease.token)
            )
            writes = []
            if parent is not None:
                lineage, mark = self._mark(parent, context)
                record = msgspec.structs.replace(record, lineage=lineage)
                writes.append(mark)
            writes.append(WriteRequest(path, _encoded(record), precondition=known))
            try:
                self._nx.write_batch(writes, context=_REGISTRY)
            except ConflictError:
                continue  # another child was spawned, or the parent ended: look again
            return
        raise BusyError("spawn", path, "its parent's record changes all the time", hint="retry")

    def _mark(
        self, parent: str, context: OperationContext | None
    ) -> tuple[tuple[str, ...], WriteRequest]:
        """Return the lineage of a child, and the change to its parent's record."""
        found = self._find("spawn", parent)
        _check_owner("spawn", found.record, context)
        lineage = (*found.record.lineage, parent)
        if found.hold is None or found.state != RUNNING:
            reason = f"the parent {parent} is {found.state}, not running"
            raise ConflictError("spawn", _path("spawn", parent), reason)
        if len(lineage) > MAX_DEPTH:
            reason = f"it would be {len(lineage)} generations below the first, over {MAX_DEPTH}"
            raise InvalidArgumentError("spawn", _path("spawn", parent), reason)
        marked = msgspec.structs.replace(found.record, children=found.record.children + 1)
        unchanged = Precondition(if_match=found.etag, lock_token=found.hold["token"])
        path = _path("spawn", parent)
        return lineage, WriteRequest(path, _encoded(marked), create=False, precondition=unchanged)

    # -- looking ------------------------------------------------------------------------------

    def get(self, agent_id: str) -> Agent:
        found = self._find("get", agent_id)
        return _agent(found, self._parent_of(found.record))

    def list(self, *, state: str | None = None, parent: str | None = None) -> tuple[Agent, ...]:
        if state not in (None, RUNNING, KILLED, EXPIRED):
            raise InvalidArgumentError("list", None, f"{shown(state)} is no state of an agent")
        found = {each.record.agent_id: each for each in self._all()}
        running = {agent_id for agent_id, each in found.items() if each.state == RUNNING}
        agents = [_agent(each, _nearest(each.record, running)) for each in found.values()]
        return tuple(
            agent
            for agent in agents
            if (state is None or agent.state == state)
            and (parent is None or agent.parent == parent)
        )

    def _all(self) -> Iterator[_Found]:
        if not self._nx.exists(FOLDER, context=_REGISTRY):
            return
        cursor: str | None = None
        while True:
            page = self._nx.sys_readdir(FOLDER, limit=_PAGE, cursor=cursor, context=_REGISTRY)
            for path in page:
                try:
                    yield self._find("list", path.rpartition("/")[2])
                except PathNotFoundError:
                    continue  # unregistered since the page was read
            cursor = page.next_cursor
            if cursor is None:
                return

    def _find(self, operation: str, agent_id: str) -> _Found:
        path = _path(operation, agent_id)
        # The etag first: a record that is newer than it makes a conflict, never a lost change.
        stat = self._nx.sys_stat(path, context=_REGISTRY)
        if stat is None:
            raise PathNotFoundError(operation, path, f"there is no agent {agent_id}")
        record = _parsed(operation, path, self._nx.sys_read(path, context=_REGISTRY))
        locked = self._nx.sys_stat(path, include_lock=True, context=_REGISTRY)
        holds = locked["locks"] if locked is not None else []
        hold = next((hold for hold in holds if hold["lock_id"] == record.lease), None)
        return _Found(record, stat["etag"], hold)

    def _parent_of(self, record: AgentRecord) -> str | None:
        for ancestor in reversed(record.lineage):
            try:
                if self._find("get", ancestor).state == RUNNING:
                    return ancestor
            except PathNotFoundError:
                continue  # it has ended and was unregistered
        return None

    # -- living and ending --------------------------------------------------------------------

    def heartbeat(
        self, agent_id: str, lease: str | None = None, *, context: OperationContext | None = None
    ) -> Agent:
        found = self._find("heartbeat", agent_id)
        _check_owner("heartbeat", found.record, context)
        path = _path("heartbeat", agent_id)
        record = found.record
        if lease is not None and lease != record.lease:
            raise ConflictError("heartbeat", path, "the lease is that of another run of this agent")
        if found.state == RUNNING:
            extended = self._nx.sys_lock(
                path, ttl=record.ttl_s, lock_id=record.lease, context=_REGISTRY
            )
            if extended is not None:
                return self.get(agent_id)
        state = EXPIRED if found.state == RUNNING else found.state
        hint = "spawn it again"
        raise ConflictError("heartbeat", path, f"the agent {agent_id} is {state}", hint=hint)

    def kill(
        self,
        agent_id: str,
        *,
        recursive: bool = False,
        reason: str = "",
        context: OperationContext | None = None,
    ) -> tuple[str, ...]:
        if not isinstance(reason, str):
            raise InvalidArgumentError("kill", None, f"reason is {shown(reason)}, not text")
        _check_owner("kill", self._find("kill", agent_id).record, context)
        ended = [agent_id] if self._end(agent_id, KILLED, reason) else []
        while recursive:
            # Who has ended gives birth to no one, so this comes to an end.
            some = [
                each.record.agent_id
                for each in self._all()
                if agent_id in each.record.lineage and each.state == RUNNING
            ]
            ended += [child for child in some if self._end(child, KILLED, reason)]
            recursive = bool(some)
        return tuple(ended)

    def _end(self, agent_id: str, state: str, reason: str) -> bool:
        """Mark an agent as ended and let go of its lock; return False where it had ended."""
        path = _path("kill", agent_id)
        for _ in range(_ATTEMPTS):
            found = self._find("kill", agent_id)
            if found.record.state != RUNNING or (found.state == EXPIRED and state == KILLED):
                return False
            record = msgspec.structs.replace(
                found.record, state=state, ended_at=self._now(), reason=reason
            )
            try:
                self._nx.write(path, _encoded(record), if_match=found.etag, context=_REGISTRY)
            except ConflictError:
                continue
            self._nx.sys_unlock(path, record.lease, context=_REGISTRY)
            return True
        raise BusyError("kill", path, "its record changes all the time", hint="retry")

    def unregister(self, agent_id: str, *, context: OperationContext | None = None) -> None:
        _check_owner("unregister", self._find("unregister", agent_id).record, context)
        path = _path("unregister", agent_id)
        lease = self._nx.sys_lock(path, ttl=_MOMENT_S, context=_REGISTRY)
        if lease is None:
            raise BusyError("unregister", path, f"the agent {agent_id} is running", hint="kill it")
        try:
            self._nx.sys_unlink(path, context=_REGISTRY)
        finally:
            self._nx.sys_unlock(path, str(lease), context=_REGISTRY)

    def tidy(self, older_than_s: float = ENDED_KEPT_S) -> tuple[str, ...]:
        before, gone = self._now() - older_than_s, []
        for found in [*self._all()]:
            agent_id, ended_at = found.record.agent_id, found.record.ended_at
            if ended_at is not None and ended_at <= before:
                self.unregister(agent_id)
                gone.append(agent_id)
            elif found.state == EXPIRED and ended_at is None:
                self._end(agent_id, EXPIRED, "missed its heartbeat")
        return tuple(gone)

    def _now(self) -> float:
        return self._clock_ns() / 1e9


def _agent(found: _Found, parent: str | None) -> Agent:
    record = found.record
    return Agent(
        record.agent_id,
        found.state,
        record.owner_id,
        record.lease,
        record.ttl_s,
        record.started_at,
        found.hold["expires_at"] if found.hold and found.state == RUNNING else None,
        record.ended_at,
        record.reason,
        parent,
        record.lineage,
        record.run_id,
        record.attributes,
    )


def _nearest(record: AgentRecord, running: set[str]) -> str | None:
    return next((one for one in reversed(record.lineage) if one in running), None)


def _path(operation: str, agent_id: object) -> str:
    if not isinstance(agent_id, str) or not _AGENT_ID(agent_id):
        hint = "up to 128 letters, digits and ._@-"
        raise InvalidArgumentError(operation, None, f"{shown(agent_id)} is no agent id", hint=hint)
    return f"{FOLDER}/{agent_id}"


def _check_ttl(ttl_s: object) -> None:
    number = isinstance(ttl_s, int | float) and not isinstance(ttl_s, bool)
    if not number or not 0 < ttl_s <= MAX_TTL_S:  # type: ignore[operator]
        raise InvalidArgumentError(
            "spawn", None, f"ttl is {shown(ttl_s)}, not above 0 and up to {MAX_TTL_S:g} seconds"
        )


def _check_owner(operation: str, record: AgentRecord, context: OperationContext | None) -> None:
    if context is None or context.is_admin or context.user_id == record.owner_id:
        return
    path = _path(operation, record.agent_id)
    raise AccessDeniedError(operation, path, f"{context.user_id} does not own this agent")


def _encoded(record: AgentRecord) -> bytes:
    path = _path("spawn", record.agent_id)
    try:
        data = _encode(record)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgumentError("spawn", path, f"attributes are not JSON: {error}") from error
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidArgumentError(
            "spawn", path, f"the record has {len(data)} bytes, over {MAX_RECORD_BYTES}"
        )
    return data


def _parsed(operation: str, path: str, data: bytes) -> AgentRecord:
    try:
        return _decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise CorruptionError(operation, path, f"is no record of an agent: {error}") from error
