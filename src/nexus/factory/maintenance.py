"""Check and collect an embedded filesystem. Layer: factory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nexus.contracts.errors import NotSupportedError
from nexus.contracts.filesystem import NexusFilesystem
from nexus.core.nexus_fs import NexusFS

if TYPE_CHECKING:
    from nexus.core.collector import CollectionReport
    from nexus.core.fsck import FsckReport

Progress = Callable[[str, int], None]


def fsck(
    nx: NexusFilesystem,
    *,
    repair: bool = False,
    content: bool = True,
    progress: Progress = lambda stage, count: None,
) -> FsckReport:
    """Check everything stored, and with ``repair`` mend what has a second copy.

    ``progress`` is called with a stage ("structure", "records", "content") and a count (0, records,
    bytes). Changes wait during the first two, for a time that grows with the number of records;
    reads never do. A metastore whose structure is damaged is only reported: `nexus fsck --repair`
    builds its file anew while it opens. Errors: NotSupportedError unless ``nx`` is embedded
    in this process.
    """
    # Imported here: most programs check nothing, and it costs each of them start-up time.
    from nexus.core.fsck import Checker

    kernel = _kernel("fsck", nx)
    with kernel.volumes_in_use() as volumes:
        return Checker(kernel.store, volumes, progress).run(repair=repair, content=content)


def collect(
    nx: NexusFilesystem,
    *,
    retention_s: float,
    grace_s: float,
    dry_run: bool = False,
    progress: Progress = lambda stage, count: None,
) -> CollectionReport:
    """Forget old history and unnamed content; see :class:`nexus.core.collector.Collector`."""
    return _kernel("gc", nx).collector.run(
        retention_s=retention_s, grace_s=grace_s, dry_run=dry_run, progress=progress
    )


def _kernel(operation: str, nx: NexusFilesystem) -> NexusFS:
    if not isinstance(nx, NexusFS):
        raise NotSupportedError(operation, None, "this filesystem is not embedded here")
    return nx
