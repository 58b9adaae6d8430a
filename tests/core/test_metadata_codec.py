"""The codec of metadata and events by the number of its invariant, in Python and in Rust.

What one twin stores the other stores; what one reads or refuses the other reads or refuses.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.contracts.errors import CorruptionError, InvalidArgumentError
from nexus.contracts.file_events import FILE_WRITE, FileEvent
from nexus.contracts.metadata import FileMetadata
from nexus.core import metadata_codec
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import revision_key

RUNS = 10_000

META = FileMetadata(
    *(0, 5, "b3:00", 1, 1_700_000_000, 1_700_000_000, "ann", 0o644),
    *("text/plain", "root", "cas_memory", "indexer"),
    run_id="run-1",
    attributes={"text": "ä", "number": -5, "float": 0.5, "truth": True},
)
EVENT = FileEvent(FILE_WRITE, "/a", "ann", 1_700_000_000, "root", etag="b3:00", size=5, version=1)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
integers = st.integers(-(2**63), 2**64 - 1) | st.sampled_from(
    [
        sign * (1 << bits) + by
        for bits in (5, 7, 8, 15, 16, 31, 32)
        for sign in (1, -1)
        for by in (-1, 0, 1)
    ]
)
scalars = texts | integers | st.booleans() | st.floats(allow_nan=False)
maps = st.dictionaries(texts, scalars, max_size=20)
metadata = st.builds(
    FileMetadata,
    *(integers, integers, texts, integers, integers, integers, texts, integers),
    *(texts, texts, texts, texts),
    run_id=st.none() | texts,
    attributes=maps,
    mount=st.none() | maps,
    first_version=integers,
    channel_id=st.none() | texts,
)
events = st.builds(
    FileEvent,
    *(texts, texts, texts, integers, texts),
    new_path=st.none() | texts,
    etag=texts,
    size=integers,
    version=integers,
    agent_id=st.none() | texts,
    run_id=st.none() | texts,
)

T = TypeVar("T")


def entry(payload: bytes, sequence: int = 0) -> Sealed:
    return Sealed(b"J" + revision_key(7) + sequence.to_bytes(4, "big"), payload, 7, 0)


@pytest.fixture(params=["python", "rust"], scope="module")
def codec(request: pytest.FixtureRequest) -> Any:
    return metadata_codec if request.param == "python" else rust()


def rust() -> Any:
    return pytest.importorskip("nexus._kernel", reason="the Rust kernel is not built")


def outcome(decode: Callable[[Sealed], T], payload: bytes) -> T | str:
    """Return what is read, or what the refusal tells the caller to do."""
    try:
        return decode(entry(payload))
    except CorruptionError as error:
        return str(error.hint)


def check_metadata(meta: FileMetadata) -> None:
    kernel = rust()
    stored = metadata_codec.encode_metadata(meta)
    assert kernel.encode_metadata(meta) == stored
    assert kernel.decode_metadata(entry(stored)) == meta
    assert metadata_codec.decode_metadata(entry(stored)) == meta


def check_event(event: FileEvent, sequence: int) -> None:
    kernel = rust()
    stored = metadata_codec.encode_event(event)
    assert kernel.encode_event(event) == stored
    record = entry(stored, sequence)
    wanted = msgspec.structs.replace(event, revision=7, sequence=sequence)
    assert kernel.decode_event(record) == metadata_codec.decode_event(record) == wanted


@given(meta=metadata)
def test_1_2_metadata_comes_back_from_the_same_bytes(meta: FileMetadata) -> None:
    check_metadata(meta)


@given(event=events, sequence=st.integers(0, 2**32 - 1))
def test_1_2_events_come_back_from_the_same_bytes(event: FileEvent, sequence: int) -> None:
    check_event(event, sequence)


class Values:
    """Values of every kind that a record has, at random."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def integer(self) -> int:
        value = self.rng.getrandbits(self.rng.randrange(65))
        return value if self.rng.random() < 0.6 else max(-1 - value, -(2**63))

    def text(self) -> str:
        longest = self.rng.choice((3, 40, 300))
        return "".join(self.rng.choices("a/ä€😀", k=self.rng.randrange(longest)))

    def text_or_none(self) -> str | None:
        return self.text() if self.rng.random() < 0.5 else None

    def map(self) -> dict[str, Any]:
        kinds = (self.text, self.integer, self.rng.random, lambda: self.rng.random() < 0.5)
        count = self.rng.choice((0, 0, 1, 20))
        return {self.text(): self.rng.choice(kinds)() for _ in range(count)}

    def metadata(self) -> FileMetadata:
        number, text = self.integer, self.text
        return FileMetadata(
            *(number(), number(), text(), number(), number(), number(), text(), number()),
            *(text(), text(), text(), text(), self.text_or_none(), self.map()),
            *(self.map() if self.rng.random() < 0.1 else None, number(), self.text_or_none()),
        )

    def event(self) -> FileEvent:
        number, text = self.integer, self.text
        return FileEvent(
            *(text(), text(), text(), number(), text(), number(), self.text_or_none(), text()),
            *(number(), number(), self.text_or_none(), self.text_or_none()),
        )


