"""Interrupts: a KeyboardInterrupt in the main thread while it waits, noticed wherever it falls.

Layer: testing. An interpreter looks at signals between two steps, and when one cuts short the
system call that waits. A signal that comes after the last step and before the call does neither:
it is noticed once the wait has ended by itself. On a busy machine that happens, so the signal is
followed by others, of a kind that does nothing, until it has been noticed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_MOMENT_S = 0.001


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield what interrupts this thread, the main one, once; it returns when that is noticed.

    It is called by another thread, which has ended before the block is left.
    """
    main = threading.get_ident()
    noticed = threading.Event()

    def notice(_number: int, _frame: object) -> None:
        noticed.set()
        raise KeyboardInterrupt

    def interrupt() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        while not noticed.wait(_MOMENT_S):
            signal.pthread_kill(main, signal.SIGUSR1)

    handlers = {signal.SIGINT: notice, signal.SIGUSR1: lambda _number, _frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
