"""VFSSemaphore holds its conformance suite."""

from collections.abc import Callable

from nexus.lib.semaphore import VFSSemaphore
from nexus.testing.semaphore import SemaphoreSuite


class TestVFSSemaphore(SemaphoreSuite):
    def make(self, clock_ns: Callable[[], int]) -> VFSSemaphore:
        return VFSSemaphore(clock_ns)
