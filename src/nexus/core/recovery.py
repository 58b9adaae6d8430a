"""Recovery after a power cut: back to the last revision whose content is whole.

Layer: core. Runs once, at the first start after the machine itself went down, in ``ordered``
durability. Records and content reach the disk on their own then: the metastore holds a prefix of
the commits, but content that the newest of them name may be missing or torn. A process kill loses
nothing, so nothing is done after one. Unix counterpart: journal replay with data=ordered.

Method: the barrier record says up to which revision content is durable. Content written after it
is verified; from the first revision with damaged content on, every path that changed returns to its
state before, read from its version records, in one commit. So no commit is ever kept in half.
Cost: a pass over the version records, and reading the content written since the barrier.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter

from nexus.contracts.errors import ContentNotFoundError, CorruptionError
from nexus.contracts.file_events import DIR_DELETE, FILE_DELETE
from nexus.contracts.metadata import DT_REG
from nexus.core.inode_table import Transaction, Version
from nexus.core.inode_volume import InodeVolume
from nexus.core.nexus_fs import NexusFS
from nexus.core.volume import Actor


def recover(nx: NexusFS, actor: Actor) -> int | None:
    """Undo the commits from the first one whose content is not whole.

    Returns the revision whose state is kept, or None where nothing was lost.
    """
    lost = _first_lost_revision(nx)
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


def _first_lost_revision(nx: NexusFS) -> int | None:
    """Return the revision of the first commit after the barrier with content that is not whole."""
    barrier = nx.barrier()
    lost: int | None = None
    for volume in nx.volumes():
        if isinstance(volume, InodeVolume):
            states: dict[str, bool] = {}
            for version in volume.table.all_versions():
                etag = version.meta.etag if version.meta else ""
                if not etag or version.revision <= barrier:
                    continue
                if etag not in states:
                    states[etag] = _is_whole(volume, etag)
                if not states[etag]:
                    lost = version.revision if lost is None else min(lost, version.revision)
    return lost


def _is_whole(volume: InodeVolume, etag: str) -> bool:
    content = volume.content_store()
    try:
        for object_id in content.objects_of(etag):
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
    txn.event(actor.event_of(path, meta))
