"""The rules of the house that a machine can check."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "megatron_sbp"

# A room imports only rooms before it, so that the flow of the stages is one way.
ROOMS = [
    "errors files lifeline npy cli manifest sealed metrics torchrun ranks",
    "corpus",
    "models",
    "embedding",
    "mining",
    "training",
    "synthesis",
    "evaluation",
    "recipes",
    "planning",
    "loop",
    "comparison",
    "pretrain quickstart doctor patches",
]
PLACE = {name: place for place, names in enumerate(ROOMS) for name in names.split()}

# Slow to import or not always there: imported by the functions that need them.
HEAVY = set(
    """torch transformers tokenizers megatron transformer_engine apex faiss mpi4py nvidia vllm
    matplotlib sklearn scipy datasketch pyarrow zstandard jinja2 safetensors accelerate""".split()
)
# What these rooms are made of; nothing but a room after them that needs it imports them.
AT_MODULE_TOP = {
    "training": {"torch", "megatron", "transformers"},
    "synthesis": {"torch", "transformers", "megatron"},
    "embedding": set(),
}
MOST_LINES = 500
TOPS = ("megatron_sbp", "tools", "benchmarks")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def tools() -> list[Path]:
    return sorted((ROOT / "tools").glob("*.py"))


def room(path: Path) -> str:
    """Name of the room, or of the module where it lies at the top of the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that is imported below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)


def at_import_time(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What importing the module imports: everything outside of functions and of TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        functions = [
            inner
            for inner in ast.walk(node)
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        inside = {line for function in functions for line, _ in imported(function)}
        yield from ((line, name) for line, name in imported(node) if line not in inside)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_rooms_before_them(path: Path) -> None:
    if path.name == "__init__.py" and path.parent == PACKAGE:
        return
    assert room(path) in PLACE, f"{path}: {room(path)} is not a room of the house"
    for line, name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "megatron_sbp" or parts[1] not in PLACE or parts[1] == room(path):
            continue
        upwards = PLACE[parts[1]] <= PLACE[room(path)]
        assert upwards, f"{path}:{line}: {room(path)} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    allowed = AT_MODULE_TOP.get(room(path), set())
    for line, name in at_import_time(ast.parse(path.read_text())):
        package = name.split(".")[0]
        assert package not in HEAVY - allowed, f"{path}:{line}: import {name} in the function"


@pytest.mark.parametrize(
    "path",
    [path for top in (*TOPS, "tests") for path in (ROOT / top).rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_nothing_names_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    home = re.compile(r"(?<![\w.])/(home|Users|root|work|workspace)/\w+")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        found = home.search(path.read_text(errors="replace"))
        assert found is None, f"{name}: names {found[0] if found else ''}"


# Commands


@pytest.mark.parametrize("path", tools(), ids=lambda path: path.name)
def test_help_is_there_at_once_and_imports_nothing_heavy(path: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = [{str(path)!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(path)!r}, run_name='__main__')\n"
        "finally:\n"
        "    print(*sys.modules, file=sys.stderr)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("usage: ")
    assert not HEAVY & set(finished.stderr.split())


@pytest.mark.parametrize("path", tools(), ids=lambda path: path.name)
def test_help_explains_every_flag(path: Path) -> None:
    finished = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True)
    _, *flags = re.split(r"^  (?=--?\w)", finished.stdout, flags=re.MULTILINE)
    assert flags
    for flag in flags:
        # After the flag and its values come two spaces or more, or a line break and spaces.
        assert re.match(r"\S.*?\s{2,}\w", flag, re.DOTALL), f"{flag!r}: no explanation"


@pytest.mark.parametrize("path", tools(), ids=lambda path: path.name)
def test_an_unknown_flag_is_one_line_and_exit_2(path: Path) -> None:
    command = [sys.executable, str(path), "--no-such-flag-anywhere"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    ["-m ruff check .", "-m ruff format --check .", "-m mypy"],
    ids=lambda command: command.split()[1],
)
def test_static_checks_pass(command: str) -> None:
    finished = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
