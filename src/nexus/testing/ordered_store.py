"""OrderedStoreSuite: what every driver of MetastoreABC must hold.

Layer: testing. A driver's test subclasses the suite and says how to make a store::

    class TestMyStore(OrderedStoreSuite):
        def make(self, directory: str) -> MetastoreABC:
            return MyStore(directory + "/store")

Calling ``make`` again on the same directory, after close, reopens a persistent store. Tests are
named by the invariant of :mod:`nexus.contracts.metastore` that they check. What only a process
kill, a failing disk or a power cut can show (parts of 2, 3 and 5) is the driver's own test.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nexus.contracts.errors import ClosedError, ConflictError
from nexus.contracts.metastore import Batch, Condition, MetastoreABC, StoredEntry

_LONGEST_KEY_BYTES = 4608
_LONGEST_VALUE_BYTES = 64 << 10


class OrderedStoreSuite:
    """Subclass, implement :meth:`make`, and let pytest collect it."""

    __test__ = False

    def __init_subclass__(cls) -> None:
        cls.__test__ = True

    def make(self, directory: str) -> MetastoreABC:
        """Open the store of a directory, making it when it is not there."""
        raise NotImplementedError

    @pytest.fixture
    def directory(self, tmp_path: Path) -> str:
        return str(tmp_path)

    @pytest.fixture
    def store(self, directory: str) -> Iterator[MetastoreABC]:
        store = self.make(directory)
        yield store
        store.close()

    def reopened(self, store: MetastoreABC, directory: str) -> MetastoreABC:
        """Close and open again; skips the test on a store that persists nothing."""
        if not store.capabilities.persistent:
            pytest.skip("the store persists nothing")
        store.close()
        return self.make(directory)

    # Absent keys and plain reading

    def test_a_new_store_is_empty_at_revision_0(self, store: MetastoreABC) -> None:
        assert store.revision() == 0
        assert store.get(b"k") is None
        assert store.get_many([b"a", b"b"]) == [None, None]
        assert store.scan(b"") == []

    def test_get_many_answers_in_the_order_asked(self, store: MetastoreABC) -> None:
        keys = [b"k%04d" % number for number in range(1100)]
        for start in range(0, len(keys), 100):
            store.commit(Batch([(key, b"v" + key) for key in keys[start : start + 100]]))
        asked = [*reversed(keys), b"absent", keys[0], keys[0]]
        answers = store.get_many(asked)
        assert [answer and answer[0] for answer in answers] == [
            *[b"v" + key for key in reversed(keys)],
            None,
            b"v" + keys[0],
            b"v" + keys[0],
        ]
        assert store.get_many([]) == []

    @pytest.mark.parametrize("value", [b"", b"\x00", b"\xff" * 3, b"x" * _LONGEST_VALUE_BYTES])
    def test_any_value_up_to_64_kib_comes_back(self, store: MetastoreABC, value: bytes) -> None:
        revision = store.commit(Batch([(b"k", value)]))
        assert store.get(b"k") == (value, revision)
        assert store.scan(b"k") == [StoredEntry(b"k", value, revision)]

    def test_a_key_of_4608_bytes_is_found_and_deleted(self, store: MetastoreABC) -> None:
        stem = b"\xff" * (_LONGEST_KEY_BYTES - 1)
        store.commit(Batch([(stem + b"a", b"1"), (stem + b"b", b"2"), (stem, b"0")]))
        assert [entry.value for entry in store.scan(stem)] == [b"0", b"1", b"2"]
        store.commit(Batch([], [stem + b"a"]))
        assert [entry.value for entry in store.scan(b"", after=stem)] == [b"2"]

    def test_a_batch_of_128_operations_and_1_mib_is_one_commit(self, store: MetastoreABC) -> None:
        puts = [(b"k%03d" % number, bytes([number]) * 8192) for number in range(127)]
        store.commit(Batch([(b"old", b"")]))
        revision = store.commit(Batch(puts, [b"old"]))
        entries = store.scan(b"")
        assert [(entry.key, entry.value) for entry in entries] == puts
        assert {entry.version for entry in entries} == {revision}

    # Invariant 1

    def test_invariant_1_keys_compare_as_unsigned_bytes(self, store: MetastoreABC) -> None:
        keys = [b"\x00", b"\x00\x00", b"\x7f", b"\x80", b"a", b"a\x00", b"a\xff", b"b", b"\xff"]
        keys += [b"\xff\xff", b"\xff\x00", b"\xc3\xa4"]
        store.commit(Batch([(key, b"") for key in keys]))
        assert [entry.key for entry in store.scan(b"")] == sorted(keys)

    def test_invariant_1_a_version_is_the_revision_of_the_last_put(
        self, store: MetastoreABC
    ) -> None:
        first = store.commit(Batch([(b"a", b"1"), (b"b", b"1")]))
        second = store.commit(Batch([(b"a", b"2")]))
        store.commit(Batch([], [b"c"]))
        assert store.get_many([b"a", b"b"]) == [(b"2", second), (b"1", first)]

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            (b"a", [b"a", b"a\x00", b"a\xff", b"a\xff\xff"]),
            (b"a\xff", [b"a\xff", b"a\xff\xff"]),
            (b"\xff", [b"\xff", b"\xff\xff"]),
            (b"\xff\xff", [b"\xff\xff"]),
            (b"\xff\xff\xff", []),
            (b"c", []),
        ],
    )
    def test_invariant_1_a_prefix_takes_its_keys_and_no_other(
        self, store: MetastoreABC, prefix: bytes, expected: list[bytes]
    ) -> None:
        keys = [b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xfe", b"\xff", b"\xff\xff"]
        store.commit(Batch([(key, b"") for key in keys]))
        assert [entry.key for entry in store.scan(prefix)] == expected

    def test_a_scan_keeps_after_before_and_limit(self, store: MetastoreABC) -> None:
        store.commit(Batch([(b"k%d" % number, b"") for number in range(10)]))

        def keys(**arguments: object) -> list[bytes]:
            return [entry.key for entry in store.scan(b"k", **arguments)]  # type: ignore[arg-type]

        assert keys(after=b"k6") == [b"k7", b"k8", b"k9"]
        assert keys(before=b"k2") == [b"k0", b"k1"]
        assert keys(after=b"k2", before=b"k5") == [b"k3", b"k4"]
        assert keys(after=b"k5", before=b"k5") == []
        assert keys(after=b"k5", before=b"k2") == []
        assert keys(after=b"a", before=b"z", limit=2) == [b"k0", b"k1"]
        assert keys(after=b"z") == []
        assert keys(limit=0) == []

    # Invariant 2 and conditions

    def test_invariant_2_a_failed_condition_applies_nothing(self, store: MetastoreABC) -> None:
        first = store.commit(Batch([(b"a", b"1")]))
        holds, fails = Condition(b"a", first), Condition(b"b", 7)
        with pytest.raises(ConflictError):
            store.commit(Batch([(b"a", b"2"), (b"b", b"2")], [b"c"]), [holds, fails])
        assert store.get_many([b"a", b"b"]) == [(b"1", first), None]
        assert store.revision() == first

    def test_a_condition_is_on_the_version_or_on_absence(self, store: MetastoreABC) -> None:
        first = store.commit(Batch([(b"a", b"1")]), [Condition(b"a", 0)])
        with pytest.raises(ConflictError):
            store.commit(Batch([(b"a", b"2")]), [Condition(b"a", 0)])
        second = store.commit(Batch([(b"a", b"2")]), [Condition(b"a", first)])
        with pytest.raises(ConflictError):
            store.commit(Batch([(b"a", b"3")]), [Condition(b"a", first)])
        store.commit(Batch([], [b"a"]), [Condition(b"a", second), Condition(b"b", 0)])
        assert store.get(b"a") is None

    def test_deleting_an_absent_key_is_a_commit_like_any(self, store: MetastoreABC) -> None:
        revision = store.commit(Batch([], [b"absent"]))
        assert store.revision() == revision == 1

    def test_invariant_2_no_scan_sees_half_a_commit(self, store: MetastoreABC) -> None:
        store.commit(Batch([(b"k%02d" % number, b"0") for number in range(20)]))

        def write() -> None:
            for turn in range(60):
                store.commit(Batch([(b"k%02d" % number, b"%d" % turn) for number in range(20)]))

        def read(until: threading.Event) -> None:
            while not until.is_set():
                assert len({(entry.value, entry.version) for entry in store.scan(b"k")}) == 1

        _write_while_reading(write, read)

    def test_no_increment_under_conditions_is_lost(self, store: MetastoreABC) -> None:
        store.commit(Batch([(b"n", b"0")]))

        def increment() -> None:
            done = 0
            while done < 25:
                value, version = store.get(b"n") or (b"", 0)
                batch = Batch([(b"n", b"%d" % (int(value) + 1))])
                try:
                    store.commit(batch, [Condition(b"n", version)], durable=done % 10 == 0)
                except ConflictError:
                    continue
                done += 1

        _run_together([increment] * 8)
        assert store.get(b"n") == (b"200", store.revision())

    def test_paging_while_others_write_misses_no_standing_key(self, store: MetastoreABC) -> None:
        standing = [b"k%03d" % number for number in range(0, 300, 3)]
        store.commit(Batch([(key, b"") for key in standing]))

        def write() -> None:
            for number in range(1, 300, 3):
                store.commit(Batch([(b"k%03d" % number, b"")], [b"k%03d" % (number - 3)]))

        def read(until: threading.Event) -> None:
            while not until.is_set():
                seen = _page_through(store, b"k", limit=7)
                assert seen == sorted(set(seen))
                assert set(standing) <= set(seen)

        _write_while_reading(write, read)

    # Invariants 3 and 4

    def test_invariant_3_a_commit_that_returned_is_seen_by_every_thread(
        self, store: MetastoreABC
    ) -> None:
        def work(name: bytes) -> Callable[[], None]:
            def write_and_read() -> None:
                for turn in range(30):
                    revision = store.commit(Batch([(name, b"%d" % turn)]))
                    assert store.get(name) == (b"%d" % turn, revision)
                    assert store.revision() >= revision

            return write_and_read

        _run_together([work(b"a"), work(b"b"), work(b"c"), work(b"d")])

    def test_invariant_3_what_was_committed_is_there_after_reopening(
        self, store: MetastoreABC, directory: str
    ) -> None:
        store.commit(Batch([(b"a", b"1"), (b"b", b"1")]), durable=True)
        store.commit(Batch([(b"c", b"2")], [b"a"]))
        store.sync()
        before = store.scan(b"")
        again = self.reopened(store, directory)
        try:
            assert again.scan(b"") == before
        finally:
            again.close()

    def test_invariant_4_revisions_increase_and_never_repeat(self, store: MetastoreABC) -> None:
        given: list[int] = []

        def write() -> None:
            mine = [store.commit(Batch([(b"k", b"")])) for _ in range(30)]
            assert mine == sorted(mine)
            given.extend(mine)

        _run_together([write] * 4)
        assert sorted(given) == list(range(1, 121))
        assert store.revision() == 120

    def test_invariant_4_revisions_go_on_after_reopening(
        self, store: MetastoreABC, directory: str
    ) -> None:
        last = store.commit(Batch([(b"k", b"")]))
        again = self.reopened(store, directory)
        try:
            assert again.revision() == last
            assert again.commit(Batch([(b"k", b"")])) > last
        finally:
            again.close()

    # Closing

    # Filling

    def test_loaded_entries_keep_their_versions_and_commits_go_on_after_them(
        self, store: MetastoreABC, directory: str
    ) -> None:
        if not store.capabilities.loadable:
            pytest.skip("the store is not loadable")
        entries = [StoredEntry(b"k%03d" % number, b"v", 1 + number % 7) for number in range(200)]
        store.load(entries[:120], 9)
        store.load(entries[120:], 9)
        assert store.revision() == 9
        assert store.scan(b"") == entries
        if store.capabilities.persistent:
            store = self.reopened(store, directory)
            assert store.revision() == 9
            assert store.scan(b"") == entries
        changed = Batch([(b"k000", b"w")])
        with pytest.raises(ConflictError):
            store.commit(changed, [Condition(b"k000", 2)])
        assert store.commit(changed, [Condition(b"k000", 1)]) == 10
        store.close()

    def test_after_close_every_call_says_so(self, store: MetastoreABC) -> None:
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.get(b"k"),
            lambda: store.get_many([b"k"] * 20),
            lambda: store.scan(b""),
            lambda: store.commit(Batch([])),
            store.sync,
            store.revision,
        ]
        for call in calls:
            with pytest.raises(ClosedError):
                call()

    # Against a model

    def test_any_sequence_of_calls_answers_as_a_dict_would(self) -> None:
        run_state_machine_as_test(
            lambda: _StoreMachine(self.make),  # type: ignore[arg-type]  # a factory will do
            settings=settings(
                max_examples=25,
                stateful_step_count=25,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


_KEYS = st.binary(min_size=1, max_size=3) | st.sampled_from([b"\xff", b"\xff\xff", b"a", b"a\xff"])
_VALUES = st.binary(max_size=8)


class _StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to a dict of key -> (value, version)."""

    def __init__(self, make: Callable[[str], MetastoreABC]) -> None:
        super().__init__()
        self._make = make
        self._directory = tempfile.TemporaryDirectory()
        self._store = make(self._directory.name)
        self._model: dict[bytes, tuple[bytes, int]] = {}
        self._revision = 0

    @rule(puts=st.dictionaries(_KEYS, _VALUES, max_size=4), drops=st.sets(_KEYS, max_size=3))
    def commit(self, puts: dict[bytes, bytes], drops: set[bytes]) -> None:
        self._apply(Batch(list(puts.items()), sorted(drops - set(puts))), [])

    @rule(key=_KEYS, value=_VALUES, off_by=st.sampled_from([0, 0, 1]))
    def commit_if(self, key: bytes, value: bytes, off_by: int) -> None:
        version = self._model.get(key, (b"", 0))[1]
        condition = Condition(key, version + off_by)
        if off_by == 0:
            self._apply(Batch([(key, value)]), [condition])
            return
        with pytest.raises(ConflictError):
            self._store.commit(Batch([(key, value)]), [condition])

    @rule(
        prefix=st.binary(max_size=1) | _KEYS,
        after=_KEYS | st.just(b""),
        before=_KEYS | st.none(),
        limit=st.integers(0, 5),
    )
    def scan(self, prefix: bytes, after: bytes, before: bytes | None, limit: int) -> None:
        expected = [
            (key, *self._model[key])
            for key in sorted(self._model)
            if key.startswith(prefix) and key > after and (before is None or key < before)
        ]
        assert self._store.scan(prefix, after, limit, before) == expected[:limit]

    @rule(keys=st.lists(_KEYS, max_size=12))
    def get_many(self, keys: list[bytes]) -> None:
        assert self._store.get_many(keys) == [self._model.get(key) for key in keys]

    @precondition(lambda self: self._store.capabilities.persistent)
    @rule()
    def reopen(self) -> None:
        self._store.close()
        self._store = self._make(self._directory.name)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self._store.revision() == self._revision
        held = {entry.key: (entry.value, entry.version) for entry in self._store.scan(b"")}
        assert held == self._model

    def teardown(self) -> None:
        self._store.close()
        self._directory.cleanup()

    def _apply(self, batch: Batch, conditions: list[Condition]) -> None:
        self._revision += 1
        assert self._store.commit(batch, conditions) == self._revision
        for key in batch.deletes:
            self._model.pop(key, None)
        for key, value in batch.puts:
            self._model[key] = value, self._revision


def _page_through(store: MetastoreABC, prefix: bytes, *, limit: int) -> list[bytes]:
    keys: list[bytes] = []
    while True:
        page = store.scan(prefix, keys[-1] if keys else b"", limit)
        keys += [entry.key for entry in page]
        if len(page) < limit:
            return keys


def _run_together(tasks: list[Callable[[], None]]) -> None:
    """Run each task in a thread of its own; raise the first error."""
    errors: list[BaseException] = []

    def guard(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _write_while_reading(
    write: Callable[[], None], read: Callable[[threading.Event], None]
) -> None:
    done = threading.Event()

    def write_to_the_end() -> None:
        try:
            write()
        finally:
            done.set()

    _run_together([write_to_the_end, lambda: read(done), lambda: read(done)])
