"""The init process of services: from a profile to running services, step by step.

Layer: factory. It finds bricks by their ``brick_factory`` module, chooses those that the profile
and the configuration enable, makes them, and enlists them the way anybody does: by
``sys_setattr`` beneath ``/__sys__/services``. It knows no service by name. Unix counterpart:
systemd reaching a target.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import nexus.services
from nexus.contracts.deployment_profile import selected_bricks
from nexus.contracts.errors import InvalidArgumentError
from nexus.contracts.protocols.brick import DEPENDENT, INDEPENDENT, Brick, BrickContext
from nexus.core.nexus_fs import NexusFS
from nexus.core.sys_volume import SERVICES_POINT


def plan(profile: str, enable: Iterable[str], disable: Iterable[str]) -> list[Brick]:
    """Return the bricks to boot, independent ones first. Errors: ConfigError, before any I/O."""
    bricks = discover(nexus.services)
    chosen = selected_bricks(profile, enable, disable, bricks)
    return sorted(
        (bricks[name] for name in chosen), key=lambda brick: (brick.tier == DEPENDENT, brick.name)
    )


def start(nx: NexusFS, bricks: list[Brick], context: BrickContext) -> None:
    """Make the services, enlist them and start them. Errors: theirs, InvalidArgumentError."""
    independent = [brick.result_key for brick in bricks if brick.tier == INDEPENDENT]
    for brick in bricks:
        service = make(brick, context)
        needs = independent if brick.tier == DEPENDENT else []
        nx.sys_setattr(f"{SERVICES_POINT}/{brick.result_key}", service=service, depends_on=needs)
    nx.bootstrap()


def discover(package: ModuleType) -> dict[str, Brick]:
    """Return every brick in the folders of a package, by name. Errors: InvalidArgumentError."""
    import pkgutil  # costs start-up time, and many profiles have no service

    found: dict[str, Brick] = {}
    for folder in pkgutil.iter_modules(package.__path__):
        if folder.ispkg:
            module = importlib.import_module(f"{package.__name__}.{folder.name}.brick_factory")
            brick = read(module)
            if brick.name in found:
                raise _broken(module, f"the name {brick.name} is taken")
            found[brick.name] = brick
    return found


def read(module: ModuleType) -> Brick:
    """Return the brick that a ``brick_factory`` describes. Errors: InvalidArgumentError."""
    names = ("BRICK_NAME", "TIER", "RESULT_KEY", "PROTOCOL", "create")
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        raise _broken(module, f"it lacks {', '.join(missing)}")
    brick = Brick(*(getattr(module, name) for name in names))
    if brick.tier not in (INDEPENDENT, DEPENDENT):
        raise _broken(module, f"TIER is {brick.tier!r}, not {INDEPENDENT} or {DEPENDENT}")
    if not getattr(brick.protocol, "_is_runtime_protocol", False):
        raise _broken(module, f"PROTOCOL {brick.protocol!r} is no runtime-checkable protocol")
    return brick


def make(brick: Brick, context: BrickContext) -> Any:
    """Return a new service of a brick. Errors: InvalidArgumentError for one of another shape."""
    service = brick.create(context)
    if not isinstance(service, brick.protocol):
        raise InvalidArgumentError(
            "boot",
            None,
            f"brick {brick.name}: {type(service).__name__} is no {brick.protocol.__name__}",
        )
    return service


def _broken(module: ModuleType, reason: str) -> InvalidArgumentError:
    return InvalidArgumentError("boot", None, f"{module.__name__}: {reason}")
