"""Interrupts: a KeyboardInterrupt at any line of a call, or while the main thread waits.

Layer: testing. An interpreter looks at signals between two steps, and when one cuts short the
system call that waits. A signal that comes after the last step and before the call does neither:
it is noticed once the wait has ended by itself. On a busy machine that happens, so the signal is
followed by others, of a kind that does nothing, until it has been noticed.
"""

from __future__ import annotations

import linecache
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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


def interrupted_at(step: int, call: Callable[[], object], within: str) -> bool:
    """Run a call, raising KeyboardInterrupt at its ``step``-th line in the files of a folder.

    Return False where it has fewer lines there; it has run to its end then.
    """
    left = step

    def each_line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line" and not _sees_no_signal(frame):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return each_line

    def each_frame(frame: FrameType, _event: str, _: Any) -> Any:
        code = frame.f_code
        # What is raised while an object is given back reaches nobody.
        watched = code.co_filename.startswith(within) and code.co_name != "__del__"
        return each_line if left > 0 and watched else None

    before = sys.gettrace()
    sys.settrace(each_frame)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return left <= 0


def _sees_no_signal(frame: FrameType) -> bool:
    """Return whether a tracer is told of the line where the interpreter looks at no signal.

    That of a with statement it sees again on the way out, just before the block is left; that of a
    try statement is no step at all.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
    return line.startswith(("with ", "try:"))
