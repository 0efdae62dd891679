"""What documents share with a corpus, compared with sets of word tuples."""

import random

import numpy as np
import pytest

from megatron_sbp.corpus.words import Words
from megatron_sbp.evaluation.overlap import CorpusOverlap


def texts(seed: int, count: int) -> list[str]:
    source = random.Random(seed)
    return [
        " ".join(f"w{source.randrange(6)}" for _ in range(source.randint(0, 30)))
        for _ in range(count)
    ]


def grams(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[n : n + size]) for n in range(len(words) - size + 1)]


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("least", [1, 2])
def test_shared_ngrams_are_those_of_sets(size: int, least: int) -> None:
    asked, corpus = texts(1, 40), texts(2, 50)
    documents = [set(grams(text, size)) for text in corpus]
    overlap = CorpusOverlap([Words.of(asked[:15]), Words.of(asked[15:])], size)
    for start in range(0, 50, 20):  # an n-gram of a document must not count twice, nor be lost
        overlap.read(Words.of(corpus[start : start + 20]))
    shared = overlap.shared(Words.of(asked), least)
    for number, text in enumerate(asked):
        own = grams(text, size)
        found = [gram for gram in own if sum(gram in other for other in documents) >= least]
        assert (shared.found[number], shared.total[number]) == (len(found), len(own))
    assert np.isnan(shared.shares[shared.total == 0]).all()


def test_texts_without_ngrams_share_nothing() -> None:
    overlap = CorpusOverlap([Words.of(["a b", ""])], 13)
    overlap.read(Words.of(["a b c " * 9, ""]))
    assert overlap.shared(Words.of(["a b", ""])).found.tolist() == [0, 0]
