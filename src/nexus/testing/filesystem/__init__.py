"""The conformance suite of a whole filesystem, one behaviour a test.

Layer: testing. What it checks is the published contract (nexus.contracts.filesystem), seen only
through public calls, so it runs on any mount of any profile: :class:`FilesystemSuite` works
beneath a directory that the subclass names. :class:`MountSuite` and :class:`PersistenceSuite`
need a whole filesystem and state what they need. Tests of one driver's inside stay with it.
"""

import pytest

_PARTS = "base batches content history listing locks metadata mounts namespace paths watches"
# Before the imports, so that an assertion that fails in a part shows its values.
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS.split()))

from nexus.testing.filesystem.base import SuiteBase  # noqa: E402
from nexus.testing.filesystem.batches import BatchTests  # noqa: E402
from nexus.testing.filesystem.content import ContentTests  # noqa: E402
from nexus.testing.filesystem.history import HistoryTests  # noqa: E402
from nexus.testing.filesystem.listing import ListingTests  # noqa: E402
from nexus.testing.filesystem.locks import LockTests  # noqa: E402
from nexus.testing.filesystem.metadata import MetadataTests  # noqa: E402
from nexus.testing.filesystem.mounts import MountSuite, PersistenceSuite  # noqa: E402
from nexus.testing.filesystem.namespace import NamespaceTests  # noqa: E402
from nexus.testing.filesystem.paths import PathTests  # noqa: E402
from nexus.testing.filesystem.watches import WatchTests  # noqa: E402

__all__ = ["FilesystemSuite", "MountSuite", "PersistenceSuite"]


class FilesystemSuite(
    PathTests,
    ContentTests,
    BatchTests,
    NamespaceTests,
    ListingTests,
    MetadataTests,
    HistoryTests,
    LockTests,
    WatchTests,
    SuiteBase,
):
    """Everything the contract says of files and directories.

    A subclass gives :meth:`make` and, where its mount cannot do everything, the capabilities
    declared in :class:`~nexus.testing.filesystem.base.SuiteBase`.
    """
