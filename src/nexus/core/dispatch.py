"""KernelDispatch: the hooks of the kernel, and the one place that decides their order.

Layer: core, owned by NexusFS. :meth:`KernelDispatch.run` takes a call through RESOLVE, PRE, the
call itself, POST and OBSERVE, as :mod:`nexus.contracts.vfs_hooks` lays down; the kernel's locks,
I/O and commit are inside of the call. It knows services by the name they register under. Unix
counterparts: ``call_int_hook`` of the LSM framework, ``fsnotify``.

Invariants:

1. A call sees the hooks of one moment: the tables are replaced whole, never changed. A call that
   waits sees those of a second moment once it goes on.
2. Hooks come and go without a gap: replacing those of a service is one step.
3. When hooks are unregistered no call that saw them is left, unless one hangs or the caller is
   inside of one itself. A call that waits is not counted: it calls no hook before it is again.
4. A hook that has not returned in ``hang_timeout_s`` is reported once. It keeps its own caller
   waiting and nobody else.
5. A point is in :attr:`KernelDispatch.live` exactly while something would be called for it.

Locks: ``_mutex`` guards the tables' replacement and the accounts of calls; no hook is called while
it is held. It is taken before the observers' mutex.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from nexus.contracts.vfs_hooks import (
    POINTS,
    POST,
    PRE,
    Handled,
    HookPoint,
    HookSpec,
    Interceptor,
    Observation,
    VFSContext,
    VFSObserver,
    VFSPathResolver,
    VFSPostHook,
    VFSPreHook,
    VFSRecorder,
)
from nexus.core.hook_shapes import check_spec, name_of, wrong
from nexus.core.hook_tables import (
    Account,
    Registered,
    Tables,
    observations_of,
    place_of,
    registered_of,
    resolvers_for,
    row_of,
    tables_of,
    without,
)
from nexus.core.observers import ObserverHub
from nexus.core.sealed_store import SealedStore
from nexus.lib.steps import Step, Steps

HANG_TIMEOUT_S: Final = 30.0
_LOOKS: Final = 32
"""How often calls look for hooks that hang, in the time after which one does."""

C = TypeVar("C", bound=VFSContext)
R = TypeVar("R")

_log = logging.getLogger(__name__)


class _Local(threading.local):
    """Of a thread: its innermost call that is counted."""

    innermost: Account | None = None


class KernelDispatch:
    """Registries of resolvers, interceptors and observers. Shared by all threads."""

    def __init__(
        self,
        store: SealedStore,
        clock: Callable[[], float],
        *,
        hang_timeout_s: float = HANG_TIMEOUT_S,
        observers: ObserverHub | None = None,
    ) -> None:
        self.live: frozenset[HookPoint[Any, Any]] = frozenset()
        """The points at which a call has to go through :meth:`run`."""
        self.on_live: Callable[[frozenset[HookPoint[Any, Any]]], None] = lambda live: None
        """Called under the mutex whenever :attr:`live` was replaced, with what it is now."""
        self.observers = observers or ObserverHub(clock, hang_timeout_s)
        self._store = store
        self._clock = clock
        self._hang_timeout_s = hang_timeout_s
        self._local = _Local()
        self._mutex = threading.Lock()
        self._left = threading.Condition(self._mutex)
        self._tables = Tables()
        self._retired: list[Tables] = []  # guarded by _mutex, as is all below
        self._next_look = clock() + hang_timeout_s / _LOOKS
        self._recorder: VFSRecorder | None = None

    # -- registration -------------------------------------------------------------------------

    def register(self, owner: str, spec: HookSpec) -> None:
        """Add all hooks of a spec in one step. Errors: InvalidArgumentError for a wrong shape."""
        self.replace(owner, None, spec)

    def unregister(self, owner: str, spec: HookSpec) -> None:
        """Remove all hooks of a spec in one step. Errors: InvalidArgumentError for unknown ones."""
        self.replace(owner, spec, None)

    def replace(self, owner: str, old: HookSpec | None, new: HookSpec | None) -> None:
        """Put the hooks of one spec in the place of another's, so that no call sees neither."""
        for spec in (old, new):
            if spec is not None:
                check_spec(owner, spec)
        gone, come = registered_of(owner, old), registered_of(owner, new)
        added, removed = observations_of(new), observations_of(old)
        with self._mutex:
            for observation in removed:
                if observation.observer not in self.observers:
                    raise wrong(owner, name_of(observation.observer), "is not registered")
            kept = without(owner, self._tables.registered, gone)
            place = place_of(self._tables.registered, gone, len(kept))
            kept[place:place] = come
            self._set_recorder_locked(owner, old, new)
            meter = self._next_meter_locked(owner, old, new)
            for observation in added:
                self.observers.add(owner, *observation)
            self._retired.append(self._tables)
            self._tables = tables_of(tuple(kept), meter)
            self._refresh_locked()
        for observation in removed:
            self.observers.remove(observation.observer)
        with self._mutex:
            self._refresh_locked()
        self._drain(owner)

    def _set_recorder_locked(self, owner: str, old: HookSpec | None, new: HookSpec | None) -> None:
        gone = old.recorder if old else None
        come = new.recorder if new else None
        if gone is not None and self._recorder is not gone:
            raise wrong(owner, "the recorder", "is not registered")
        if come is not None and self._recorder not in (None, gone):
            raise wrong(owner, "the recorder", "is the second one; there is one record a commit")
        if gone is not None or come is not None:
            self._recorder = come
            self._store.chain = come.record if come is not None else None

    def _next_meter_locked(
        self, owner: str, old: HookSpec | None, new: HookSpec | None
    ) -> Registered | None:
        present = self._tables.meter
        if old is not None and old.meter is not None:
            if present is None or present.item is not old.meter:
                raise wrong(owner, "the meter", "is not registered")
            present = None
        if new is None or new.meter is None:
            return present
        if present is not None:
            raise wrong(owner, "the meter", "is the second one; one measures all calls")
        return Registered(owner, new.meter, "meter", new.meter.on_call)

    def register_pre(self, owner: str, point: HookPoint[C, R], hook: VFSPreHook[C]) -> None:
        """Call ``hook`` before every call at a point. Errors: InvalidArgumentError."""
        self.register(owner, HookSpec(interceptors=(Interceptor(point, PRE, hook),)))

    def unregister_pre(self, owner: str, point: HookPoint[C, R], hook: VFSPreHook[C]) -> None:
        """Undo :meth:`register_pre`."""
        self.unregister(owner, HookSpec(interceptors=(Interceptor(point, PRE, hook),)))

    def register_post(self, owner: str, point: HookPoint[C, R], hook: VFSPostHook[C, R]) -> None:
        """Call ``hook`` after every call at a point that succeeded."""
        self.register(owner, HookSpec(interceptors=(Interceptor(point, POST, hook),)))

    def unregister_post(self, owner: str, point: HookPoint[C, R], hook: VFSPostHook[C, R]) -> None:
        """Undo :meth:`register_post`."""
        self.unregister(owner, HookSpec(interceptors=(Interceptor(point, POST, hook),)))

    def register_resolver(self, owner: str, resolver: VFSPathResolver) -> None:
        """Ask ``resolver`` before the kernel answers."""
        self.register(owner, HookSpec(resolvers=(resolver,)))

    def unregister_resolver(self, owner: str, resolver: VFSPathResolver) -> None:
        """Undo :meth:`register_resolver`."""
        self.unregister(owner, HookSpec(resolvers=(resolver,)))

    def register_observer(
        self, owner: str, observer: VFSObserver, kinds: frozenset[str] | None = None
    ) -> None:
        """Bring events of some kinds (None: of all) to ``observer``."""
        self.register(owner, HookSpec(observers=(Observation(observer, kinds),)))

    def unregister_observer(self, owner: str, observer: VFSObserver) -> None:
        """Undo :meth:`register_observer`."""
        self.unregister(owner, HookSpec(observers=(Observation(observer),)))

    def _refresh_locked(self) -> None:
        observed = len(self.observers) > 0
        self._store.tap = self.observers.tap if observed else None
        every = self._tables.meter is not None or any(
            not isinstance(entry.item, Interceptor) for entry in self._tables.registered
        )
        hooked = self._tables.before.keys() | self._tables.after.keys()
        self._set_live(
            point for point in POINTS if every or point in hooked or (observed and point.mutates)
        )

    def _set_live(self, points: Iterable[HookPoint[Any, Any]]) -> None:
        self.live = frozenset(points)
        self.on_live(self.live)

    def _drain(self, owner: str) -> None:
        """Wait until no other call sees a table that was replaced."""
        inside = self._local.innermost is not None

        def is_drained() -> bool:
            self._retired = [old for old in self._retired if old.calls]
            return not self._retired

        with self._left:
            if inside or self._left.wait_for(is_drained, self._hang_timeout_s):
                return
        _log.error("calls are still in hooks that %s has replaced", owner)

    # -- calls --------------------------------------------------------------------------------

    def run(self, point: HookPoint[C, R], ctx: C, call: Callable[[C], R]) -> R:
        """Take one call through its phases. Errors: those of resolvers, PRE hooks and the call."""
        account = Account(point, self._local.innermost)
        started, failed = self._clock(), True
        try:
            tables = self._begin(account)
            handled = self._resolved(account, tables, ctx) if tables.resolves else None
            if handled is None:
                for entry in tables.before.get(point, ()):
                    self._call_hook(account, entry, ctx)
                result = call(ctx)
                if point in tables.after:
                    self._after(account, tables, ctx, result)
            else:
                result = handled.result
            failed = False
            return result
        finally:
            self._end(account)
            if self._tables.meter is not None:
                self._measure(point, ctx, started, failed)

    def steps(self, point: HookPoint[C, R], ctx: C, call: Callable[[C], Steps[R]]) -> Steps[R]:
        """As :meth:`run`, for a call that may wait, in a thread or a task.

        It is not counted while it waits. Where a task waits, hooks run in the event loop's thread.
        """
        account = Account(point, self._local.innermost)
        started, failed = self._clock(), True
        try:
            tables = self._begin(account)
            handled = self._resolved(account, tables, ctx) if tables.resolves else None
            if handled is None:
                for entry in tables.before.get(point, ()):
                    self._call_hook(account, entry, ctx)
                result = yield from self._uncounted_waits(account, call(ctx))
                self._after(account, _tables_seen(account), ctx, result)
            else:
                result = handled.result
            failed = False
            return result
        finally:
            self._end(account)
            if self._tables.meter is not None:
                self._measure(point, ctx, started, failed)

    def _uncounted_waits(self, account: Account, steps: Steps[R]) -> Steps[R]:
        """Take a call's steps, counted but for the times in which it waits."""
        resume: Callable[[], Step] = steps.__next__
        try:
            while True:
                try:
                    at = resume()
                except StopIteration as done:
                    result: R = done.value
                    return result
                self._end(account)
                try:
                    found = yield at
                except BaseException as error:  # noqa: BLE001 - handed to the call
                    resume = partial(steps.throw, error)
                else:
                    resume = partial(steps.send, found)
                account.around = self._local.innermost
                self._begin(account)
        finally:
            steps.close()

    def _resolved(self, account: Account, tables: Tables, ctx: VFSContext) -> Handled | None:
        for resolver in resolvers_for(tables, ctx.path):
            handled: Handled | None = self._call_hook(account, resolver, account.point, ctx)
            if handled is not None:
                return handled
        return None

    def _after(self, account: Account, tables: Tables, ctx: VFSContext, result: object) -> None:
        for entry in tables.after.get(account.point, ()):
            self._call_logged(account, entry, ctx, ctx, result)

    def notify(
        self,
        owner: str,
        interceptors: Sequence[Interceptor],
        point: HookPoint[Any, Any],
        ctx: VFSContext,
        result: object,
    ) -> None:
        """Call POST hooks that are registered nowhere, by the same rules: those of a driver."""
        entries = registered_of(owner, HookSpec(interceptors=tuple(interceptors)))
        with self._alone(point) as account:
            for entry in entries:
                self._call_logged(account, entry, ctx, ctx, result)

    def _call_logged(
        self, account: Account, entry: Registered, ctx: VFSContext, *arguments: object
    ) -> None:
        try:
            self._call_hook(account, entry, *arguments)
        except Exception:  # noqa: BLE001 - the boundary of post-hook dispatch
            where = f"{account.point.name} {ctx.path}"
            _log.exception("%s of %s failed after %s", entry.kind, entry.owner, where)

    def _call_hook(self, account: Account, entry: Registered, *arguments: object) -> Any:
        clock = self._clock
        account.started = started = clock()
        account.reported = False
        account.hook = entry
        try:
            return entry.function(*arguments)
        finally:
            if clock() - started > self._hang_timeout_s:
                with self._mutex:
                    self._report_if_overdue_locked(account)
            account.hook = None

    def _begin(self, account: Account) -> Tables:
        """Let a call see the tables of this moment, and collect what it commits in this thread."""
        self._local.innermost = account
        with self._mutex:
            if self._clock() >= self._next_look:
                self._report_overdue_locked()
            account.tables = tables = self._tables
            tables.calls.add(account)
        if self._store.tap is not None:
            # Who begins to observe meanwhile gets the events of later calls alone.
            account.operation = self.observers.begin()
        return tables

    def _end(self, account: Account) -> None:
        if account.operation is not None:
            self.observers.end(account.operation)
            account.operation = None
        with self._mutex:
            if account.tables is not None:
                account.tables.calls.discard(account)
                account.tables = None
            if self._retired:
                self._left.notify_all()
        self._local.innermost = account.around

    def _measure(
        self, point: HookPoint[Any, Any], ctx: VFSContext, started: float, failed: bool
    ) -> None:
        """Tell the meter of a call. One that came or went meanwhile hears of it, or does not."""
        with self._alone(point) as account:
            meter = _tables_seen(account).meter
            if meter is not None:
                seconds = self._clock() - started
                self._call_logged(account, meter, ctx, point, ctx, seconds, failed)

    @contextmanager
    def _alone(self, point: HookPoint[Any, Any]) -> Iterator[Account]:
        """Count hooks that are called outside of any call."""
        account = Account(point, self._local.innermost)
        try:
            self._begin(account)
            yield account
        finally:
            self._end(account)

    def report_overdue(self) -> None:
        """Report hooks and observers that hang; mediated calls do so by the way."""
        with self._mutex:
            self._report_overdue_locked()
        self.observers.report_overdue()

    def _report_overdue_locked(self) -> None:
        self._next_look = self._clock() + self._hang_timeout_s / _LOOKS
        for tables in (*self._retired, self._tables):
            for account in tables.calls:
                self._report_if_overdue_locked(account)

    def _report_if_overdue_locked(self, account: Account) -> None:
        hook, late_s = account.hook, self._clock() - account.started
        if hook is None or account.reported or late_s <= self._hang_timeout_s:
            return
        account.reported = True
        what = f"{hook.kind} of {hook.owner} at {account.point.name}"
        _log.error("%s has not returned for %g s", what, late_s)
        if account.operation is not None:
            # What it committed must not keep the commits after it from observers.
            self.observers.release(account.operation)

    def rows(self) -> list[dict[str, Any]]:
        """Return every hook there is, in the order in which they are called at their point."""
        tables = self._tables
        return [
            *(row_of(entry) for entry in tables.registered),
            *(row_of(entry) for entry in (tables.meter,) if entry is not None),
            *({"kind": "observer", "point": None, **row} for row in self.observers.rows()),
        ]

    def in_forked_child(self) -> None:
        """Leave every call to the kernel, which refuses it. Takes no lock, as nothing will here."""
        self._set_live(())

    def close(self) -> None:
        """Hand out what observers still wait for, then end their workers."""
        self.observers.close()


def _tables_seen(account: Account) -> Tables:
    assert account.tables is not None
    return account.tables
