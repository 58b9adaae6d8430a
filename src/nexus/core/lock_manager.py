"""LocalLockManager: advisory locks of one process, recorded in the metastore.

Layer: core. Who may hold, who waits and what expires is decided by a semaphore in memory; this
module records the holds, so that they outlive the process, and numbers them. Unix counterpart:
``fs/locks.c``.

A hold is one record, ``L`` zone path token, whose key holds the revision of the commit that
granted it: the fencing token. Revisions never repeat, so neither do tokens.

Invariants:

1. A caller has a hold only once its record is committed.
2. The commit that grants a hold removes the records of holds that have ended. So while the record
   of a hold is there, nobody was granted a lock that it excludes.
3. Holds are found again at the next start, and expire by the same clock.
4. A call that is interrupted holds nothing: it names the id of its hold before it asks for one.

Lock order: the I/O lock, a stripe (level ADVISORY), SealedStore's turn; the semaphore's mutex
under any of them. Nobody waits for an advisory lock with a stripe or an I/O lock held.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import msgspec

from nexus.contracts.errors import ConflictError, InvalidArgumentError, shown
from nexus.contracts.lock_manager import (
    COUNTING,
    EXCLUSIVE,
    MAX_TTL_S,
    SHARED,
    LockHold,
    LockManagerABC,
    LockRequest,
)
from nexus.core.metadata_codec import decode_versioned
from nexus.core.primitives import seal_record
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import Mutation, SealedStore, revision_key, revision_of
from nexus.lib.lock_order import Level, ordered_lock
from nexus.lib.semaphore import VFSSemaphore, new_holder_id

PREFIX: Final = b"L"
LOCK_VERSION: Final = b"\x01"
_STRIPES: Final = 64
_MODES: Final = (EXCLUSIVE, SHARED, COUNTING)
_NUMBERS: Final = (int, float)
_ANY_NUMBER: Final = 1 << 31
_LONGEST_WAIT_S: Final = 1e9

_encode = msgspec.msgpack.Encoder().encode


class LockRecord(msgspec.Struct, frozen=True, array_like=True):
    """A hold, as stored. Path and token are in the key."""

    lock_id: str
    mode: str
    ttl_ms: int
    acquired_at_ns: int
    expires_at_ns: int
    user_id: str
    agent_id: str | None = None
    run_id: str | None = None
    max_holders: int | None = None


_decode = msgspec.msgpack.Decoder(LockRecord).decode


class _Held(msgspec.Struct, frozen=True, gc=False):
    """A hold with its record, which stands in the store unless there was a doubt since."""

    hold: LockHold
    record: Sealed
    doubts: int


class LocalLockManager(LockManagerABC):
    """Advisory locks of every zone of one store. Shared by all threads."""

    def __init__(
        self, store: SealedStore, clock_ns: Callable[[], int], *, durable: bool = False
    ) -> None:
        self._store = store
        self._clock_ns = clock_ns
        self._durable = durable
        self._semaphore = VFSSemaphore(clock_ns)
        self._stripes = tuple(ordered_lock(Level.ADVISORY) for _ in range(_STRIPES))
        # By name, then lock id; changed under the stripe of the name by replacing the inner
        # dict, so that readers need no lock. May still list what has expired.
        self._holds: dict[str, dict[str, _Held]] = {}
        self._is_ours = store.cacheable
        self._doubts = 0  # how often nobody knew what a commit did
        store.on_uncertain(self._doubt)
        # Names that may have records of holds that ended, beyond those in _holds.
        self._stale: set[str] = set()
        self._restore()

    # -- acquiring ----------------------------------------------------------------------------

    def acquire(self, request: LockRequest, timeout_s: float = 0.0) -> LockHold | None:
        name = _name(request.context.zone_id, request.path)
        terms = _terms(request, timeout_s)
        lock_id = new_holder_id()
        try:
            granted = self._semaphore.acquire(name, *terms, lock_id)
            return None if granted is None else self._record(name, lock_id, request)
        except BaseException:  # also an interrupt, after the grant
            self._semaphore.release(name, lock_id)
            raise

    async def acquire_async(self, request: LockRequest, timeout_s: float = 0.0) -> LockHold | None:
        import asyncio  # at the top it would cost every start of the kernel

        name = _name(request.context.zone_id, request.path)
        lock_id = await self._semaphore.acquire_async(name, *_terms(request, timeout_s))
        if lock_id is None:
            return None
        recording = _Recording(self, request)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, recording.run, partial(self._try_record, name, lock_id))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            recording.abandon()
            raise

    def _try_record(self, name: str, lock_id: str, request: LockRequest) -> LockHold | None:
        try:
            return self._record(name, lock_id, request)
        except BaseException:
            self._semaphore.release(name, lock_id)
            raise

    def _record(self, name: str, lock_id: str, request: LockRequest) -> LockHold | None:
        """Commit a hold that the semaphore granted; None where it has ended in the meantime."""
        with self._stripe(name):
            expires_at_ns = self._semaphore.ends_at_ns(name, lock_id)
            if expires_at_ns is None:
                return None
            record = _record_of(request, lock_id, self._clock_ns(), expires_at_ns)
            mutation = Mutation()
            known = self._known_beside(name, mutation)
            prefix, payload, doubts = _prefix(name), encode_lock(record), self._doubts
            mutation.put_at_revision(prefix, payload)
            self._stale.add(name)  # until it is known what the commit did
            token, _ = self._store.commit(mutation, durable=self._durable)
            hold = _hold_of(request.path, token, record)
            held = _Held(hold, _sealed_at(prefix, payload, token), doubts)
            self._holds[name] = known | {lock_id: held}
            self._stale.discard(name)
            return hold

    def _known_beside(self, name: str, mutation: Mutation) -> dict[str, _Held]:
        """Return the live holds beside a new one, and have its commit remove what has ended."""
        listed = self._holds.get(name)
        if listed is None and name not in self._stale:
            return {}
        listed, live = listed or {}, self._live(name)
        known = {lock_id: held for lock_id, held in listed.items() if lock_id in live}
        if name in self._stale or len(known) < len(listed):
            for ended in self._ended(name, live):
                mutation.delete(ended)
        return known

    # -- the rest of a hold's life -------------------------------------------------------------

    def extend(self, request: LockRequest, lock_id: str) -> LockHold | None:
        zone_id, path = request.context.zone_id, request.path
        _, _, ttl_ms = _terms(request, 0)
        name = _name(zone_id, path)
        with self._stripe(name):
            held = self._holds.get(name, {}).get(lock_id)
            if held is None or not self._semaphore.extend(name, lock_id, ttl_ms):
                return None
            expires_at_ns = self._semaphore.ends_at_ns(name, lock_id)
            record = self._record_in(held)
            if expires_at_ns is None or record is None:
                return None
            changed = msgspec.structs.replace(
                decode_lock(record), ttl_ms=ttl_ms, expires_at_ns=expires_at_ns
            )
            mutation, doubts = Mutation(), self._doubts
            mutation.put(record.key, encode_lock(changed), record)
            _, (record,) = self._store.commit(mutation, durable=self._durable)
            hold = msgspec.structs.replace(held.hold, expires_at=expires_at_ns / 1e9)
            self._holds[name] = self._holds[name] | {lock_id: _Held(hold, record, doubts)}
            return hold

    def release(self, zone_id: str, path: str, lock_id: str) -> bool:
        name = _name(zone_id, path)
        with self._stripe(name):
            listed = self._holds.get(name)
            held = None if listed is None else listed.get(lock_id)
            if held is None:
                return False
            record = self._record_in(held)
            if record is not None:
                self._drop([record])
            self._forget(name, lock_id)
            return self._semaphore.release(name, lock_id)

    def force_release(self, zone_id: str, path: str) -> int:
        name = _name(zone_id, path)
        with self._stripe(name):
            self._drop(list(self._records(name)))
            self._holds.pop(name, None)
            return self._semaphore.force_release(name)

    def forget_expired(self) -> int:
        """Remove the records of holds that have expired; return how many there were."""
        removed = 0
        for name in {_name_of(key) for key, _ in self._store.iterate_unverified(PREFIX)}:
            with self._stripe(name):
                ended = self._ended(name, self._live(name))
                self._drop(ended)
                for record in ended:
                    self._forget(name, decode_lock(record).lock_id)
                self._stale.discard(name)
                removed += len(ended)
        return removed

    def _ended(self, name: str, live: Mapping[str, int]) -> list[Sealed]:
        """Return the records of holds that have ended."""
        return [r for r in self._records(name) if decode_lock(r).lock_id not in live]

    def _record_in(self, held: _Held) -> Sealed | None:
        """Return the record of a hold as it stands in the store."""
        if held.doubts == self._doubts and self._is_ours:
            return held.record
        return self._store.get(held.record.key)

    def _doubt(self) -> None:
        self._doubts += 1

    def _drop(self, records: list[Sealed]) -> None:
        if records:
            self._store.commit(Mutation(reclaim=True, deletes=records), durable=self._durable)

    def _forget(self, name: str, lock_id: str) -> None:
        listed = self._holds.get(name)
        if listed is None or lock_id not in listed:
            return
        if len(listed) == 1:
            del self._holds[name]
        else:
            self._holds[name] = {i: held for i, held in listed.items() if i != lock_id}

    # -- looking ------------------------------------------------------------------------------

    def holds(self, zone_id: str, path: str | None = None) -> list[LockHold]:
        zone = _name(zone_id, "")
        names = (
            [zone + path]
            if path is not None
            else [n for n in list(self._holds) if zone == n[: len(zone)]]
        )
        found = [
            held.hold
            for name in names
            if (listed := self._holds.get(name)) and (live := self._live(name))
            for lock_id, held in listed.items()
            if lock_id in live
        ]
        return sorted(found, key=lambda hold: hold.token)

    def proof_of(self, operation: str, zone_id: str, path: str, token: int) -> bytes:
        if any(hold.token == token for hold in self.holds(zone_id, path)):
            return _prefix(_name(zone_id, path)) + revision_key(token)
        raise stale_token(operation, path, token)

    def close(self) -> None:
        self._semaphore.close()

    # -- helpers ------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Take up the holds of earlier processes; a damaged record holds nothing until fsck."""
        now_ns = self._clock_ns()
        for key, sealed in self._store.iterate_unverified(PREFIX):
            name = _name_of(key)
            self._stale.add(name)
            if sealed is None:
                continue
            record = decode_lock(sealed)
            # After a clock that was set back, no hold lasts longer than it was granted for.
            expires_at_ns = min(record.expires_at_ns, now_ns + record.ttl_ms * 1_000_000)
            if expires_at_ns > now_ns:
                hold = _hold_of(name.partition("\0")[2], revision_of(key), record)
                self._semaphore.restore(
                    name, record.lock_id, _bears(record.mode, record.max_holders), expires_at_ns
                )
                held = _Held(hold, sealed, self._doubts)
                self._holds[name] = self._holds.get(name, {}) | {record.lock_id: held}

    def _stripe(self, name: str) -> AbstractContextManager[object]:
        return self._stripes[hash(name) % _STRIPES]

    def _live(self, name: str) -> dict[str, int]:
        info = self._semaphore.info(name)
        return {} if info is None else info.holders

    def _records(self, name: str) -> Iterator[Sealed]:
        return self._store.iterate(_prefix(name))


