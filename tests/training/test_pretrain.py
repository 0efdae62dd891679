"""Megatron's loop on the CPU: layouts agree with one process, runs resume, bad input is named."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.manifest import Manifest
from tests.training.runs import data, pretrain, series

STEPS = 20
LAYOUTS = {
    "TP=2": ["--tensor-model-parallel-size", "2"],
    "PP=2": ["--pipeline-model-parallel-size", "2"],
    "DP=2": [],
    "DP=2, distributed optimizer": ["--use-distributed-optimizer"],
}


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
def alone(
    words_corpus: Corpus, words_pairs: Path, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """One-process runs of both objectives from ``start``."""
    boxes = {}
    for objective, extra in {"lm": [], "synthesis": synthesis(words_pairs)}.items():
        box = tmp_path_factory.mktemp("alone") / objective
        run = pretrain(*_from(start, box, words_corpus), *extra)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
        boxes[objective] = box
    return boxes


def _from(start: Path, box: Path, corpus: Corpus) -> list[str]:
    load = ["--pretrained-checkpoint", str(start), "--load", str(box), "--save", str(box)]
    return [*data(corpus), *load, "--train-iters", str(STEPS)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("objective", ["lm", "synthesis"])
def test_layouts_give_the_loss_of_one_process(
    layout: str,
    objective: str,
    alone: dict[str, Path],
    start: Path,
    words_corpus: Corpus,
    words_pairs: Path,
    tmp_path: Path,
) -> None:
    extra = synthesis(words_pairs) if objective == "synthesis" else []
    flags = [*LAYOUTS[layout], "--eval-global-batch-size", "2" if "DP" in layout else "1"]
    box = tmp_path / "run"
    run = pretrain(*_from(start, box, words_corpus), *extra, *flags, processes=2)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    metrics = [f"{objective} loss"]
    if "DP" not in layout:
        # Full validation hands the last samples to one rank only where they divide unevenly.
        metrics.append(f"{objective} loss validation-heldout")
    for metric in metrics:
        one, two = series(alone[objective], metric), series(box, metric)
        assert one.keys() == two.keys() and max(one) == STEPS
        assert two == pytest.approx(one, rel=1e-4)


def test_the_loss_falls_and_the_run_is_recorded(alone: dict[str, Path], words_pairs: Path) -> None:
    losses = series(alone["synthesis"], "synthesis loss")
    assert losses[STEPS] < losses[1]
    counts = Manifest.read(alone["synthesis"]).counts
    (entry,) = counts["ledger"]
    assert counts["iterations"] == STEPS and counts["consumed_samples"] == 8 * STEPS
    assert entry["kind"] == "pairs"
    pairs = json.loads((words_pairs / "manifest.json").read_text())["counts"]["pairs"]
    assert 8 * STEPS / pairs < entry["epochs"] < 2 * 8 * STEPS / pairs
    final = counts["final"]
    assert final["conditional gain validation-heldout"] == pytest.approx(
        final["random-d1 loss validation-heldout"] - final["synthesis loss validation-heldout"],
        rel=1e-4,
        abs=1e-5,
    )


def test_an_interrupted_run_continues_to_the_same_loss(
    alone: dict[str, Path], start: Path, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    box = tmp_path / "run"
    keep = ["--no-save-optim", "--no-save-rng"]
    line = [*_from(start, box, words_corpus), *synthesis(words_pairs), "--save-interval", "10"]
    half = pretrain(*line, "--exit-interval", "10", drop=keep)
    assert half.returncode == 0, half.stdout[-3000:] + half.stderr[-3000:]
    assert not (box / "manifest.json").exists()
    rest = pretrain(*line, drop=keep)
    assert rest.returncode == 0, rest.stdout[-3000:] + rest.stderr[-3000:]
    whole = series(alone["synthesis"], "synthesis loss")
    assert series(box, "synthesis loss") == pytest.approx(whole, rel=1e-6)


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
