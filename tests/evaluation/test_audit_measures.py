"""Every measure is right within a point on corpora with known shares of defects."""

import math
import random

import numpy as np
import pytest

from megatron_sbp.evaluation import measures
from megatron_sbp.evaluation.measures import CorpusOverlap
from tests.synthesis.planted import sentence

COUNT = 400
POINT = 0.01


@pytest.fixture
def texts() -> list[str]:
    source = random.Random(12)
    return [sentence(source) for _ in range(COUNT)]


@pytest.mark.parametrize("share", [0.0, 0.07, 0.5, 1.0])
def test_repetition(texts: list[str], share: float) -> None:
    for number in range(round(share * COUNT)):
        texts[number] = f"word{number} again and again " * 20
    assert measures.repetition_rate(texts) == pytest.approx(share, abs=POINT)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.4])
def test_duplicates(texts: list[str], share: float) -> None:
    """Half of them exact up to white space, half with their first word changed (Jaccard 0.96)."""
    copies = round(share * COUNT)
    for number in range(copies):
        source = texts[COUNT - 1 - number].split()
        if number % 2:
            source[0] = "changed"
        texts[number] = ("\n" if number % 4 else " ").join(source)
    assert measures.duplicate_rate(texts) == pytest.approx(share, abs=POINT)


def test_pair_copying(texts: list[str]) -> None:
    """5% equal up to case and punctuation, 10% more with nine tenths of d1, 20% with a half."""
    others = [sentence(random.Random(13 + number)) for number in range(COUNT)]
    for number in range(COUNT):
        words = texts[number].split()
        if number < 20:
            others[number] = ", ".join(words).title()
        elif number < 60:
            others[number] = " ".join([*words[:54], *others[number].split()[:6]])
        elif number < 140:
            others[number] = " ".join([*words[:30], *others[number].split()[:30]])
    pairs = list(zip(texts, others, strict=True))
    assert measures.equality_rate(pairs) == pytest.approx(0.05, abs=POINT)
    assert measures.copying_rate(pairs, 0.8) == pytest.approx(0.15, abs=POINT)
    assert measures.copying_rate(pairs, 0.4) == pytest.approx(0.35, abs=POINT)


@pytest.mark.parametrize("size", [5, 13])
def test_overlap_with_the_corpus(texts: list[str], size: int) -> None:
    """A quarter of the texts have 30 of their 60 words from some document of the corpus."""
    corpus = [sentence(random.Random(1000 + number)) for number in range(300)]
    for number in range(COUNT // 4):
        taken = corpus[number].split()[10:40]
        texts[number] = " ".join([*texts[number].split()[:30], *taken])
    overlap = CorpusOverlap(texts, size)
    for document in corpus:
        overlap.read(document)
    found = (30 - size + 1) / (60 - size + 1)
    expected = np.where(np.arange(COUNT) < COUNT // 4, found, 0)
    np.testing.assert_allclose(overlap.shares(texts), expected, atol=POINT)
    assert overlap.rate(texts) == pytest.approx(found / 4, abs=POINT)


def test_documents_of_the_corpus_are_compared_with_the_others(texts: list[str]) -> None:
    """30% of the documents occur twice in the corpus, all of them at least once."""
    overlap = CorpusOverlap(texts, 13)
    for document in [*texts, *texts[:120]]:
        overlap.read(document)
    assert overlap.rate(texts) == 1
    assert overlap.rate(texts, 2) == pytest.approx(0.3, abs=POINT)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_distinct_ngrams(size: int) -> None:
    """Every text three times over: a third of the n-grams is distinct."""
    words = [f"w{number}" for number in range(9000)]
    texts = [" ".join(words[start : start + 90]) for start in range(0, 9000, 90)] * 3
    assert measures.count_ngrams(texts, size) == 300 * (91 - size)
    rate = measures.distinct_rate(texts, size, measures.count_ngrams(texts, size))
    assert rate == pytest.approx(1 / 3, abs=POINT)
    assert measures.distinct_rate(texts, size, 5000) == 1


def test_lengths(texts: list[str]) -> None:
    cut = [" ".join(text.split()[: number % 51]) for number, text in enumerate(texts[:357])]
    assert measures.length_quantiles(cut) == pytest.approx((5, 25, 45), abs=0.5)


def test_cosines_are_those_of_float64() -> None:
    random_rows = np.random.default_rng(3)
    first, second = random_rows.normal(size=(2, 50, 8)).astype(np.float32)
    first[7] = 0
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    expected = np.mean([0 if n == 0 else x @ y / n for x, y, n in zip(a, b, norms, strict=True)])
    assert measures.mean_cosine(first, second) == pytest.approx(expected, abs=1e-6)


def test_nothing_to_measure_is_nan() -> None:
    overlap = CorpusOverlap(["too short"], 13)
    overlap.read("a document of the corpus")
    for value in (
        measures.repetition_rate([]),
        measures.equality_rate([]),
        measures.distinct_rate(["one"], 3, 100),
        measures.length_quantiles([])[0],
        overlap.rate(["too short"]),
        overlap.shares(["too short"])[0],
    ):
        assert math.isnan(value)
