"""How long the stages of small loops take, and the planner's rates fitted to them.

    python -m benchmarks.stages --output DIR

Every point is a whole loop of ``tools/quickstart.py``, a recipe whose size varies, or a corpus for
the encoder without a model; each uses all cores of this machine. Non-negative least squares over
all of them give, for every stage, the seconds of a core for one of each kind of work that
megatron_sbp/planning/work.py counts; errors are relative. The machine's speed is measured before
and after each, and times are made those that the first one's speed would have given. One loop more
is not fitted to, for comparison. DIR gets the loops, from which an interrupted run continues, and
rates.json; --publish writes the rates to where ``tools/plan.py`` reads them.
"""

import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks import fitting
from benchmarks import rates as machine_rates
from benchmarks.commands import tool
from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, atomic_write
from megatron_sbp.planning import rates, speed
from megatron_sbp.planning.measured import Measured
from megatron_sbp.planning.plan import Plan, PlanOptions
from megatron_sbp.planning.work import Text, Work, embed


def _point(documents: int, width: int, layers: int, sequence: int, **other: int) -> dict[str, Any]:
    """The sections in which a loop differs from quickstart_smoke."""
    iterations = other.get("iterations", 40)
    steps = {"eval-interval": iterations, "save-interval": iterations, "lr-warmup-iters": 2}
    return {
        "base": "quickstart_smoke",
        "preprocess": {
            "max-documents": documents,
            "max-characters": 1600,
            "train-tokenizer": other.get("vocabulary", 2048),
        },
        "embed": {"encoder": "minilm"},
        "train": {
            "num-layers": layers,
            "hidden-size": width,
            "ffn-hidden-size": 3 * width,
            "num-attention-heads": width // 32,
            "num-query-groups": max(1, width // 64),
            "seq-length": sequence,
            "max-position-embeddings": sequence,
        },
        "pretrain": {"train-iters": iterations, **steps},
        "tune": {"train-iters": iterations, **steps},
        "filter": {"min-tokens": 0},
        "arms": {"sbp": {"sbp-synthetic-share": 0.02}},
        "synthetic": {"oversampling": other.get("oversampling", 40)},
        "audit": {"encoder": "lexical"},
    }


CHECK = "check"
"""The point that the rates are not fitted to."""
POINTS = {
    "small": _point(500, 64, 2, 256),
    "many": _point(1500, 64, 2, 256, oversampling=160),
    "deep": _point(500, 64, 8, 256),
    "wide": _point(400, 256, 2, 256, iterations=30),
    "long": _point(700, 128, 2, 512),
    "words": _point(300, 64, 2, 256, vocabulary=8192, iterations=100),
    "large": _point(400, 256, 4, 512, iterations=20, oversampling=20),
    # So long that what a stage needs to start does not count.
    "quickstart": {"base": "quickstart"},
    CHECK: _point(900, 96, 3, 384, iterations=60, oversampling=60),
}

CONCEPTS = {"concepts": 1_000, "more concepts": 10_000, "most concepts": 40_000}
"""Corpora of five short documents for each of so many concepts."""


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    output: str = field(default="stages", metadata={"metavar": "DIR"})
    """Where the loops and rates.json go."""
    publish: bool = False
    """Also replace the planner's rates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(fitting.Timed[Work]):
    """A stage of a loop that has run."""

    kind: str
    name: str
    task: float = math.nan
    """Seconds that the task of megatron_sbp/planning/speed.py took then."""


def run(options: Options) -> list[Job]:
    """Run the loops that are missing; every stage of all of them."""
    jobs: list[Job] = []
    for name, sections in POINTS.items():
        recipe = Path(options.output, f"{name}.yaml")
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(yaml.safe_dump(sections))
        output = recipe.with_suffix("")
        with _at_speed(output) as found:
            _tool("quickstart", "--recipe", str(recipe), "--output", str(output))
            found += [*_jobs(name, recipe, output), _lexical(name, output / "corpus", output)]
        jobs += found
    for name, concepts in CONCEPTS.items():
        output = Path(options.output, name.replace(" ", "-"))
        with _at_speed(output) as found:
            _tool("make_concepts", "--output", str(output / "corpus"), "--oracle-factor", "0",
                  "--concepts", str(concepts), "--name-tokens", "2",
                  "--name-syllables", "900")  # fmt: skip
            found.append(_lexical(name, output / "corpus", output))
        jobs += found
    return jobs


@contextmanager
def _at_speed(output: Path) -> Iterator[list[Job]]:
    """Give the jobs that are put into the list the machine's speed when they were first run."""
    found: list[Job] = []
    before = speed.task_seconds()
    yield found
    path = output / "speed.json"
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"task": (before + speed.task_seconds()) / 2}))
    task = json.loads(path.read_text())["task"]
    found[:] = [replace(job, task=task) for job in found]


