"""Checkpoints that lack states of layers are loaded, those that lack weights are not."""

import re
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.training.layer_states import leave_out_missing
from tests.training.runs import data, pretrain, series

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="runs local layers on the CPU")
STATEFUL = "tests.training.stateful_norms"


def losses(
    corpus: Corpus, box: Path, *flags: str, module: str = STATEFUL
) -> tuple[dict[int, float], str]:
    """Losses of the steps of a run that saves, and what it printed."""
    run = pretrain(*data(corpus), "--save", str(box), *flags, module=module)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    return series(box, "lm loss"), run.stdout


@pytest.fixture(scope="module")
def start(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose norms have no state."""
    box = tmp_path_factory.mktemp("start") / "start"
    losses(words_corpus, box, "--train-iters", "2", module="megatron_sbp.pretrain")
    return box


def test_missing_states_begin_afresh(start: Path, words_corpus: Corpus, tmp_path: Path) -> None:
    line = ("--pretrained-checkpoint", str(start), "--train-iters", "2")
    plain, _ = losses(words_corpus, tmp_path / "plain", *line, module="megatron_sbp.pretrain")
    box = tmp_path / "box"
    first, said = losses(words_corpus, box, *line, "--state", "5")
    assert first == plain and "a norm has taken" not in said
    missing = MegatronCheckpoint(box).states - MegatronCheckpoint(start).states
    assert {name.rsplit(".", 2)[1] for name in missing} >= {"final_layernorm", "q_layernorm"}
    # What it saved has them, and whoever continues takes them from there.
    resumed = ("--load", str(box), "--train-iters", "3", "--no-load-optim", "--no-load-rng")
    more, said = losses(words_corpus, box, *resumed, "--state", "7")
    assert len(more) == 3 and "a norm has taken 5" in said and "taken 7" not in said


def test_a_missing_weight_is_an_error(start: Path, words_corpus: Corpus) -> None:
    line = [*data(words_corpus), "--pretrained-checkpoint", str(start), "--train-iters", "1"]
    drop = ("--disable-bias-linear",)
    run = pretrain(*line, "--state", "5", drop=drop, module=STATEFUL)
    assert run.returncode == 2
    name = r"has no decoder\.layers\.mlp\.linear_fc2\.bias and others, which the model of this run"
    assert re.search(name, run.stderr.splitlines()[-1]), run.stderr[-3000:]


@pytest.mark.parametrize("strictness", ["log_unexpected", "raise_all"])
def test_strictness_that_was_given_is_megatrons_matter(start: Path, strictness: str) -> None:
    chunk = torch.nn.Linear(1, 1)
    before = dict(vars(chunk))
    args = Namespace(load=None, pretrained_checkpoint=str(start), dist_ckpt_strictness=strictness)
    assert leave_out_missing(args, [chunk]) == [chunk] and vars(chunk) == before
    args.dist_ckpt_strictness = "assume_ok_unexpected"
    leave_out_missing(args, [chunk])
    assert vars(chunk) != before
