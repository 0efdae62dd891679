"""Every command's conventions: flags from a dataclass, one-line errors, exit statuses, progress."""

import dataclasses
import io
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp import cli, errors
from megatron_sbp.errors import InputError
from tests.faults.job import has_namespaces


@dataclass(kw_only=True, slots=True)
class Common:
    """What the options under test inherit."""

    seed: int = 1234
    """Seed of the draw."""


@dataclass(kw_only=True, slots=True)
class Options(Common):
    """One field of every kind."""

    corpus: list[str]
    """Prefixes of the corpus."""
    min_similarity: float = 0.75
    """Pairs below are dropped,
    100 % of them."""
    keep_order: bool = True
    """Whether to keep the order."""
    search: Literal["exact", "clusters"] = "exact"
    """How to search."""
    precision: Literal[16, 32] = 32
    """Bits."""
    label: str = "50%"
    """A name."""
    limit: int | None = None
    """At most so many."""
    old_limit: Optional[int] = None  # noqa: UP045
    """At most so many, the old way."""
    output: Path = Path("out")
    """Directory."""
    kinds: list[Literal["a", "b"]] = field(default_factory=lambda: ["a", "b"])
    """Kinds."""
    undocumented: int = 0

    def __post_init__(self) -> None:
        if self.min_similarity > 1:
            raise InputError(f"--min-similarity {self.min_similarity}: give at most 1")


def parse(*argv: str) -> Options:
    return cli.parse(Options, "Test.", argv)


def test_defaults_are_those_of_the_dataclass() -> None:
    assert parse("--corpus", "p") == Options(corpus=["p"])


def test_every_kind_of_value_arrives_in_its_type() -> None:
    argv = """--corpus p q --min-similarity 5e-1 --no-keep-order --search clusters --precision 16
        --label x --limit 3 --old-limit 4 --output d --kinds b --seed -7 --undocumented 2"""
    assert parse(*argv.split()) == Options(
        corpus=["p", "q"],
        min_similarity=0.5,
        keep_order=False,
        search="clusters",
        precision=16,
        label="x",
        limit=3,
        old_limit=4,
        output=Path("d"),
        kinds=["b"],
        seed=-7,
        undocumented=2,
    )


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("", "--corpus"),
        ("--corpus", "--corpus"),
        ("--corpus p --seed x", "--seed: invalid int value: 'x'"),
        ("--corpus p --search best", "--search: invalid choice: 'best'"),
        ("--corpus p --precision 8", "--precision: invalid choice: 8"),
        ("--corpus p --kinds c", "--kinds: invalid choice: 'c'"),
        (
            "--corpus p --see 1",
            "--see",
        ),  # no abbreviations: a new flag must not change old commands
        ("--corpus p --min-similarity 2", "--min-similarity 2.0: give at most 1"),
    ],
)
def test_a_wrong_flag_is_an_input_error_that_names_it(argv: str, named: str) -> None:
    with pytest.raises(InputError) as error:
        parse(*argv.split())
    assert named in str(error.value)


@given(seed=st.integers(), similarity=st.floats(max_value=1, allow_nan=False), keep=st.booleans())
def test_what_is_printed_parses_back(seed: int, similarity: float, keep: bool) -> None:
    options = parse(
        *("--corpus", "p", f"--seed={seed}", f"--min-similarity={similarity}"),
        "--keep-order" if keep else "--no-keep-order",
    )
    assert (options.seed, options.min_similarity, options.keep_order) == (seed, similarity, keep)


def test_help_shows_the_docstrings_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "Seed of the draw. (default: 1234)",
        "Pairs below are dropped, 100 % of them. (default: 0.75)",
        "Whether to keep the order. (default: True)",
        "How to search. (default: exact)",
        "A name. (default: 50%)",
        "Kinds. (default: a b)",
    ):
        assert text in shown
    assert "(default: None)" not in shown


def test_field_docs_are_the_docstrings_under_the_fields() -> None:
    docs = cli.field_docs(Options)
    assert docs["seed"] == "Seed of the draw."  # of the base
    assert docs["min_similarity"] == "Pairs below are dropped, 100 % of them."
    names = {entry.name for entry in dataclasses.fields(Options)}
    assert names - docs.keys() == {"undocumented"}


