"""Megatron's loop on the CPU: runs are recorded and resume exactly, bad input is named."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.manifest import Manifest
from tests.conftest import run_command
from tests.training.forked import pretrain
from tests.training.runs import data, series

STEPS = 20


def synthesis(pairs: Path) -> list[str]:
    return ["--sbp-objective", "synthesis", "--sbp-pairs", str(pairs)]


@pytest.fixture(scope="module")
def start(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that every layout starts from: two steps of language modelling."""
    box = tmp_path_factory.mktemp("start") / "start"
    run = pretrain(*data(words_corpus), "--train-iters", "2", "--save", str(box))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return box


@pytest.fixture(scope="module")
def tuned(
    words_corpus: Corpus, words_pairs: Path, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tuning from ``start`` on one process."""
    box = tmp_path_factory.mktemp("tuned") / "synthesis"
    run = pretrain(*_from(start, box, words_corpus), *synthesis(words_pairs))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return box


def _from(start: Path, box: Path, corpus: Corpus) -> list[str]:
    load = ["--pretrained-checkpoint", str(start), "--load", str(box), "--save", str(box)]
    return [*data(corpus), *load, "--train-iters", str(STEPS)]


def test_the_loss_falls_and_the_run_is_recorded(
    tuned: Path, words_corpus: Corpus, words_pairs: Path
) -> None:
    losses = series(tuned, "synthesis loss")
    assert losses[STEPS] < losses[1]
    counts = Manifest.read(tuned).counts
    (entry,) = counts["ledger"]
    assert counts["iterations"] == STEPS and counts["consumed_samples"] == 8 * STEPS
    assert entry["kind"] == "pairs"
    final = counts["final"]
    assert final["conditional gain validation-heldout"] == pytest.approx(
        final["random-d1 loss validation-heldout"] - final["synthesis loss validation-heldout"],
        rel=1e-4,
        abs=1e-5,
    )


def test_supervised_tokens_of_every_step_are_logged(
    tuned: Path, words_corpus: Corpus, words_pairs: Path
) -> None:
    """Over whole epochs they are the tokens of every d2 and its end-of-document."""
    logged = series(tuned, "supervised tokens")
    (entry,) = Manifest.read(tuned).counts["ledger"]
    per_epoch = entry["tokens"]
    seen = sum(logged.values())
    assert seen == pytest.approx(entry["epochs"] * per_epoch, rel=0.05)


@pytest.mark.parametrize("layout", ["one process", "DP=2, distributed optimizer"])
def test_an_interrupted_run_continues_bit_for_bit(
    layout: str, start: Path, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    keep = ["--no-save-optim", "--no-save-rng"]
    flags, processes = [], 1
    if layout != "one process":
        flags, processes = ["--use-distributed-optimizer", "--eval-global-batch-size", "2"], 2

    def tune(box: Path, *more: str) -> None:
        line = [*_from(start, box, words_corpus), *synthesis(words_pairs), *flags]
        run = pretrain(*line, "--save-interval", "10", *more, processes=processes, drop=keep)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]

    whole, box = tmp_path / "whole", tmp_path / "run"
    tune(whole)
    tune(box, "--exit-interval", "10")
    assert not (box / "manifest.json").exists()
    tune(box)
    assert series(box, "synthesis loss") == series(whole, "synthesis loss")


def test_random_pairs_train_with_the_same_command(
    start: Path, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "embeddings"
    shards.mkdir()
    vectors = np.random.default_rng(0).normal(size=(len(words_corpus), 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(shards / "embeddings-00000-of-00001.npy", vectors.astype(np.float16))
    control = tmp_path / "control"
    command: list[str | Path] = ["tools/mine_pairs.py", "--control", "random"]
    command += ["--corpus", *words_corpus.prefixes, "--embeddings", shards]
    command += ["--pairs", words_pairs, "--output", control]
    mined = run_command(*command)
    assert mined.returncode == 0, mined.stderr
    box = tmp_path / "run"
    run = pretrain(*_from(start, box, words_corpus), *synthesis(control))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert len(series(box, "synthesis loss")) == STEPS


def test_a_checkpoint_of_another_layout_gives_the_same_losses(
    tuned: Path, start: Path, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    """Saved with TP=2 and PP=2, tuned on by one process."""
    moved, box = tmp_path / "moved", tmp_path / "run"
    layout = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    load = ["--pretrained-checkpoint", str(start), "--save", str(moved), "--train-iters", "1"]
    # A learning rate of zero: what is saved is what was loaded.
    run = pretrain(*data(words_corpus), *load, "--lr", "0", *layout, processes=4)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    run = pretrain(*_from(moved, box, words_corpus), *synthesis(words_pairs))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    got, want = series(box, "synthesis loss"), series(tuned, "synthesis loss")
    assert got == pytest.approx(want, rel=1e-4)


def test_a_synthetic_corpus_is_never_read_twice(words_corpus: Corpus, tmp_path: Path) -> None:
    train, heldout = map(str, words_corpus.prefixes)
    line = data(words_corpus)
    line[1:2] = ["0.5", train, "0.5", heldout]
    run = pretrain(
        *line, "--sbp-synthetic-data", heldout, "--train-iters", "50", "--save", str(tmp_path / "x")
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith(f"error: {heldout}: the run asks for")


def _copy(corpus: Corpus, directory: Path) -> Path:
    shutil.copytree(corpus.prefixes[0].parent, directory)
    return directory / corpus.prefixes[0].name


def test_bad_input_is_named_in_one_line(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    truncated = _copy(words_corpus, tmp_path / "truncated")
    with open(f"{truncated}.bin", "r+b") as file:
        file.truncate(1001)
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(words_corpus.prefixes[0].parent / "tokenizer", tokenizer)
    path = tokenizer / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    line = [*data(words_corpus), "--train-iters", "1", "--save", str(tmp_path / "run")]
    other = [str(tokenizer) if part.endswith("/tokenizer") else part for part in line]
    wrong = [str(truncated) if part == str(words_corpus.prefixes[0]) else part for part in line]
    cases = [
        (wrong, f"error: {truncated}.bin: 1,001 bytes"),
        (other, f"error: {tokenizer}: is not the tokenizer that"),
        ([*line, "--sbp-objective", "synthesis"], "error: --sbp-objective synthesis needs --sbp-p"),
        ([*line, "--sbp-pairs", str(words_pairs)], "error: --sbp-pairs is given, but"),
    ]
    for arguments, message in cases:
        run = pretrain(*arguments)
        assert run.returncode == 2, run.stderr[-2000:]
        assert run.stderr.splitlines()[-1].startswith(message)
        assert not (tmp_path / "run" / "manifest.json").exists()
