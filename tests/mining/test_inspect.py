from pathlib import Path

import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.mining.inspect import InspectOptions, inspect
from megatron_sbp.mining.pairs import PairStore
from tests.conftest import run_command


def options(corpus: Corpus, pairs: Path, **others: float) -> InspectOptions:
    prefixes = [str(prefix) for prefix in corpus.prefixes]
    return InspectOptions(pairs=str(pairs), corpus=prefixes, **others)  # type: ignore[arg-type]


def test_texts_stand_side_by_side(words_corpus: Corpus, words_pairs: Path) -> None:
    lines = list(inspect(options(words_corpus, words_pairs, sample=3, width=9000, lines=0)))
    heads = [line for line in lines if "score" in line]
    assert len(heads) == 3 and len(lines) == 12
    store = PairStore(words_pairs)
    texts = list(words_corpus.texts(range(len(words_corpus))))
    known = {
        (texts[anchor], texts[neighbor], f"{score:.4f}")
        for anchor, neighbor, score in zip(store.anchor, store.neighbor, store.score, strict=True)
    }
    for head, line in zip(lines[1::4], lines[3::4], strict=True):
        left, right = (part.strip() for part in line.split(" | "))
        assert (left, right, head.split("score ")[1].split()[0]) in known


def test_limits_and_width(words_corpus: Corpus, words_pairs: Path) -> None:
    chosen = options(words_corpus, words_pairs, min_similarity=0.5, max_similarity=0.6, width=80)
    lines = list(inspect(chosen))
    scores = [float(line.split("score ")[1].split()[0]) for line in lines if "score" in line]
    assert scores and all(0.5 <= score <= 0.6 for score in scores)
    with pytest.raises(InputError, match="widen the limits"):
        list(inspect(options(words_corpus, words_pairs, min_similarity=1.5)))


def test_command(words_corpus: Corpus, words_pairs: Path) -> None:
    flags: list[str | Path] = ["--pairs", words_pairs, "--corpus"]
    done = run_command("tools/inspect_pairs.py", *flags, *words_corpus.prefixes, "--sample", "2")
    assert done.returncode == 0 and done.stdout.count("score") == 2
    wrong = run_command("tools/inspect_pairs.py", *flags, words_corpus.prefixes[0])
    (line,) = wrong.stderr.splitlines()
    assert wrong.returncode == 2 and "made from 2 corpus prefixes" in line
