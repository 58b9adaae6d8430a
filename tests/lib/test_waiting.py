"""WaitQueue holds its conformance suite."""

from collections.abc import Callable
from typing import Any

from nexus.lib.waiting import WaitQueue
from nexus.testing.waiting import WaitQueueSuite


class TestWaitQueue(WaitQueueSuite):
    def make(self, give_back: Callable[[Any], object]) -> WaitQueue[Any]:
        return WaitQueue(give_back)
