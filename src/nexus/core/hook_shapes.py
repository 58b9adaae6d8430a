"""Hook shapes, checked: whether what a service hands over can be called as its kind is called.

Layer: core, beneath :mod:`nexus.core.hook_tables`. The shapes and their calling rule are laid down
in :mod:`nexus.contracts.vfs_hooks`; here an error names the service, the hook and the rule that it
breaks. It calls no hook and keeps nothing.
"""

from __future__ import annotations

from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.vfs_hooks import (
    POINTS,
    PRE,
    HookSpec,
    Interceptor,
    Observation,
    VFSMeter,
    VFSObserver,
    VFSPathResolver,
    VFSRecorder,
)
from nexus.lib.paths import normalize


def check_spec(owner: str, spec: object) -> None:
    """Raise unless every hook of a spec has the shape of its kind. Errors: InvalidArgumentError."""
    if not isinstance(spec, HookSpec):
        raise wrong(owner, "hook_spec()", f"returns {type(spec).__name__}, not a HookSpec")
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
        raise wrong(owner, repr(interceptor), "is no interceptor: make it with pre() or post()")
    point, phase, hook = interceptor
    if point not in POINTS:
        raise wrong(owner, f"the {phase} hook {name_of(hook)}", f"{point!r} is no hook point")
    takes = 1 if phase == PRE else 2
    arguments = "its context" if phase == PRE else "its context and its result"
    rule = f"is called at {point.name} with {arguments}"
    _check_callable(owner, f"the {phase} hook {name_of(hook)}", hook, takes, rule)


def _check_resolver(owner: str, resolver: object) -> None:
    what = f"the resolver {type(resolver).__name__}"
    if not isinstance(resolver, VFSPathResolver):
        raise wrong(owner, what, "has prefixes and try_resolve(point, ctx)")
    if isinstance(resolver.prefixes, str):
        raise wrong(owner, what, "prefixes is a sequence of paths, not one")
    for prefix in resolver.prefixes:
        normalize("register", prefix)
    _check_callable(owner, what, resolver.try_resolve, 2, "is called as try_resolve(point, ctx)")


def _check_observation(owner: str, observation: object) -> None:
    if not isinstance(observation, Observation):
        raise wrong(owner, repr(observation), "is no Observation of an observer and its kinds")
    what = f"the observer {type(observation.observer).__name__}"
    if not isinstance(observation.observer, VFSObserver):
        raise wrong(owner, what, "has on_mutation(event)")
    if observation.kinds is not None and not isinstance(observation.kinds, frozenset):
        raise wrong(owner, what, "its kinds are a frozenset of event kinds, or None for all")
    hook = observation.observer.on_mutation
    _check_callable(owner, what, hook, 1, "is called as on_mutation(event)")


def _check_recorder(owner: str, recorder: object) -> None:
    what = f"the recorder {type(recorder).__name__}"
    if not isinstance(recorder, VFSRecorder):
        raise wrong(owner, what, "has record(events, revision, previous)")
    rule = "is called as record(events, revision, previous)"
    _check_callable(owner, what, recorder.record, 3, rule)


def _check_meter(owner: str, meter: object) -> None:
    what = f"the meter {type(meter).__name__}"
    if not isinstance(meter, VFSMeter):
        raise wrong(owner, what, "has on_call(point, ctx, seconds, failed)")
    rule = "is called as on_call(point, ctx, seconds, failed)"
    _check_callable(owner, what, meter.on_call, 4, rule)


def _check_callable(owner: str, what: str, hook: object, takes: int, rule: str) -> None:
    if not callable(hook):
        raise wrong(owner, what, f"{rule}, but cannot be called")
    import inspect  # costs start-up time, and most programs register no hook

    if inspect.iscoroutinefunction(hook):
        raise wrong(owner, what, f"{rule}, and is a plain function, not a coroutine")
    try:
        signature = inspect.signature(hook)
    except ValueError:
        return  # a builtin that does not say what it takes
    try:
        signature.bind(*range(takes))
    except TypeError as error:
        raise wrong(owner, what, f"{rule}, but takes {signature}") from error


def wrong(owner: str, what: str, rule: str) -> InvalidArgumentError:
    """Return the error for a hook that breaks a rule."""
    return InvalidArgumentError("register", None, f"service {owner}: {what} {rule}")


def name_of(hook: object) -> str:
    """Return what a hook is called in messages and listings."""
    return getattr(hook, "__qualname__", type(hook).__name__)
