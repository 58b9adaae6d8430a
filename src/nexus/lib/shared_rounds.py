"""SharedRounds: work that covers all that was done before it begins, shared by who waits for it.

Layer: lib. Syncing is such work: callers at the same time need one round of it, not one each. What
a round does, and what it covers, is the caller's. Unix counterpart: the group commit of a journal.

Invariants:

1. A caller whose :meth:`SharedRounds.join` returns is covered by a round that began after its call
   and that raised nothing.
2. One round at a time; whoever needs that none is under way holds :attr:`SharedRounds.turn`.

Lock: ``turn``, the outermost of whoever uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class SharedRounds:
    """Counts rounds. Shared by all threads."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self._started = 0  # this and below guarded by turn; reading the number alone is atomic
        self._last_done = 0

    def join(self, work: Callable[[], None]) -> None:
        """Return once a round that began after this call is done, running one where none was.

        Errors: what ``work`` raises, to the caller that ran it; the others run one themselves.
        """
        arrived = self._started
        with self.turn:
            if self._last_done > arrived:
                return
            self._started += 1
            number = self._started
            work()
            self._last_done = number
