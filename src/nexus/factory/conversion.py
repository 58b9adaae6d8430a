"""Converts a data directory from one metastore to another.

Layer: factory. It copies every record with its version, and the revision, so that conditions,
watches and locks go on where they were; it knows nothing of what records mean, but that each has a
seal. The switch itself is :mod:`nexus.factory.store_switch`.

Invariants:

1. Nothing is written to the old store, and the switch comes after the new one was closed, opened
   anew and compared with the old one record by record.
2. Damage ends the conversion before the switch.

Locks: the data directory's, for the length of the conversion.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import zip_longest

import msgspec
import xxhash

from nexus.contracts.errors import (
    ConfigError,
    CorruptionError,
    NexusError,
    PathNotFoundError,
)
from nexus.contracts.metastore import MetastoreABC, StoredEntry
from nexus.core.sealed_store import SealedStore
from nexus.factory.data_directory import DESCRIPTOR, DataDirectory, default_path
from nexus.factory.metastores import AUTO, BESIDE, CONVERSION, FILES, metastore_class
from nexus.factory.store_switch import KEPT_SUFFIX, begin, place, settle
from nexus.lib.disk import Disk, storage_error

Progress = Callable[[str, int], None]
_PAGE = 4000
_EVERY = 1000
_MASK = (1 << 64) - 1


class ConversionReport(msgspec.Struct, frozen=True):
    """What a conversion did. ``checksum`` is over all records, whatever their order."""

    source: str
    target: str
    records: int
    revision: int
    checksum: str
    kept: str | None
    """The file of the old store, where it was to be kept."""


def convert(
    data_dir: str | None,
    to: str,
    *,
    keep: bool = False,
    disk: Disk | None = None,
    progress: Progress = lambda stage, count: None,
) -> ConversionReport:
    """Convert a data directory that nobody has open to the metastore ``to``.

    ``progress`` is called with a stage ("checking", "copying", "verifying") and a count of records.
    Until it returns, the old store is in force or the new one, whole either way.

    Errors: PathNotFoundError; DataDirectoryLockedError; ConfigError for a metastore that there is
    not or that is there already; CorruptionError for damage, with the key; NoSpaceError,
    StorageError.
    """
    path = os.path.abspath(os.path.expanduser(data_dir or default_path()))
    if to not in FILES:
        raise ConfigError("convert", path, f"no metastore {to!r}; there are {', '.join(FILES)}")
    if not os.path.exists(os.path.join(path, DESCRIPTOR)):
        raise PathNotFoundError("convert", path, "no data directory here")
    disk = disk or Disk()
    directory = DataDirectory(path, disk, AUTO)
    with closing(directory):
        source = directory.descriptor.metastore
        _check_free(path, source, to)
        with _abandoned_on_failure(path, source, disk):
            report = _copy(directory, source, to, disk, progress, keep=keep)
            place(path, to, disk)
        directory.record_metastore(to)
        settle(path, to, disk)
        if directory.was_left_synced:
            directory.leave_synced()
    return report


def _check_free(path: str, source: str, to: str) -> None:
    if source == to:
        raise ConfigError("convert", path, f"its metastore is {to} already")
    taken = [FILES[to] + suffix for suffix in ("", *BESIDE[to])]
    taken += [FILES[source] + KEPT_SUFFIX]
    for name in taken:
        if os.path.lexists(os.path.join(path, name)):
            reason = f"{name} is in the way"
            raise ConfigError("convert", path, reason, hint="move it away")


def _copy(
    directory: DataDirectory, source: str, to: str, disk: Disk, progress: Progress, *, keep: bool
) -> ConversionReport:
    """Build the new store in the folder, closed and compared with the old one."""
    path = directory.path
    old_class, new_class = metastore_class(source, path), metastore_class(to, path)
    file = os.path.join(path, CONVERSION, FILES[to])
    with closing(old_class(directory.metastore_file, disk=disk, create=False)) as old:
        _check(old, directory.metastore_file, progress)
        begin(path, disk, keep=source if keep else None)
        with closing(new_class(file, disk=disk, create=True, reserve_bytes=0)) as new:
            copied = _fill(old, new, progress)
        with closing(new_class(file, disk=disk, create=False, reserve_bytes=0)) as new:
            count, checksum = verified = _compare(old, new, file, progress)
        if copied != verified:
            raise _differs(file, "the checksum over all records")
        kept = FILES[source] + KEPT_SUFFIX if keep else None
        return ConversionReport(source, to, count, old.revision(), f"{checksum:016x}", kept)


@contextmanager
def _abandoned_on_failure(path: str, source: str, disk: Disk) -> Iterator[None]:
    """Leave no trace of a new store that is not to be put in force."""
    try:
        yield
    except BaseException as error:
        settle(path, source, disk)
        if isinstance(error, OSError) and not isinstance(error, NexusError):
            raise storage_error("convert", path, error) from error
        raise


def _check(store: MetastoreABC, file: str, progress: Progress) -> None:
    """Refuse a store with any damage."""
    hint = "`nexus fsck` says what is damaged"
    for problem in store.check():
        raise CorruptionError("convert", file, problem, hint=hint)
    sealed = SealedStore(store)
    sealed.head()
    for number, (key, record) in enumerate(sealed.iterate_unverified()):
        if record is None:
            raise CorruptionError("convert", file, f"the record {key!r} is damaged", hint=hint)
        if number % _EVERY == 0:
            progress("checking", number)


def _pages(store: MetastoreABC) -> Iterator[list[StoredEntry]]:
    after = b""
    while True:
        page = store.scan(b"", after, _PAGE)
        if page:
            yield page
        if len(page) < _PAGE:
            return
        after = page[-1].key


def _fill(old: MetastoreABC, new: MetastoreABC, progress: Progress) -> tuple[int, int]:
    count = checksum = 0
    revision = old.revision()
    new.load([], revision)
    for page in _pages(old):
        new.load(page, revision)
        count += len(page)
        checksum = (checksum + sum(map(_checksum, page))) & _MASK
        progress("copying", count)
    new.sync()
    return count, checksum


def _compare(
    old: MetastoreABC, new: MetastoreABC, file: str, progress: Progress
) -> tuple[int, int]:
    count = checksum = 0
    if old.revision() != new.revision():
        raise _differs(file, "the revision")
    nothing: list[StoredEntry] = []
    for ours, theirs in zip_longest(_pages(old), _pages(new), fillvalue=nothing):
        for one, other in zip_longest(ours, theirs):
            if one != other:
                raise _differs(file, f"the record {(one or other).key!r}")
        count += len(theirs)
        checksum = (checksum + sum(map(_checksum, theirs))) & _MASK
        progress("verifying", count)
    return count, checksum


def _checksum(entry: StoredEntry) -> int:
    head = len(entry.key).to_bytes(8, "big") + entry.version.to_bytes(8, "big")
    return xxhash.xxh3_64_intdigest(head + entry.key + entry.value)


def _differs(file: str, what: str) -> CorruptionError:
    reason = f"{what} came back different: the new store is discarded, the old one is untouched"
    return CorruptionError("convert", file, reason, hint="check the disk, then try again")
