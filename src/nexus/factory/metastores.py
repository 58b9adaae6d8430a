"""Metastores by name: which one a data directory has, and the class that opens it.

Layer: factory. It decides and opens nothing. A store's kind names its file, so that what
``nexus.json`` records says which file is in force, and a conversion switches by replacing that one
record.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from nexus.contracts.errors import ConfigError
from nexus.lib import native

if TYPE_CHECKING:
    from nexus.storage.metastore.redb import RedbMetastore
    from nexus.storage.metastore.sqlite import SqliteMetastore

AUTO: Final = "auto"
SQLITE: Final = "sqlite"
REDB: Final = "redb"
FILES: Final = {SQLITE: "meta.db", REDB: "meta.redb"}
"""The name of a store's file in a data directory, by kind."""

BESIDE: Final = {
    SQLITE: ("-wal", "-shm", "-journal", ".head", ".reserve", ".new"),
    REDB: (".log", ".log2", ".head", ".reserve", ".new"),
}
"""What a store keeps beside its file, by kind."""

CONVERSION: Final = "convert"
"""The folder in a data directory of a conversion that is under way, or was cut short."""


class Choice(msgspec.Struct, frozen=True):
    """The metastore of a data directory, and why it is that one."""

    name: str
    reason: str


def check_metastore(asked: str) -> None:
    """Check what a configuration asks for. Errors: ConfigError, before any I/O."""
    if asked not in (AUTO, *FILES):
        reason = f"no metastore {asked!r}; there are {', '.join(FILES)}, and {AUTO}"
        raise ConfigError("connect", None, reason)
    if asked == REDB:
        _require_rust(None)


def choose(path: str, asked: str, recorded: str | None) -> Choice:
    """Return the metastore of the data directory at a path.

    ``recorded`` is what its descriptor says, None where there is none: then a store that is there
    decides, left by a creation that was cut short or beside a descriptor that is lost.
    Errors: ConfigError where another is asked for, or two stores are there.
    """
    if recorded is not None:
        if recorded not in FILES:
            reason = f"its metastore is {recorded!r}, which this release does not know"
            raise ConfigError("open", path, reason, hint="use the release that wrote it")
        found = Choice(recorded, "recorded in nexus.json")
    else:
        there = _stores_in(path)
        if not there:
            return _for_new(asked)
        if len(there) > 1:
            files = " and ".join(FILES[name] for name in there)
            reason = f"it has {files}, and no nexus.json that says which is in force"
            raise ConfigError("open", path, reason, hint="move the older one away")
        found = Choice(there[0], f"the directory has {FILES[there[0]]}")
    if asked not in (AUTO, found.name):
        reason = f"its metastore is {found.name}, not {asked}"
        hint = f"`nexus convert --to {asked}` converts it; {AUTO} takes what is there"
        raise ConfigError("open", path, reason, hint=hint)
    return found


def _stores_in(path: str) -> list[str]:
    """Return the kinds of the stores in a directory; where there is none, those of their traces.

    A log without its store holds commits, and its kind refuses to make a new store beside it.
    """
    names = os.listdir(path) if os.path.isdir(path) else []
    stores = [kind for kind, file in FILES.items() if file in names]
    return stores or [
        kind for kind, file in FILES.items() if any(name.startswith(file) for name in names)
    ]


def _for_new(asked: str) -> Choice:
    if asked != AUTO:
        return Choice(asked, "asked for by the configuration")
    if native.chosen().module is None:
        return Choice(SQLITE, "the default without the Rust kernel")
    return Choice(REDB, "the default with the Rust kernel")


def metastore_class(name: str, path: str) -> type[SqliteMetastore] | type[RedbMetastore]:
    """Return the class of a metastore; ``path`` is the data directory. Errors: ConfigError."""
    # A database module costs start-up time that only its user need pay.
    if name == SQLITE:
        from nexus.storage.metastore.sqlite import SqliteMetastore

        return SqliteMetastore
    _require_rust(path)
    from nexus.storage.metastore.redb import RedbMetastore

    return RedbMetastore


def _require_rust(path: str | None) -> None:
    choice = native.chosen()
    if choice.module is not None:
        return
    reason = f"the metastore redb needs the Rust kernel, which is not in use: {choice.reason}"
    hint = f"{native.way_to_rust()}, or set metastore to {AUTO}"
    if path is not None:
        hint = f"{native.way_to_rust()}; then `nexus convert --to sqlite` does away with the need"
    raise ConfigError("open", path, reason, hint=hint)
