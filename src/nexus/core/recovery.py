"""Recovery after a power cut: back to the last revision whose content is whole.

Layer: core. Runs once, at the first start after the machine itself went down, in ``ordered``
durability. Records and content reach the disk on their own then: the metastore holds a prefix of
the commits, but content that the newest of them name may be missing or torn. A process kill loses
nothing, so nothing is done after one. Unix counterpart: journal replay with data=ordered.

Method: the barrier record says up to which revision content is durable. Content written after it
is verified in commit order; at the first revision with damaged content, every path that changed
since returns to its state before, read from its version records, in one commit. So no commit is
ever kept in half. Cost: the content written since the barrier, plus, only where something was
lost, one pass over the version records.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

from nexus.contracts.errors import ContentNotFoundError, CorruptionError, PathNotFoundError
from nexus.contracts.file_events import DIR_CREATE, DIR_DELETE, FILE_DELETE, FILE_WRITE, FileEvent
from nexus.contracts.metadata import DT_REG
from nexus.core.inode_table import Transaction, Version, journal
from nexus.core.inode_volume import InodeVolume
from nexus.core.nexus_fs import NexusFS
from nexus.core.volume import Actor


def recover(nx: NexusFS, actor: Actor) -> int | None:
    """Undo the commits from the first one whose content is not whole.

    Returns the revision whose state is kept, or None where nothing was lost.
    """
    lost = _first_lost_revision(nx, actor)
    if lost is not None:
        _undo_from(nx, lost, actor)
    nx.sync()  # the barrier moves on, so that a later recovery does not meet this loss again
    return None if lost is None else lost - 1


def _undo_from(nx: NexusFS, lost: int, actor: Actor) -> None:
    with Transaction(nx.store) as txn:
        for volume in nx.volumes():
            if isinstance(volume, InodeVolume):
                for undone, wanted in _changed_since(volume, lost):
                    _return_to(txn, volume, undone[-1].path, wanted, actor)
                    for version in undone:  # history must not offer what has no content
                        txn.delete_record(version.record)
        txn.commit(durable=True)


def _first_lost_revision(nx: NexusFS, actor: Actor) -> int | None:
    verified: set[str] = set()
    barrier = nx.barrier()
    for _, event in journal(nx.store, (barrier, (1 << 32) - 1) if barrier else (0, 0)):
        if event.kind == FILE_WRITE and event.etag not in verified:
            if not _is_whole(nx, event, actor):
                return event.revision
            verified.add(event.etag)
    return None


def _is_whole(nx: NexusFS, event: FileEvent, actor: Actor) -> bool:
    try:
        volume = nx.router.route(event.path, actor.context.zone_id).mount.volume
    except PathNotFoundError:
        return True
    if not isinstance(volume, InodeVolume) or not event.etag.startswith("b3"):
        return True
    content = volume.content_store()
    try:
        for object_id in content.objects_of(event.etag):
            content.verify_object(object_id)
    except (ContentNotFoundError, CorruptionError):
        return False
    return True


def _changed_since(
    volume: InodeVolume, lost: int
) -> Iterator[tuple[list[Version], Version | None]]:
    """Yield (versions from ``lost`` on, the last before it or None) of each path that has any."""
    for _, group in groupby(volume.table.all_versions(), key=attrgetter("path")):
        wanted: Version | None = None
        undone: list[Version] = []
        for version in group:
            if version.revision < lost:
                wanted = version
            else:
                undone.append(version)
        if undone:
            yield undone, wanted


def _return_to(
    txn: Transaction, volume: InodeVolume, relative: str, wanted: Version | None, actor: Actor
) -> None:
    path = volume.absolute(relative)
    if wanted is None or wanted.meta is None:
        inode = volume.table.get(relative)
        if inode is not None:
            is_file = inode.meta.entry_type == DT_REG
            txn.remove(volume.table, relative, inode)
            txn.event(actor.event(FILE_DELETE if is_file else DIR_DELETE, path))
        return
    meta = wanted.meta
    txn.put(volume.table, relative, meta)
    if meta.entry_type == DT_REG:
        details = {"etag": meta.etag, "size": meta.size, "version": meta.version}
        txn.event(actor.event(FILE_WRITE, path, **details))
    else:
        txn.event(actor.event(DIR_CREATE, path))
