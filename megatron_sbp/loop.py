"""Running the stages of the loop, each by its own command: threads, logs, progress."""

import math
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import FILENAME, Manifest, difference
from megatron_sbp.recipes.run import Run

_TOOLS = Path(__file__).parent.parent / "tools"
_ITERATION = re.compile(r" iteration +(\d+)/ *(\d+) ")
_TAIL = 15
# A weighted blend builds this much more than it draws (Megatron's --mid-level-dataset-surplus).
_SURPLUS = 1.005


class StageFailed(InputError):
    """A stage ended with an error, which it has said itself."""

    def __init__(self, stage: str, status: int, log: Path | None = None):
        where = f"; its output is in {log}" if log else ""
        super().__init__(f"stage {stage} ended with status {status}{where}")


def tool(script: str, *arguments: str, ranks: int = 1) -> list[str]:
    """The command of one of tools/.

    Args:
        script: Its name without ``.py``.
        arguments: Its command line.
        ranks: MPI processes of it.

    Raises:
        InputError: If there is no mpiexec to start several.
    """
    launcher = [_mpiexec(), "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, sys.executable, str(_TOOLS / f"{script}.py"), *arguments]


def training(arguments: Sequence[str]) -> list[str]:
    """The command of a training run in one process."""
    return [sys.executable, "-m", "megatron_sbp.pretrain", *arguments]


def environment(threads: int) -> dict[str, str]:
    """An environment with so many threads, which sleep while they wait for each other, and no GPU.

    Threads that spin cost a third of the speed as soon as anything else runs on the machine. A loop
    divides the cores of a machine, and its recipes are for processes without a GPU.
    """
    own = {"OMP_NUM_THREADS": str(max(1, threads)), "CUDA_VISIBLE_DEVICES": ""}
    return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | own


def is_trained(box: str | Path, arguments: Sequence[str]) -> bool:
    """Whether a training run with these arguments has ended in a directory.

    Raises:
        InputError: If one with others has.
    """
    if not (Path(box) / FILENAME).exists():
        return False
    was = Manifest.read(box).options["arguments"]
    if changes := difference(by_flag(was), by_flag(arguments)):
        raise InputError(
            f"{box}: was trained with other arguments ({changes}); remove it or choose another "
            "--output"
        )
    return True


def by_flag(arguments: Sequence[str]) -> dict[str, list[str]]:
    """A command line as flag -> values."""
    flags: dict[str, list[str]] = {}
    for argument in arguments:
        if argument.startswith("--"):
            values = flags.setdefault(argument, [])
        else:
            values.append(argument)
    return flags


def output_of(
    stage: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Run a command, its output into a log as well; gives its lines.

    Args:
        stage: Its name, for the error.
        command: The command.
        log: The file that its output is added to.
        environment: Its environment variables.

    Raises:
        StageFailed: If it ends with an error, after the last lines were printed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=_TAIL)
    with (
        open(log, "a") as file,
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            close_fds=False,  # an inheritable one is a lock, which is held as long as it is open
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            tail.append(line.rstrip())
            yield line
    if process.returncode:
        print("\n".join(tail), file=sys.stderr)
        raise StageFailed(stage, process.returncode, log)


def show_iterations(stage: str, lines: Iterable[str]) -> None:
    """Show how far a training run is, by what it prints."""
    with ExitStack() as stack:
        progress: cli.Progress | None = None
        for line in lines:
            if found := _ITERATION.search(line):
                done, total = map(int, found.groups())
                if progress is None:
                    progress = cli.Progress(stage, total, "iterations", initial=done - 1)
                    stack.enter_context(progress)
                progress.update(done - progress.done)


def synthetic_share(run: Run, filtered: Path) -> float:
    """The joint run's synthetic share: the recipe's, or what is left after the filters.

    Args:
        run: The recipe.
        filtered: Prefix of the synthetic documents.

    Raises:
        InputError: If nothing is left.
    """
    tokens = Manifest.read(filtered.parent).counts["tokens"]
    rows = (tokens - 1) // run.row
    # Of no more digits than one wants to read; rounded down, for no document is to be read twice.
    most = math.floor(10_000 * (int(rows / _SURPLUS) - 1) / run.training_rows()) / 10_000
    if most <= 0:
        raise InputError(
            f"{filtered}: {tokens:,} tokens are left, too few for one sequence; "
            f"see what the filters took in {filtered.parent / FILENAME}"
        )
    return min(run.synthetic_share(), most)


def _mpiexec() -> str:
    """The mpiexec of this environment, or of the system."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise InputError("no mpiexec found: pip install mpich")
    return found