class _Recording:
    """Records a hold in another thread, for a task that may be cancelled meanwhile."""

    def __init__(self, locks: LocalLockManager, request: LockRequest) -> None:
        self._locks = locks
        self._request = request
        self._mutex = threading.Lock()  # guards the two below; nothing is called under it
        self._hold: LockHold | None = None
        self._abandoned = False

    def run(self, record: Callable[[LockRequest], LockHold | None]) -> LockHold | None:
        hold = record(self._request)
        with self._mutex:
            self._hold = hold
            if not self._abandoned:
                return hold
        self._release(hold)
        return None

    def abandon(self) -> None:
        """Nobody takes the hold any more: release it, now or once it is recorded."""
        with self._mutex:
            self._abandoned = True
            hold = self._hold
        self._release(hold)

    def _release(self, hold: LockHold | None) -> None:
        if hold is not None:
            request = self._request
            self._locks.release(request.context.zone_id, request.path, hold.lock_id)


def stale_token(operation: str, path: str, token: int) -> ConflictError:
    """Return the error for a token whose lock is not held any more."""
    return ConflictError(
        operation,
        path,
        f"lock_token={shown(token)} but no lock held now has it",
        hint="lock and read again before you write",
    )


def _name(zone_id: str, path: str) -> str:
    return f"{zone_id}\0{path}"


