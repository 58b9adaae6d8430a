"""A model of the filesystem in plain dicts, and a machine that compares the two step by step.

Layer: testing. :class:`FilesystemModel` is the documented meaning of each call without storage,
concurrency or history beyond the contents of earlier versions. What the contract leaves open the
model leaves open: a refusal names every error class that fits, and a mode or attribute that
nothing promises is not compared. :class:`FilesystemModelMachine` drives both in a namespace so
small that names collide all the time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nexus.contracts.errors import (
    ConflictError,
    DirectoryNotEmptyError,
    InvalidArgumentError,
    NexusError,
    NotSupportedError,
    PathExistsError,
    PathIsDirectoryError,
    PathNotDirectoryError,
    PathNotFoundError,
)
from nexus.contracts.filesystem import NexusFilesystem
from nexus.lib.paths import is_below, parent

MUST_BE_NEW, MUST_MATCH, MUST_MATCH_ANOTHER = "new", "current", "another"


class Refused(Exception):
    """The call fails, with any one of these error classes, and changes nothing."""

    def __init__(self, errors: set[type[NexusError]]) -> None:
        super().__init__(errors)
        self.errors = tuple(errors)


@dataclass
class Node:
    """A file, or a directory when ``content`` is None. None as mode: not promised, so unknown."""

    content: bytes | None = None
    version: int = 0
    versions: dict[int, bytes] = field(default_factory=dict)
    mode: int | None = None
    attributes: dict[str, Any] | None = field(default_factory=dict)

    def put(self, content: bytes) -> None:
        """Become the next version."""
        self.content = content
        self.version += 1
        self.versions[self.version] = content


class FilesystemModel:
    """The meaning of the calls. Paths are canonical and relative to the place: "/a/b"."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {"/": Node()}

    # -- looking ------------------------------------------------------------------------------

    def node(self, path: str) -> Node:
        """Return what is there. Refused when nothing is."""
        found = self.nodes.get(path)
        if found is None:
            raise Refused(self._why_missing(path))
        return found

    def content(self, path: str) -> bytes:
        """Return a file's bytes. Refused for what is no file."""
        content = self.node(path).content
        if content is None:
            raise Refused({PathIsDirectoryError})
        return content

    def beneath(self, path: str) -> list[str]:
        """Return every path strictly below, sorted bytewise."""
        return sorted((p for p in self.nodes if is_below(p, path)), key=str.encode)

    def listing(self, path: str, recursive: bool) -> list[str]:
        """Return what readdir returns."""
        if self.node(path).content is not None:
            raise Refused({PathNotDirectoryError})
        return [p for p in self.beneath(path) if recursive or parent(p) == path]

    def _is_below_a_file(self, path: str) -> bool:
        return any(node.content is not None and is_below(path, p) for p, node in self.nodes.items())

    def _why_missing(self, path: str) -> set[type[NexusError]]:
        if self._is_below_a_file(path):
            return {PathNotDirectoryError, PathNotFoundError}
        return {PathNotFoundError}

    # -- writing ------------------------------------------------------------------------------

    def write(self, path: str, content: bytes, must: str | None = None) -> Node:
        """Replace or create a file with its parents."""
        problems = self._write_problems(path)
        known = self.nodes.get(path)
        if must == MUST_BE_NEW and known is not None:
            problems.add(ConflictError)
        if must == MUST_MATCH_ANOTHER or (must == MUST_MATCH and known is None):
            problems.add(ConflictError)
        if problems:
            raise Refused(problems)
        return self._put(path, content)

    def append(self, path: str, content: bytes) -> Node:
        """Add to the end of a file, creating it."""
        known = self.nodes.get(path)
        return self.write(path, (known.content or b"" if known else b"") + content)

    def splice(self, path: str, content: bytes, offset: int) -> Node:
        """Write at an offset into an existing file."""
        old = self.content(path)
        padded = old.ljust(offset, b"\0")
        return self._put(path, padded[:offset] + content + padded[offset + len(content) :])

    def write_batch(self, items: list[tuple[str, bytes]]) -> list[Node]:
        """Write all, or none."""
        paths = [path for path, _ in items]
        problems = set().union(*(self._write_problems(path) for path in paths))
        if len(set(paths)) < len(paths):
            problems.add(InvalidArgumentError)
        if any(is_below(one, other) for one in paths for other in paths):
            problems |= {PathNotDirectoryError, PathIsDirectoryError, InvalidArgumentError}
        if problems:
            raise Refused(problems)
        return [self._put(path, content) for path, content in items]

    def _write_problems(self, path: str) -> set[type[NexusError]]:
        known = self.nodes.get(path)
        if known is not None:
            return {PathIsDirectoryError} if known.content is None else set()
        return {PathNotDirectoryError} if self._is_below_a_file(path) else set()

    def _put(self, path: str, content: bytes) -> Node:
        self._make_parents(path)
        node = self.nodes.setdefault(path, Node())
        node.put(content)
        return node

    def _make_parents(self, path: str) -> None:
        while (path := parent(path)) not in self.nodes:
            self.nodes[path] = Node()

    # -- names --------------------------------------------------------------------------------

    def mkdir(self, path: str, parents: bool, exist_ok: bool) -> None:
        """Create a directory."""
        known = self.nodes.get(path)
        if known is not None:
            if known.content is None and exist_ok:
                return
            raise Refused({PathExistsError})
        if self._is_below_a_file(path):
            raise Refused({PathNotDirectoryError})
        if not parents and parent(path) not in self.nodes:
            raise Refused({PathNotFoundError})
        self._make_parents(path)
        self.nodes[path] = Node()

    def rmdir(self, path: str, recursive: bool) -> int:
        """Remove a directory; return the count of entries."""
        if self.node(path).content is not None:
            raise Refused({PathNotDirectoryError})
        return self.unlink(path, recursive)

    def unlink(self, path: str, recursive: bool) -> int:
        """Remove a file or a directory; return the count of entries."""
        self.node(path)
        gone = [path, *self.beneath(path)]
        if len(gone) > 1 and not recursive:
            raise Refused({DirectoryNotEmptyError})
        for each in gone:
            del self.nodes[each]
        return len(gone)

    def rename(self, old: str, new: str) -> int | None:
        """Move a file or a subtree; return the count of entries, None for onto itself."""
        self._check_transfer(old, new)
        if old == new:
            return None
        moved = {p: self.nodes.pop(p) for p in [old, *self.beneath(old)]}
        for path, node in moved.items():
            # What an earlier version number means after a move is not promised.
            node.versions.clear()
            self.nodes[new + path[len(old) :]] = node
        return len(moved)

    def copy(self, src: str, dst: str) -> int:
        """Copy a file or a subtree; return the count of entries."""
        self._check_transfer(src, dst)
        copied = [src, *self.beneath(src)]
        for path in copied:
            content = self.nodes[path].content
            target = self.nodes.setdefault(dst + path[len(src) :], Node())
            target.mode = target.attributes = None  # whether they come along is not promised
            if content is not None:
                target.put(content)
        return len(copied)

    def _check_transfer(self, src: str, dst: str) -> None:
        problems: set[type[NexusError]] = set()
        source, target = self.nodes.get(src), self.nodes.get(dst)
        if source is None:
            problems |= self._why_missing(src)
        if is_below(dst, src):
            problems.add(InvalidArgumentError)
        if self._is_below_a_file(dst):
            problems.add(PathNotDirectoryError)
        elif parent(dst) not in self.nodes:
            problems.add(PathNotFoundError)
        if source is not None and target is not None and src != dst:
            problems |= self._replace_problems(source, target, dst)
        if problems:
            raise Refused(problems)

    def _replace_problems(self, source: Node, target: Node, dst: str) -> set[type[NexusError]]:
        if target.content is not None:
            return {PathNotDirectoryError} if source.content is None else set()
        if source.content is not None:
            return {PathIsDirectoryError}
        return {DirectoryNotEmptyError} if self.beneath(dst) else set()

    def setattr(self, path: str, mode: int | None, attributes: dict[str, Any]) -> None:
        """Set the mode, and merge attributes; None removes one."""
        node = self.node(path)
        if mode is not None:
            node.mode = mode
        if node.attributes is not None:
            merged = node.attributes | attributes
            node.attributes = {k: v for k, v in merged.items() if v is not None}


