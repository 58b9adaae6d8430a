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
5. A point is in :attr:`KernelDispatch.live` exactly while something would be called for it. Whoever
   chooses by that which way a call takes is told of every change, in order.

Locks: ``_mutex`` guards the tables' replacement and the accounts of calls; no hook is called while
it is held. It is taken before the observers' mutex.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

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
    VFSObserver,
    VFSPathResolver,
    VFSPostHook,
    VFSPreHook,
    VFSRecorder,
)
from nexus.core.observers import ObserverHub, Operation
from nexus.core.sealed_store import SealedStore
from nexus.lib.paths import normalize, parent
from nexus.lib.steps import Step, Steps

HANG_TIMEOUT_S: Final = 30.0

C = TypeVar("C", bound=VFSContext)
R = TypeVar("R")

_log = logging.getLogger(__name__)


class _Registered(NamedTuple):
    owner: str
    item: Interceptor | VFSPathResolver


@dataclass(frozen=True, slots=True)
class _Tables:
    """All hooks as of one moment. ``calls`` are those that see them, guarded by the mutex."""

    registered: tuple[_Registered, ...] = ()
    hooks: Mapping[tuple[HookPoint[Any, Any], str], tuple[_Registered, ...]] = field(
        default_factory=dict
    )
    by_prefix: Mapping[str, tuple[_Registered, ...]] = field(default_factory=dict)
    without_prefix: tuple[_Registered, ...] = ()
    calls: set[_Call] = field(default_factory=set)


class _Call:
    """The account of one call, entered while it runs: whose tables it sees, and what it commits."""

    __slots__ = ("_dispatch", "operation", "tables")

    def __init__(self, dispatch: KernelDispatch) -> None:
        self._dispatch = dispatch
        self.tables: _Tables | None = None  # None while it waits
        self.operation = Operation()

    def __enter__(self) -> None:
        self._dispatch._enter(self)

    def __exit__(self, *error: object) -> None:
        self._dispatch._leave(self)


