"""ServiceRegistry: the services of a running kernel, by name.

Layer: core, owned by NexusFS. It starts services in dependency order, hooks them up, hands out
handles, exchanges them while calls are under way, and stops them in reverse. What a service does
is not its business. Unix counterparts: ``init/main.c``, ``kernel/module.c``.

States, with what leads from one to the next::

    enlisted --bootstrap--> starting --start() returned, hooks registered--> running
    running --swap, unregister, close: new calls wait--> draining --calls have ended--> stopped

Invariants:

1. A call through a handle is served by an instance whose ``start`` has returned and whose ``stop``
   has not been called.
2. During a swap no call is refused and no moment is without the service's hooks: calls wait, and
   the hooks are replaced in one step.
3. A service is stopped before those that it depends on.

Lock order: ``_changing``, then ``_mutex``; ``_changing`` lets one change at a time go on and is
held while services start, drain and stop; ``_mutex`` guards the table and the counts of calls and
no service is called while it is held. A service's ``start`` and ``stop`` must change no service.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from nexus.contracts.errors import (
    BusyError,
    ClosedError,
    InvalidArgumentError,
    LockTimeoutError,
    PathExistsError,
    PathNotFoundError,
)
from nexus.contracts.protocols.service_lifecycle import (
    DRAINING,
    ENLISTED,
    RUNNING,
    STARTING,
    STOPPED,
    HookedService,
    PersistentService,
)
from nexus.core.sys_volume import SERVICES_POINT
from nexus.lib.logs import log_of

if TYPE_CHECKING:
    from nexus.contracts.vfs_hooks import HookSpec
    from nexus.core.dispatch import KernelDispatch

DRAIN_TIMEOUT_S: Final = 30.0


class _Entry:
    """One service. Fields after ``depends_on`` are guarded by the registry's mutex."""

    def __init__(self, name: str, instance: object, depends_on: tuple[str, ...]) -> None:
        self.name = name
        self.depends_on = depends_on
        self.instance = instance
        self.spec = _spec_of(name, instance)
        self.state = ENLISTED
        self.calls = 0

    def row(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "implementation": type(self.instance).__name__,
            "persistent": isinstance(self.instance, PersistentService),
            "depends_on": list(self.depends_on),
            "hooks": _count_hooks(self.spec),
            "calls": self.calls,
        }


