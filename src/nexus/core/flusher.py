"""Flusher: a thread that makes acknowledged changes durable every few seconds.

Layer: core. In ``ordered`` durability a power cut may cost what came after the last barrier; this
bounds it. Unix counterpart: the kernel's writeback threads (vm.dirty_writeback_centisecs, 5 s).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from nexus.contracts.errors import ClosedError, StorageError
from nexus.lib.logs import log_of

INTERVAL_S = 5.0


class Flusher:
    """Calls ``sync`` every ``interval_s`` until stopped. A failure is logged and tried again."""

    def __init__(self, sync: Callable[[], None], interval_s: float = INTERVAL_S) -> None:
        self._sync = sync
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nexus-flusher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Return once the thread has ended."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self._sync()
            except ClosedError:
                return
            except StorageError as error:
                log_of(__name__).warning("%s", error)
