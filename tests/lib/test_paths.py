import pytest

from nexus.contracts.errors import InvalidPathError, NameTooLongError
from nexus.lib.paths import depth, is_below, join, name, normalize, parent, tree_order


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
def test_paths_fold_slashes_and_dots_and_nothing_else(given: str, canonical: str) -> None:
    assert normalize("test", given) == canonical
    assert normalize("test", canonical) == canonical


@pytest.mark.parametrize(
    "path", ["", "a", "a/b", "/a/../b", "/..", "/a\0b", "/a\nb", "/a\x7f", "/a\x85", "/\ud800"]
)
def test_what_is_no_path_is_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidPathError) as caught:
        normalize("stat", path)
    assert caught.value.operation == "stat"
    assert caught.value.filename == caught.value.path
    str(caught.value).encode()


@pytest.mark.parametrize(
    "path", ["/" + "a" * 256, "/" + "é" * 128, "/" + "/".join(["a" * 200] * 21)]
)
def test_a_name_or_path_that_is_too_long_is_refused(path: str) -> None:
    with pytest.raises(NameTooLongError):
        normalize("stat", path)


@pytest.mark.parametrize("value", [None, 1, b"/a"])
def test_a_path_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(InvalidPathError):
        normalize("stat", value)  # type: ignore[arg-type]


def test_the_longest_path_is_4096_bytes() -> None:
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
