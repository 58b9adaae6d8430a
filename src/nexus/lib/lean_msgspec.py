"""Imports msgspec as where ``typing_extensions`` is not installed. Layer: lib.

msgspec depends on nothing. It takes three names from ``typing_extensions`` where that is there,
else from ``typing``, and since Python 3.11 they are the same or do the same: ``Required``,
``NotRequired``, and ``get_type_hints`` with ``include_extras``. But the import brings ``inspect``,
``ast`` and ``tokenize`` along, a good part of what connecting takes. So it is not found while this
module is imported, which is before anything that imports msgspec; by this thread alone, as others
may be importing it. Whoever imports it later finds it.

Where either of the two was imported already, nothing is done.
"""

from __future__ import annotations

import sys
from threading import get_ident
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_UNNEEDED: Final = "typing_extensions"


class _Hiding:
    """A finder that hides one module from the thread that made it."""

    def __init__(self) -> None:
        self._thread = get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise where the module would be found, and leave any other to the next finder."""
        if name == _UNNEEDED and get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is not needed", name=name)
        return None


def _import() -> None:
    if "msgspec" in sys.modules or _UNNEEDED in sys.modules:
        return
    # A list in its place, as another thread may be going through the one that is there.
    hiding = _Hiding()
    sys.meta_path = [hiding, *sys.meta_path]
    try:
        import msgspec  # noqa: F401 - to have it
    finally:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not hiding]


_import()
