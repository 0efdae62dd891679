"""The arguments of a recipe.

    python -m megatron_sbp.recipes list
    python -m megatron_sbp.recipes show RECIPE [--stage STAGE] [flags]

With a stage: its arguments, all but paths, one a line, as `mapfile -t` of bash reads them. Without
one: those of every stage, to be read. RECIPE is a name that `list` prints or the path of a file.
"""

import shlex
import sys
from dataclasses import dataclass

from megatron_sbp import cli, recipes
from megatron_sbp.errors import InputError
from megatron_sbp.recipes.memory import CAPACITY, device_memory
from megatron_sbp.recipes.run import STAGES, TRAINING, Run, RunOptions, Stage


@dataclass(kw_only=True, slots=True)
class ShowOptions(RunOptions):
    """Options of ``show``."""

    stage: Stage | None = None
    """The stage whose arguments are printed, by default all of them."""


def main() -> None:
    """Print what the command line asks for."""
    match sys.argv[1:]:
        case ["list"]:
            print(*recipes.names(), sep="\n")
        case ["show", name, *rest] if not name.startswith("-"):
            _show(name, cli.parse(ShowOptions, __doc__ or "", rest))
        case [*_, "-h" | "--help"]:
            cli.parse(ShowOptions, __doc__ or "", ["--help"])
        case other:
            raise InputError(
                f"{shlex.join(other) or 'no command'}: give `list` or `show RECIPE`; --help says "
                "more"
            )


def _show(name: str, options: ShowOptions) -> None:
    run = Run(name, recipes.load(name), options)
    if options.stage:
        for argument in recipes.arguments(run.flags(options.stage)):
            if "\n" in argument:
                raise InputError(
                    f"{name}: {argument!r:.80} has a line break; arguments have a line each"
                )
            print(argument)
        return
    for stage in STAGES:
        notes = f" ({_notes(run, stage, options)})" if stage in TRAINING else ""
        print(f"\n{stage}{notes}")
        for flag, value in run.flags(stage).items():
            if line := recipes.arguments({flag: value}):
                print(" ", shlex.join(line))


def _notes(run: Run, stage: str, options: ShowOptions) -> str:
    """Arm, lay-out and memory of a training run."""
    layout = run.layout(stage)
    parts = [f"arm {options.arm}"] if stage == "pretrain" else []
    parts += [
        f"{layout.devices:,} {run.gpu}",
        f"TP {layout.tensor} x PP {layout.pipeline} x CP {layout.context} x DP {layout.data}",
        f"{layout.accumulated:,} micro-batches of {layout.micro_batch} rows a step",
    ]
    if run.gpu in CAPACITY and run.vocabulary:
        needed = device_memory(run.flags(stage), layout, run.vocabulary).total
        parts.append(f"{needed / 2**30:.0f} of {CAPACITY[run.gpu] / 2**30:.0f} GiB a GPU")
    return ", ".join(parts)


if __name__ == "__main__":
    cli.run(main)
