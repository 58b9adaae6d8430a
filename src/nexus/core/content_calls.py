"""ContentCalls: reading and writing, of files, of messages and of content by its hash.

Layer: core, the calls behind the entry points of :mod:`nexus.core.nexus_fs`. It knows no hook and
no default identity: paths are canonical and identities checked. Volumes store, channels wait.
Unix counterpart: ``fs/read_write.c``.

A whole-file write routes before it locks, to store its content, and under the lock only looks
whether the mount table is still the same. Reading content that is named by its hash, which no
writer changes, takes no lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from msgspec.structs import replace

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import InvalidArgumentError, NotSupportedError
from nexus.contracts.filesystem import Precondition, WriteRequest
from nexus.contracts.metadata import Buffer, Stat
from nexus.contracts.object_store import Content, ContentStoreABC
from nexus.core.arguments import (
    MAX_WRITE_END,
    check_message_read,
    check_message_write,
    check_precondition_type,
    check_range,
    check_version,
    checked_pieces,
    wait_limit,
)
from nexus.core.inode_table import Transaction
from nexus.core.kernel_state import KernelState, Target, lock_key
from nexus.core.volume import Actor
from nexus.lib.paths import normalize

if TYPE_CHECKING:
    from nexus.core.channels import Channel
    from nexus.lib.steps import Steps


class ContentCalls:
    """The calls that move bytes. Shared by all threads; holds no state of its own."""

    def __init__(self, kernel: KernelState) -> None:
        self._kernel = kernel

    # -- reading ------------------------------------------------------------------------------

    def read(
        self,
        path: str,
        who: OperationContext,
        count: int | None,
        offset: int,
        version: int | None,
        timeout: float | None,
    ) -> bytes:
        """Return bytes of a file, or a message, waiting for it. Errors: as sys_read."""
        found = self.look(path, who, count, offset, version)
        if isinstance(found, bytes):  # asked so, since a Channel is an ABC, which costs more to ask
            return found
        return found.read(path, offset, wait_limit("read", path, timeout))

    def look(
        self,
        path: str,
        who: OperationContext,
        count: int | None,
        offset: int,
        version: int | None,
    ) -> bytes | Channel:
        """Return bytes of a file, or the pipe or stream to read the message from."""
        if count is not None or type(offset) is not int or offset:
            check_range("read", path, count, offset)
        if version is not None:
            check_version("read", path, version)
        kernel, zone_id = self._kernel, who.zone_id
        volume, relative = kernel.route("read", path, zone_id)
        if count is None and version is None and not offset:
            data = volume.read_again(relative)
            if data is not None:
                return data
        record = volume.channel_record(relative)
        if record is not None:
            channel = kernel.channel_of("read", path, zone_id, volume, record)
            if channel is not None:
                check_message_read(path, count, version)
                return channel
        if volume.immutable_content:
            return volume.read("read", relative, count, offset, version)
        with kernel.locks.read(lock_key(zone_id, path)):
            volume, relative = kernel.route("read", path, zone_id)
            return volume.read("read", relative, count, offset, version)

    def reading(
        self,
        path: str,
        who: OperationContext,
        count: int | None,
        offset: int,
        version: int | None,
        timeout: float | None,
    ) -> Steps[bytes]:
        """As :meth:`read` of a message, for a thread or a task. Errors: NotSupportedError."""
        check_range("read", path, count, offset)
        check_message_read(path, count, version)
        channel = self._kernel.channel_to_wait_for("read", path, who.zone_id)
        return (yield from channel.reading(path, offset, wait_limit("read", path, timeout)))

    # -- writing ------------------------------------------------------------------------------

    def write_at(
        self,
        path: str,
        who: OperationContext,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
        timeout: float | None,
    ) -> Stat:
        """Write into a file, or a message, waiting for room. Errors: as sys_write."""
        channel = self.channel_to_write(path, who, data, offset, precondition)
        if channel is not None:
            return channel.write(path, bytes(data), wait_limit("write", path, timeout))
        return self.write_file_at(path, who, data, offset, precondition)

    def channel_to_write(
        self,
        path: str,
        who: OperationContext,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
    ) -> Channel | None:
        """Return the pipe or stream at a path, None where none is."""
        check_range("write", path, None, offset)
        check_precondition_type("write", path, precondition)
        if offset + len(data) > MAX_WRITE_END:
            raise InvalidArgumentError("write", path, f"the end is past {MAX_WRITE_END} bytes")
        kernel, zone_id = self._kernel, who.zone_id
        kernel.check_open("filesystem", None)
        volume, relative = kernel.route("write", path, zone_id)
        record = volume.channel_record(relative)
        if record is None:
            return None
        channel = kernel.channel_of("write", path, zone_id, volume, record)
        if channel is not None:
            check_message_write(path, offset, precondition)
        return channel

    def write_file_at(
        self,
        path: str,
        who: OperationContext,
        data: Buffer,
        offset: int,
        precondition: Precondition | None,
    ) -> Stat:
        """Write into an existing file; what is written was checked by :meth:`channel_to_write`."""
        kernel = self._kernel
        actor = kernel.actor(who)
        with kernel.locked(actor, path), Transaction(kernel.store) as txn:
            volume, relative = kernel.route("write", path, who.zone_id)
            kernel.waiting.require(txn, "write", path, precondition, who.zone_id)
            answer = volume.write_at(txn, relative, data, offset, precondition, actor)
            answer["revision"] = txn.commit(durable=kernel.durable)
        return answer

    def writing(
        self,
        path: str,
        who: OperationContext,
        message: Buffer,
        offset: int,
        precondition: Precondition | None,
        timeout: float | None,
    ) -> Steps[Stat]:
        """Write a message, for a thread or a task. Errors: as sys_write; NotSupportedError."""
        check_message_write(path, offset, precondition)
        channel = self._kernel.channel_to_wait_for("write", path, who.zone_id)
        limit = wait_limit("write", path, timeout)
        return (yield from channel.writing(path, bytes(message), limit))

    def write_file(self, request: WriteRequest, who: OperationContext) -> Stat:
        """Write one whole file. Errors: as sys_write."""
        kernel = self._kernel
        actor = kernel.actor(who)
        operation = "append" if request.append else "write"
        mounted = kernel.router.table(who.zone_id)
        target = self._target(operation, request, who)
        volume = target.volume
        content = volume.prepare(operation, target.relative, target.request)

        def write(txn: Transaction) -> Stat:
            answer = self._write_one(txn, operation, target, content, actor)
            answer["revision"] = txn.commit(durable=kernel.durable)
            return answer

        if content is None:
            return kernel.creating(operation, (target,), mounted, actor, write)
        try:
            volume.settle()
            if request.create and request.precondition is None:
                answer = self._create_file(target, content, mounted, actor)
                if answer is not None:
                    return answer
            return kernel.creating(operation, (target,), mounted, actor, write)
        finally:
            volume.abandon(content)

    def _create_file(
        self, target: Target, content: Content, mounted: object, actor: Actor
    ) -> Stat | None:
        """Write a file that is new, in a directory that is there: what most writes are.

        None, and nothing was done, where it is not as simple as that: the general way then does the
        same with more to ask, or says what is wrong.
        """
        kernel = self._kernel
        with kernel.locked(actor, target.path), Transaction(kernel.store) as txn:
            if kernel.closed or kernel.router.table(actor.context.zone_id) is not mounted:
                return None
            answer = target.volume.write_new(txn, target.relative, content, actor)
            if answer is not None:
                answer["revision"] = txn.commit(durable=kernel.durable)
            return answer

    def write_files(self, requests: Sequence[WriteRequest], who: OperationContext) -> list[Stat]:
        """Write whole files in one commit. Errors: as sys_write, for whichever file comes first."""
        kernel = self._kernel
        actor = kernel.actor(who)
        operation = "append" if any(request.append for request in requests) else "write"
        mounted = kernel.router.table(who.zone_id)
        writes = [self._target(operation, request, who) for request in requests]
        if len(writes) != 1:
            _check_batch(writes)
        contents: list[Content | None] = []
        try:
            for volume, some in groupby(writes, key=attrgetter("volume")):
                pairs = [(write.relative, write.request) for write in some]
                contents += volume.prepare_many(operation, pairs)
            for volume in {w.volume for w, c in zip(writes, contents, strict=True) if c}:
                volume.settle()
            answers = self._create_files(writes, contents, mounted, actor)
            if answers is not None:
                return answers
            return kernel.creating(
                operation,
                writes,
                mounted,
                actor,
                lambda txn: self._write_all(txn, operation, writes, contents, actor),
            )
        finally:
            for write, content in zip(writes, contents, strict=False):
                if content is not None:
                    write.volume.abandon(content)

    def _create_files(
        self,
        writes: Sequence[Target],
        contents: Sequence[Content | None],
        mounted: object,
        actor: Actor,
    ) -> list[Stat] | None:
        """As :meth:`_create_file`, of several in one commit."""
        kernel = self._kernel
        zone_id = actor.context.zone_id
        locks = {lock_key(zone_id, write.path) for write in writes}
        with kernel.locked_all(locks), Transaction(kernel.store) as txn:
            if kernel.closed or kernel.router.table(zone_id) is not mounted:
                return None
            answers: list[Stat] = []
            for write, content in zip(writes, contents, strict=True):
                request = write.request
                if content is None or request.precondition is not None or not request.create:
                    return None
                answer = write.volume.write_new(txn, write.relative, content, actor)
                if answer is None:
                    return None
                answers.append(answer)
            return self._committed(txn, answers)

    def _committed(self, txn: Transaction, answers: list[Stat]) -> list[Stat]:
        if answers:
            revision = txn.commit(durable=self._kernel.durable)
            for answer in answers:
                answer["revision"] = revision
        return answers

    def _target(self, operation: str, request: WriteRequest, who: OperationContext) -> Target:
        path = normalize(operation, request.path)
        if type(request.buf) is not bytes:
            request = replace(request, buf=checked_pieces(operation, path, request.buf))
        if request.precondition is not None:
            check_precondition_type(operation, path, request.precondition)
        volume, relative = self._kernel.route(operation, path, who.zone_id)
        return Target(path, volume, relative, request)

    def _write_all(
        self,
        txn: Transaction,
        operation: str,
        writes: Sequence[Target],
        contents: Sequence[Content | None],
        actor: Actor,
    ) -> list[Stat]:
        answers = [
            self._write_one(txn, operation, write, content, actor)
            for write, content in zip(writes, contents, strict=True)
        ]
        return self._committed(txn, answers)

    def _write_one(
        self,
        txn: Transaction,
        operation: str,
        target: Target,
        content: Content | None,
        actor: Actor,
    ) -> Stat:
        condition = target.request.precondition
        if condition is not None:
            zone_id = actor.context.zone_id
            self._kernel.waiting.require(txn, operation, target.path, condition, zone_id)
        return target.volume.write(txn, operation, target.relative, target.request, content, actor)

    # -- by hash ------------------------------------------------------------------------------

    def store_content(self, path: str, who: OperationContext, pieces: Iterable[Buffer]) -> str:
        """Store content in the mount that holds a path; return its id. Errors: as a write's."""
        volume, _ = self._kernel.route("content", path, who.zone_id)
        store = volume.content_store()
        content = store.write_content(checked_pieces("content", path, pieces))
        try:
            volume.settle()
        finally:
            store.unpin(content.etag)
        return content.etag

    def content_store(self, path: str, who: OperationContext) -> ContentStoreABC:
        """Return the content store of the mount that holds a path. Errors: NotSupportedError."""
        return self._kernel.route("content", path, who.zone_id)[0].content_store()


def _check_batch(writes: list[Target]) -> None:
    seen = set()
    for target in writes:
        path, volume = target.path, target.volume
        if path in seen:
            raise InvalidArgumentError("write_batch", path, "the path is in the batch twice")
        seen.add(path)
        if not volume.atomic_batch:
            raise NotSupportedError(
                "write_batch",
                path,
                f"the mount {volume.point} cannot take part in one commit with others",
                hint="write its files one by one",
            )
