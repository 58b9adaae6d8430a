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

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from nexus.contracts.errors import InvalidArgumentError
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
    VFSMeter,
    VFSObserver,
    VFSPathResolver,
    VFSPostHook,
    VFSPreHook,
    VFSRecorder,
)
from nexus.core.observers import ObserverHub, Operation
from nexus.core.primitives import PathTrie
from nexus.core.sealed_store import SealedStore
from nexus.lib.paths import normalize
from nexus.lib.steps import Step, Steps

HANG_TIMEOUT_S: Final = 30.0
_LOOKS: Final = 32
"""How often calls look for hooks that hang, in the time after which one does."""

C = TypeVar("C", bound=VFSContext)
R = TypeVar("R")

_log = logging.getLogger(__name__)


class _Registered(NamedTuple):
    owner: str
    item: Interceptor | VFSPathResolver | VFSMeter
    kind: str
    function: Callable[..., Any]


class _Tables(msgspec.Struct, frozen=True):
    """All hooks as of one moment. ``calls`` are those that see them, guarded by the mutex."""

    registered: tuple[_Registered, ...] = ()
    hooks: Mapping[tuple[HookPoint[Any, Any], str], tuple[_Registered, ...]] = msgspec.field(
        default_factory=dict
    )
    by_prefix: PathTrie[_Registered] = msgspec.field(default_factory=PathTrie)
    without_prefix: tuple[_Registered, ...] = ()
    meter: _Registered | None = None
    calls: set[_Call] = msgspec.field(default_factory=set)


class _Call:
    """The account of one call: whose tables it sees, None while it waits; the hook that it is in.

    Its thread alone changes it, ``tables`` under the mutex. Who reports hooks that hang reads it
    at any moment, so ``hook`` is set last.
    """

    __slots__ = ("around", "hook", "operation", "point", "reported", "started", "tables")

    def __init__(self, local: _Local) -> None:
        self.around = local.innermost  # what the thread's mark is set back to
        self.tables: _Tables | None = None
        self.operation: Operation | None = None
        self.hook: _Registered | None = None
        self.point: HookPoint[Any, Any] | None = None
        self.started = 0.0
        self.reported = False


