"""The hooks of one moment: who is called at which point, and in which order.

Layer: core, beneath :mod:`nexus.core.dispatch`, which replaces a table as a whole and never changes
one. It calls no hook. Unix counterpart: ``security_hook_heads``.

Locks: the account of a call is guarded by the mutex of dispatch; the rest never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from nexus.contracts.vfs_hooks import (
    PRE,
    HookPoint,
    HookSpec,
    Interceptor,
    Observation,
    VFSMeter,
    VFSPathResolver,
)
from nexus.core.hook_shapes import name_of, wrong
from nexus.core.observers import Operation
from nexus.core.primitives import PathTrie
from nexus.lib.paths import normalize


class Registered(NamedTuple):
    """One hook, whose it is, and what to call."""

    owner: str
    item: Interceptor | VFSPathResolver | VFSMeter
    kind: str
    function: Callable[..., Any]


class Tables(msgspec.Struct, frozen=True):
    """All hooks as of one moment. ``calls`` are those that see them, guarded by the mutex."""

    registered: tuple[Registered, ...] = ()
    before: Mapping[HookPoint[Any, Any], tuple[Registered, ...]] = msgspec.field(
        default_factory=dict
    )
    """The PRE hooks of each point that has any, and below the POST hooks."""
    after: Mapping[HookPoint[Any, Any], tuple[Registered, ...]] = msgspec.field(
        default_factory=dict
    )
    by_prefix: PathTrie[Registered] = msgspec.field(default_factory=PathTrie)
    without_prefix: tuple[Registered, ...] = ()
    resolves: bool = False
    """Whether there is a resolver at all."""
    meter: Registered | None = None
    calls: set[Account] = msgspec.field(default_factory=set)


class Account(msgspec.Struct, eq=False):
    """The account of one call: whose tables it sees, None while it waits; the hook that it is in.

    Its thread alone changes it, ``tables`` under the mutex of dispatch. Who reports hooks that hang
    reads it at any moment, so ``hook`` is set last.
    """

    point: HookPoint[Any, Any]
    around: Account | None
    """The call around this one in its thread."""
    tables: Tables | None = None
    operation: Operation | None = None
    hook: Registered | None = None
    started: float = 0.0
    """When the hook was called."""
    reported: bool = False


def registered_of(owner: str, spec: HookSpec | None) -> list[Registered]:
    """Return the resolvers and interceptors of a spec, in the order in which they are called."""
    if spec is None:
        return []
    return [
        *(Registered(owner, r, "resolver", r.try_resolve) for r in spec.resolvers),
        *(Registered(owner, i, f"{i.phase} hook", i.hook) for i in spec.interceptors),
    ]


def observations_of(spec: HookSpec | None) -> tuple[Observation, ...]:
    """Return the observers of a spec, None being an empty one."""
    return () if spec is None else spec.observers


def without(
    owner: str, registered: Sequence[Registered], gone: Sequence[Registered]
) -> list[Registered]:
    """Return what is left once some have gone. Errors: InvalidArgumentError for unknown ones."""
    kept = list(registered)
    for entry in gone:
        if entry not in kept:
            raise wrong(owner, row_of(entry)["kind"], "is not registered")
        kept.remove(entry)
    return kept


def place_of(registered: Sequence[Registered], gone: Sequence[Registered], default: int) -> int:
    """Return where the first of those that go stands, ``default`` where none does."""
    return min((registered.index(entry) for entry in gone), default=default)


def tables_of(registered: tuple[Registered, ...], meter: Registered | None) -> Tables:
    """Return the tables of hooks in registration order."""
    before: dict[HookPoint[Any, Any], tuple[Registered, ...]] = {}
    after: dict[HookPoint[Any, Any], tuple[Registered, ...]] = {}
    by_prefix: PathTrie[Registered] = PathTrie()
    without_prefix: tuple[Registered, ...] = ()
    for entry in registered:
        if isinstance(entry.item, Interceptor):
            hooks, point = before if entry.item.phase == PRE else after, entry.item.point
            hooks[point] = (*hooks.get(point, ()), entry)
        elif isinstance(entry.item, VFSPathResolver) and entry.item.prefixes:
            for prefix in entry.item.prefixes:
                by_prefix.insert(normalize("register", prefix), entry)
        else:
            without_prefix = (*without_prefix, entry)
    resolves = bool(by_prefix or without_prefix)
    return Tables(registered, before, after, by_prefix, without_prefix, resolves, meter)


def resolvers_for(tables: Tables, path: str) -> Iterable[Registered]:
    """Return the resolvers to ask for a path, longest prefix first, then those without one."""
    if not tables.by_prefix:
        return tables.without_prefix
    return (*tables.by_prefix.covering(path), *tables.without_prefix)


def row_of(entry: Registered) -> dict[str, Any]:
    """Return what there is to know of a hook."""
    if isinstance(entry.item, Interceptor):
        point, phase, hook = entry.item
        return {"owner": entry.owner, "kind": phase, "point": point.name, "hook": name_of(hook)}
    return {"owner": entry.owner, "kind": entry.kind, "point": None, "hook": name_of(entry.item)}