class ServiceHandle:
    """Stands for a service whatever instance serves it: each call goes to the present one.

    It has the attributes of the instance and passes for one of its class. Shared by all threads.
    """

    def __init__(self, registry: ServiceRegistry, name: str) -> None:
        self._registry = registry
        self._name = name

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._registry.instance(self._name))

    def __repr__(self) -> str:
        return f"<service {self._name!r}>"

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._registry.instance(self._name), attribute)
        return self._counted(attribute, found) if callable(found) else found

    def _counted(self, attribute: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._registry.using(self._name) as instance:
                return getattr(instance, attribute)(*args, **kwargs)

        return call


class ServiceRegistry:
    """The table of services. Shared by all threads."""

    def __init__(
        self, dispatch: Callable[[], KernelDispatch], *, drain_timeout_s: float = DRAIN_TIMEOUT_S
    ) -> None:
        self._dispatch = dispatch
        self._drain_timeout_s = drain_timeout_s
        self._changing = threading.RLock()
        self._mutex = threading.Lock()
        self._changed = threading.Condition(self._mutex)
        self._inside = threading.local()
        self._started: list[_Entry] = []  # guarded by _changing
        self._entries: dict[str, _Entry] = {}  # guarded by _mutex, as are the two below
        self._bootstrapped = False
        self._closed = False

    # -- lookup -------------------------------------------------------------------------------

    def lookup(self, name: str) -> Any:
        """Return a handle for a service. Errors: PathNotFoundError for an unknown name."""
        with self._mutex:
            self._entry_locked("service", name)
        return ServiceHandle(self, name)

    def instance(self, name: str) -> object:
        """Return what serves a name at the moment: to look at, not to call."""
        with self._mutex:
            return self._entry_locked("service", name).instance

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """Yield the present instance, which is not stopped meanwhile. Waits while it is swapped.

        Errors: PathNotFoundError, BusyError for a service that has not started, LockTimeoutError.
        """
        entry = self._begin_call(name)
        depths: dict[str, int] = self._inside.__dict__
        depths[name] = depths.get(name, 0) + 1
        try:
            yield entry.instance
        finally:
            depths[name] -= 1
            with self._changed:
                entry.calls -= 1
                self._changed.notify_all()

    def _begin_call(self, name: str) -> _Entry:
        with self._changed:
            entry = self._entry_locked("service", name)
            # A call made from within a call goes on with it: the drain waits for the outer one.
            if not self._is_inside(name):

                def is_settled() -> bool:
                    known = self._entries.get(name)
                    return known is None or known.state != DRAINING

                if not self._changed.wait_for(is_settled, self._drain_timeout_s):
                    raise LockTimeoutError("service", _path(name), "is being exchanged")
                entry = self._entry_locked("service", name)
                if entry.state != RUNNING:
                    raise BusyError("service", _path(name), f"is {entry.state}, not running")
            entry.calls += 1
            return entry

    def _is_inside(self, name: str) -> bool:
        return bool(self._inside.__dict__.get(name))

    def rows(self) -> list[dict[str, Any]]:
        """Return every service as a dict, sorted by name."""
        with self._mutex:
            return [entry.row() for _, entry in sorted(self._entries.items())]

    # -- changes ------------------------------------------------------------------------------

    def enlist(self, name: str, instance: object, *, depends_on: Iterable[str] = ()) -> None:
        """Add a service; it starts now if the kernel is bootstrapped, else at the bootstrap.

        Errors: PathExistsError, InvalidArgumentError for a wrong hook or name, and after the
        bootstrap for a dependency that is not there; what its ``start`` raises.
        """
        _check_name(name)
        entry = _Entry(name, instance, tuple(depends_on))
        with self._changing:
            with self._mutex:
                self._check_open_locked("enlist")
                if name in self._entries:
                    raise PathExistsError("enlist", _path(name), "is enlisted already")
                if self._bootstrapped:
                    self._check_dependencies_locked(entry)
                self._entries[name] = entry
                activate = self._bootstrapped
            if activate:
                self._activate(entry)

    def bootstrap(self) -> None:
        """Start all services in dependency order. Idempotent.

        Errors: InvalidArgumentError for a cycle or a missing dependency, with none started; what
        a ``start`` raises, with those before it running.
        """
        with self._changing:
            with self._mutex:
                self._check_open_locked("bootstrap")
                waiting = [entry for entry in self._in_order_locked() if entry.state == ENLISTED]
            for entry in waiting:
                self._activate(entry)
            self._bootstrapped = True

    def _activate(self, entry: _Entry) -> None:
        self._set_state(entry, STARTING)
        try:
            _start(entry.instance)
            try:
                self._hook(entry.name, None, entry.spec)
            except BaseException:
                _stop(entry.instance)
                raise
        except BaseException:
            with self._changed:
                del self._entries[entry.name]
                self._changed.notify_all()
            raise
        self._started.append(entry)
        self._set_state(entry, RUNNING)

    def swap(self, name: str, instance: object, *, timeout_s: float | None = None) -> None:
        """Put another instance in the place of a service's: start it, drain the old one, switch.

        Errors: PathNotFoundError, BusyError from within a call of the service, LockTimeoutError
        when calls do not end in time; what the new ``start`` raises. The old one then serves on.
        """
        with self._changing:
            with self._mutex:
                entry = self._entry_locked("swap", name)
                self._check_outside(name)
                if entry.state != RUNNING:
                    raise BusyError("swap", _path(name), f"is {entry.state}, not running")
            spec = _spec_of(name, instance)
            _start(instance)
            try:
                self._drain(entry, timeout_s)
                try:
                    self._hook(name, entry.spec, spec)
                except BaseException:
                    self._set_state(entry, RUNNING)
                    raise
            except BaseException:
                _stop(instance)
                raise
            with self._changed:
                old, entry.instance, entry.spec = entry.instance, instance, spec
                entry.state = RUNNING
                self._changed.notify_all()
            _stop(old)

    def unregister(self, name: str, *, timeout_s: float | None = None) -> None:
        """Take a service away: drain, unhook, stop.

        Errors: PathNotFoundError, BusyError while another depends on it or from within a call of
        it, LockTimeoutError when calls do not end in time; it then serves on.
        """
        with self._changing:
            with self._mutex:
                entry = self._entry_locked("unregister", name)
                self._check_outside(name)
                users = [e.name for e in self._entries.values() if name in e.depends_on]
                if users:
                    raise BusyError("unregister", _path(name), f"{min(users)} depends on it")
                was_running = entry.state == RUNNING
            if was_running:
                self._drain(entry, timeout_s)
                self._hook(name, entry.spec, None)
            with self._changed:
                del self._entries[name]
                entry.state = STOPPED
                self._changed.notify_all()
            if was_running:
                self._started.remove(entry)
                _stop(entry.instance)

    def close(self) -> None:
        """Stop everything in reverse dependency order. Idempotent; no failure keeps the rest up."""
        with self._changing:
            with self._mutex:
                running = [entry for entry in self._started if entry.state == RUNNING]
                self._closed = True
            for entry in reversed(running):
                self._shut_down(entry)

    def _shut_down(self, entry: _Entry) -> None:
        try:
            self._drain(entry, None)
        except LockTimeoutError as error:
            log_of(__name__).error("%s", error)
        try:
            self._hook(entry.name, entry.spec, None)
            _stop(entry.instance)
        except Exception:  # noqa: BLE001 - the boundary of service shutdown
            log_of(__name__).exception("service %s failed to stop", entry.name)
        self._set_state(entry, STOPPED)

    def _drain(self, entry: _Entry, timeout_s: float | None) -> None:
        """Hold off new calls and wait for those under way; let them go on again on a timeout."""
        timeout_s = self._drain_timeout_s if timeout_s is None else timeout_s
        with self._changed:
            entry.state = DRAINING
            if self._changed.wait_for(lambda: entry.calls == 0, timeout_s):
                return
            entry.state = RUNNING
            self._changed.notify_all()
        raise LockTimeoutError(
            "drain", _path(entry.name), f"{entry.calls} calls have not ended in {timeout_s:g} s"
        )

    def _hook(self, name: str, old: HookSpec | None, new: HookSpec | None) -> None:
        if old is not None or new is not None:
            self._dispatch().replace(name, old, new)

    def _set_state(self, entry: _Entry, state: str) -> None:
        with self._changed:
            entry.state = state
            self._changed.notify_all()

    # -- checks -------------------------------------------------------------------------------

    def _entry_locked(self, operation: str, name: str) -> _Entry:
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise PathNotFoundError(
                operation, _path(name), f"no service {name!r}", hint=f"there are: {known}"
            )
        return entry

    def _check_open_locked(self, operation: str) -> None:
        if self._closed:
            raise ClosedError(operation, None, "the services are stopped")

    def _check_outside(self, name: str) -> None:
        if self._is_inside(name):
            raise BusyError("swap", _path(name), "a call of the service cannot exchange it")

    def _check_dependencies_locked(self, entry: _Entry) -> None:
        for needed in entry.depends_on:
            if needed not in self._entries:
                raise InvalidArgumentError(
                    "enlist", _path(entry.name), f"depends on {needed}, which is not enlisted"
                )

    def _in_order_locked(self) -> list[_Entry]:
        """Return all services, each after those that it depends on. Errors: a cycle."""
        ordered: dict[str, _Entry] = {}
        for entry in self._entries.values():
            self._check_dependencies_locked(entry)
        while len(ordered) < len(self._entries):
            free = [
                entry
                for name, entry in self._entries.items()
                if name not in ordered and all(need in ordered for need in entry.depends_on)
            ]
            if not free:
                left = ", ".join(sorted(set(self._entries) - set(ordered)))
                raise InvalidArgumentError(
                    "bootstrap", None, f"the services depend on one another in a cycle: {left}"
                )
            ordered |= {entry.name: entry for entry in free}
        return list(ordered.values())


def _spec_of(name: str, instance: object) -> HookSpec | None:
    if not isinstance(instance, HookedService):
        return None
    from nexus.core.hook_shapes import check_spec  # costs start-up time of those without hooks

    spec = instance.hook_spec()
    check_spec(name, spec)
    return spec


def _count_hooks(spec: HookSpec | None) -> int:
    if spec is None:
        return 0
    hooks = len(spec.resolvers) + len(spec.interceptors) + len(spec.observers)
    return hooks + (spec.recorder is not None) + (spec.meter is not None)


def _start(instance: object) -> None:
    if isinstance(instance, PersistentService):
        instance.start()


def _stop(instance: object) -> None:
    if isinstance(instance, PersistentService):
        instance.stop()


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidArgumentError("enlist", None, f"{name!r} is no name for a service")


def _path(name: object) -> str:
    return f"{SERVICES_POINT}/{name}"
