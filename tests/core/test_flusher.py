"""Flusher: syncs again and again until it is stopped, whatever a sync says."""

from __future__ import annotations

import logging
import threading

import pytest

from nexus.contracts.errors import ClosedError, StorageFailedError
from nexus.core.flusher import Flusher

PATIENT_S = 30.0


def test_a_sync_that_fails_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    tried = threading.Semaphore(0)

    def sync() -> None:
        tried.release()
        raise StorageFailedError("sync", None, "the disk is gone")

    with caplog.at_level(logging.WARNING):
        flusher = Flusher(sync, interval_s=0.0)
        assert all(tried.acquire(timeout=PATIENT_S) for _ in range(3))
        flusher.stop()
    assert "the disk is gone" in caplog.text


def test_stopping_waits_for_the_sync_under_way() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def sync() -> None:
        begun.set()
        assert go_on.wait(PATIENT_S)
        ended.set()

    flusher = Flusher(sync, interval_s=0.0)
    assert begun.wait(PATIENT_S)
    stopper = threading.Thread(target=flusher.stop)
    stopper.start()
    go_on.set()
    stopper.join(PATIENT_S)
    assert not stopper.is_alive()
    assert ended.is_set()


def test_it_ends_once_the_filesystem_is_closed() -> None:
    syncs = []

    def sync() -> None:
        syncs.append("sync")
        raise ClosedError("sync", None, "the filesystem is closed")

    flusher = Flusher(sync, interval_s=0.0)
    flusher._thread.join(PATIENT_S)
    assert not flusher._thread.is_alive()
    flusher.stop()
    assert syncs == ["sync"]
