"""Every layout gives the losses of one process: tensor, pipeline, context and data parallelism.

With ``PARALLELISM_LONG=1`` unpacked rows are trained on every layout too.
"""

import os
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from megatron_sbp.corpus.documents import Corpus
from tests.training.forked import pretrain
from tests.training.runs import SHARP, data, printed

STEPS = 20
TP, PP, CP = (
    (f"--{kind}-model-parallel-size", "2")
    if kind != "context"
    else ("--context-parallel-size", "2")
    for kind in ("tensor", "pipeline", "context")
)
INTERLEAVED = ("--num-layers-per-virtual-pipeline-stage", "1")
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "TP2": (2, TP),
    "TP2-SP": (2, (*TP, "--sequence-parallel")),
    "PP2": (2, PP),
    "PP2-interleaved": (2, (*PP, *INTERLEAVED)),
    "CP2": (2, CP),
    "DP2": (2, ()),
    "DP2-distributed-optimizer": (2, ("--use-distributed-optimizer",)),
    "DP2-overlap": (
        2,
        ("--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"),
    ),
    "TP2-PP2": (4, (*TP, *PP)),
    "TP2-DP2": (4, (*TP, "--sequence-parallel")),
    "CP2-DP2": (4, CP),
    "one-row-a-micro-batch": (1, ()),
    "recompute-all": (
        1,
        (
            "--recompute-granularity",
            "full",
            "--recompute-method",
            "uniform",
            "--recompute-num-layers",
            "1",
        ),
    ),
    "recompute-attention": (1, ("--recompute-granularity", "selective")),
}
"""Processes and arguments."""
EACH_KIND = ("TP2-SP", "PP2-interleaved", "CP2-DP2", "DP2-overlap")
"""Layouts that have every kind of parallelism once."""
OBJECTIVES = {
    "lm": (),
    # Four positions is what two context-parallel ranks need; everyone shall read the same rows.
    "packed": ("--sbp-objective", "synthesis", "--sbp-segment-multiple", "4"),
    "unpacked": ("--sbp-objective", "synthesis", "--no-sbp-packing"),
}
type Logged = dict[tuple[str, int], float]
"""What was logged, by its name and the step."""
EVALUATION = ("--full-validation", "--multiple-validation-sets")


def _losses(corpus: Corpus, pairs: Path, objective: str, *extra: str, processes: int = 1) -> Logged:
    """Train, and read what is printed: saving would take longer than training."""
    arguments = [*data(corpus), *SHARP, *OBJECTIVES[objective], *extra, "--eval-iters", "0"]
    if objective != "lm":
        arguments += ["--sbp-pairs", str(pairs)]
    run = pretrain(*arguments, processes=processes, drop=EVALUATION)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    names = ["lm loss"] if objective == "lm" else ["synthesis loss", "supervised tokens"]
    return {(name, step): x for name in names for step, x in printed(run.stdout, name).items()}


@pytest.fixture(scope="module")
def start(
    words_corpus: Corpus, words_pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint that every layout starts from: SwiGLU is initialised differently under TP."""
    box = tmp_path_factory.mktemp("start") / "start"
    _losses(words_corpus, words_pairs, "lm", "--train-iters", "1", "--save", str(box))
    return box


@pytest.fixture(scope="module")
def alone(words_corpus: Corpus, words_pairs: Path, start: Path) -> Callable[[str], Logged]:
    """Losses of one process by objective; each is trained once, when first asked for."""
    line = ["--pretrained-checkpoint", str(start), "--train-iters", str(STEPS)]

    @cache
    def losses(objective: str) -> Logged:
        return _losses(words_corpus, words_pairs, objective, *line)

    return losses


@pytest.mark.parametrize(
    ("objective", "layout"),
    [
        *product(("packed",), LAYOUTS),
        *product(("unpacked",), LAYOUTS if "PARALLELISM_LONG" in os.environ else EACH_KIND),
        # Plain documents go the same way, and their loop is Megatron's.
        *product(("lm",), EACH_KIND),
    ],
)
def test_losses_of_one_process(
    layout: str,
    objective: str,
    alone: Callable[[str], Logged],
    start: Path,
    words_corpus: Corpus,
    words_pairs: Path,
) -> None:
    processes, flags = LAYOUTS[layout]
    line = ["--pretrained-checkpoint", str(start), "--train-iters", str(STEPS), *flags]
    # The row is what goes through a pipeline, so a packed one goes alone.
    line += [
        "--micro-batch-size",
        "1",
        "--eval-micro-batch-size",
        "1",
        "--eval-global-batch-size",
        "2",
    ]
    got = _losses(words_corpus, words_pairs, objective, *line, processes=processes)
    assert max(step for _, step in got) == STEPS
    assert got == pytest.approx(alone(objective), rel=1e-4)
