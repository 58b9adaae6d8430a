"""Kills a child process at a chosen one of the system calls that change its files.

Layer: testing, Linux only. The child is traced (ptrace(2)), so that the calls of every thread
count, whatever language made them; it is killed as it enters the call, before the call has any
effect. Unix counterpart: ``strace --inject=...:signal=KILL``.

States of a traced thread::

    stopped --resume--> running --entering a call--> stopped --resume--> running --leaving--> ...

Locks: none; one child at a time, from the thread that started it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

_TRACE_ME, _SYSCALL, _SET_OPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_MARK_SYSCALLS, _FOLLOW_THREADS, _KILL_ON_EXIT = 1, 8, 1 << 20
_OPTIONS = _MARK_SYSCALLS | _FOLLOW_THREADS | _KILL_ON_EXIT
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_ENTERING = 1
_ALL_THREADS = 0x40000000  # __WALL

_NUMBERS = {
    "x86_64": "1 18 20 296 285 74 75 76 77 82 264 316 87 263",
    "aarch64": "64 68 66 70 47 82 83 45 46 - 38 276 - 35",
}
_NAMES = (
    *("write", "pwrite64", "writev", "pwritev", "fallocate"),
    *("fsync", "fdatasync", "truncate", "ftruncate"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat"),
)
_CALLS = dict(zip(_NUMBERS.get(platform.machine(), "").split(), _NAMES, strict=False))
"""Names of the calls that change files, by their number in decimal."""


class _Entry(ctypes.Structure):
    """struct ptrace_syscall_info, as far as it is read here."""

    _fields_ = (
        ("operation", ctypes.c_uint8),
        ("architecture", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


def can_trace() -> bool:
    """Return whether this machine is one whose system calls are known here."""
    return sys.platform == "linux" and bool(_CALLS)


def run_killed_at(body: Callable[[int], None], number: int) -> tuple[bytes, str | None]:
    """Run ``body(reports)`` in a child and kill it at its call ``number``, from 0.

    ``reports`` is a descriptor; what the body writes there comes back, and does not count. So does
    the name of the call at which it was killed, None when it ended before.

    Errors: AssertionError when the body fails; OSError where the system allows no tracing.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork(2) beside other threads
        child = os.fork()
    if child == 0:
        _run(body, writing)
    os.close(writing)
    with open(reading, "rb") as reports:
        killed_at = _trace(child, writing, number)
        return reports.read(), killed_at


def _run(body: Callable[[int], None], reports: int) -> None:
    try:
        os.setpgid(0, 0)
        _ptrace(_TRACE_ME, 0, 0, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        body(reports)
        os._exit(0)
    finally:  # the child must not go on in its parent's place, whatever happens
        traceback.print_exc()
        os._exit(1)


def _trace(child: int, reports: int, number: int) -> str | None:
    """Let every thread of the child run from call to call; return where it was killed."""
    _, status = os.waitpid(child, 0)
    assert os.WIFSTOPPED(status), f"the child could not be traced: {status}"
    _ptrace(_SET_OPTIONS, child, 0, _OPTIONS)
    _ptrace(_SYSCALL, child, 0, None)
    left, killed_at = number, None
    while True:
        thread, status = os.waitpid(-child, _ALL_THREADS)
        if os.WIFSTOPPED(status):
            name = _call(thread, reports) if os.WSTOPSIG(status) == _SYSCALL_STOP else None
            if name and killed_at is None:
                if left == 0:
                    killed_at = name
                    os.kill(child, signal.SIGKILL)
                    continue
                left -= 1
            _resume(thread, os.WSTOPSIG(status))
        elif thread == child:
            code = os.waitstatus_to_exitcode(status)
            assert code == (-signal.SIGKILL if killed_at else 0), f"the child ended with {code}"
            return killed_at


def _call(thread: int, reports: int) -> str | None:
    """Return the name of the call that the thread enters, if it changes a file."""
    entry = _Entry()
    try:
        _ptrace(_GET_SYSCALL_INFO, thread, ctypes.sizeof(entry), ctypes.byref(entry))
    except ProcessLookupError:
        return None  # killed meanwhile
    if entry.operation != _ENTERING or entry.arguments[0] == reports:
        return None
    return _CALLS.get(str(entry.number))


def _resume(thread: int, stop: int) -> None:
    quiet = (signal.SIGSTOP, signal.SIGTRAP, _SYSCALL_STOP)  # of the tracing, not of the child
    try:
        _ptrace(_SYSCALL, thread, 0, None if stop in quiet else stop)
    except ProcessLookupError:
        return  # killed meanwhile; its end is reported next


def _ptrace(request: int, thread: int, address: int, data: object) -> None:
    if _function()(request, thread, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _function() -> Any:
    function = ctypes.CDLL(None, use_errno=True).ptrace
    function.restype = ctypes.c_long
    function.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    return function
