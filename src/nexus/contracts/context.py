"""Who is asking. Layer: contracts. Unix counterpart: ``struct cred``."""

from __future__ import annotations

import msgspec

from nexus.contracts.errors import InvalidArgumentError, shown

ROOT_ZONE_ID = "root"
"""The one zone of a standalone filesystem."""


class OperationContext(msgspec.Struct, frozen=True):
    """The identity that every call carries and every mutation records.

    ``run_id`` groups the mutations of one run of an agent, so that they can be found and undone
    together. Frozen: share it freely between threads.
    """

    user_id: str
    agent_id: str | None = None
    zone_id: str = ROOT_ZONE_ID
    groups: tuple[str, ...] = ()
    is_admin: bool = False
    run_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse what could not be recorded. Errors: InvalidArgumentError."""
        for name in ("user_id", "agent_id", "zone_id", "run_id"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("user_id", "zone_id")):
                raise InvalidArgumentError("context", None, f"{name} is {shown(value)}, not text")
        # A zone is looked up by every call; the others are refused when they are recorded.
        try:
            self.zone_id.encode()
        except UnicodeEncodeError as error:
            reason = f"zone_id is {shown(self.zone_id)}, not UTF-8"
            raise InvalidArgumentError("context", None, reason) from error