def test_1_2_records_come_back_from_the_same_bytes_in_10000_runs() -> None:
    values = Values(1)
    for _ in range(RUNS):
        check_metadata(values.metadata())
        check_event(values.event(), values.rng.getrandbits(32))


def broken(rng: random.Random, payload: bytes) -> bytes:
    """Return a stored record with a few bytes changed, cut off, put in or taken out."""
    found = bytearray(payload)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(5):
            case 0:
                del found[at:]
            case 1:
                found[at:at] = rng.randbytes(rng.randrange(1, 6))
            case 2:
                del found[at : at + rng.randrange(1, 6)]
            case _:
                found[at : at + 1] = rng.randbytes(1)
    return bytes(found)


@pytest.mark.parametrize("name", ["metadata", "event"])
def test_2_broken_records_are_read_and_refused_alike_in_10000_runs(name: str) -> None:
    record = META if name == "metadata" else EVENT
    whole = getattr(metadata_codec, f"encode_{name}")(record)
    decode = getattr(metadata_codec, f"decode_{name}")
    twin = getattr(rust(), f"decode_{name}")
    rng = random.Random(1)
    refused = 0
    for _ in range(RUNS):
        payload = broken(rng, whole)
        found = outcome(decode, payload)
        # A number that is not one differs from itself, its text does not.
        assert repr(outcome(twin, payload)) == repr(found), payload.hex()
        refused += isinstance(found, str)
    assert RUNS // 4 < refused < RUNS


def check_bytes(body: bytes) -> None:
    kernel = rust()
    for payload in (b"\x01" + body, b"\x01\xdc\x00\x11" + body, b"\x01\x9d" + body):
        for name in ("decode_metadata", "decode_event"):
            found = outcome(getattr(metadata_codec, name), payload)
            assert repr(outcome(getattr(kernel, name), payload)) == repr(found)


@given(body=st.binary(max_size=60))
def test_2_any_bytes_are_read_and_refused_alike(body: bytes) -> None:
    check_bytes(body)


def test_2_any_bytes_are_read_and_refused_alike_in_10000_runs() -> None:
    rng = random.Random(1)
    for _ in range(RUNS):
        check_bytes(rng.randbytes(rng.randrange(60)))


