"""Which implementation of the primitives runs: the Rust crate's, or the readable Python twins.

Layer: lib. It finds the extension module ``nexus._kernel``, which an installation may lack, and
decides once; it knows nothing of what is in it. ``NEXUS_KERNEL`` chooses: ``auto``, the default,
takes Rust where it was built; ``rust`` insists on it; ``python`` takes the twins.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, Final

import msgspec

from nexus.contracts.errors import ConfigError

VARIABLE: Final = "NEXUS_KERNEL"
_MODULE = "nexus._kernel"
_REASON_FILE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_kernel_missing.txt")


class Choice(msgspec.Struct, frozen=True):
    """What runs, and why. ``module`` is None where the Python twins do."""

    module: ModuleType | None
    reason: str

    @property
    def name(self) -> str:
        """``rust`` or ``python``."""
        return "python" if self.module is None else "rust"


@cache
def chosen() -> Choice:
    """Return the choice for this process. Errors: ConfigError."""
    return choose(os.environ.get(VARIABLE, "auto"), _load)


def _load() -> ModuleType:
    from nexus import _kernel

    return _kernel


def choose(wanted: str, load: Callable[[], ModuleType]) -> Choice:
    """Return what is wanted, if it can be had. Errors: ConfigError."""
    if wanted not in ("auto", "python", "rust"):
        reason = f"{VARIABLE} is {wanted!r}, not 'auto', 'python' or 'rust'"
        raise ConfigError("connect", None, reason)
    if wanted == "python":
        return Choice(None, f"{VARIABLE}=python")
    try:
        module = load()
    except ImportError as error:
        reason = _why_missing(error)
        if wanted == "rust":
            raise ConfigError(
                "connect", None, f"{VARIABLE} is rust, but {reason}", hint="unset it"
            ) from error
        return Choice(None, reason)
    return Choice(module, f"{VARIABLE}=rust" if wanted == "rust" else f"{_MODULE} is built")


def way_to_rust() -> str:
    """Return what brings the Rust kernel into use, where it is not; for a hint."""
    if os.environ.get(VARIABLE) == "python":
        return f"unset {VARIABLE}"
    return "install cargo and then NexusFS anew"


def required(what: str) -> Any:
    """Return the extension module, which ``what`` cannot do without. Errors: ConfigError."""
    choice = chosen()
    if choice.module is None:
        reason = f"{what} needs the Rust kernel, which is not in use: {choice.reason}"
        raise ConfigError("connect", None, reason, hint="see `nexus doctor`")
    return choice.module


def _why_missing(error: ImportError) -> str:
    try:
        with open(_REASON_FILE, encoding="utf-8") as file:
            why = file.read().strip()
    except FileNotFoundError:
        why = str(error)
    return f"{_MODULE} is not built: {why}"
