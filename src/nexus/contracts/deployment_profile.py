"""Deployment profiles: which bricks each one enables. Layer: contracts.

One table; every profile has all that the one before it has. Unix counterpart: the package
selections of a distribution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nexus.contracts.errors import ConfigError

AUTO: Final = "auto"
DEFAULT_PROFILE: Final = "embedded"

_ADDED: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("slim", ()),
    ("embedded", ()),
    ("lite", ("permission", "event_bus", "agent_registry")),
    ("full", ("audit", "metrics")),
)
"""From the smallest to the largest: each profile, and the bricks that it adds."""

PROFILES: Final[tuple[str, ...]] = tuple(name for name, _ in _ADDED)
"""The profiles, each within the next."""


def bricks_of(profile: str) -> frozenset[str]:
    """Return the names of the bricks that a profile enables. Errors: ConfigError when unknown."""
    name = DEFAULT_PROFILE if profile == AUTO else profile
    if name not in PROFILES:
        known = ", ".join((AUTO, *PROFILES))
        raise ConfigError("connect", None, f"no profile {profile!r}; there are {known}")
    within = _ADDED[: PROFILES.index(name) + 1]
    return frozenset(brick for _, added in within for brick in added)


def selected_bricks(
    profile: str, enable: Iterable[str], disable: Iterable[str], known: Iterable[str]
) -> frozenset[str]:
    """Return the bricks of a profile after what the configuration adds and takes away.

    Errors: ConfigError for an unknown profile or brick, and for one both enabled and disabled.
    """
    added, removed, known = set(enable), set(disable), sorted(known)
    for name in sorted(added | removed):
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError("connect", None, f"no brick {name!r}", hint=f"there are: {listed}")
        if name in added and name in removed:
            raise ConfigError("connect", None, f"the brick {name} is both enabled and disabled")
    return (bricks_of(profile) | added) - removed
