"""Holders: who holds a counted name, and until when.

Layer: lib. The state of :class:`nexus.lib.semaphore.VFSSemaphore`, without a clock or a wait: each
call is told what time it is, and the queue of those who wait is its owner's, since a waiter may
have gone when its turn comes. Unix counterpart: the count in ``sem_t``.

Invariants:

1. A hold is put only while there are fewer live ones than any of them, and the new one, bears.
2. A hold that is due by the time a call is told is gone before the call looks.
3. A name exists while it is held.

Locks: none; the owner synchronises.
"""

from __future__ import annotations

from typing import Any, Final

from nexus.lib.native import chosen

_NOBODY: Final[dict[str, tuple[str, int, int]]] = {}
"""Never changed: what is looked into where a name is not held."""


class Holders:
    """The holders of all names."""

    def __init__(self) -> None:
        # Of each name by id: the id, how many holders it bears, itself counted, and when it ends.
        self._names: dict[str, dict[str, tuple[str, int, int]]] = {}

    def admits(self, name: str, max_holders: int, now_ns: int) -> bool:
        """Return whether a hold that bears so many would be granted."""
        holders = self._live(name, now_ns)
        if not holders:
            return True
        least = min([bears for _, bears, _ in holders.values()])
        return len(holders) < min(least, max_holders)

    def try_put(
        self, name: str, holder_id: str, max_holders: int, expires_at_ns: int, now_ns: int
    ) -> bool:
        """Put a hold where there is room for it; return whether there was."""
        admitted = name not in self._names or self.admits(name, max_holders, now_ns)
        if admitted:
            self.put(name, holder_id, max_holders, expires_at_ns)
        return admitted

    def put(self, name: str, holder_id: str, max_holders: int, expires_at_ns: int) -> None:
        """Put a hold as it was granted elsewhere, or in place of the one of the same id."""
        holder = holder_id, max_holders, expires_at_ns
        self._names.setdefault(name, {})[holder_id] = holder

    def remove(self, name: str, holder_id: str, now_ns: int) -> bool:
        """End a hold; return whether it was there."""
        holders = self._live(name, now_ns)
        if holder_id not in holders:
            return False
        del holders[holder_id]
        if not holders:
            del self._names[name]
        return True

    def extend(self, name: str, holder_id: str, expires_at_ns: int, now_ns: int) -> bool:
        """Have a hold end at another time; return whether it was there."""
        holders = self._live(name, now_ns)
        if holder_id not in holders:
            return False
        holders[holder_id] = holder_id, holders[holder_id][1], expires_at_ns
        return True

    def clear(self, name: str, now_ns: int) -> int:
        """End every hold of a name; return how many there were."""
        count = len(self._live(name, now_ns))
        self._names.pop(name, None)
        return count

    def of(self, name: str, now_ns: int) -> list[tuple[str, int, int]]:
        """Return the holds of a name, in the order in which they were granted."""
        return list(self._live(name, now_ns).values())

    def _live(self, name: str, now_ns: int) -> dict[str, tuple[str, int, int]]:
        holders = self._names.get(name)
        if holders is None:
            return _NOBODY
        for _, _, until_ns in holders.values():
            if until_ns <= now_ns:
                return self._left(name, now_ns)
        return holders

    def _left(self, name: str, now_ns: int) -> dict[str, tuple[str, int, int]]:
        """Drop the holders that are due; return the others."""
        left = {i: holder for i, holder in self._names[name].items() if holder[2] > now_ns}
        if left:
            self._names[name] = left
        else:
            del self._names[name]
        return left


def make_holders() -> Holders:
    """Return the chosen twin's table. Errors: ConfigError."""
    module: Any = chosen().module
    made: Holders = Holders() if module is None else module.Holders()
    return made
