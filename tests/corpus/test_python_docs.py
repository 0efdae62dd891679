"""The corpus of Python's own documentation.

It differs from machine to machine, so nothing here counts what is in it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_sbp.corpus import python_docs
from megatron_sbp.corpus.python_docs import PythonDocs
from megatron_sbp.corpus.readers import Document

SOURCE = '''"""A module.

More about it.
"""
import os

def plain(a: int, *, b=2) -> str:
    """Add.

    And more.
    """
    return str(a + b)

def undocumented(): ...

def _private():
    """Hidden."""

if os.name == "posix":
    @property
    async def twice():
        """First."""
else:
    def twice():
        """Second."""

class Thing(Exception):
    """A thing."""

    def method(self):
        """Do it.

        At length.
        """
        return 1

    def bare(self): ...

    class Inner:
        """Inside."""
'''


def read(monkeypatch: pytest.MonkeyPatch, path: Path, limit: int | None = None) -> dict[str, str]:
    def files() -> Iterator[tuple[str, Path]]:
        yield "mod", path

    monkeypatch.setattr(python_docs, "_python_files", files)
    monkeypatch.setattr(python_docs, "_compiled_modules", lambda: iter(()))
    records = list(PythonDocs(0, limit))
    assert all(isinstance(record, Document) for record in records)
    return {record.place: record.text for record in records if isinstance(record, Document)}


def body(document: str) -> str:
    return document.partition("\n\n")[2]


def test_documents_of_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mod.py"
    path.write_text(SOURCE)
    documents = read(monkeypatch, path)
    assert set(documents) == {
        "mod",
        "mod.plain",
        "mod.twice",
        "mod.twice (2)",
        "mod.Thing",
        "mod.Thing.method",
        "mod.Thing.Inner",
    }
    for name, text in documents.items():
        assert text.startswith(f"{name}\n\n"), text
        assert text.endswith("\n") and not text.endswith("\n\n")
    plain = ast.get_source_segment(SOURCE, ast.parse(SOURCE).body[2])
    assert body(documents["mod.plain"]) == f"{plain}\n"
    assert body(documents["mod.twice"]).startswith("@property\nasync def twice():")
    assert "Second." in documents["mod.twice (2)"]
    assert body(documents["mod.Thing.method"]).startswith("def method(self):\n    ")
    assert body(documents["mod"]).splitlines() == [
        "A module.",
        "",
        "More about it.",
        "",
        "def plain(a: int, *, b=2) -> str  # Add.",
        "def undocumented()",
        "async def twice()  # First.",
        "def twice()  # Second.",
        "class Thing(Exception)  # A thing.",
    ]


def test_long_ones_take_a_shorter_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mod.py"
    path.write_text(SOURCE)
    outlined = body(read(monkeypatch, path, limit=150)["mod.Thing"])
    assert outlined == (
        'class Thing(Exception):\n    """A thing.\n    """\n\n'
        "    def method(self)  # Do it.\n    def bare(self)\n    class Inner  # Inside.\n"
    )
    assert all(len(text) <= 150 for text in read(monkeypatch, path, limit=150).values())
    bare = body(read(monkeypatch, path, limit=80)["mod.plain"])
    assert bare == 'def plain(a: int, *, b=2) -> str:\n    """Add.\n\n    And more.\n    """\n'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'# -*- coding: latin-1 -*-\n"""Caf\xe9."""\n', ["mod"]),
        (b'"""Caf\xe9."""\n', []),
        (b"def broken(:\n", []),
        (b"# coding: nonsense\n", []),
        (b'"""Null \0 byte."""\n', []),
        (b"", []),
    ],
    ids=["declared encoding", "not UTF-8", "syntax error", "unknown encoding", "null", "empty"],
)
def test_odd_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: bytes, expected: list[str]
) -> None:
    path = tmp_path / "mod.py"
    path.write_bytes(raw)
    documents = read(monkeypatch, path)
    assert list(documents) == expected
    assert all("Café." in text for text in documents.values())


def test_half_a_surrogate_pair_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "mod.py"
    path.write_text('"""Half \\ud800."""\n')
    monkeypatch.setattr(python_docs, "_python_files", lambda: iter([("mod", path)]))
    monkeypatch.setattr(python_docs, "_compiled_modules", lambda: iter(()))
    assert [type(record).__name__ for record in PythonDocs(0)] == ["Fault"]


def test_this_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed decides the order and nothing else; names are unique; C modules are there."""
    monkeypatch.setattr(python_docs, "_PACKAGES", {})
    files = [(m, p) for m, p in python_docs._python_files() if m in ("heapq", "bisect", "argparse")]
    assert [module for module, _ in files] == ["argparse", "bisect", "heapq"]
    monkeypatch.setattr(python_docs, "_python_files", lambda: iter(files))
    first, again, other = (list(PythonDocs(seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(map(str, first)) == sorted(map(str, other))
    names = [record.place for record in first]
    assert len(set(names)) == len(names)
    assert {"builtins.str.join", "math.gcd", "argparse.ArgumentParser"} <= set(names)


def test_files_leave_out_tests_and_name_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    files = dict(python_docs._python_files())
    assert {"json", "json.decoder", "numpy.linalg"} <= set(files)
    assert "sklearn.linear_model._base" not in files and "sklearn.linear_model" in files
    parts = {part for path in files.values() for part in path.parts}
    assert not {"idle_test", "encodings", "_vendor"} & parts
    assert not [module for module in files if ".tests" in module or ".test_" in module]
