"""Conventions of every command: options from a dataclass, errors in one line, progress, summary."""

import argparse
import ast
import dataclasses
import inspect
import os
import sys
import textwrap
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, Self

from megatron_sbp.errors import InputError, of_the_disk

_LINE_SECONDS = 10.0


def run(main: Callable[[], None]) -> None:
    """Run a command's main function with the exit statuses every command has.

    0: the output is complete. 2: something given was wrong, said in one line. 130: interrupted.
    141: whoever read the output (``| head``) has gone, as the shell reports it.
    """
    try:
        with errors_in_one_line():
            main()
            sys.stdout.flush()
    except BrokenPipeError:
        # Or the interpreter would try to flush into the closed pipe once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Say what was wrong with something given, and exit with status 2."""
    try:
        yield
    except Exception as error:
        said = error if isinstance(error, InputError) else of_the_disk(error)
        if said is None:
            raise
        print("error:", _one_line(str(said)), file=sys.stderr)
        sys.exit(2)


def _one_line(message: str) -> str:
    """A message whose parts, which files may have brought in, cannot steer the terminal."""
    printable = (c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    return "".join(printable)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are errors like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise ``InputError`` in place of the usage and an exit."""
        raise InputError(f"{message}; {self.prog} --help lists the flags")


def parse[T](options: type[T], description: str, argv: Sequence[str] | None = None) -> T:
    """Parse the command line into an options dataclass.

    Every field becomes a flag: its name with dashes, its type, its default, and as help the
    docstring under it. Fields without a default are required; ``bool`` gives ``--x`` and
    ``--no-x``; ``list[...]`` takes one or more values; ``Literal`` limits the choices.

    Args:
        options: The dataclass; its ``__post_init__`` validates and raises ``InputError``.
        description: What the command does, shown by ``--help``.
        argv: Arguments, by default the process's own.

    Raises:
        InputError: If a flag is unknown, missing or has a value of another type.
    """
    parser = Parser(
        description=textwrap.dedent(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    helps = field_docs(options)
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        _add_flag(parser, field, hints[field.name], helps.get(field.name, ""))
    return options(**vars(parser.parse_args(argv)))


def _add_flag(
    parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, text: str
) -> None:
    flag = "--" + field.name.replace("_", "-")
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default: Any = None
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if default not in (None, [], ""):
        values = default if isinstance(default, list) else [default]
        text += f" (default: {' '.join(map(str, values))})"
    keywords: dict[str, Any] = {
        "required": required,
        "default": default,
        "help": text.replace("%", "%%"),
    }
    if hint is bool:
        keywords["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(hint) is list:
        keywords |= {"nargs": "+"} | _value(typing.get_args(hint)[0])
    else:
        keywords |= _value(hint)
    if hint is not bool and "choices" not in keywords:
        keywords["metavar"] = field.metadata.get("metavar", field.name.split("_")[-1].upper())
    parser.add_argument(flag, **keywords)


def _value(hint: Any) -> dict[str, Any]:
    """How argparse reads one value of a type."""
    if typing.get_origin(hint) is not Literal:
        return {"type": hint}
    choices = typing.get_args(hint)
    return {"type": type(choices[0]), "choices": choices}


def field_docs(options: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass (and of its bases), by field name."""
    docs: dict[str, str] = {}
    for base in reversed(options.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for statement, following in zip(node.body, node.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                value = getattr(following, "value", None)
                if isinstance(following, ast.Expr) and isinstance(value, ast.Constant):
                    docs[statement.target.id] = " ".join(str(value.value).split())
    return docs


class Progress:
    """How far a stage is: a bar on a terminal, otherwise a plain line every ten seconds.

    Args:
        title: What is being done.
        total: Number of units, None if unknown.
        unit: Plural noun of what is counted.
        initial: Units that an earlier run had done already.
    """

    def __init__(self, title: str, total: int | None, unit: str, initial: int = 0):
        self.title, self.total, self.unit = title, total, unit
        self.done = self._initial = initial
        self._started = self._printed = time.monotonic()
        self._shown: int | None = None
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, desc=title, unit=" " + unit, dynamic_ncols=True
            )

    def update(self, count: int = 1) -> None:
        """Count units as done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._printed >= _LINE_SECONDS:
            self._print()

    def _print(self) -> None:
        self._printed, self._shown = time.monotonic(), self.done
        print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (self.done - self._initial) / seconds
        of = "" if self.total is None else f" of {self.total:,}"
        line = f"{self.title}: {self.done:,}{of} {self.unit}, {rate:,.1f}/s"
        if self.total is not None and rate > 0:
            line += f", {clock((self.total - self.done) / rate)} left"
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._shown not in (None, self.done):
            self._print()


def clock(seconds: float) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def summary(title: str, rows: Mapping[str, object]) -> None:
    """Print the one-screen summary that ends every command: a title and aligned rows."""
    width = max(map(len, rows), default=0)
    print(title)
    for name, value in rows.items():
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
        print(f"  {name:<{width}}  {shown}")
    sys.stdout.flush()
