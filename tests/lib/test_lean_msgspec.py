"""msgspec is imported without typing_extensions, and nobody else goes without either."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from nexus.lib.lean_msgspec import _Hiding

NAME = "typing_extensions"


def run(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_the_import_leaves_the_finders_as_they_were():
    code = """
import sys
before = list(sys.meta_path)
from nexus.lib import lean_msgspec
print("msgspec" in sys.modules, "typing_extensions" in sys.modules, sys.meta_path == before)
"""
    assert run(code) == "True False True"


def test_what_was_imported_before_is_left_alone():
    assert run("import msgspec; from nexus.lib import lean_msgspec; print(msgspec.__name__)") == (
        "msgspec"
    )


def test_only_the_thread_that_hides_it_does_not_find_it():
    hiding = _Hiding()
    found: list[object] = []
    other = threading.Thread(target=lambda: found.append(hiding.find_spec(NAME)))
    other.start()
    other.join()
    assert found == [None]  # left to the next finder
    assert hiding.find_spec("msgspec") is None
    with pytest.raises(ModuleNotFoundError):
        hiding.find_spec(NAME)


def test_types_of_typing_extensions_mean_to_msgspec_what_they_did():
    pytest.importorskip(NAME, reason="typing_extensions is not installed")
    code = """
from nexus.lib import lean_msgspec
import msgspec, typing, typing_extensions
assert typing_extensions.NotRequired is typing.NotRequired
class Row(typing_extensions.TypedDict):
    name: typing_extensions.Annotated[str, msgspec.Meta(min_length=1)]
    size: typing_extensions.NotRequired[int]
print(msgspec.json.decode(b'{"name": "a"}', type=Row))
for wrong in (b'{"size": 1}', b'{"name": ""}', b'{"name": "a", "size": "b"}'):
    try:
        msgspec.json.decode(wrong, type=Row)
    except msgspec.ValidationError as error:
        print(error)
"""
    usual = code.replace("from nexus.lib import lean_msgspec", "")
    assert run(code) == run(usual)
    assert len(run(code).splitlines()) == 4