def _prefix(name: str) -> bytes:
    return PREFIX + name.encode() + b"\0"


def _name_of(key: bytes) -> str:
    return key[len(PREFIX) : -9].decode()


def _terms(request: LockRequest, timeout_s: float) -> tuple[int, int, int]:
    """Return max_holders, timeout_ms and ttl_ms. Errors: InvalidArgumentError."""
    path, mode, limit = request.path, request.mode, request.max_holders
    if mode not in _MODES:
        raise _bad(path, f"mode is {shown(mode)}; there are exclusive, shared and counting")
    if mode == COUNTING:
        if type(limit) is not int or not 1 <= limit < _ANY_NUMBER:
            raise _bad(path, f"a counting lock with max_holders={shown(limit)}, not at least 1")
    elif limit is not None and not (mode == EXCLUSIVE and limit == 1):
        raise _bad(path, f"max_holders={shown(limit)} is for counting locks, not for {mode} ones")
    ttl_s = request.ttl_s
    if type(ttl_s) is not float and not _is_number(ttl_s):
        raise _bad(path, f"ttl is {shown(ttl_s)}, not a number of seconds")
    if not 0.001 <= ttl_s <= MAX_TTL_S:
        raise _bad(path, f"ttl is {shown(ttl_s)}, not within 0.001 and {MAX_TTL_S:g} seconds")
    if type(timeout_s) is not float and not _is_number(timeout_s):
        raise _bad(path, f"timeout is {shown(timeout_s)}, not a number of seconds")
    if not 0 <= timeout_s <= _LONGEST_WAIT_S:
        raise _bad(path, f"timeout is {shown(timeout_s)}, not a number of seconds")
    return _bears(mode, limit), math.ceil(timeout_s * 1000), math.ceil(ttl_s * 1000)


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _bad(path: str, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError("lock", path, reason)


def _bears(mode: str, max_holders: int | None) -> int:
    if mode == SHARED:
        return _ANY_NUMBER
    return max_holders or 1


def _sealed_at(prefix: bytes, payload: bytes, revision: int) -> Sealed:
    """Return the record that a commit put at its revision."""
    at = revision_key(revision)
    key = prefix + at
    return Sealed(key, payload, revision, seal_record(key, payload, at)[1])


def _record_of(request: LockRequest, lock_id: str, now_ns: int, expires_at_ns: int) -> LockRecord:
    context = request.context
    return LockRecord(
        lock_id,
        request.mode,
        math.ceil(request.ttl_s * 1000),
        now_ns,
        expires_at_ns,
        context.user_id,
        context.agent_id,
        context.run_id,
        request.max_holders if request.mode == COUNTING else None,
    )


def _hold_of(path: str, token: int, record: LockRecord) -> LockHold:
    return LockHold(
        path,
        record.lock_id,
        record.mode,
        record.max_holders,
        token,
        record.acquired_at_ns / 1e9,
        record.expires_at_ns / 1e9,
        record.user_id,
        record.agent_id,
        record.run_id,
    )


def encode_lock(record: LockRecord) -> bytes:
    """Return the stored form of a hold. Errors: InvalidArgumentError."""
    try:
        return LOCK_VERSION + _encode(record)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError("lock", None, f"cannot be stored: {error}") from error


def decode_lock(record: Sealed) -> LockRecord:
    """Return what a record says of a hold. Errors: CorruptionError."""
    return decode_versioned(record, LOCK_VERSION, _as_lock, _decode)


def _as_lock(record: Sealed) -> str:
    return f"the lock record {record.key!r}"
