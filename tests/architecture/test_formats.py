"""The examples of docs/formats.md are what the code stores and reads."""

import re
from pathlib import Path

import msgspec
import pytest

from nexus.contracts.context import OperationContext
from nexus.contracts.errors import CorruptionError
from nexus.contracts.file_events import FileEvent
from nexus.contracts.metadata import DT_MOUNT, DT_REG, FileMetadata
from nexus.contracts.metastore import Batch
from nexus.core.inode_table import ParsedKey, parse_key
from nexus.core.lock_manager import LockRecord
from nexus.core.metadata_codec import decode_metadata
from nexus.core.nexus_fs import NexusFS
from nexus.core.record_seal import Sealed
from nexus.core.sealed_store import SealedStore
from nexus.factory.data_directory import Descriptor
from nexus.lib.chunking import DEFAULT_CHUNKING
from nexus.storage.metastore.memory import MemoryMetastore
from nexus.storage.object_store.cas_store import CasStore
from nexus.storage.object_store.loose_objects import LooseObjects
from nexus.storage.object_store.memory_transport import MemoryTransport

DOCUMENT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
VOLUME_ID = "402a52c1f85dc44c"
NOW_NS = 1_700_000_000 * 10**9

_hex_line = re.compile(
    r"(?:(key|value) +|        )((?:[0-9a-f]{2})+(?: (?:[0-9a-f]{2})+)*)(?:  +\S|$)"
)


def example() -> dict[str, bytes]:
    """Return the key and the value that the document spells out."""
    block = re.search(r"^```hex record\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert block
    found: dict[str, bytes] = {}
    part = ""
    for line in block[1].splitlines():
        match = _hex_line.match(line)
        assert match, line
        part = match[1] or part
        found[part] = found.get(part, b"") + bytes.fromhex(match[2])
    return found


def sealed(key: bytes, value: bytes) -> Sealed | None:
    """Read a raw record as the kernel does."""
    metastore = MemoryMetastore()
    metastore.commit(Batch([(key, value)]))
    return SealedStore(metastore).get(key)


def test_the_worked_example_decodes_to_what_the_document_says():
    record = sealed(**example())
    assert record is not None
    assert parse_key(record.key) == ParsedKey("C", "root", VOLUME_ID, "/a.txt")
    assert record.revision == 2
    assert decode_metadata(record) == FileMetadata(
        entry_type=DT_REG,
        size=5,
        etag="b3:ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f",
        version=1,
        created_at_ns=NOW_NS,
        modified_at_ns=NOW_NS,
        owner_id="ann",
        mode=0o644,
        mime_type="text/plain",
        zone_id="root",
        backend_name="cas_memory",
        modified_by="indexer",
        run_id="run-1",
    )


def test_the_worked_example_is_what_the_kernel_stores():
    metastore = MemoryMetastore()
    nx = NexusFS(
        metastore,
        context=OperationContext("ann"),
        open_driver=lambda description, check_place: pytest.fail(f"{description} is opened"),
        clock_ns=lambda: NOW_NS,
    )
    store = CasStore(
        LooseObjects(MemoryTransport()),
        name="cas_memory",
        volume_id=VOLUME_ID,
        clock_ns=lambda: NOW_NS,
    )
    with nx:
        nx.sys_setattr("/", entry_type=DT_MOUNT, backend=store)
        agent = nx.bind(OperationContext("ann", agent_id="indexer", run_id="run-1"))
        agent.write("/a.txt", "hello")
        stored = metastore.get(example()["key"])
    assert stored is not None
    assert stored[0] == example()["value"]


def test_one_flipped_bit_anywhere_in_the_example_is_found():
    key, value = example().values()
    for bit in range(len(value) * 8):
        damaged = bytearray(value)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptionError):
            sealed(key, bytes(damaged))


def test_the_checksum_of_the_descriptor_follows_the_rule():
    rule = re.search(r"^(\{\"format\".*\})  gives  ([0-9a-f]{16})$", DOCUMENT, re.MULTILINE)
    assert rule
    plain = msgspec.json.decode(rule[1], type=Descriptor)
    assert msgspec.json.encode(plain).decode() == rule[1]
    assert plain.sealed().checksum == rule[2]


@pytest.mark.parametrize("record", [FileMetadata, FileEvent, LockRecord])
def test_the_document_lists_every_field_in_its_place(record: type[msgspec.Struct]):
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", DOCUMENT, re.MULTILINE)
    wanted = [(str(index), name) for index, name in enumerate(record.__struct_fields__)]
    starts = [index for index, row in enumerate(rows) if row == wanted[0]]
    assert any(rows[start : start + len(wanted)] == wanted for start in starts)


@pytest.mark.parametrize("record", [FileMetadata, FileEvent, LockRecord])
def test_an_older_release_ignores_a_field_that_was_appended(record: type[msgspec.Struct]):
    values: list[object] = [0 if kind is int else "" for kind in required_types(record)]
    newer = msgspec.msgpack.encode([*values, *defaults_of(record), "appended"])
    older = msgspec.msgpack.encode(values)
    assert msgspec.msgpack.decode(newer, type=record) == msgspec.msgpack.decode(older, type=record)


def required_types(record: type[msgspec.Struct]) -> list[type]:
    fields = msgspec.structs.fields(record)
    return [field.type for field in fields if field.required]


def defaults_of(record: type[msgspec.Struct]) -> list[object]:
    count = len(required_types(record))
    empty = record(*[0 if kind is int else "" for kind in required_types(record)])
    return list(msgspec.structs.astuple(empty))[count:]


def test_the_document_names_the_chunking_in_use():
    for size in (
        DEFAULT_CHUNKING.threshold_bytes,
        DEFAULT_CHUNKING.min_bytes,
        DEFAULT_CHUNKING.average_bytes,
        DEFAULT_CHUNKING.max_bytes,
    ):
        assert f"{size:,}" in DOCUMENT
