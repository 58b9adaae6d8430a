"""One flipped bit, anywhere: every answer is right or an error, and fsck finds what is wrong."""

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from nexus.contracts.errors import (
    ConfigError,
    CorruptionError,
    NexusError,
    PathNotFoundError,
)
from nexus.factory.boot import Settings, boot
from nexus.factory.drivers import LABEL_KEY, VolumeLabel
from nexus.lib.content_id import object_id_of
from nexus.sdk import NexusFilesystem, fsck

CHUNKED_BYTES = (1 << 20) + 5000
START_NS = 1_700_000_000 * 10**9
MISSING = "missing"
Question = tuple[Any, ...]


class Store(NamedTuple):
    """A data directory that is never opened again, and what it answers."""

    path: Path
    answers: dict[Question, Any]


def opened(path: Path) -> NexusFilesystem:
    ticks = count(START_NS, 10**9)
    return boot(Settings(data_dir=str(path), user="tester"), clock_ns=lambda: next(ticks))


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


def build(path: Path, *, killed: bool) -> Store:
    """Make a store; ``killed`` leaves it as SIGKILL would, with changes in the log only."""
    rng = random.Random(1)
    # A store keeps the id that its content is labelled with: keys, and so pages, are the same in
    # every run.
    (path / "content").mkdir(parents=True)
    label = VolumeLabel("0123456789abcdef", "0123456789abcdef").sealed()
    (path / "content" / LABEL_KEY).write_bytes(msgspec.json.encode(label))
    with opened(path) as nx:
        fill(nx, rng)
        change(nx, rng)
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
def closed_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("closed") / "data", killed=False)


@pytest.fixture(scope="module")
def killed_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build(tmp_path_factory.mktemp("killed") / "data", killed=True)


def copied(store: Store, target: Path, *changed: str) -> Path:
    """Copy a data directory; content that does not change is linked, the reserve left out."""
    for folder, _, names in os.walk(store.path):
        place = target / os.path.relpath(folder, store.path)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            source = os.path.join(folder, name)
            relative = os.path.relpath(source, store.path)
            if relative.startswith("content") and relative not in changed:
                os.link(source, place / name)
            elif name != "meta.db.reserve":
                shutil.copyfile(source, place / name)
    return target


def flip(file: Path, position: int, bit: int) -> None:
    with open(file, "r+b") as opened_file:
        opened_file.seek(position)
        (byte,) = opened_file.read(1)
        opened_file.seek(position)
        opened_file.write(bytes([byte ^ (1 << bit)]))


def flipped_copy(store: Store, target: Path, files: list[str], rng: random.Random) -> Path:
    relative = rng.choice(files)
    copied(store, target, relative)
    size = (store.path / relative).stat().st_size
    flip(target / relative, rng.randrange(size), rng.randrange(8))
    return target


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


def check_flipped(path: Path, answers: dict[Question, Any]) -> str:
    """Open a damaged directory and hold every answer against what it should be."""
    try:
        nx = opened(path)
    except (CorruptionError, ConfigError) as error:
        refusal = str(error)
        nx = None
    if nx is None:
        assert str(path) in refusal or ".json" in refusal, refusal
        return "refused"
    with nx:
        right = [judged(nx, question, expected) for question, expected in answers.items()]
        report = fsck(nx)
        if not all(right):
            assert not report.clean, "answers were wrong or missing, and fsck found nothing"
            return "found"
    return "harmless" if report.clean else "found by fsck alone"


def content_files(store: Store, wanted: Callable[[int], bool]) -> list[str]:
    """Return the objects in use by size."""
    root = store.path / "content"
    return sorted(
        os.path.relpath(file, store.path)
        for file in root.glob("??/*")
        if wanted(file.stat().st_size)
    )


def files_of(store: Store, kind: str) -> list[str]:
    if kind == "blobs":
        return content_files(store, lambda size: 0 < size < 4000)
    if kind == "chunks":
        return content_files(store, lambda size: size > 60_000)
    if kind == "manifests":
        large = [stat["etag"] for stat in store.answers["tree", "/"] if stat["path"] == "/large"]
        object_id = large[0].partition(":")[2]
        return [f"content/{object_id[:2]}/{object_id[2:]}"]
    return [kind]


@pytest.mark.parametrize(
    ("kind", "trials"),
    [
        ("meta.db", 300),
        ("meta.db.head", 10),
        ("blobs", 30),
        ("chunks", 10),
        ("manifests", 15),
        ("nexus.json", 25),
        ("content/volume.json", 25),
    ],
)
def test_a_flipped_bit_in_a_closed_store_is_never_an_answer(
    closed_store: Store, tmp_path: Path, kind: str, trials: int
) -> None:
    run_trials(closed_store, tmp_path, kind, trials)


@pytest.mark.parametrize(
    ("kind", "trials"),
    [
        ("meta.db", 120),
        ("meta.db-wal", 120),
        ("meta.db-shm", 10),
        ("meta.db.head", 20),
        ("LOCK", 20),
    ],
)
def test_a_flipped_bit_in_a_killed_store_is_never_an_answer(
    killed_store: Store, tmp_path: Path, kind: str, trials: int
) -> None:
    run_trials(killed_store, tmp_path, kind, trials)


