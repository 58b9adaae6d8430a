"""Stored metadata, events and locks begin with a codec version; what cannot be read is damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nexus.contracts.errors import CorruptionError
from nexus.contracts.file_events import FILE_WRITE, FileEvent
from nexus.core.inode_table import journal_records
from nexus.core.lock_manager import LOCK_VERSION, LockRecord, decode_lock, encode_lock
from nexus.core.metadata_codec import (
    EVENT_VERSION,
    METADATA_VERSION,
    decode_event,
    decode_metadata,
    encode_event,
)
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import Mutation, SealedStore, revision_key
from nexus.storage.metastore.memory import MemoryMetastore

EVENT = FileEvent(FILE_WRITE, "/a", "ann", 1_700_000_000, "root", etag="b3:00", size=5, version=1)


def entry(payload: bytes) -> Sealed:
    return Sealed(b"J" + revision_key(7) + bytes(4), payload, 7, 0)


def test_an_event_is_stored_with_a_version_and_read_with_its_revision() -> None:
    stored = encode_event(EVENT)
    assert stored[:1] == EVENT_VERSION == b"\x01"
    assert decode_event(entry(stored)).revision == 7
    assert decode_event(entry(stored)).path == "/a"


@pytest.mark.parametrize("version", [b"", b"\x00", b"\x02", b"\xff"])
@pytest.mark.parametrize(
    ("decode", "what"),
    [(decode_event, "revision 7"), (decode_metadata, "record"), (decode_lock, "lock record")],
)
def test_an_unknown_codec_version_is_refused_by_name(
    decode: Callable[[Sealed], Any], what: str, version: bytes
) -> None:
    with pytest.raises(CorruptionError, match=f"{what}.* has codec version") as caught:
        decode(entry(version))
    assert "newer release" in str(caught.value.hint)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x95", b"\x91\xa1a", b"\x95\xa1\xff\xa0\xa0\x00\xa0"]
)
def test_an_event_that_does_not_decode_names_its_revision(body: bytes) -> None:
    with pytest.raises(CorruptionError, match="the journal entry of revision 7") as caught:
        decode_event(entry(EVENT_VERSION + body))
    assert caught.value.hint


def test_a_lock_is_stored_with_a_version() -> None:
    lock = LockRecord("id", "exclusive", 1000, 1, 2, "ann")
    stored = encode_lock(lock)
    assert stored[:1] == LOCK_VERSION == b"\x01"
    assert decode_lock(entry(stored)) == lock


def test_a_lock_that_does_not_decode_is_damage() -> None:
    with pytest.raises(CorruptionError, match="lock record"):
        decode_lock(entry(LOCK_VERSION + b"\x91\x05"))


def test_metadata_with_text_that_is_not_utf8_is_damage() -> None:
    with pytest.raises(CorruptionError):
        decode_metadata(entry(METADATA_VERSION + b"\x93\x00\x00\xa1\xff"))


def test_the_journal_refuses_an_entry_without_a_version() -> None:
    store = SealedStore(MemoryMetastore())
    mutation = Mutation()
    mutation.put_at_revision(b"J", encode_event(EVENT)[1:], bytes(4))
    store.commit(mutation, durable=False)
    with pytest.raises(CorruptionError, match="the journal entry of revision 1"):
        list(journal_records(store))
