"""Checkpointer: writes the log of a SQLite store back into its file, beside the commits.

Layer: storage. A pass writes thousands of pages and syncs them; done by a writer, one commit in
hundreds would wait for all of that. It decides nothing: when to begin, and what a failure means,
are the store's. Unix counterpart: the journal thread of a disk filesystem.

A pass covers what is committed when it begins. The commits that came meanwhile are left for
another pass, or for the writer itself once they are few.

Invariants:

1. At most one pass runs, on a connection of its own that is open for just as long.
2. A pass that failed has left what it did not write in the log, and its error here.

States::

    idle --begin--> running --the pass ends--> done --reset--> idle

Locks: none. One thread calls it; the pass writes ``written_frames`` and ``error`` before it ends.
"""

from __future__ import annotations

import sqlite3
import threading

from nexus.storage.metastore.sqlite_file import connect


class Checkpointer:
    """Runs passes one after another. For one thread at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread: threading.Thread | None = None
        self.written_frames = 0
        """How much of the log the last pass has written back."""
        self.error: sqlite3.Error | None = None
        """What the last pass failed of; None also while it runs."""

    @property
    def idle(self) -> bool:
        """Whether no pass has begun since :meth:`reset`."""
        return self._thread is None

    @property
    def running(self) -> bool:
        """Whether a pass is under way."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self) -> None:
        """Begin a pass; none may be running."""
        assert not self.running, "one pass at a time"
        self.written_frames, self.error = 0, None
        self._thread = threading.Thread(target=self._run, name="nexus-checkpoint")
        try:
            self._thread.start()
        except RuntimeError:
            # No thread to be had, as at the end of the process: the caller waits for the pass.
            self._thread = None
            self._run()

    def reset(self) -> None:
        """Wait for the end of a pass, if one runs, and forget it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.error = None

    def _run(self) -> None:
        try:
            connection = connect(self._path)
            try:
                row = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            finally:
                connection.close()
        except sqlite3.Error as error:
            self.error = error
        else:
            self.written_frames = row[2]
