"""The comparison: its jobs run, its report written."""

import fcntl
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_sbp import cli, loop
from megatron_sbp.comparison import page
from megatron_sbp.comparison.boxes import Boxes
from megatron_sbp.comparison.experiment import Experiment
from megatron_sbp.comparison.jobs import run_all
from megatron_sbp.comparison.options import CompareOptions
from megatron_sbp.comparison.results import summarise
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.report import PAGE
from megatron_sbp.manifest import FILENAME, Stage, environment

_LOCK = ".lock"


def compare(options: CompareOptions) -> None:
    """Run all jobs that are not done and write the report, or print what would be run.

    Raises:
        InputError: If something given is wrong, or a job failed.
    """
    experiment = Experiment(options)
    experiment.root.mkdir(parents=True, exist_ok=True)
    with _alone(experiment.root):
        corpus = experiment.main.corpus().jobs
        chosen = corpus if options.dry_run else tuple(experiment.jobs)
        needs = {name: experiment.jobs[name].needs for name in chosen}
        run_all(needs, lambda name: _do(experiment, name), options.at_a_time)
        if options.dry_run:
            show(experiment)
        else:
            report(experiment)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Refuse a second comparison in a directory, also while jobs of a killed one go on."""
    with open(root / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{root}: another comparison, or a job that it has left behind, is at work in it; "
                "wait for it or stop it"
            ) from None
        os.set_inheritable(file.fileno(), True)
        yield


def _do(experiment: Experiment, name: str) -> bool:
    """Do a job, if there is anything to do."""
    job, options = experiment.jobs[name], experiment.options
    line = job.line()
    if line is None or job.is_done(experiment.root, line):
        return False
    log = experiment.root / "logs" / f"{name}.log"
    surroundings = loop.environment(options.cores // job.ranks)
    for _ in loop.output_of(name, job.command(line), log, surroundings):
        pass  # it is in the log
    return True


def show(experiment: Experiment) -> None:
    """Print every job with its command line, and what each arm costs."""
    for name, job in experiment.jobs.items():
        print(f"{name}: after {', '.join(job.needs) or 'nothing'}")
        try:
            line, rest = job.line(), ""
        except InputError:  # what it needs is not there yet
            line, rest = job.known, " ..."
        print("   ", "nothing to do" if line is None else shlex.join(job.command(line)) + rest)
    rows = {}
    for arm in experiment.options.arms:
        stages = experiment.cost.of(arm)
        parts = ", ".join(f"{stage} {flop:.3g}" for stage, flop in stages.items())
        rows[arm] = f"{sum(stages.values()):.3g} ({parts})"
    cli.summary("\nFLOP of one model", rows)


def report(experiment: Experiment) -> None:
    """Write the report anew and print its table; it is made from the boxes alone."""
    directory = experiment.root / "report"
    shutil.rmtree(directory, ignore_errors=True)
    runs = {f"{arm}, seed {seed}": run for arm, seed, run in experiment.runs()}
    paths = [experiment.root / name / FILENAME for name in experiment.jobs]
    inputs = [path for path in paths if path.exists()]
    with Stage.open(directory, "compare", options={"runs": runs}, inputs=inputs) as stage:
        said = content(experiment)
        page.write(stage.workspace, said)
        stage.finish(counts={"runs": len(runs)})
    rows = {arm["arm"]: _loss(arm) for arm in said["arms"]}
    cli.summary("\nheld-out loss, nats per token, mean over seeds and its 95% interval", rows)
    print("\n".join(["", said["headline"], *said["warnings"]]))
    print(f"\nopen {directory / PAGE} in a browser")


def _loss(arm: dict[str, Any]) -> str:
    """An arm's line of the table."""
    interval = "" if arm["interval"] is None else " [{:.4f}, {:.4f}]".format(*arm["interval"])
    return f"{arm['loss']:.4f}{interval}, {arm['flop']:.3g} FLOP"


def content(experiment: Experiment) -> dict[str, Any]:
    """What the report says."""
    import yaml

    boxes, made = Boxes(experiment), environment()
    knobs = {varied.knob for varied in experiment.varied}
    return summarise(
        list(boxes.runs()),
        floor=boxes.floor(),
        truth=list(boxes.truth()),
        sweep=list(boxes.sweep()),
        varied=list(boxes.varied()),
        recipe_values={knob: experiment.own(knob) for knob in knobs},
        setting={
            "commands": [{"stage": "compare", "command": shlex.join(made["command"])}],
            "recipe": yaml.safe_dump(experiment.recipe, sort_keys=False),
            "versions": made["packages"],
            "machine": f"{made['cpus']} cores, {made['platform']}",
        },
    )