class _Local(threading.local):
    """Of a thread: its innermost call that is counted."""

    innermost: _Call | None = None


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
        self._tables = _Tables()
        self._retired: list[_Tables] = []  # guarded by _mutex, as is all below
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
        gone, come = _registered(owner, old), _registered(owner, new)
        added, removed = _observations(new), _observations(old)
        with self._mutex:
            for observation in removed:
                if observation.observer not in self.observers:
                    raise _wrong(owner, _name(observation.observer), "is not registered")
            kept = _without(owner, self._tables.registered, gone)
            place = _place_of(self._tables.registered, gone, len(kept))
            kept[place:place] = come
            self._set_recorder_locked(owner, old, new)
            meter = self._next_meter_locked(owner, old, new)
            for observation in added:
                self.observers.add(owner, *observation)
            self._retired.append(self._tables)
            self._tables = _tables_of(tuple(kept), meter)
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
            raise _wrong(owner, "the recorder", "is not registered")
        if come is not None and self._recorder not in (None, gone):
            raise _wrong(owner, "the recorder", "is the second one; there is one record a commit")
        if gone is not None or come is not None:
            self._recorder = come
            self._store.chain = come.record if come is not None else None

    def _next_meter_locked(
        self, owner: str, old: HookSpec | None, new: HookSpec | None
    ) -> _Registered | None:
        present = self._tables.meter
        if old is not None and old.meter is not None:
            if present is None or present.item is not old.meter:
                raise _wrong(owner, "the meter", "is not registered")
            present = None
        if new is None or new.meter is None:
            return present
        if present is not None:
            raise _wrong(owner, "the meter", "is the second one; one measures all calls")
        return _Registered(owner, new.meter, "meter", new.meter.on_call)

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
        hooked = {point for point, _ in self._tables.hooks}
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
        account = _Call(self._local)
        started, failed = self._clock(), True
        try:
            self._begin(account)
            result: R
            handled = self._before(account, point, ctx)
            if handled is not None:
                result = handled.result
            else:
                result = call(ctx)
                self._after(account, point, ctx, result)
            failed = False
            return result
        finally:
            self._end(account)
            self._measure(point, ctx, started, failed)

    def steps(self, point: HookPoint[C, R], ctx: C, call: Callable[[C], Steps[R]]) -> Steps[R]:
        """As :meth:`run`, for a call that may wait, in a thread or a task.

        It is not counted while it waits. Where a task waits, hooks run in the event loop's thread.
        """
        account = _Call(self._local)
        started, failed = self._clock(), True
        try:
            result = yield from self._counted(account, self._phases(account, point, ctx, call))
            failed = False
            return result
        finally:
            self._measure(point, ctx, started, failed)

    def _counted(self, account: _Call, phases: Steps[R]) -> Steps[R]:
        """Take a call through its phases, counted between the times in which it waits."""
        resume: Callable[[], Step] = phases.__next__
        try:
            while True:
                account.around = self._local.innermost
                try:
                    self._begin(account)
                    at = resume()
                except StopIteration as done:
                    result: R = done.value
                    return result
                finally:
                    self._end(account)
                try:
                    found = yield at
                except BaseException as error:  # noqa: BLE001 - handed to the call
                    resume = partial(phases.throw, error)
                else:
                    resume = partial(phases.send, found)
        finally:
            phases.close()

    def _phases(
        self,
        account: _Call,
        point: HookPoint[C, R],
        ctx: C,
        call: Callable[[C], Steps[R]],
    ) -> Steps[R]:
        handled = self._before(account, point, ctx)
        if handled is not None:
            return handled.result  # type: ignore[no-any-return]
        result = yield from call(ctx)
        self._after(account, point, ctx, result)
        return result

    def _before(
        self, account: _Call, point: HookPoint[Any, Any], ctx: VFSContext
    ) -> Handled | None:
        tables = _tables_seen(account)
        if tables.by_prefix or tables.without_prefix:
            for resolver in _resolvers_for(tables, ctx.path):
                handled = self._call_hook(account, resolver, point, (point, ctx))
                if handled is not None:
                    return handled  # type: ignore[no-any-return]
        for entry in tables.hooks.get((point, PRE), ()):
            self._call_hook(account, entry, point, (ctx,))
        return None

    def _after(
        self, account: _Call, point: HookPoint[Any, Any], ctx: VFSContext, result: object
    ) -> None:
        self._call_posts(
            account, _tables_seen(account).hooks.get((point, POST), ()), point, ctx, result
        )

    def notify(
        self,
        owner: str,
        interceptors: Sequence[Interceptor],
        point: HookPoint[Any, Any],
        ctx: VFSContext,
        result: object,
    ) -> None:
        """Call POST hooks that are registered nowhere, by the same rules: those of a driver."""
        entries = _registered(owner, HookSpec(interceptors=tuple(interceptors)))
        with self._alone() as account:
            self._call_posts(account, entries, point, ctx, result)

    def _call_posts(
        self,
        account: _Call,
        entries: Sequence[_Registered],
        point: HookPoint[Any, Any],
        ctx: VFSContext,
        result: object,
    ) -> None:
        for entry in entries:
            self._call_logged(account, entry, point, ctx, (ctx, result))

    def _call_logged(
        self,
        account: _Call,
        entry: _Registered,
        point: HookPoint[Any, Any],
        ctx: VFSContext,
        arguments: tuple[Any, ...],
    ) -> None:
        try:
            self._call_hook(account, entry, point, arguments)
        except Exception:  # noqa: BLE001 - the boundary of post-hook dispatch
            where = f"{point.name} {ctx.path}"
            _log.exception("%s of %s failed after %s", entry.kind, entry.owner, where)

    def _call_hook(
        self,
        account: _Call,
        entry: _Registered,
        point: HookPoint[Any, Any],
        arguments: tuple[Any, ...],
    ) -> Any:
        account.started = started = self._clock()
        account.point, account.reported = point, False
        account.hook = entry
        try:
            return entry.function(*arguments)
        finally:
            if self._clock() - started > self._hang_timeout_s:
                with self._mutex:
                    self._report_if_overdue_locked(account)
            account.hook = None

    def _begin(self, account: _Call) -> None:
        """Let a call see the tables of this moment, and collect what it commits in this thread."""
        self._local.innermost = account
        with self._mutex:
            if self._clock() >= self._next_look:
                self._report_overdue_locked()
            account.tables = self._tables
            account.tables.calls.add(account)
        if self.observers:
            # Who begins to observe meanwhile gets the events of later calls alone.
            account.operation = self.observers.begin()

    def _end(self, account: _Call) -> None:
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
        if self._tables.meter is None:
            return
        with self._alone() as account:
            meter = _tables_seen(account).meter
            if meter is not None:
                measured = (point, ctx, self._clock() - started, failed)
                self._call_logged(account, meter, point, ctx, measured)

    @contextmanager
    def _alone(self) -> Iterator[_Call]:
        """Count hooks that are called outside of any call."""
        account = _Call(self._local)
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

    def _report_if_overdue_locked(self, account: _Call) -> None:
        hook, point, late_s = account.hook, account.point, self._clock() - account.started
        if hook is None or point is None or account.reported or late_s <= self._hang_timeout_s:
            return
        account.reported = True
        what = f"{hook.kind} of {hook.owner} at {point.name}"
        _log.error("%s has not returned for %g s", what, late_s)
        if account.operation is not None:
            # What it committed must not keep the commits after it from observers.
            self.observers.release(account.operation)

    def rows(self) -> list[dict[str, Any]]:
        """Return every hook there is, in the order in which they are called at their point."""
        tables = self._tables
        return [
            *(_row(entry) for entry in tables.registered),
            *(_row(entry) for entry in (tables.meter,) if entry is not None),
            *({"kind": "observer", "point": None, **row} for row in self.observers.rows()),
        ]

    def in_forked_child(self) -> None:
        """Leave every call to the kernel, which refuses it. Takes no lock, as nothing will here."""
        self._set_live(())

    def close(self) -> None:
        """Hand out what observers still wait for, then end their workers."""
        self.observers.close()


