"""A corpus that every machine has: documented Python, read from the running interpreter's files.

One document per function, method, class and module that has a docstring, from the standard library
and a few well-documented packages where they are installed. Python files are parsed, never
imported; of the standard library's C modules, which have no source, the docstrings are read.
"""

import ast
import contextlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import platform
import random
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.readers import Document, Fault, checked
from megatron_sbp.errors import InputError

INPUT_NAME = "python-docs"
"""What ``--input`` is given for this corpus."""
# Import name -> distribution; all of them come with this package's own dependencies.
_PACKAGES = {
    "networkx": "networkx",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}
# Tests, tables, the standard library's applications, and copies of other projects.
_SKIPPED_FOLDERS = {"test", "tests", "testing", "idle_test", "encodings", "pydoc_data"}
_SKIPPED_FOLDERS |= {"idlelib", "lib2to3", "ensurepip", "turtledemo", "site-packages"}
_SKIPPED_FOLDERS |= {"_vendor", "_external", "externals"}
_SKIPPED_COMPILED = {"readline"}  # writes to the terminal when it is imported
_TITLE_MARGIN = 8  # Characters of a document around its name and text: line ends, " (2)".
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def sources() -> dict[str, str]:
    """Version of everything the documents are taken from: what decides their content."""
    versions = {"python": platform.python_version()}
    for package, distribution in _PACKAGES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(distribution)
    return versions


class PythonDocs:
    """The documents, in an order that the seed decides. They are held in memory.

    Of an object the longest form that fits is taken: the whole source, or the head with the
    docstring. For a class the head is followed by its methods, each with the first line of its
    docstring; methods are documents of their own too.

    Args:
        seed: Decides the order.
        max_characters: Longest document, None for no limit.
    """

    unit = "documents"

    def __init__(self, seed: int, max_characters: int | None = None):
        self._limit = max_characters or sys.maxsize
        documents = self._extract()
        random.Random(seed).shuffle(documents)
        self._documents = documents
        self.total = len(documents)
        """Number of documents."""
        self.position = 0
        """How many of them have been given."""

    def __iter__(self) -> Iterator[Document | Fault]:
        for position, (name, text) in enumerate(self._documents, start=1):
            self.position = position
            yield checked(name, text)

    def _extract(self) -> list[tuple[str, str]]:
        """Name and text of every document, names numbered where they repeat."""
        files = list(_python_files())
        found: list[tuple[str, str]] = list(self._compiled())
        with Progress("reading Python's documentation", len(files), "files") as progress:
            for module, path in files:
                found += self._file(module, path)
                progress.update()
        times: Counter[str] = Counter()
        documents = []
        for name, text in found:
            times[name] += 1
            title = name if times[name] == 1 else f"{name} ({times[name]})"
            documents.append((title, f"{title}\n\n{text.strip()}\n"))
        return documents

    def _file(self, module: str, path: Path) -> Iterator[tuple[str, str]]:
        """The documents of one source file."""
        try:
            with tokenize.open(path) as file:
                source = file.read()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of other people's files
                tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
            return
        docstring = ast.get_docstring(tree)
        if docstring:
            forms = [f"{docstring}\n\n{_outlines(tree)}", docstring]
            yield module, self._longest(module, forms)
        yield from self._definitions(module, tree, source.splitlines(keepends=True))

    def _definitions(
        self, prefix: str, parent: ast.AST, lines: list[str]
    ) -> Iterator[tuple[str, str]]:
        """The documents of everything defined in a module or class."""
        for node in _definitions(parent):
            name = f"{prefix}.{node.name}"
            docstring = ast.get_docstring(node)
            if docstring and _public(node):
                forms = _forms(node, docstring, lines)
                yield name, self._longest(name, forms)
            if isinstance(node, ast.ClassDef):
                yield from self._definitions(name, node, lines)

    def _longest(self, name: str, forms: list[str]) -> str:
        """The first form that fits, longest first; if none does, the shortest."""
        room = self._limit - len(name) - _TITLE_MARGIN
        return next((form for form in forms if len(form) <= room), forms[-1])

    def _compiled(self) -> Iterator[tuple[str, str]]:
        """The documents of the standard library's C modules."""
        for module in _compiled_modules():
            for name, value in sorted(vars(module).items()):
                alias = inspect.isclass(value) and value.__name__ != name
                if name.startswith("_") or alias or not _documented(value):
                    continue
                title = f"{module.__name__.lstrip('_')}.{name}"
                yield title, _described(name, value)
                if inspect.isclass(value):
                    for method, attribute in sorted(vars(value).items()):
                        if not method.startswith("_") and _documented(attribute):
                            yield f"{title}.{method}", _described(method, attribute)