class _Running:
    """A hook, entered while it is being called, for the report of those that hang."""

    __slots__ = ("_dispatch", "name", "operation", "reported", "started")

    def __init__(
        self, dispatch: KernelDispatch, name: tuple[str, str, str], operation: Operation | None
    ) -> None:
        self._dispatch = dispatch
        self.name = name  # what is called, whose it is, at which point
        self.started = dispatch._clock()
        self.operation = operation
        self.reported = False

    def __enter__(self) -> None:
        self._dispatch._begin(self)

    def __exit__(self, *error: object) -> None:
        self._dispatch._end(self)


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
        self._local = threading.local()
        self._mutex = threading.Lock()
        self._left = threading.Condition(self._mutex)
        self._tables = _Tables()
        self._retired: list[_Tables] = []  # guarded by _mutex, as is all below
        self._running: set[_Running] = set()
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
            for observation in added:
                self.observers.add(owner, *observation)
            self._retired.append(self._tables)
            self._tables = _tables_of(tuple(kept))
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
        every = any(not isinstance(entry.item, Interceptor) for entry in self._tables.registered)
        hooked = {point for point, _ in self._tables.hooks}
        self._set_live(
            point for point in POINTS if every or point in hooked or (observed and point.mutates)
        )

    def _set_live(self, points: Iterable[HookPoint[Any, Any]]) -> None:
        self.live = frozenset(points)
        self.on_live(self.live)

    def _drain(self, owner: str) -> None:
        """Wait until no other call sees a table that was replaced."""
        inside = bool(self._calls_here())

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
        account = _Call(self)
        with account, self.observers.operation() as account.operation:
            handled = self._before(account, point, ctx)
            if handled is not None:
                return handled.result  # type: ignore[no-any-return]
            result = call(ctx)
            self._after(account, point, ctx, result)
            return result

    def steps(self, point: HookPoint[C, R], ctx: C, call: Callable[[C], Steps[R]]) -> Steps[R]:
        """As :meth:`run`, for a call that may wait, in a thread or a task.

        It is not counted while it waits. Where a task waits, hooks run in the event loop's thread.
        """
        account = _Call(self)
        phases = self._phases(account, point, ctx, call)
        resume: Callable[[], Step] = phases.__next__
        try:
            while True:
                with account, self.observers.operation() as account.operation:
                    try:
                        at = resume()
                    except StopIteration as done:
                        result: R = done.value
                        return result
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
        for resolver in _resolvers_for(tables, ctx.path):
            with _Running(self, ("resolver", resolver.owner, point.name), None):
                handled = resolver.item.try_resolve(point, ctx)  # type: ignore[union-attr]
            if handled is not None:
                return handled
        for entry in tables.hooks.get((point, PRE), ()):
            with _Running(self, ("pre hook", entry.owner, point.name), None):
                entry.item.hook(ctx)  # type: ignore[union-attr]
        return None

    def _after(
        self, account: _Call, point: HookPoint[Any, Any], ctx: VFSContext, result: object
    ) -> None:
        for entry in _tables_seen(account).hooks.get((point, POST), ()):
            self._call_post(entry, point, ctx, result, account.operation)

    def _call_post(
        self,
        entry: _Registered,
        point: HookPoint[Any, Any],
        ctx: VFSContext,
        result: object,
        operation: Operation,
    ) -> None:
        try:
            with _Running(self, ("post hook", entry.owner, point.name), operation):
                entry.item.hook(ctx, result)  # type: ignore[union-attr]
        except Exception:  # noqa: BLE001 - the boundary of post-hook dispatch
            _log.exception("post hook of %s failed after %s %s", entry.owner, point.name, ctx.path)

    def _enter(self, account: _Call) -> None:
        with self._mutex:
            account.tables = self._tables
            account.tables.calls.add(account)
        self._calls_here().append(account)

    def _leave(self, account: _Call) -> None:
        self._calls_here().remove(account)
        with self._left:
            _tables_seen(account).calls.discard(account)
            account.tables = None
            if self._retired:
                self._left.notify_all()

    def _calls_here(self) -> list[_Call]:
        """Return the calls that this thread is in."""
        calls: list[_Call] = self._local.__dict__.setdefault("calls", [])
        return calls

    def _begin(self, running: _Running) -> None:
        with self._mutex:
            self._report_overdue_locked()
            self._running.add(running)

    def _end(self, running: _Running) -> None:
        with self._mutex:
            self._report_overdue_locked()
            self._running.discard(running)

    def report_overdue(self) -> None:
        """Report hooks and observers that hang; every mediated call does so by the way."""
        with self._mutex:
            self._report_overdue_locked()
        self.observers.report_overdue()

    def _report_overdue_locked(self) -> None:
        now = self._clock()
        for running in self._running:
            late_s = now - running.started
            if late_s > self._hang_timeout_s and not running.reported:
                running.reported = True
                _log.error("%s of %s at %s has not returned for %g s", *running.name, late_s)
                if running.operation is not None:
                    # What it committed must not keep the commits after it from observers.
                    self.observers.release(running.operation)

    def rows(self) -> list[dict[str, Any]]:
        """Return every hook there is, in the order in which they are called at their point."""
        return [_row(entry) for entry in self._tables.registered] + [
            {"kind": "observer", "point": None, **row} for row in self.observers.rows()
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
    items: list[Interceptor | VFSPathResolver] = [*spec.resolvers, *spec.interceptors]
    return [_Registered(owner, item) for item in items]


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


def _tables_of(registered: tuple[_Registered, ...]) -> _Tables:
    hooks: dict[tuple[HookPoint[Any, Any], str], tuple[_Registered, ...]] = {}
    by_prefix: dict[str, tuple[_Registered, ...]] = {}
    without_prefix: tuple[_Registered, ...] = ()
    for entry in registered:
        if isinstance(entry.item, Interceptor):
            key = (entry.item.point, entry.item.phase)
            hooks[key] = (*hooks.get(key, ()), entry)
        elif entry.item.prefixes:
            for prefix in entry.item.prefixes:
                at = normalize("register", prefix)
                by_prefix[at] = (*by_prefix.get(at, ()), entry)
        else:
            without_prefix = (*without_prefix, entry)
    return _Tables(registered, hooks, by_prefix, without_prefix)


def _tables_seen(account: _Call) -> _Tables:
    assert account.tables is not None
    return account.tables


def _resolvers_for(tables: _Tables, path: str) -> Iterator[_Registered]:
    """Yield the resolvers to ask for a path, longest prefix first, then those without one."""
    if tables.by_prefix:
        at = path
        while True:
            yield from tables.by_prefix.get(at, ())
            if at == "/":
                break
            at = parent(at)
    yield from tables.without_prefix


def _row(entry: _Registered) -> dict[str, Any]:
    if isinstance(entry.item, Interceptor):
        point, phase, hook = entry.item
        return {"owner": entry.owner, "kind": phase, "point": point.name, "hook": _name(hook)}
    return {"owner": entry.owner, "kind": "resolver", "point": None, "hook": _name(entry.item)}