# -- shapes -----------------------------------------------------------------------------------


def check_spec(owner: str, spec: object) -> None:
    """Raise unless every hook of a spec has the shape of its kind. Errors: InvalidArgumentError."""
    if not isinstance(spec, HookSpec):
        raise _wrong(owner, "hook_spec()", f"returns {type(spec).__name__}, not a HookSpec")
    for interceptor in spec.interceptors:
        _check_interceptor(owner, interceptor)
    for resolver in spec.resolvers:
        _check_resolver(owner, resolver)
    for observation in spec.observers:
        _check_observation(owner, observation)
    if spec.recorder is not None:
        _check_recorder(owner, spec.recorder)
    if spec.meter is not None:
        _check_meter(owner, spec.meter)


def _check_interceptor(owner: str, interceptor: object) -> None:
    if not isinstance(interceptor, Interceptor):
        raise _wrong(owner, repr(interceptor), "is no interceptor: make it with pre() or post()")
    point, phase, hook = interceptor
    if point not in POINTS:
        raise _wrong(owner, f"the {phase} hook {_name(hook)}", f"{point!r} is no hook point")
    takes = 1 if phase == PRE else 2
    arguments = "its context" if phase == PRE else "its context and its result"
    rule = f"is called at {point.name} with {arguments}"
    _check_callable(owner, f"the {phase} hook {_name(hook)}", hook, takes, rule)


def _check_resolver(owner: str, resolver: object) -> None:
    what = f"the resolver {type(resolver).__name__}"
    if not isinstance(resolver, VFSPathResolver):
        raise _wrong(owner, what, "has prefixes and try_resolve(point, ctx)")
    if isinstance(resolver.prefixes, str):
        raise _wrong(owner, what, "prefixes is a sequence of paths, not one")
    for prefix in resolver.prefixes:
        normalize("register", prefix)
    _check_callable(owner, what, resolver.try_resolve, 2, "is called as try_resolve(point, ctx)")


def _check_observation(owner: str, observation: object) -> None:
    if not isinstance(observation, Observation):
        raise _wrong(owner, repr(observation), "is no Observation of an observer and its kinds")
    what = f"the observer {type(observation.observer).__name__}"
    if not isinstance(observation.observer, VFSObserver):
        raise _wrong(owner, what, "has on_mutation(event)")
    if observation.kinds is not None and not isinstance(observation.kinds, frozenset):
        raise _wrong(owner, what, "its kinds are a frozenset of event kinds, or None for all")
    hook = observation.observer.on_mutation
    _check_callable(owner, what, hook, 1, "is called as on_mutation(event)")