def _python_files() -> Iterator[tuple[str, Path]]:
    """Dotted module name and path of every source file, in a fixed order."""
    standard = Path(sysconfig.get_path("stdlib"))
    if not standard.is_dir():
        raise InputError(
            f"--input {INPUT_NAME}: the standard library {standard} is not a directory; "
            "give files as --input"
        )
    site = [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    packages = [next((p / name for p in site if (p / name).is_dir()), None) for name in _PACKAGES]
    for root in [standard, *(package for package in packages if package)]:
        base = standard if root == standard else root.parent
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(base).with_suffix("").parts
            if _SKIPPED_FOLDERS.isdisjoint(parts) and not parts[-1].startswith("test_"):
                # Where a package keeps a thing in a private module, its users know it without that.
                public = [part for part in parts[1:] if not part.startswith("_")]
                yield ".".join([parts[0], *public]), path


def _compiled_modules() -> Iterator[ModuleType]:
    """The standard library's modules without source, in a fixed order."""
    for name in sorted(sys.stdlib_module_names - _SKIPPED_COMPILED):
        with contextlib.suppress(ImportError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of modules about to go
            spec = importlib.util.find_spec(name)
            loader = spec.loader if spec else None
            if loader is importlib.machinery.BuiltinImporter or isinstance(
                loader, importlib.machinery.ExtensionFileLoader
            ):
                yield importlib.import_module(name)


def _definitions(parent: ast.AST) -> Iterator[_Definition]:
    """Classes and functions directly in a module or class, also under its ``if`` and ``try``."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, _Definition):
            yield node
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _definitions(node)


def _public(node: _Definition) -> bool:
    return not node.name.startswith("_")


def _head(node: _Definition) -> str:
    """The ``def`` or ``class`` line of a definition, without decorators."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}:"


def _forms(node: _Definition, docstring: str, lines: list[str]) -> list[str]:
    """What a document about a definition may hold, longest first."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    source = textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
    short = f'{_head(node)}\n    """{textwrap.indent(docstring, "    ").lstrip()}\n    """'
    if not isinstance(node, ast.ClassDef):
        return [source, short]
    methods = textwrap.indent(_outlines(node), "    ")
    return [source, f"{short}\n\n{methods}", short]


def _outlines(parent: ast.AST) -> str:
    """One line per public definition in a module or class: head, first line of the docstring."""
    rows = []
    for node in filter(_public, _definitions(parent)):
        summary = (ast.get_docstring(node) or "").strip().partition("\n")[0]
        head = _head(node).removesuffix(":")
        rows.append(f"{head}  # {summary}" if summary else head)
    return "\n".join(rows)


def _documented(value: Any) -> bool:
    """Whether an object of a C module has a docstring of its own, not its class's."""
    kinds = (inspect.isroutine, inspect.isclass, inspect.isdatadescriptor)
    doc = getattr(value, "__doc__", None)
    return isinstance(doc, str) and bool(doc.strip()) and any(kind(value) for kind in kinds)


def _described(name: str, value: Any) -> str:
    """Signature and docstring of an object of a C module."""
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):  # none known
        signature = ""
    return f"{name}{signature}\n\n{inspect.cleandoc(value.__doc__)}"
