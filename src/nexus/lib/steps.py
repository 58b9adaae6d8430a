"""Steps: an algorithm that waits, written once for threads and for tasks.

Layer: lib. The algorithm is a generator that yields each wait in both of its forms and is sent
what came of it; :func:`run` takes the form that blocks, :func:`run_async` the one that is awaited.
What is waited for is known to whoever makes the step. Unix counterpart: the blocking and the
``io_uring`` entry of one system call.

Invariants:

1. What a wait raises is raised in the algorithm, where it yielded.
2. An algorithm that was begun is finished or closed when its driver returns, also after a
   KeyboardInterrupt or the cancelling of its task: its ``finally`` clauses have run.

Takes no lock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias, TypeVar

import msgspec

T = TypeVar("T")


class Step(msgspec.Struct, frozen=True, gc=False):
    """One wait: how a thread does it, and how a task does."""

    block: Callable[[], Any]
    wait: Callable[[], Awaitable[Any]]


Steps: TypeAlias = Generator[Step, Any, T]
"""An algorithm that returns a T once it is done."""


def step(block: Callable[[], T], wait: Callable[[], Awaitable[T]]) -> Steps[T]:
    """Wait once, in whichever form the driver takes; ``yield from`` it."""
    found: T = yield Step(block, wait)
    return found


def off_loop(work: Callable[[], T]) -> Steps[T]:
    """Do what has no form to be awaited, so that a task leaves it to another thread."""

    async def wait() -> T:
        import asyncio  # at the top it would cost every start of the kernel

        return await asyncio.to_thread(work)

    return step(work, wait)


def run(steps: Steps[T]) -> T:
    """Do every step in this thread. Errors: those of the algorithm."""
    try:
        at = next(steps)
        while True:
            try:
                found = at.block()
            except BaseException as error:  # noqa: BLE001 - handed to the algorithm
                at = steps.throw(error)
            else:
                at = steps.send(found)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


async def run_async(steps: Steps[T]) -> T:
    """Do every step as a task, holding no thread while it waits. Errors: as :func:`run`."""
    try:
        at = next(steps)
        while True:
            try:
                found = await at.wait()
            except BaseException as error:  # noqa: BLE001 - handed to the algorithm
                at = steps.throw(error)
            else:
                at = steps.send(found)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()