def _check_recorder(owner: str, recorder: object) -> None:
    what = f"the recorder {type(recorder).__name__}"
    if not isinstance(recorder, VFSRecorder):
        raise _wrong(owner, what, "has record(events, revision, previous)")
    rule = "is called as record(events, revision, previous)"
    _check_callable(owner, what, recorder.record, 3, rule)


def _check_meter(owner: str, meter: object) -> None:
    what = f"the meter {type(meter).__name__}"
    if not isinstance(meter, VFSMeter):
        raise _wrong(owner, what, "has on_call(point, ctx, seconds, failed)")
    rule = "is called as on_call(point, ctx, seconds, failed)"
    _check_callable(owner, what, meter.on_call, 4, rule)


def _check_callable(owner: str, what: str, hook: object, takes: int, rule: str) -> None:
    if not callable(hook):
        raise _wrong(owner, what, f"{rule}, but cannot be called")
    if inspect.iscoroutinefunction(hook):
        raise _wrong(owner, what, f"{rule}, and is a plain function, not a coroutine")
    try:
        signature = inspect.signature(hook)
    except ValueError:
        return  # a builtin that does not say what it takes
    try:
        signature.bind(*range(takes))
    except TypeError as error:
        raise _wrong(owner, what, f"{rule}, but takes {signature}") from error


def _wrong(owner: str, what: str, rule: str) -> InvalidArgumentError:
    return InvalidArgumentError("register", None, f"service {owner}: {what} {rule}")


def _name(hook: object) -> str:
    return getattr(hook, "__qualname__", type(hook).__name__)


# -- tables -----------------------------------------------------------------------------------


def _registered(owner: str, spec: HookSpec | None) -> list[_Registered]:
    if spec is None:
        return []
    return [
        *(_Registered(owner, r, "resolver", r.try_resolve) for r in spec.resolvers),
        *(_Registered(owner, i, f"{i.phase} hook", i.hook) for i in spec.interceptors),
    ]


def _observations(spec: HookSpec | None) -> tuple[Observation, ...]:
    return () if spec is None else spec.observers


def _without(
    owner: str, registered: Sequence[_Registered], gone: Sequence[_Registered]
) -> list[_Registered]:
    kept = list(registered)
    for entry in gone:
        if entry not in kept:
            raise _wrong(owner, _row(entry)["kind"], "is not registered")
        kept.remove(entry)
    return kept


def _place_of(registered: Sequence[_Registered], gone: Sequence[_Registered], default: int) -> int:
    return min((registered.index(entry) for entry in gone), default=default)


def _tables_of(registered: tuple[_Registered, ...], meter: _Registered | None) -> _Tables:
    hooks: dict[tuple[HookPoint[Any, Any], str], tuple[_Registered, ...]] = {}
    by_prefix: PathTrie[_Registered] = PathTrie()
    without_prefix: tuple[_Registered, ...] = ()
    for entry in registered:
        if isinstance(entry.item, Interceptor):
            key = (entry.item.point, entry.item.phase)
            hooks[key] = (*hooks.get(key, ()), entry)
        elif isinstance(entry.item, VFSPathResolver) and entry.item.prefixes:
            for prefix in entry.item.prefixes:
                by_prefix.insert(normalize("register", prefix), entry)
        else:
            without_prefix = (*without_prefix, entry)
    return _Tables(registered, hooks, by_prefix, without_prefix, meter)


def _tables_seen(account: _Call) -> _Tables:
    assert account.tables is not None
    return account.tables


def _resolvers_for(tables: _Tables, path: str) -> Iterable[_Registered]:
    """Return the resolvers to ask for a path, longest prefix first, then those without one."""
    if not tables.by_prefix:
        return tables.without_prefix
    return (*tables.by_prefix.covering(path), *tables.without_prefix)


def _row(entry: _Registered) -> dict[str, Any]:
    if isinstance(entry.item, Interceptor):
        point, phase, hook = entry.item
        return {"owner": entry.owner, "kind": phase, "point": point.name, "hook": _name(hook)}
    return {"owner": entry.owner, "kind": entry.kind, "point": None, "hook": _name(entry.item)}
