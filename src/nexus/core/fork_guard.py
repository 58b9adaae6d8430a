"""Fork guard: tells what must not be used in a child of fork(2) that it is in one.

Layer: core, a kernel primitive. A child has copies of locks that nobody will release and of
database connections that are the parent's; neither can be used or closed safely. Nothing is
checked on a call's way: the child is told once, when it starts. Unix counterpart:
pthread_atfork(3).
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """What wants to be told."""

    def in_forked_child(self) -> None:
        """Refuse every further use. Takes no lock: who held it may not exist in the child."""


_watched: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def watch(target: ForkAware) -> None:
    """Tell ``target`` in every child that this process forks while it exists."""
    _watched.add(target)


def _tell() -> None:
    for target in list(_watched):
        target.in_forked_child()


os.register_at_fork(after_in_child=_tell)
