"""OnFirstUse: a part that is made when somebody first asks for it. Layer: lib.

It keeps a start from paying for what few programs use: making such a part is where its modules are
imported too. What making it means is the owner's. Unix counterpart: pthread_once(3).

Invariants:

1. The part is made once, whoever asks at the same time; what making it raises reaches who asked,
   and the next one tries again.
2. :attr:`OnFirstUse.made` takes no lock, so that a child of fork(2) can look at it.

Locks: ``_making`` is held while the part is made, which asks for no other part made so in a circle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class OnFirstUse(Generic[T]):
    """One part and how to make it. Shared by all threads."""

    __slots__ = ("_make", "_making", "made")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._making = threading.Lock()
        self.made: T | None = None
        """The part where it is there already."""

    def __call__(self) -> T:
        """Return the part. Errors: those of making it."""
        if self.made is None:
            with self._making:
                if self.made is None:
                    self.made = self._make()
        return self.made

    def existing(self) -> T | None:
        """Return the part where somebody has asked for it, waiting while it is being made."""
        with self._making:
            return self.made
