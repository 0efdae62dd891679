"""Training on a GPU: packed rows through Transformer Engine's THD kernels, FP8, two GPUs."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_sbp.corpus.documents import Corpus
from tests.training.runs import SHARP, data, pretrain, series

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None, reason="needs Transformer Engine"
    ),
]
# What Megatron needs Apex's kernels for is left out.
ENGINE = ("--transformer-impl", "transformer_engine", "--bf16", "--no-gradient-accumulation-fusion")
LOCAL = (*ENGINE, "--transformer-impl", "local", "--no-persist-layer-norm")


def losses(
    box: Path,
    corpus: Corpus,
    pairs: Path,
    *flags: str,
    steps: int = 20,
    processes: int = 1,
    module: str = "megatron_sbp.pretrain",
) -> np.ndarray:
    """Losses of a tuning, one a step, float64 [steps]."""
    line = ["--sbp-objective", "synthesis", "--sbp-pairs", str(pairs), "--save", str(box)]
    line += [*data(corpus), "--train-iters", str(steps)]
    run = pretrain(*line, *flags, processes=processes, module=module)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    return np.array([series(box, "synthesis loss")[step + 1] for step in range(steps)])


@pytest.fixture(scope="module")
def start(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that both kinds of layers read."""
    box = tmp_path_factory.mktemp("start") / "start"
    line = (*data(words_corpus), *SHARP, *ENGINE, "--no-create-attention-mask-in-dataloader")
    run = pretrain(*line, "--train-iters", "1", "--save", str(box))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    return box


def test_packed_rows_give_the_losses_of_the_local_attention(
    start: Path, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    load = ("--pretrained-checkpoint", str(start), *SHARP)
    engine = losses(tmp_path / "engine", words_corpus, words_pairs, *load, *ENGINE)
    local = losses(tmp_path / "local", words_corpus, words_pairs, *load, *LOCAL)
    np.testing.assert_allclose(engine, local, rtol=5e-3)


def test_a_micro_batch_is_got_without_waiting_for_the_gpu(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    module = "tests.gpu.without_waiting"
    losses(tmp_path / "run", words_corpus, words_pairs, *ENGINE, steps=2, module=module)


def test_fp8_follows_bf16(words_corpus: Corpus, words_pairs: Path, tmp_path: Path) -> None:
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    blockwise, reason = FP8GlobalStateManager.is_fp8_block_scaling_available()
    if not blockwise:
        pytest.skip(reason)
    fp8 = ("--fp8-format", "hybrid", "--fp8-recipe", "blockwise")
    plain = losses(tmp_path / "bf16", words_corpus, words_pairs, *ENGINE, steps=200)
    small = losses(tmp_path / "fp8", words_corpus, words_pairs, *ENGINE, *fp8, steps=200)
    assert abs(small[-20:].mean() / plain[-20:].mean() - 1) < 0.01


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(
    "layout",
    [
        ("--context-parallel-size", "2"),
        ("--tensor-model-parallel-size", "2", "--sequence-parallel"),
        ("--pipeline-model-parallel-size", "2", "--micro-batch-size", "1"),
    ],
)
def test_two_gpus_give_the_losses_of_one(
    layout: tuple[str, ...],
    start: Path,
    words_corpus: Corpus,
    words_pairs: Path,
    tmp_path: Path,
) -> None:
    # Four positions is what two context-parallel ranks need; one shall read the same rows.
    load = ("--pretrained-checkpoint", str(start), *SHARP, "--sbp-segment-multiple", "4")
    one = losses(tmp_path / "one", words_corpus, words_pairs, *load, *ENGINE)
    two = losses(tmp_path / "two", words_corpus, words_pairs, *load, *ENGINE, *layout, processes=2)
    np.testing.assert_allclose(two, one, rtol=5e-3)