def command(body: str) -> subprocess.CompletedProcess[str]:
    """Run ``body`` as the main function of a command."""
    program = (
        "import sys\nfrom megatron_sbp import cli\nfrom megatron_sbp.errors import InputError\n"
    )
    program += f"def main():\n{textwrap.indent(textwrap.dedent(body), '    ')}\ncli.run(main)"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_success_exits_0() -> None:
    finished = command("cli.summary('done', {'pairs': 1234567, 'file': 'x'})")
    assert finished.returncode == 0
    assert finished.stdout == "done\n  pairs  1,234,567\n  file   x\n"


def test_an_input_error_is_one_line_and_exits_2() -> None:
    finished = command("raise InputError('a.jsonl line 3:\\n   not JSON\\n')")
    assert finished.returncode == 2
    assert finished.stderr == "error: a.jsonl line 3: not JSON\n"
    assert finished.stdout == ""


def test_an_interrupt_exits_130() -> None:
    finished = command("raise KeyboardInterrupt")
    assert finished.returncode == 130
    assert finished.stderr == "interrupted; the same command continues\n"


def test_a_bug_shows_its_traceback() -> None:
    finished = command("raise ZeroDivisionError")
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr


def test_a_reader_that_leaves_is_no_bug() -> None:
    """As in ``python tools/inspect_pairs.py ... | head -1``."""
    program = "from megatron_sbp import cli; cli.run(lambda: print('line\\n' * 100_000))"
    piped = f'{sys.executable} -c "{program}" | head -n 1; exit ${{PIPESTATUS[0]}}'
    finished = subprocess.run(["bash", "-c", piped], capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == ("line\n", "")
    assert finished.returncode == 141


class Clock:
    """Stands in for the ``time`` module of ``cli``."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now


def test_progress_prints_plain_lines_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(cli, "time", clock)
    with cli.Progress("embed", total=1000, unit="documents", initial=100) as progress:
        clock.now += 5
        progress.update(100)  # too early for a line
        clock.now += 5
        progress.update(100)
        clock.now += 35
        progress.update(700)
    assert capsys.readouterr().err.splitlines() == [
        "embed: 300 of 1,000 documents, 20.0/s, 0:35 left",
        "embed: 1,000 of 1,000 documents, 20.0/s, 0:00 left",
    ]
    with cli.Progress("mine", total=None, unit="pairs") as progress:
        clock.now += 10
        progress.update(20)
        clock.now += 5
        progress.update(10)  # too early for a line, but the last one is always shown
    assert capsys.readouterr().err.splitlines() == [
        "mine: 20 pairs, 2.0/s",
        "mine: 30 pairs, 2.0/s",
    ]


def test_a_short_stage_prints_no_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "time", Clock())
    with cli.Progress("embed", total=None, unit="documents") as progress:
        progress.update(3)
    assert capsys.readouterr().err == ""


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with cli.Progress("embed", total=10, unit="documents") as progress:
        progress.update(10)
    shown = terminal.getvalue()
    assert "embed: 100%" in shown
    assert "documents/s" in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (-3, "0:00")],
)
def test_clock(seconds: float, shown: str) -> None:
    assert cli.clock(seconds) == shown


def test_require_names_what_to_install() -> None:
    assert errors.require("json", package="json") is sys.modules["json"]
    with pytest.raises(InputError, match=r"pip install 'megatron_sbp\[gpu\]'"):
        errors.require("no_such_module_here", package="x", extra="gpu")
    with pytest.raises(InputError, match="pip install 'x'"):
        errors.require("no_such_module_here", package="x")


_SEMAPHORES = """
import multiprocessing
from megatron_sbp import cli
cli.run(lambda: print([multiprocessing.get_context("spawn").Lock() for _ in range(9)]))
"""


@pytest.mark.skipif(not has_namespaces(), reason="no mount namespaces: needs root on Linux")
def test_a_full_dev_shm_is_named() -> None:
    """Python does not: its semaphores lie there."""
    mount = 'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$1" -c "$2"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, _SEMAPHORES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: /dev/shm: cannot be written (No space left on device)")