NAMES = st.lists(st.sampled_from(["a", "b", "b-"]), min_size=1, max_size=3)
PATHS = NAMES.map(lambda names: "/" + "/".join(names))
CONTENTS = st.binary(max_size=12)
KEYS = st.sampled_from(["k", "l"])
VALUES = st.one_of(st.none(), st.integers(0, 9), st.text(max_size=3), st.booleans())


class FilesystemModelMachine(RuleBasedStateMachine):
    """Does the same to a filesystem and to the model, and compares them after each step.

    A subclass gives :meth:`open` and declares how its mount differs.
    """

    keeps_versions: ClassVar[bool] = True
    atomic_batch: ClassVar[bool] = True
    persistent: ClassVar[bool] = False

    def open(self, directory: Path) -> tuple[NexusFilesystem, str]:
        """Open what lies in the directory, or create it; return it and the place to work in."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="nexus-model-"))
        self.model = FilesystemModel()
        self.nx, self.base = self.open(self.directory)

    def teardown(self) -> None:
        self.nx.close()
        shutil.rmtree(self.directory)

    def agree(self, act: Callable[[], Any], expect: Callable[[], Any]) -> Any:
        """Let both act; return (answer, expectation), or None when both refuse alike."""
        try:
            expected = expect()
        except Refused as refusal:
            allowed = refusal.errors
        else:
            return act(), expected
        try:
            answer = act()
        except allowed:
            return None
        raise AssertionError(f"{answer!r} instead of {allowed}")

    def agree_on_write(self, act: Callable[[], Any], expect: Callable[[], Node]) -> None:
        both = self.agree(act, expect)
        if both is not None:
            answer, node = both
            assert answer["size"] == len(node.content)
            if self.keeps_versions:
                assert answer["version"] == node.version

    # -- steps --------------------------------------------------------------------------------

    @rule(
        path=PATHS,
        content=CONTENTS,
        must=st.sampled_from([None, None, MUST_BE_NEW, MUST_MATCH, MUST_MATCH_ANOTHER]),
    )
    def write(self, path: str, content: bytes, must: str | None) -> None:
        stat = self.nx.sys_stat(self.base + path)
        etag = stat["etag"] if stat is not None and must == MUST_MATCH else "another"
        conditions: dict[str, str] = {}
        if must == MUST_BE_NEW:
            conditions["if_none_match"] = "*"
        elif must is not None:
            conditions["if_match"] = etag
        assume(must != MUST_MATCH or stat is None or not stat["is_directory"])
        self.agree_on_write(
            lambda: self.nx.write(self.base + path, content, **conditions),  # type: ignore[arg-type]
            lambda: self.model.write(path, content, must),
        )

    @rule(path=PATHS, content=CONTENTS)
    def append(self, path: str, content: bytes) -> None:
        self.agree_on_write(
            lambda: self.nx.append(self.base + path, content),
            lambda: self.model.append(path, content),
        )

    @rule(path=PATHS, content=st.binary(min_size=1, max_size=6), offset=st.integers(0, 20))
    def sys_write(self, path: str, content: bytes, offset: int) -> None:
        self.agree_on_write(
            lambda: self.nx.sys_write(self.base + path, content, offset=offset),
            lambda: self.model.splice(path, content, offset),
        )

    @rule(path=PATHS)
    def edit(self, path: str) -> None:
        self.agree_on_write(
            lambda: self.nx.edit(self.base + path, lambda content: content[::-1] + b"!"),
            lambda: self.model.write(path, self.model.content(path)[::-1] + b"!"),
        )

    @rule(items=st.lists(st.tuples(PATHS, CONTENTS), min_size=2, max_size=4))
    def write_batch(self, items: list[tuple[str, bytes]]) -> None:
        def act() -> Any:
            return self.nx.write_batch([(self.base + path, content) for path, content in items])

        def expect() -> list[Node]:
            if not self.atomic_batch:
                raise Refused({NotSupportedError, InvalidArgumentError})
            return self.model.write_batch(items)

        both = self.agree(act, expect)
        if both is not None and self.keeps_versions:
            assert [stat["version"] for stat in both[0]] == [node.version for node in both[1]]

    @rule(path=PATHS, parents=st.booleans(), exist_ok=st.booleans())
    def mkdir(self, path: str, parents: bool, exist_ok: bool) -> None:
        self.agree(
            lambda: self.nx.mkdir(self.base + path, parents=parents, exist_ok=exist_ok),
            lambda: self.model.mkdir(path, parents, exist_ok),
        )

    @rule(path=PATHS, recursive=st.booleans())
    def rmdir(self, path: str, recursive: bool) -> None:
        both = self.agree(
            lambda: self.nx.rmdir(self.base + path, recursive=recursive)["removed"],
            lambda: self.model.rmdir(path, recursive),
        )
        assert both is None or both[0] == both[1]

    @rule(path=PATHS, recursive=st.sampled_from([False, False, True]))
    def unlink(self, path: str, recursive: bool) -> None:
        both = self.agree(
            lambda: self.nx.sys_unlink(self.base + path, recursive)["removed"],
            lambda: self.model.unlink(path, recursive),
        )
        assert both is None or both[0] == both[1]

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        both = self.agree(
            lambda: self.nx.sys_rename(self.base + old, self.base + new)["renamed"],
            lambda: self.model.rename(old, new),
        )
        assert both is None or both[1] in (None, both[0])

    @rule(src=PATHS, dst=PATHS)
    def copy(self, src: str, dst: str) -> None:
        assume(src != dst)  # what a copy onto itself answers is not promised
        both = self.agree(
            lambda: self.nx.sys_copy(self.base + src, self.base + dst)["copied"],
            lambda: self.model.copy(src, dst),
        )
        assert both is None or both[0] == both[1]

    @rule(
        path=PATHS,
        mode=st.sampled_from([0o600, 0o644, 0o755]),
        attributes=st.dictionaries(KEYS, VALUES),
    )
    def setattr(self, path: str, mode: int, attributes: dict[str, Any]) -> None:
        self.agree(
            lambda: self.nx.sys_setattr(self.base + path, mode=mode, attributes=attributes),
            lambda: self.model.setattr(path, mode, attributes),
        )

    # -- questions ----------------------------------------------------------------------------

    @rule(path=PATHS, recursive=st.booleans(), limit=st.none() | st.integers(1, 4))
    def readdir(self, path: str, recursive: bool, limit: int | None) -> None:
        def act() -> list[str]:
            page = self.nx.sys_readdir(self.base + path, recursive, limit)
            found = list(page)
            while page.next_cursor is not None:
                page = self.nx.sys_readdir(self.base + path, recursive, limit, page.next_cursor)
                found += page
            return [entry[len(self.base) :] for entry in found]

        both = self.agree(act, lambda: self.model.listing(path, recursive))
        assert both is None or both[0] == both[1]

    @rule(path=PATHS, count=st.none() | st.integers(0, 15), offset=st.integers(0, 15))
    def read(self, path: str, count: int | None, offset: int) -> None:
        both = self.agree(
            lambda: self.nx.read(self.base + path, count, offset),
            lambda: self.model.content(path)[offset : None if count is None else offset + count],
        )
        assert both is None or both[0] == both[1]

    @precondition(lambda self: self.keeps_versions)
    @rule(path=PATHS, back=st.integers(0, 3))
    def read_version(self, path: str, back: int) -> None:
        node = self.model.nodes.get(path)
        assume(node is not None)
        assert node is not None
        expected = node.versions.get(node.version - back)
        assume(expected is not None)
        assert self.nx.read(self.base + path, version=node.version - back) == expected

    @rule(path=PATHS)
    def stat(self, path: str) -> None:
        found, node = self.nx.sys_stat(self.base + path), self.model.nodes.get(path)
        assert (found is None) == (node is None)
        if found is not None and node is not None:
            self.check_stat(found, self.base + path, node)

    @precondition(lambda self: self.persistent)
    @rule()
    def reopen(self) -> None:
        self.nx.close()
        self.nx, self.base = self.open(self.directory)

    # -- comparison ---------------------------------------------------------------------------

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        stats = self.nx.list(self.base or "/", recursive=True, details=True)
        paths = self.model.beneath("/")
        assert [stat["path"] for stat in stats] == [self.base + path for path in paths]
        for stat, path in zip(stats, paths, strict=True):
            node = self.model.nodes[path]
            self.check_stat(stat, self.base + path, node)
            if node.content is not None:
                assert self.nx.read(self.base + path) == node.content

    def check_stat(self, stat: dict[str, Any], path: str, node: Node) -> None:
        assert stat["path"] == path
        assert stat["is_directory"] == (node.content is None)
        if node.content is not None:
            assert stat["size"] == len(node.content)
            assert stat["etag"]
            assert not self.keeps_versions or stat["version"] == node.version
        if node.mode is not None:
            assert stat["mode"] == node.mode
        if node.attributes is not None:
            assert stat["attributes"] == node.attributes
