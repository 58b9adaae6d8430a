"""What messages cost: through pipes, beside the queue of the standard library, and streams."""

from __future__ import annotations

import sys
import threading
from queue import SimpleQueue
from statistics import median
from time import perf_counter

from benchmarks.harness import Plan, Row, Target, announced, by_kernel, interleave, single, timed
from nexus.contracts.errors import ClosedError
from nexus.contracts.stream_backend import StreamStore
from nexus.core.pipe_manager import Pipe
from nexus.core.stream_manager import Stream
from nexus.lib.disk import Disk
from nexus.storage.stream.durable_log import DurableStreams
from nexus.storage.stream.memory import MemoryStreams
from nexus.storage.stream.shared_memory import SharedMemoryStreams

SECTION = "ipc"
MESSAGE = b"x" * 64
MESSAGES = 100_000
STREAM_MESSAGES = 20_000
SIDES = 8
MILLION = 1_000_000
PATH = "/bench"


def run(plan: Plan) -> list[Row]:
    """Return every row of this file."""
    with announced("pipes"):
        rows = [alternating(plan), many_sides(plan)]
    with announced("streams"):
        folder = plan.folder(SECTION)
        for store in (
            MemoryStreams(),
            SharedMemoryStreams(str(folder / "shared"), disk=Disk()),
            DurableStreams(str(folder / "durable"), disk=Disk()),
        ):
            rows += streaming(plan, store)
    return rows


def alternating(plan: Plan) -> Row:
    """Write a message of 64 bytes and read it, in one thread."""
    pipe = Pipe(65_536)
    queue: SimpleQueue[bytes] = SimpleQueue()

    def ours(_: int) -> float:
        def work() -> None:
            write, read = pipe.write, pipe.read
            for _ in range(MESSAGES):
                write(PATH, MESSAGE)
                read(PATH)

        return timed(work, MESSAGES)

    def theirs(_: int) -> float:
        def work() -> None:
            put, get = queue.put, queue.get
            for _ in range(MESSAGES):
                put(MESSAGE)
                get()

        return timed(work, MESSAGES)

    samples = interleave(ours, theirs, plan.few_rounds)
    return single(
        SECTION,
        "pipe, 64-byte message written and read",
        "messages/s",
        1 / median(samples.measured),
        against="queue.SimpleQueue",
        reference=1 / median(samples.reference),
        target=by_kernel(
            rust=Target(1_000_000, at_most=False, absolute=True),
            python=Target(200_000, at_most=False, absolute=True),
        ),
    )


def many_sides(plan: Plan) -> Row:
    """Send a million messages from eight threads to eight, and check that each came once."""
    count = MILLION // 10 if plan.quick else MILLION
    pipe = Pipe(65_536)
    taken: list[list[bytes]] = [[] for _ in range(SIDES)]

    def produce(number: int) -> None:
        for index in range(number, count, SIDES):
            pipe.write(PATH, b"%d" % index)

    def consume(number: int) -> None:
        while message := pipe.read(PATH):
            taken[number].append(message)

    start = perf_counter()
    producers = [threading.Thread(target=produce, args=(n,)) for n in range(SIDES)]
    consumers = [threading.Thread(target=consume, args=(n,)) for n in range(SIDES)]
    for thread in (*producers, *consumers):
        thread.start()
    for thread in producers:
        thread.join()
    for _ in consumers:
        pipe.write(PATH, b"")
    for thread in consumers:
        thread.join()
    took = perf_counter() - start
    numbers = sorted(int(message) for messages in taken for message in messages)
    if numbers != list(range(count)):
        sys.exit("a pipe lost or duplicated messages")
    name = f"pipe, {count:,} messages, 8 producers and 8 consumers"
    return single(SECTION, name, "messages/s", count / took)


def streaming(plan: Plan, store: StreamStore) -> list[Row]:
    """Append messages of 64 bytes, then read them one by one."""
    stream = Stream(store.open("bench", STREAM_MESSAGES * 128))

    def append() -> None:
        for _ in range(STREAM_MESSAGES):
            stream.append(PATH, MESSAGE)

    def read() -> None:
        for offset in range(STREAM_MESSAGES):
            stream.read(PATH, offset, 0)

    appended, found = timed(append, STREAM_MESSAGES), timed(read, STREAM_MESSAGES)
    stream.close(ClosedError, PATH, "it was measured")
    return [
        single(SECTION, f"stream, {store.name}, append of 64 bytes", "messages/s", 1 / appended),
        single(SECTION, f"stream, {store.name}, read of 64 bytes", "messages/s", 1 / found),
    ]
