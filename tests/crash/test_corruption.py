"""One flipped bit, anywhere: every answer is right or an error, and fsck finds what is wrong.

``NEXUS_SWEEP_FLIPS`` and ``NEXUS_SWEEP_SEED`` make the sweep longer, or another one.
"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from nexus.contracts.errors import (
    ConfigError,
    CorruptionError,
    PathNotFoundError,
)
from nexus.contracts.metastore import Batch, MetastoreABC
from nexus.core.fsck import FsckReport
from nexus.core.inode_volume import InodeVolume
from nexus.core.nexus_fs import NexusFS
from nexus.factory.boot import Settings, boot
from nexus.factory.data_directory import read_descriptor
from nexus.factory.drivers import LABEL_KEY, VolumeLabel
from nexus.factory.metastores import AUTO, FILES, metastore_class
from nexus.lib.content_id import object_id_of
from nexus.lib.disk import Disk
from nexus.lib.manifest import Manifest
from nexus.sdk import NexusFilesystem, fsck
from nexus.testing.damage import find_object, flip_bit, lose_object

CHUNKED_BYTES = (1 << 20) + 5000
START_NS = 1_700_000_000 * 10**9
MISSING = "missing"
FLIPS = int(os.environ.get("NEXUS_SWEEP_FLIPS", "120"))
SEED = os.environ.get("NEXUS_SWEEP_SEED", "1")
LARGE_BYTES = 60_000
WEIGHTS = {"meta.db": 12, "meta.db-wal": 8, "meta.redb": 12, "meta.redb.log": 8}
LOGS = ("meta.db-wal", "meta.redb.log")
Question = tuple[Any, ...]


class Store(NamedTuple):
    """A data directory that is never opened again, and what it answers."""

    path: Path
    answers: dict[Question, Any]


def opened(path: Path, metastore: str = AUTO) -> NexusFilesystem:
    ticks = count(START_NS, 10**9)
    settings = Settings(data_dir=str(path), user="tester", metastore=metastore)
    return boot(settings, clock_ns=lambda: next(ticks))


def fill(nx: NexusFilesystem, rng: random.Random) -> None:
    for number in range(24):
        nx.write(f"/docs/{number % 4}/file{number}", rng.randbytes(rng.randrange(1, 3000)))
    nx.write("/a/very/deep/directory/with/one/file", b"deep")
    nx.write("/large", rng.randbytes(CHUNKED_BYTES))
    nx.write("/empty", b"")
    nx.mkdir("/nothing/in/here")
    nx.sys_setattr("/docs/0", mode=0o700, attributes={"colour": "green"})


def change(nx: NexusFilesystem, rng: random.Random) -> None:
    """Make history: versions, removals, renames, copies."""
    for number in range(0, 24, 3):
        nx.append(f"/docs/{number % 4}/file{number}", rng.randbytes(100))
    nx.sys_unlink("/docs/1/file1")
    nx.sys_unlink("/docs/2/file2")
    nx.write("/docs/2/file2", b"a second life")
    nx.sys_rename("/docs/3", "/moved")
    nx.sys_copy("/large", "/copies")
    nx.sys_write("/large", b"patch", offset=500)


def set_aside(nx: NexusFilesystem, data: bytes, *, keep: bool) -> None:
    """Put content in quarantine, as a collection does; ``keep`` stores it again beside that."""
    assert isinstance(nx, NexusFS)
    (content,) = [v.content_store() for v in nx.volumes() if isinstance(v, InodeVolume)]
    content.unpin(content.write_content(data).etag)
    content.begin_collection()
    assert content.quarantine_object(object_id_of(data))
    content.end_collection()
    if keep:
        content.unpin(content.write_content(data).etag)


def ask(nx: NexusFilesystem, question: Question) -> Any:
    match question:
        case "stat", path:
            return nx.sys_stat(path)
        case "read", path:
            return nx.read(path)
        case "version", path, number:
            return nx.read(path, version=number)
        case "names", path:
            return list(nx.list(path))
        case "list", path:
            return list(nx.list(path, details=True))
        case "tree", path:
            return list(nx.list(path, recursive=True, details=True))
        case "history", path:
            return list(nx.history(path))
    raise AssertionError(question)


def answers_of(nx: NexusFilesystem) -> dict[Question, Any]:
    questions: list[Question] = [("tree", "/"), ("history", None)]
    for stat in [nx.sys_stat("/"), *nx.walk("/")]:
        assert stat
        path = stat["path"]
        questions += [("stat", path), ("history", path)]
        if stat["is_directory"]:
            questions += [("names", path), ("list", path)]
            continue
        questions.append(("read", path))
        questions += [("version", path, number + 1) for number in range(stat["version"])]
    gone = ["/docs/1/file1", "/docs/3", "/docs/3/file3"]
    questions += [(kind, path) for path in gone for kind in ("stat", "history")]
    return {question: outcome(nx, question) for question in questions}


def outcome(nx: NexusFilesystem, question: Question) -> Any:
    try:
        return ask(nx, question)
    except PathNotFoundError:
        return MISSING


def build(path: Path, metastore: str, *, killed: bool) -> Store:
    """Make a store; ``killed`` leaves it as SIGKILL would, with changes in the log only."""
    rng = random.Random(1)
    # A store keeps the id that its content is labelled with: keys, and so pages, are the same in
    # every run.
    (path / "content").mkdir(parents=True)
    label = VolumeLabel("0123456789abcdef", "0123456789abcdef").sealed()
    (path / "content" / LABEL_KEY).write_bytes(msgspec.json.encode(label))
    with opened(path, metastore) as nx:
        fill(nx, rng)
        change(nx, rng)
        set_aside(nx, rng.randbytes(900), keep=False)
        set_aside(nx, nx.read("/docs/0/file8"), keep=True)
        answers = answers_of(nx)
    if not killed:
        return Store(path, answers)
    copy = path.with_name(path.name + "-killed")
    with opened(path) as nx:
        nx.append("/moved/file3", b"only in the log")
        answers = answers_of(nx)
        # What a killed process leaves is what others see of its files at that moment.
        shutil.copytree(path, copy)
    return Store(copy, answers)


@pytest.fixture(scope="module")
def closed_store(tmp_path_factory: pytest.TempPathFactory, metastore: str) -> Store:
    return build(tmp_path_factory.mktemp("closed") / "data", metastore, killed=False)


@pytest.fixture(scope="module")
def killed_store(tmp_path_factory: pytest.TempPathFactory, metastore: str) -> Store:
    return build(tmp_path_factory.mktemp("killed") / "data", metastore, killed=True)


def copied(store: Store, target: Path, *changed: str) -> Path:
    """Copy a data directory, but for the space that it keeps in reserve."""
    for folder, _, names in os.walk(store.path):
        place = target / os.path.relpath(folder, store.path)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            source = os.path.join(folder, name)
            if not name.endswith(".reserve") or name in changed:
                shutil.copyfile(source, place / name)
    return target


def flip(file: Path, position: int, bit: int) -> None:
    with open(file, "r+b") as opened_file:
        opened_file.seek(position)
        (byte,) = opened_file.read(1)
        opened_file.seek(position)
        opened_file.write(bytes([byte ^ (1 << bit)]))


def is_part_of(found: list[Any], expected: list[Any]) -> bool:
    """Return whether only entries are missing, and none was changed or moved."""
    rest = iter(expected)
    return all(item in rest for item in found)


def judged(nx: NexusFilesystem, question: Question, expected: Any) -> bool:
    """Return whether the answer is right; a wrong one that is not an error fails the test."""
    try:
        found = outcome(nx, question)
    except CorruptionError as caught:
        damage = caught
    else:
        damage = None
    if damage is not None:
        assert damage.hint, damage
        return False
    if found == expected:
        return True
    is_loss = found in (None, MISSING) or (
        isinstance(found, list) and isinstance(expected, list) and is_part_of(found, expected)
    )
    assert is_loss, f"{question}: {str(found)[:600]} is not {str(expected)[:600]}"
    return False


class Flip(NamedTuple):
    """One bit of one file."""

    file: str
    position: int
    bit: int


def flips_of(store: Store, rng: random.Random) -> Iterator[Flip]:
    """Yield flips in every file there is: the metastore often, each other kind about as often."""
    kinds: dict[str, list[str]] = {}
    for file in sorted(store.path.rglob("*")):
        relative = str(file.relative_to(store.path))
        if file.is_file() and file.stat().st_size:
            kinds.setdefault(kind_of(relative, file.stat().st_size), []).append(relative)
    weights = [WEIGHTS.get(kind, 1) for kind in kinds]
    while True:
        (files,) = rng.choices(list(kinds.values()), weights)
        file = rng.choice(files)
        yield Flip(file, rng.randrange((store.path / file).stat().st_size), rng.randrange(8))


def kind_of(relative: str, size: int) -> str:
    first, *rest = Path(relative).parts
    if not rest or Path(relative).suffix:
        return relative
    place = first if len(rest) == 2 and len(rest[0]) == 2 else f"{first}/{rest[0]}"
    return f"{place}, {'large' if size > LARGE_BYTES else 'small'}"


def opened_after(flip_: Flip, store: Store, path: Path) -> NexusFilesystem | None:
    """Open a copy with one bit flipped; None where that is refused with a precise error."""
    copied(store, path, flip_.file)
    flip(path / flip_.file, flip_.position, flip_.bit)
    try:
        return opened(path)
    except (CorruptionError, ConfigError) as error:
        refusal = str(error)
    assert str(path) in refusal or ".json" in refusal, refusal
    return None


def check_flip(flip_: Flip, store: Store, path: Path) -> str:
    """Hold every answer against the truth, check, repair, and hold them again."""
    nx = opened_after(flip_, store, path)
    if nx is None:
        return check_refused(store, path)
    with nx:
        right = rightness(nx, store)
        report = fsck(nx)
        if not all(right.values()):
            wrong = [question for question, is_right in right.items() if not is_right]
            assert not report.clean, f"fsck is clean, but not right or missing: {wrong}"
        if report.clean:
            return "harmless"
    with accepting_loss(path) as nx:
        mended = repaired(nx)
        again = rightness(nx, store)
        worse = [question for question, is_right in right.items() if is_right > again[question]]
        assert not worse, f"repair made worse: {worse}, reporting {mended.problems}"
        if not all(again.values()):
            assert not mended.clean, "repaired, but not right or missing"
            return "found, with a loss"
    return "found" if all(right.values()) else "found and mended"


def accepting_loss(path: Path) -> NexusFilesystem:
    """Open as `nexus fsck --repair` does."""
    accepting = Settings(data_dir=str(path), user="tester", accept_loss=True)
    return boot(accepting, clock_ns=lambda: START_NS)


def rightness(nx: NexusFilesystem, store: Store) -> dict[Question, bool]:
    return {question: judged(nx, question, truth) for question, truth in store.answers.items()}


def repaired(nx: NexusFilesystem) -> FsckReport:
    """Repair, and check that what is left then is what repair said it would leave."""
    report = fsck(nx, repair=True)
    left = {(p.object, p.problem) for p in report.problems if not p.repaired}
    new = {(p.object, p.problem) for p in fsck(nx).problems} - left
    assert not new, f"after a repair that left {left}: {new}"
    return report


def check_refused(store: Store, path: Path) -> str:
    """A directory that does not open is as it was, or goes on without what it has lost."""
    has_log = bool(log_of(store.path))
    try:
        nx = accepting_loss(path)
    except (CorruptionError, ConfigError) as error:
        hint = error.hint
        nx = None
    if nx is None:
        assert hint
        return "refused"
    with nx:
        mended = repaired(nx)
        # Without a log there are no commits to lose the newest of.
        if not has_log and not all(rightness(nx, store).values()):
            assert not mended.clean, "opened and repaired, but not right or missing"
    return "opens when told to"


def log_of(path: Path) -> Path | None:
    """Return the log of the metastore, where there is something in one."""
    logs = [path / name for name in LOGS]
    return next((log for log in logs if log.exists() and log.stat().st_size), None)


def sweep(store: Store, scratch: Path, seed: str, flips: int) -> tuple[Counter[str], list[str]]:
    """Return how often each outcome came about, and what must not have."""
    outcomes: Counter[str] = Counter()
    violations = []
    for number, flip_ in enumerate(islice(flips_of(store, random.Random(seed)), flips)):
        path = scratch / str(number)
        try:
            outcomes[check_flip(flip_, store, path)] += 1
        except Exception as error:  # noqa: BLE001 - any other error is what the sweep looks for
            violations.append(f"{flip_}: {type(error).__name__}: {error}")
        shutil.rmtree(path)
    return outcomes, violations


@pytest.mark.parametrize("state", ["closed", "killed"])
def test_one_flipped_bit_anywhere_is_no_answer_and_fsck_finds_what_it_hides(
    state: str, closed_store: Store, killed_store: Store, tmp_path: Path
) -> None:
    store = closed_store if state == "closed" else killed_store
    outcomes, violations = sweep(store, tmp_path, SEED, FLIPS)
    assert violations == []
    assert outcomes["found and mended"]
    assert outcomes["refused"]


def object_of(store: Store, kind: str) -> str:
    """Return the id of an object in use."""
    if kind == "blob":
        return object_id_of(store.answers["read", "/docs/0/file4"])
    (large,) = [s["etag"] for s in store.answers["tree", "/"] if s["path"] == "/large"]
    manifest = large.partition(":")[2]
    if kind == "manifest":
        return str(manifest)
    file, offset, size = find_object(store.path / "content", manifest)
    encoded = file.read_bytes()[offset : offset + size]
    return next(Manifest.decode(encoded).object_ids())


def test_what_is_left_after_accepting_a_loss_is_an_earlier_state_and_whole(
    killed_store: Store, tmp_path: Path
) -> None:
    path = copied(killed_store, tmp_path / "copy")
    log = log_of(path)
    assert log
    flip(log, len(log.read_bytes().rstrip(b"\0")) - 100, 3)
    with pytest.raises(CorruptionError, match="commits are missing"):
        opened(path).close()
    with accepting_loss(path) as nx:
        assert fsck(nx).clean
        assert nx.read("/moved/file3")
        nx.write("/goes/on", b"after the loss")
    with opened(path) as nx:
        assert nx.read("/goes/on") == b"after the loss"
        assert fsck(nx).clean


def damaged_files(nx: NexusFilesystem) -> Iterator[tuple[str, CorruptionError]]:
    for stat in nx.walk("/"):
        try:
            if not stat["is_directory"]:
                nx.read(stat["path"])
        except CorruptionError as error:
            yield stat["path"], error


@pytest.mark.parametrize("kind", ["blob", "chunk", "manifest"])
def test_the_error_of_damaged_content_names_the_file_and_says_what_to_do(
    closed_store: Store, tmp_path: Path, kind: str
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    flip_bit(path / "content", object_of(closed_store, kind), 81)
    damaged = []
    with opened(path) as nx:
        for file, error in damaged_files(nx):
            assert error.path == file
            assert error.hint
            damaged.append(file)
        named = {problem.object for problem in fsck(nx).problems}
        assert named
        assert damaged == [] or named & set(damaged)


def test_content_of_one_file_can_be_written_again(closed_store: Store, tmp_path: Path) -> None:
    data = closed_store.answers["read", "/docs/0/file4"]
    path = copied(closed_store, tmp_path / "copy")
    flip_bit(path / "content", object_id_of(data))
    with opened(path) as nx:
        with pytest.raises(CorruptionError):
            nx.read("/docs/0/file4")
        nx.write("/docs/0/file4", data)
        assert nx.read("/docs/0/file4") == data
        assert fsck(nx).clean


def test_a_lost_content_object_is_reported_with_the_path(
    closed_store: Store, tmp_path: Path
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    lose_object(path / "content", object_of(closed_store, "blob"))
    (path / "content" / "segments" / "objects.idx").unlink()
    with opened(path) as nx:
        with pytest.raises(CorruptionError, match="missing") as caught:
            nx.read("/docs/0/file4")
        assert caught.value.path == "/docs/0/file4"
        assert caught.value.hint
        problems = fsck(nx, repair=True).problems
        assert [problem.object for problem in problems] == ["/docs/0/file4"]
        assert not problems[0].repaired


@contextmanager
def rows_of(path: Path) -> Iterator[MetastoreABC]:
    """Open the metastore of a closed data directory without the kernel."""
    descriptor = read_descriptor(str(path))
    assert descriptor
    kind = metastore_class(descriptor.metastore, str(path))
    file = str(path / FILES[descriptor.metastore])
    with closing(kind(file, disk=Disk(), create=False, reserve_bytes=0)) as store:
        yield store


def keys_of(path: Path, keyspace: bytes) -> list[bytes]:
    with rows_of(path) as store:
        return [entry.key for entry in store.scan(keyspace)]


def current_record(path: Path, name: str) -> bytes:
    """Return the key of a path's current record."""
    (key,) = [key for key in keys_of(path, b"C") if key.endswith(name.encode())]
    return key


