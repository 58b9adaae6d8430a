from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nexus.contracts.errors import InvalidPathError, NameTooLongError, NexusError
from nexus.lib import paths
from nexus.lib.paths import depth, is_below, join, name, parent, tree_order


@pytest.fixture(params=["python", "rust"])
def normalize(request: pytest.FixtureRequest) -> Any:
    return python_one() if request.param == "python" else rust_one()


def python_one() -> Any:
    return paths._normalizer()


def rust_one() -> Any:
    reason = "the Rust kernel is not built"
    return pytest.importorskip("nexus._kernel", reason=reason).normalize


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("/", "/"),
        ("///", "/"),
        ("/a//b", "/a/b"),
        ("/a/./b/.", "/a/b"),
        ("/a/b/", "/a/b"),
        ("/.hidden/..x/...", "/.hidden/..x/..."),
        ("/e\u0301", "/e\u0301"),
        ("/" + "é" * 127, "/" + "é" * 127),
        ("/" + "a" * 255, "/" + "a" * 255),
    ],
)
def test_paths_fold_slashes_and_dots_and_nothing_else(
    normalize: Any, given: str, canonical: str
) -> None:
    assert normalize("test", given) == canonical
    assert normalize("test", canonical) == canonical


@pytest.mark.parametrize(
    "path", ["", "a", "a/b", "/a/../b", "/..", "/a\0b", "/a\nb", "/a\x7f", "/a\x85", "/\ud800"]
)
def test_what_is_no_path_is_refused_by_name(normalize: Any, path: str) -> None:
    with pytest.raises(InvalidPathError) as caught:
        normalize("stat", path)
    assert caught.value.operation == "stat"
    assert caught.value.filename == caught.value.path
    str(caught.value).encode()


@pytest.mark.parametrize(
    "path", ["/" + "a" * 256, "/" + "é" * 128, "/" + "/".join(["a" * 200] * 21)]
)
def test_a_name_or_path_that_is_too_long_is_refused(normalize: Any, path: str) -> None:
    with pytest.raises(NameTooLongError):
        normalize("stat", path)


@pytest.mark.parametrize("value", [None, 1, b"/a"])
def test_a_path_of_another_type_is_refused(normalize: Any, value: object) -> None:
    with pytest.raises(InvalidPathError):
        normalize("stat", value)  # type: ignore[arg-type]


def test_the_longest_path_is_4096_bytes(normalize: Any) -> None:
    longest = "/" + "/".join(["a" * 255] * 15 + ["b" * 254]) + "c"
    assert len(longest) == 4096
    assert normalize("stat", longest) == longest
    with pytest.raises(NameTooLongError):
        normalize("stat", longest[:-1] + "/cc")


def test_the_parts_of_a_path() -> None:
    assert (parent("/a/b"), name("/a/b"), depth("/a/b")) == ("/a", "b", 2)
    assert (parent("/a"), name("/a"), depth("/a")) == ("/", "a", 1)
    assert (parent("/"), name("/"), depth("/")) == ("/", "", 0)
    assert join("/", "/x") == "/x"
    assert join("/a", "/") == "/a"
    assert is_below("/a/b", "/a")
    assert not is_below("/ab", "/a")
    assert not is_below("/", "/")


def test_tree_order_puts_a_subtree_right_after_its_directory() -> None:
    assert sorted(["/a-", "/a/k", "/a"], key=tree_order) == ["/a", "/a/k", "/a-"]


_PIECES = st.sampled_from(
    [
        "/",
        "//",
        ".",
        "..",
        "a",
        "n" * 255,
        "\u00e9" * 127,
        "\0",
        "\x1f",
        "\x7f",
        "\x80",
        "\x9f",
        "\xa0",
    ]
)


@settings(max_examples=10_000)
@given(st.lists(st.one_of(_PIECES, st.text(max_size=3))).map("".join))
@example("/" + "/".join(["a" * 255] * 16))
def test_both_implementations_answer_alike(path: str) -> None:
    assert answer(rust_one(), path) == answer(python_one(), path)


def answer(normalize: Any, path: str) -> object:
    try:
        return normalize("stat", path)
    except NexusError as error:
        return type(error), str(error)
