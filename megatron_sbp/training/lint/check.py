"""Whether a training run would fail on its arguments or its data, told before it starts.

This module has the options, the order of the checks and the form of what they find; the checks
themselves are in ``arguments``, ``data`` and ``pairs``, the rows in ``preview``.
They import Megatron, so they are imported when the options are known to be right.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal

from megatron_sbp.errors import InputError

if TYPE_CHECKING:
    from megatron_sbp.training.lint.arguments import Run

type Status = Literal["ok", "warning", "error"]
type Check = Callable[[], Iterable["Finding"]]
_COLORS = {"ok": 32, "warning": 33, "error": 31}


@dataclass(kw_only=True, slots=True)
class LintOptions:
    """Options of ``tools/lint_corpus.py`` beside the arguments of the run."""

    lint_preview: int = field(default=3, metadata={"metavar": "ROWS"})
    """Rows of the training set that are shown as text; 0: build no dataset, which takes the
    longest, and leave out the checks that need one."""
    lint_characters: int = field(default=400, metadata={"metavar": "CHARACTERS"})
    """Text shown of a piece with, or without, loss: its head and its tail; 0: all."""
    lint_documents: int = field(default=1000, metadata={"metavar": "DOCUMENTS"})
    """Documents of every data path whose tokens are read, drawn at random."""
    lint_world_size: int = field(default=0, metadata={"metavar": "PROCESSES"})
    """Processes of the run; 0: the variable WORLD_SIZE, or else the fewest its layout takes."""
    lint_color: Literal["auto", "always", "never"] = "auto"
    """Colour what has a loss, instead of [[ ]] around it; auto: on a terminal."""

    def __post_init__(self) -> None:
        bounds = {"preview": 0, "characters": 0, "documents": 1, "world_size": 0}
        for name, least in bounds.items():
            value = getattr(self, f"lint_{name}")
            if value < least:
                flag = "--lint-" + name.replace("_", "-")
                raise InputError(f"{flag} {value}: must be at least {least}")

    @property
    def color(self) -> bool:
        """Whether to colour the output."""
        on_a_terminal = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        return self.lint_color == "always" or (self.lint_color == "auto" and on_a_terminal)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    status: Status
    """error: the run would fail, or train on something else than was meant."""
    check: str
    """Name of the check."""
    text: str
    """What was found."""

    def line(self, color: bool = False) -> str:
        """The finding in one line."""
        status = f"{self.status:<7}"
        if color:
            status = f"\033[{_COLORS[self.status]}m{status}\033[0m"
        return f"{status}  {self.check}: {' '.join(self.text.split())}"


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part the command line into this command's own arguments and those of the run."""
    own: list[str] = []
    run: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-h", "--help"):
            own.append(argument)
        elif argument.startswith("--lint-"):
            # Each of them takes one value.
            own += [argument, *([] if "=" in argument else islice(rest, 1))]
        else:
            run.append(argument)
    return own, run


def lint(options: LintOptions, arguments: Sequence[str]) -> Iterator[Finding | str]:
    """Check a run and show rows of its training set.

    Nothing is written, except for the indices of the shown rows in a temporary directory.

    Args:
        options: The options.
        arguments: The run's arguments, Megatron's and the SBP group.

    Yields:
        What every check found, then the lines of the rows.

    Raises:
        InputError: If the arguments cannot be parsed.
    """
    with quiet():
        from megatron_sbp.training.lint import arguments as given
        from megatron_sbp.training.lint import data, pairs
    run = parsed(arguments, options.lint_world_size)
    color = options.color
    sound = True
    for name, check in chain(
        given.checks(run),
        data.checks(run, options.lint_documents),
        pairs.checks(run),
    ):
        for finding in findings(name, check):
            sound = sound and finding.status != "error"
            yield finding
    if sound and options.lint_preview:
        yield from _preview(run, options, color)


def parsed(arguments: Sequence[str], world_size: int) -> "Run":
    """Parse the run's arguments with Megatron's parser, as the run does."""
    from megatron_sbp.training.lint.arguments import parse

    with quiet() as said:
        try:
            return parse(arguments, world_size)
        except SystemExit:
            _, _, message = _last_line(said).rpartition("error: ")
    raise InputError(f"{message}; the arguments are those of megatron_sbp.pretrain, see its --help")


def findings(name: str, check: Check) -> Iterator[Finding]:
    """What a check found; what it raised is an error that it found."""
    found: list[Finding] = []
    with quiet() as said:
        try:
            for finding in check():
                found.append(finding)
        except InputError as error:
            found.append(Finding("error", name, str(error)))
        except Exception as error:  # Megatron asserts, and so would the run
            found.append(Finding("error", name, str(error) or _raised_at(error)))
        except SystemExit:
            found.append(Finding("error", name, _last_line(said)))
    yield from found


def _raised_at(error: Exception) -> str:
    """The line of code that raised an error which says nothing."""
    (place,) = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{type(error).__name__}: {place.line}"


def _last_line(said: io.StringIO) -> str:
    """What was said last, before Megatron ended the process."""
    return said.getvalue().rstrip().rpartition("\n")[2]


def _preview(run: "Run", options: LintOptions, color: bool) -> Iterator[Finding | str]:
    """Build the datasets as the run does, and show the first rows of the training set."""
    from megatron_sbp.training.lint import preview

    lines: list[str] = []

    def build() -> Iterator[Finding]:
        with preview.training_set(run.args, options.lint_preview) as train:
            yield from preview.sources(run.args, train)
            lines.extend(preview.rows(train, run.tokenizer, options, color))

    yield from findings("training set", build)
    yield from lines


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep what Megatron prints from the output, and hand it out."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        yield said
