"""What tools/build_indexes.py builds is what the run would build: it finds all of it."""

from pathlib import Path

import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.training.indexes import build
from tests.training.forked import pretrain
from tests.training.runs import SMALL, data

ITERATIONS = ("--train-iters", "3")


def state(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize("objective", ["joint", "synthesis"])
def test_the_run_finds_every_index(
    objective: str, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    heldout = str(words_corpus.prefixes[1])
    line = [*data(words_corpus), *ITERATIONS, "--data-cache-path", str(tmp_path / "cache")]
    if objective == "joint":
        line += ["--sbp-synthetic-data", heldout, "--sbp-synthetic-share", "0.2"]
    else:
        line += ["--sbp-objective", "synthesis", "--sbp-pairs", str(words_pairs)]
    built = build([*SMALL, *line])
    cache = state(tmp_path / "cache")
    assert sorted(cache) == built.written and not built.present
    assert built.bytes == sum(path.stat().st_size for path in cache)
    run = pretrain(*line, "--save", str(tmp_path / "run"))
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert state(tmp_path / "cache") == cache

    again = build([*SMALL, *line])
    assert not again.written and again.present == len(cache)
    assert state(tmp_path / "cache") == cache


def test_what_the_run_would_refuse_is_refused(words_corpus: Corpus, tmp_path: Path) -> None:
    line = [*SMALL, *data(words_corpus), "--data-cache-path", str(tmp_path / "cache")]
    for more, message in (
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--sbp-pairs", "x"], "--sbp-pairs is given"),
        (["--sbp-synthetic-data", str(words_corpus.prefixes[1]), "--sbp-synthetic-share", "0.9"],
         "would read them .* times"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            build([*line, "--train-iters", "300", *more])
    assert not state(tmp_path / "cache")