def damage_row(path: Path, key: bytes) -> None:
    with rows_of(path) as store:
        found = store.get(key)
        assert found
        value = bytearray(found[0])
        value[-3] ^= 1 << 5
        store.commit(Batch([(key, bytes(value))]))


def test_a_damaged_record_is_found_by_name_and_restored_from_its_version_record(
    closed_store: Store, tmp_path: Path
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    damage_row(path, current_record(path, "/docs/0/file4"))
    with opened(path) as nx:
        with pytest.raises(CorruptionError):
            nx.sys_stat("/docs/0/file4")
        assert any("/docs/0/file4" in problem.object for problem in fsck(nx).problems)
        report = fsck(nx, repair=True)
        assert report.problems
        assert report.clean
        assert_all_right(nx, closed_store)
    with opened(path) as nx:
        assert_all_right(nx, closed_store)


def assert_all_right(nx: NexusFilesystem, store: Store) -> None:
    for question, expected in store.answers.items():
        assert judged(nx, question, expected), question
    assert not fsck(nx).problems


def delete_row(path: Path, key: bytes) -> None:
    with rows_of(path) as store:
        assert store.get(key)
        store.commit(Batch([], [key]))


def test_a_deleted_record_is_found_by_name_and_restored(
    closed_store: Store, tmp_path: Path
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    delete_row(path, current_record(path, "/docs/0/file4"))
    with opened(path) as nx:
        problems = fsck(nx).problems
        assert any(problem.object == "/docs/0/file4" for problem in problems)
        assert not any(problem.repaired for problem in problems)
        assert fsck(nx, repair=True).clean
        assert_all_right(nx, closed_store)


def test_a_lost_version_record_lets_no_earlier_life_of_the_path_answer(
    closed_store: Store, tmp_path: Path
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    versions = [key for key in keys_of(path, b"V") if key[:-9].endswith(b"/docs/2/file2")]
    delete_row(path, max(versions))
    with opened(path) as nx:
        assert nx.read("/docs/2/file2", version=1) == b"a second life"


def test_a_version_whose_record_is_lost_is_not_taken_from_an_earlier_life_of_the_path(
    tmp_path: Path, metastore: str
) -> None:
    path = tmp_path / "data"
    with opened(path, metastore) as nx:
        nx.write("/a", b"first life")
        nx.append("/a", b"!")
        nx.sys_unlink("/a")
        revisions = [nx.write("/a", data)["revision"] for data in (b"one", b"two", b"three")]
    place = current_record(path, "/a").split(b"\0\1/")[0][1:].rpartition(b"\0")[0]
    for revision in revisions[1:]:
        delete_row(path, b"V" + place + b"\0/a\0" + revision.to_bytes(8, "big"))
    with opened(path) as nx:
        assert nx.read("/a", version=3) == b"three"
        with pytest.raises(CorruptionError, match="version 2"):
            nx.read("/a", version=2)
        assert nx.read("/a", version=1) == b"one"
        assert not fsck(nx).clean


@pytest.mark.parametrize("how", ["damaged", "deleted"])
def test_a_lost_root_record_hinders_neither_opening_nor_repair(
    closed_store: Store, tmp_path: Path, how: str
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    key = current_record(path, "\0/")
    if how == "deleted":
        delete_row(path, key)
    else:
        damage_row(path, key)
    with opened(path) as nx:
        with pytest.raises(CorruptionError) as caught:
            nx.list("/")
        assert caught.value.hint
        with pytest.raises(CorruptionError):
            nx.write("/new", b"data")
        assert nx.read("/docs/0/file4") == closed_store.answers["read", "/docs/0/file4"]
        assert any(
            problem.object.startswith("/ ") or problem.object == "/"
            for problem in fsck(nx).problems
        )
        assert fsck(nx, repair=True).clean
        assert_all_right(nx, closed_store)


def test_a_deleted_journal_row_is_found_by_the_totals(closed_store: Store, tmp_path: Path) -> None:
    path = copied(closed_store, tmp_path / "copy")
    delete_row(path, keys_of(path, b"J")[7])
    with opened(path) as nx:
        (problem,) = fsck(nx).problems
        assert "1 record is missing" in problem.problem
        assert not fsck(nx, repair=True).clean
        assert not fsck(nx).problems


@pytest.mark.parametrize("name", ["nexus.json", "content/volume.json"])
def test_a_damaged_description_can_be_deleted_as_its_error_says(
    closed_store: Store, tmp_path: Path, name: str
) -> None:
    path = copied(closed_store, tmp_path / "copy", name)
    flip(path / name, 20, 2)
    with pytest.raises(CorruptionError, match=r"\.json") as caught:
        opened(path).close()
    assert "delete" in str(caught.value.hint)
    (path / name).unlink()
    for _ in range(2):
        with opened(path) as nx:
            assert_all_right(nx, closed_store)
    kept = json.loads((path / name).read_bytes())
    assert kept == json.loads((closed_store.path / name).read_bytes())
