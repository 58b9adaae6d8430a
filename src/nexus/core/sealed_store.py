"""SealedStore: an ordered store whose every value carries a seal, and whose totals are kept.

Layer: core, between the typed tables and a :class:`MetastoreABC`. No embedded engine is trusted
blindly: one flipped bit in a database file can come back as a wrong, an old or a missing value.
It holds no types and no paths. Formats are in docs/formats.md.

Invariants:

1. A value is returned only if its seal, a checksum over key, revision and payload, matches.
2. Zone revisions are assigned in commit order, one a mutation, without reuse.
3. The head record, written in each commit, holds the revision, the number of sealed records and
   the sum of their seals modulo 2**64, so that a missing record is noticed by counting.
4. After a commit whose outcome is unknown the head is read again before anything else commits.

Lock order: ``_turn``, then whatever the driver takes. Where the driver shares syncs, a mutation is
committed by itself within the turn, and the sync that it asks for is waited for after it. Elsewhere
commits are grouped: mutations queue, and whoever gets ``_turn`` commits everything queued in one
batch of the driver, synced once if any asks for it. A batch that is refused for one mutation's sake
is repeated mutation by mutation.

The head is the last put of each commit and its only condition: a driver may keep count by it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from nexus.contracts.errors import (
    ConflictError,
    CorruptionError,
    NexusError,
    NoSpaceError,
    StorageFailedError,
)
from nexus.contracts.metastore import Batch, Condition, MetastoreABC
from nexus.core.primitives import seal_commit, seal_record, unseal_record
from nexus.core.record_seal import HEAD, HeadFields, Sealed
from nexus.lib.lock_order import Level, ordered_lock

_REVISION = struct.Struct(">Q")  # big-endian, so that it sorts in keys
_HEAD_KEY = b"K"  # next to the newest journal entry, for one page less in each commit
_MASK = (1 << 64) - 1
_GROUP_LIMIT = 256
SCAN_PAGE = 512
CHAIN = b"A"
"""Followed by a revision, the key of the record of that commit."""

_FSCK_HINT = "run `nexus fsck`; `nexus fsck --repair` restores what has a second copy"


class Head(NamedTuple):
    """The totals of the store as of a revision."""

    revision: int = 0
    records: int = 0
    seal_sum: int = 0
    journal_start: int = 1
    chain_end: int = 0
    """The revision of the newest commit with a record of its own; 0 for none."""

    @property
    def totals(self) -> tuple[int, int]:
        """What a loss of records, or a damaged one, changes."""
        return self.records, self.seal_sum

    def packed(self) -> bytes:
        """Return the payload of the head record."""
        return HEAD.pack(*self)


Chain = Callable[[Sequence[Any], int, bytes], bytes]
"""Told of what is being committed, its revision, and the record of the commit before it that had
one (empty for the first); returns the record of this one. Called within the turn: it takes none."""

_Link = tuple[int, bytes]
"""A revision, and the record of its commit."""

Tap = Callable[[Sequence[Any]], Callable[[int], None] | None]
"""Told of what is about to be committed; returns what to call with its revision, in order."""


class Mutation(msgspec.Struct):
    """What one commit changes. Built by one thread, then handed to :meth:`SealedStore.commit`.

    ``replaced`` is the record that a put or a delete finds there, as read before, or None.
    """

    reclaim: bool = False
    on_committed: Callable[[int], None] | None = None
    """Called with the revision, in commit order, before the next commit: it takes no turn."""
    chain: Callable[[int, bytes], bytes] | None = None
    """Makes the record of this commit from its revision and the record before."""
    puts: list[tuple[bytes, bytes, Sealed | None]] = []
    deletes: list[Sealed] = []
    at_revision: list[tuple[bytes, bytes, bytes]] = []
    required: list[tuple[bytes, ConflictError]] = []
    journal_start: int | None = None

    def put(self, key: bytes, payload: bytes, replaced: Sealed | None) -> None:
        """Write a record."""
        self.puts.append((key, payload, replaced))

    def delete(self, record: Sealed) -> None:
        """Remove a record that exists."""
        self.deletes.append(record)

    def require(self, key: bytes, error: ConflictError) -> None:
        """Commit only if a record is at the key then, else nothing is done but to raise."""
        self.required.append((key, error))

    def put_at_revision(self, prefix: bytes, payload: bytes, suffix: bytes = b"") -> None:
        """Write a new record whose key holds the revision of this commit."""
        self.at_revision.append((prefix, payload, suffix))


class _Ticket(msgspec.Struct):
    mutation: Mutation
    durable: bool
    done: bool = False
    error: NexusError | None = None
    revision: int = 0
    written: list[Sealed] = []


def revision_key(revision: int) -> bytes:
    """Return a revision as it stands in keys: 8 bytes, big-endian."""
    return _REVISION.pack(revision)


def revision_of(key: bytes, end: int | None = None) -> int:
    """Return the revision that stands in the 8 bytes of a key before ``end``."""
    stop = len(key) if end is None else end
    revision: int = _REVISION.unpack_from(key, stop - 8)[0]
    return revision


class SealedStore:
    """Reads and commits sealed records. Shared by all threads."""

    def __init__(self, store: MetastoreABC) -> None:
        self._store = store
        self._shares_syncs = store.capabilities.shares_syncs
        self._turn = ordered_lock(Level.THREAD)
        self._queue: deque[_Ticket] = deque()
        self._head: HeadFields | None = None  # guarded by _turn; None: read it before a commit
        self._newest_link: _Link = (0, b"")  # guarded by _turn
        self._head_version = 0
        self.commits = 0  # of this process; guarded by _turn
        self._on_uncertain: list[Callable[[], None]] = []
        self.tap: Tap | None = None
        self.chain: Chain | None = None
        self._on_announce: list[Callable[[Sequence[Any]], None]] = []

    @property
    def cacheable(self) -> bool:
        """Whether what was read may be kept in memory: nobody else changes the store."""
        return self._store.capabilities.exclusive_owner

    def on_uncertain(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back when a commit failed with an unknown outcome: drop what is cached.

        Returns what ends that.
        """
        self._on_uncertain = [*self._on_uncertain, callback]  # one list is one state, for readers
        return lambda: self._forget(callback)

    def _forget(self, callback: Callable[[], None]) -> None:
        with self._turn:
            self._on_uncertain = [known for known in self._on_uncertain if known != callback]

    def on_announce(self, callback: Callable[[Sequence[Any]], None]) -> None:
        """Call back, in the thread that committed, with what it announces of its commit."""
        self._on_announce.append(callback)

    def announce(self, events: Sequence[Any]) -> None:
        """Tell listeners what a commit that has returned did; the types are the committer's."""
        for callback in self._on_announce:
            callback(events)

    def get(self, key: bytes) -> Sealed | None:
        """Return the record, or None where there is none. Errors: CorruptionError."""
        found = self._store.get(key)
        return None if found is None else self._open(key, found[0])

    def get_many(self, keys: list[bytes]) -> list[Sealed | None]:
        """Return one answer a key. Errors: CorruptionError."""
        answers = self._store.get_many(keys)
        return [
            None if found is None else self._open(key, found[0])
            for key, found in zip(keys, answers, strict=True)
        ]

    def scan(self, prefix: bytes, after: bytes = b"", limit: int = SCAN_PAGE) -> list[Sealed]:
        """Return up to ``limit`` verified records in key order; fewer means no more."""
        return [
            self._open(entry.key, entry.value) for entry in self._store.scan(prefix, after, limit)
        ]

    def holds_any(self, prefix: bytes) -> bool:
        """Return whether there is a record with a prefix, damaged or not."""
        return bool(self._store.scan(prefix, limit=1))

    def iterate(self, prefix: bytes, after: bytes = b"") -> Iterator[Sealed]:
        """Yield all records with a prefix, page by page; a writer may come between pages."""
        while True:
            page = self.scan(prefix, after)
            yield from page
            if len(page) < SCAN_PAGE:
                return
            after = page[-1].key

    def iterate_unverified(self, prefix: bytes = b"") -> Iterator[tuple[bytes, Sealed | None]]:
        """Yield every key with its record, None where the seal does not match: for checkers."""
        after = b""
        while True:
            page = self._store.scan(prefix, after, SCAN_PAGE)
            for entry in page:
                if entry.key != _HEAD_KEY:
                    yield entry.key, _verified(entry.key, entry.value)
            if len(page) < SCAN_PAGE:
                return
            after = page[-1].key

    def head(self) -> Head:
        """Return the totals as of the last commit. Errors: CorruptionError."""
        with self._turn:
            return Head._make(self._load_head_locked())

    @contextmanager
    def frozen(self) -> Iterator[Head | None]:
        """Hold off commits for the length of the block; reads go on.

        Yields the totals, or None where the head record is damaged.
        """
        with self._turn:
            try:
                head: Head | None = Head._make(self._load_head_locked())
            except CorruptionError:
                head = None
            yield head

    def commit(self, mutation: Mutation, *, durable: bool) -> tuple[int, list[Sealed]]:
        """Commit atomically; return the zone revision and the records now at ``mutation.puts``.

        Errors: those of the driver, and that of a requirement which does not hold, with nothing
        acknowledged.
        """
        if self._shares_syncs:
            return self._commit_alone(mutation, durable)
        ticket = _Ticket(mutation, durable)
        try:
            self._queue.append(ticket)
            with self._turn:
                while not ticket.done:
                    self._commit_group_locked(ticket)
        except BaseException:
            self._withdraw(ticket)
            raise
        if ticket.error is not None:
            import copy  # costs start-up time, for an error only

            raise copy.copy(ticket.error)
        return ticket.revision, ticket.written

    def _commit_alone(self, mutation: Mutation, durable: bool) -> tuple[int, list[Sealed]]:
        """Commit within the turn, and wait for the disk after it, with who else waits for that."""
        try:
            with self._turn:
                answer = self._apply_alone_locked(mutation)
            if durable:
                self._store.sync()
            return answer
        except BaseException as error:
            self._head = None
            if not isinstance(error, NoSpaceError | ConflictError):
                self._tell_uncertain()
            raise

    def _withdraw(self, ticket: _Ticket) -> None:
        """Return once nobody will commit the ticket any more, whatever interrupts the wait.

        Its owner is about to give up the locks that cover what it changes.
        """
        ticket.done = True  # whoever takes the queue from now on passes it over
        while True:
            try:
                with self._turn:  # whoever has taken it already is done with it
                    return
            except KeyboardInterrupt:
                continue  # the first interrupt is on its way to the caller

    def repair_locked(
        self, puts: list[tuple[bytes, bytes, int]], dropped: list[bytes], before: Head | None
    ) -> Head:
        """Write (key, payload, revision) records, drop others, and count everything anew.

        For a checker, within :meth:`frozen`, with the totals ``before`` or None where they are
        lost. Where the new ones differ something is gone for good. That may be a journal entry, so
        the journal is then complete only from here on.
        """
        values = [seal_record(key, payload, revision_key(at))[0] for key, payload, at in puts]
        sealed = [(put[0], value) for put, value in zip(puts, values, strict=True)]
        self._store.commit(Batch(sealed, dropped), durable=True)
        revision, records, total = before.revision if before else 0, 0, 0
        chain_end = 0
        for _, record in self.iterate_unverified():
            if record is not None:
                if record.key.startswith(CHAIN):
                    chain_end = record.revision
                revision = max(revision, record.revision)
                records += 1
                total += record.seal
        head = Head(revision, records, total & _MASK, revision + 1, chain_end)
        if before is not None and head.revision == before.revision:
            head = before if head.totals == before.totals else head
        value, _ = seal_record(_HEAD_KEY, head.packed(), revision_key(head.revision))
        self._store.commit(Batch([(_HEAD_KEY, value)]), durable=True)
        self._head = None
        self._tell_uncertain()
        return head

    def check(self) -> list[str]:
        """Return what the driver finds wrong with its own structure."""
        return self._store.check()

    def sync(self) -> None:
        """Make every commit so far survive a power cut. Errors: StorageFailedError."""
        self._store.sync()

    def close(self) -> None:
        """Close the driver once no commit is under way."""
        with self._turn:
            self._store.close()

    def _open(self, key: bytes, value: bytes) -> Sealed:
        record = _verified(key, value)
        if record is None:
            raise CorruptionError(
                "metastore", None, f"record {key!r} does not match its seal", hint=_FSCK_HINT
            )
        return record

    def _load_head_locked(self) -> HeadFields:
        if self._head is None:
            found = self._store.get(_HEAD_KEY)
            if found is None:
                if self._store.scan(b"", limit=1):
                    raise CorruptionError(
                        "metastore", None, "the head record is missing", hint=_FSCK_HINT
                    )
                self._head, self._head_version = Head(), 0
            else:
                payload = self._open(_HEAD_KEY, found[0]).payload
                if len(payload) > HEAD.size:
                    raise CorruptionError(
                        "metastore",
                        None,
                        f"the head record has {len(payload)} bytes, more than {HEAD.size}",
                        hint="it was written by a newer release",
                    )
                fields = HEAD.unpack(payload.ljust(HEAD.size, b"\0"))  # early ones have fewer
                self._head, self._head_version = Head._make(fields), found[1]
        return self._head

    def _link_of(self, revision: int) -> bytes:
        """Return the record of a commit, empty where it has none."""
        record = self.get(CHAIN + _REVISION.pack(revision)) if revision else None
        return record.payload if record else b""

    def _commit_group_locked(self, own: _Ticket) -> None:
        """Commit what is queued, and answer ``own`` if only to say that it was lost."""
        tickets: list[_Ticket] = []
        try:
            while self._queue and len(tickets) < _GROUP_LIMIT:
                if not self._queue[0].done:
                    tickets.append(self._queue[0])
                self._queue.popleft()  # after it is in the list: an interrupt loses nothing
            if not tickets:
                # Who took it was interrupted while answering: nobody knows what became of it.
                own.error, own.done = _interrupted(), True
                return
            refused = self._try_group_locked(tickets)
            if len(tickets) > 1 and refused and not isinstance(refused, StorageFailedError):
                # On a full disk, say, a deletion may still fit where the whole group does not.
                for ticket in tickets:
                    self._try_group_locked([ticket])
        except BaseException:
            # An interrupt (a signal, no memory): nobody knows what was committed.
            self._head = None
            for ticket in tickets:
                ticket.error = ticket.error or _interrupted()
            self._tell_uncertain()
            raise
        finally:
            for ticket in tickets:
                ticket.done = True

    def _tell_uncertain(self) -> None:
        for callback in self._on_uncertain:
            callback()

    def _try_group_locked(self, tickets: list[_Ticket]) -> NexusError | None:
        """Commit them; return what refused all of them, not what each one failed by itself."""
        try:
            self._apply_group_locked(tickets)
            return None
        except NexusError as error:
            self._head = None
            if not isinstance(error, NoSpaceError | ConflictError):
                self._tell_uncertain()
            for ticket in tickets:
                ticket.error = error
            return error

    def _apply_group_locked(self, tickets: list[_Ticket]) -> None:
        head = self._head or self._load_head_locked()
        link = self._newest_link
        puts: dict[bytes, bytes] = {}
        deletes: dict[bytes, None] = {}
        committed: list[_Ticket] = []
        for ticket in tickets:
            mutation = ticket.mutation
            ticket.error = self._unmet(mutation, puts, deletes)
            if ticket.error is not None:
                continue
            head, link, rows, ticket.written = self._sealed_locked(head, link, mutation)
            ticket.revision = head[0]
            for record in mutation.deletes:
                deletes[record.key] = None
                puts.pop(record.key, None)
            puts.pop(_HEAD_KEY, None)  # so that the newest comes last
            for key, value in rows:
                deletes.pop(key, None)
                puts[key] = value
            committed.append(ticket)
        if not committed:
            return
        durable = any(ticket.durable for ticket in committed)
        reclaim = all(ticket.mutation.reclaim for ticket in committed)
        rows = list(puts.items())
        self._store_locked(head, link, rows, list(deletes), durable=durable, reclaim=reclaim)
        self.commits += len(committed)
        for ticket in committed:
            if ticket.mutation.on_committed is not None:
                ticket.mutation.on_committed(ticket.revision)

    def _apply_alone_locked(self, mutation: Mutation) -> tuple[int, list[Sealed]]:
        if mutation.required:
            error = self._unmet(mutation, {}, {})
            if error is not None:
                raise error
        head = self._head or self._load_head_locked()
        head, link, rows, written = self._sealed_locked(head, self._newest_link, mutation)
        deletes: list[bytes] = []
        if mutation.deletes:
            kept = {key for key, _ in rows}
            deletes = [record.key for record in mutation.deletes if record.key not in kept]
        self._store_locked(head, link, rows, deletes, durable=False, reclaim=mutation.reclaim)
        self.commits += 1
        if mutation.on_committed is not None:
            mutation.on_committed(head[0])
        return head[0], written

    def _sealed_locked(
        self, head: HeadFields, link: _Link, mutation: Mutation
    ) -> tuple[HeadFields, _Link, list[tuple[bytes, bytes]], list[Sealed]]:
        """Return the head after a mutation, the newest link, its rows, and the records it puts."""
        at_revision = mutation.at_revision
        if mutation.chain is not None:
            before, records, seals, start, end = head
            previous = link[1] if link[0] == end else self._link_of(end)
            link = before + 1, mutation.chain(before + 1, previous)
            at_revision = [*at_revision, (CHAIN, link[1], b"")]
            head = before, records, seals, start, before + 1
        if mutation.journal_start is not None:
            head = (*head[:3], max(head[3], mutation.journal_start), head[4])
        rows, written, head = seal_commit(
            _HEAD_KEY, head, mutation.puts, mutation.deletes, at_revision
        )
        return head, link, rows, written

    def _store_locked(
        self,
        head: HeadFields,
        link: _Link,
        rows: list[tuple[bytes, bytes]],
        deletes: list[bytes],
        *,
        durable: bool,
        reclaim: bool,
    ) -> None:
        condition = Condition(_HEAD_KEY, self._head_version)
        self._head_version = self._store.commit(
            Batch(rows, deletes), (condition,), durable=durable, reclaim=reclaim
        )
        self._newest_link = link
        self._head = head

    def _unmet(
        self, mutation: Mutation, puts: dict[bytes, bytes], deletes: dict[bytes, None]
    ) -> ConflictError | None:
        """Return the error of the first requirement that does not hold before this mutation."""
        for key, error in mutation.required:
            if key not in puts and (key in deletes or self._store.get(key) is None):
                return error
        return None


def _interrupted() -> StorageFailedError:
    return StorageFailedError("commit", None, "the commit was interrupted")


def _verified(key: bytes, value: bytes) -> Sealed | None:
    found = unseal_record(key, value)
    return None if found is None else Sealed(key, *found)