def run_trials(store: Store, tmp_path: Path, kind: str, trials: int) -> None:
    files = files_of(store, kind)
    for seed in range(trials):
        rng = random.Random(f"{kind} {seed}")
        path = flipped_copy(store, tmp_path / str(seed), files, rng)
        try:
            check_flipped(path, store.answers)
        except (AssertionError, NexusError) as error:
            raise AssertionError(f"{kind}, seed {seed}: {error}") from error
        shutil.rmtree(path)


def test_what_is_left_after_accepting_a_loss_is_an_earlier_state_and_whole(
    killed_store: Store, tmp_path: Path
) -> None:
    size = (killed_store.path / "meta.db-wal").stat().st_size
    path = copied(killed_store, tmp_path / "copy")
    flip(path / "meta.db-wal", size - 100, 3)
    with pytest.raises(CorruptionError, match="commits are missing"):
        opened(path).close()
    accepting = Settings(data_dir=str(path), user="tester", accept_loss=True)
    with boot(accepting, clock_ns=lambda: START_NS) as nx:
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


@pytest.mark.parametrize("kind", ["blobs", "chunks", "manifests"])
def test_the_error_of_damaged_content_names_the_file_and_says_what_to_do(
    closed_store: Store, tmp_path: Path, kind: str
) -> None:
    relative = files_of(closed_store, kind)[0]
    path = copied(closed_store, tmp_path / "copy", relative)
    flip(path / relative, 10, 1)
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
    relative = object_file(data)
    path = copied(closed_store, tmp_path / "copy", relative)
    flip(path / relative, 0, 0)
    with opened(path) as nx:
        with pytest.raises(CorruptionError):
            nx.read("/docs/0/file4")
        nx.write("/docs/0/file4", data)
        assert nx.read("/docs/0/file4") == data
        assert fsck(nx).clean


def object_file(data: bytes) -> str:
    object_id = object_id_of(data)
    return f"content/{object_id[:2]}/{object_id[2:]}"


def test_a_deleted_content_object_is_reported_with_the_path(
    closed_store: Store, tmp_path: Path
) -> None:
    relative = object_file(closed_store.answers["read", "/docs/0/file4"])
    path = copied(closed_store, tmp_path / "copy")
    (path / relative).unlink()
    with opened(path) as nx:
        with pytest.raises(CorruptionError, match="missing") as caught:
            nx.read("/docs/0/file4")
        assert caught.value.path == "/docs/0/file4"
        assert caught.value.hint
        problems = fsck(nx, repair=True).problems
        assert [problem.object for problem in problems] == ["/docs/0/file4"]
        assert not problems[0].repaired


def current_record(path: Path, name: str) -> tuple[bytes, bytes]:
    """Return key and value of a path's current record."""
    with closing(sqlite3.connect(path / "meta.db")) as database:
        found = [
            row
            for row in database.execute("SELECT k, v FROM kv WHERE substr(k, 1, 1) = x'43'")
            if row[0].endswith(name.encode())
        ]
    (record,) = found
    return record


def test_a_damaged_record_is_found_by_name_and_restored_from_its_version_record(
    closed_store: Store, tmp_path: Path
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    _, value = current_record(path, "/docs/0/file4")
    stored = (path / "meta.db").read_bytes()
    # The version record holds the same payload; the seal in front is of this record only.
    assert stored.count(value) == 1
    flip(path / "meta.db", stored.index(value) + len(value) - 3, 5)
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
    with closing(sqlite3.connect(path / "meta.db")) as database:
        assert database.execute("DELETE FROM kv WHERE k = ?", (key,)).rowcount == 1
        database.commit()


def test_a_deleted_record_is_found_by_name_and_restored(
    closed_store: Store, tmp_path: Path
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    delete_row(path, current_record(path, "/docs/0/file4")[0])
    with opened(path) as nx:
        problems = fsck(nx).problems
        assert any(problem.object == "/docs/0/file4" for problem in problems)
        assert not any(problem.repaired for problem in problems)
        assert fsck(nx, repair=True).clean
        assert_all_right(nx, closed_store)


@pytest.mark.parametrize("how", ["damaged", "deleted"])
def test_a_lost_root_record_hinders_neither_opening_nor_repair(
    closed_store: Store, tmp_path: Path, how: str
) -> None:
    path = copied(closed_store, tmp_path / "copy")
    key, value = current_record(path, "\0/")
    if how == "deleted":
        delete_row(path, key)
    else:
        stored = (path / "meta.db").read_bytes()
        flip(path / "meta.db", stored.index(value) + len(value) - 3, 5)
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
    with closing(sqlite3.connect(path / "meta.db")) as database:
        query = "SELECT k FROM kv WHERE substr(k, 1, 1) = x'4A' ORDER BY k LIMIT 1 OFFSET 7"
        ((key,),) = database.execute(query).fetchall()
    delete_row(path, key)
    with opened(path) as nx:
        (problem,) = fsck(nx).problems
        assert "1 record is missing" in problem.problem
        assert fsck(nx, repair=True).clean
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