ITEMS = [
    *(b"\x05", b"\xff", b"\xcc\x05", b"\xd3" + bytes(8), b"\xcf" + b"\xff" * 8),
    *(b"\xc0", b"\xc2", b"\xc3", b"\xca" + bytes(4), b"\xcb" + bytes(8), b"\xc1"),
    *(
        b"\xa1a",
        b"\xd9\x01a",
        b"\xda\x00\x01a",
        b"\xdb\x00\x00\x00\x01a",
        b"\xa1\xff",
        b"\xa3\xed\xa0\x80",
    ),
    *(b"\xc4\x01a", b"\xc7\x01\x05a", b"\xd4\x05a", b"\xd6\xff" + bytes(4), b"\x90", b"\x91\x05"),
    *(
        b"\x80",
        b"\x81\xa1a\x05",
        b"\x81\x05\xa1a",
        b"\x81\xc0\xc0",
        b"\x81\xc4\x01a\x05",
        b"\x81\xa1a\x80",
    ),
    *(
        b"\x81\xa1a\xc0",
        b"\x82\xa1a\x05\xa1a\x06",
        b"\xde\x00\x01\xa1a\x05",
        b"\xdf\xff\xff\xff\xff",
    ),
    *(b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xa5a", b""),
]


@pytest.mark.parametrize("count", [12, 13, 14, 15, 16, 17, 18])
def test_2_every_kind_of_item_in_every_field_is_read_and_refused_alike(count: int) -> None:
    kernel = rust()
    fields = [msgspec.msgpack.encode(value) for value in msgspec.structs.astuple(META)]
    fields.append(b"\x92\x01\xa3new")
    for at in range(count):
        for item in ITEMS:
            changed = [*fields[:at], item, *fields[at + 1 : count]]
            payload = b"\x01\xdc" + count.to_bytes(2, "big") + b"".join(changed)
            found = outcome(metadata_codec.decode_metadata, payload)
            assert outcome(kernel.decode_metadata, payload) == found, (at, item)


def test_2_damage_is_named_with_what_it_concerns(codec: Any) -> None:
    with pytest.raises(CorruptionError, match=r"record b'J.*: ") as caught:
        codec.decode_metadata(entry(b"\x01\x93\x00\x00\xa1\xff"))
    assert caught.value.hint == "run `nexus fsck`"
    with pytest.raises(CorruptionError, match="the journal entry of revision 7: "):
        codec.decode_event(entry(b"\x01\x95"))


@pytest.mark.parametrize("version", [b"", b"\x00", b"\x02", b"\xff"])
def test_2_another_codec_version_is_refused_by_name(codec: Any, version: bytes) -> None:
    for decode in (codec.decode_metadata, codec.decode_event):
        with pytest.raises(CorruptionError, match=f"has codec version {version.hex() or 'none'}"):
            decode(entry(version))


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"bytes", None])
def test_2_an_attribute_that_is_no_scalar_is_damage(codec: Any, value: Any) -> None:
    stored = msgspec.msgpack.encode([*msgspec.structs.astuple(META)[:13], {"a": value}])
    with pytest.raises(CorruptionError):
        codec.decode_metadata(entry(b"\x01" + stored))


def test_3_a_field_that_was_appended_is_gone_past_unless_it_is_too_deep(codec: Any) -> None:
    fields = msgspec.structs.astuple(META)
    newer = b"\x01" + msgspec.msgpack.encode([*fields, {"new": [[]]}])
    assert codec.decode_metadata(entry(newer)) == META
    deep = b"\x01\xdc\x00\x12" + msgspec.msgpack.encode(fields)[3:] + b"\x91" * 2000 + b"\x00"
    with pytest.raises(CorruptionError):
        codec.decode_metadata(entry(deep))


@pytest.mark.parametrize(
    "change",
    [
        {"owner_id": "\ud800"},
        {"size": 2**64},
        {"version": -(2**63) - 1},
        {"run_id": "\ud800"},
        {"attributes": {"\udfff": 1}},
        {"attributes": {"a": "\udfff"}},
        {"attributes": {"a": 2**64}},
    ],
)
def test_what_has_no_stored_form_is_refused(codec: Any, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="commit: cannot be stored: "):
        codec.encode_metadata(msgspec.structs.replace(META, **change))


def test_an_event_that_has_no_stored_form_is_refused(codec: Any) -> None:
    for change in ({"user_id": "\ud800"}, {"size": 2**64}):
        with pytest.raises(InvalidArgumentError, match="commit: cannot be stored: "):
            codec.encode_event(msgspec.structs.replace(EVENT, **change))