def _tool(name: str, *arguments: str) -> None:
    """Run one of tools/."""
    command = [*tool(name), *arguments]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise InputError(f"{shlex.join(command)} ended with status {done.returncode}; see above")


def _jobs(name: str, recipe: Path, output: Path) -> Iterator[Job]:
    measured = Measured.read(str(output))
    options = PlanOptions(
        recipe=str(recipe), corpus=[str(output / "corpus" / "real")], measured=str(output),
        gpu="cpu", set=[f"num-tokens={measured.manifests['synthesize'].counts['tokens']}"],
    )  # fmt: skip
    for planned in Plan(options, known={}).stages:
        work, seconds = planned.stage.work, measured.seconds[planned.stage.name]
        if planned.stage.kind == "mine":
            # The search has rates of its own, from benchmarks.scaling.
            work, seconds = replace(work, products=0.0), seconds - planned.seconds
        yield Job(
            kind=planned.stage.kind,
            work=work,
            devices=planned.devices,
            seconds=seconds,
            name=f"{name}: {planned.stage.name}",
        )


def _lexical(name: str, corpus: Path, output: Path) -> Job:
    """A corpus embedded without a model."""
    prefix, box = str(corpus / "real"), str(output / "lexical")
    _tool("embed_documents", "--corpus", prefix, "--encoder", "lexical", "--output", box)
    text = Text.of(Corpus([prefix]))
    stage = embed(text, None, limit=1 << 31, dimensions=256, per_shard=65536, learned=100_000)
    return Job(
        kind=stage.kind,
        work=stage.work,
        devices=len(os.sched_getaffinity(0)),
        seconds=Manifest.read(box).seconds,
        name=f"{name}: lexical",
    )


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    jobs = run(options)
    task = jobs[0].task
    jobs = [replace(job, seconds=job.seconds * task / job.task) for job in jobs]
    fitted = {
        kind: fitting.fit(
            Work, [job for job in jobs if job.kind == kind and not job.name.startswith(f"{CHECK}:")]
        )
        for kind in _kinds(jobs)
    }
    for job in jobs:
        says = fitted[job.kind].seconds(job)
        off = f"{says / job.seconds - 1:>+7.0%}{job.task / task:>7.2f}"
        print(f"{job.name:<24}{job.seconds:>9.2f} s{says:>9.2f} s{off}")
    content = {
        "machine": machine_rates.machine()["cpu"],
        "cores": len(os.sched_getaffinity(0)),
        "task": task,
        "stages": {kind: asdict(found) for kind, found in fitted.items()},
    }
    for path in [Path(options.output, "rates.json")] + [rates.PATH] * options.publish:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
    for kind, found in fitted.items():
        print(f"{kind:<24}largest error {found.error:.0%}")


def _kinds(jobs: list[Job]) -> list[str]:
    return list(dict.fromkeys(job.kind for job in jobs))


if __name__ == "__main__":
    cli.run(main)
