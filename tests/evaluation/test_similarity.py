"""Measures between texts, compared with the plain reading of their definitions."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from megatron_sbp.corpus.words import Words
from megatron_sbp.evaluation import similarity


def texts(seed: int, count: int, vocabulary: int, most: int = 40) -> list[str]:
    """Texts of 0 to ``most`` words; few different words make long matches."""
    source = random.Random(seed)
    return [
        " ".join(f"w{source.randrange(vocabulary)}" for _ in range(source.randint(0, most)))
        for _ in range(count)
    ]


def copied(seed: int, sources: list[str]) -> list[str]:
    """Texts that take runs of the sources, of very different lengths, and words of their own."""
    source = random.Random(seed)
    found = []
    for text in sources:
        words = text.split() or ["none"]
        parts: list[str] = []
        for _ in range(source.randint(0, 4)):
            start = source.randrange(len(words))
            parts += words[start : start + source.choice([1, 2, 5, 15, 16, 17, 40])]
            parts += [f"own{source.randrange(9)}"] * source.randint(0, 2)
        found.append(" ".join(parts))
    return found


# Self-BLEU


def plain_bleu(hypothesis: list[str], references: list[list[str]]) -> float:
    """BLEU-4 of Papineni et al. (2002), zero counts as 0.1."""
    logarithms = []
    for size in (1, 2, 3, 4):
        grams = Counter(tuple(hypothesis[n : n + size]) for n in range(len(hypothesis) - size + 1))
        most: Counter[tuple[str, ...]] = Counter()
        for one in references:
            most |= Counter(tuple(one[n : n + size]) for n in range(len(one) - size + 1))
        matches = sum(min(count, most[gram]) for gram, count in grams.items())
        logarithms.append(math.log((matches or 0.1) / sum(grams.values())))
    length = len(hypothesis)
    closest = min((abs(len(one) - length), len(one)) for one in references)[1]
    return math.exp(sum(logarithms) / 4) * min(1.0, math.exp(1 - closest / length))


@pytest.mark.parametrize("vocabulary", [2, 12, 300])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_self_bleu_is_bleu_with_all_others_as_references(vocabulary: int, count: int) -> None:
    some = texts(vocabulary + count, count, vocabulary)
    split = [text.split() for text in some]
    expected = [
        plain_bleu(one, split[:number] + split[number + 1 :]) if len(one) >= 4 else math.nan
        for number, one in enumerate(split)
    ]
    np.testing.assert_allclose(similarity.self_bleu(Words.of(some)), expected, rtol=1e-12)


def test_self_bleu_of_equal_texts_is_one() -> None:
    np.testing.assert_allclose(similarity.self_bleu(Words.of(["a b c d e"] * 3)), 1)


# Coverage and density


def plain_fragments(first: list[str], second: list[str]) -> list[int]:
    """Lengths of the fragments, by the procedure of Grusky et al. (2018, figure 3)."""
    found, place = [], 0
    while place < len(second):
        best = 0
        for start in range(len(first)):
            size = 0
            while (
                place + size < len(second)
                and start + size < len(first)
                and second[place + size] == first[start + size]
            ):
                size += 1
            best = max(best, size)
        found += [best] if best else []
        place += max(best, 1)
    return found


@pytest.mark.parametrize("vocabulary", [1, 3, 30, 1000])
@pytest.mark.parametrize("seed", [1, 2])
def test_coverage_and_density_follow_the_procedure(seed: int, vocabulary: int) -> None:
    first = texts(seed, 60, vocabulary, most=70)
    second = copied(seed, first)
    coverage, density = similarity.extractiveness(Words.of(first), Words.of(second))
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        words = len(other.split())
        fragments = plain_fragments(one.split(), other.split())
        if not words:
            assert math.isnan(coverage[number]) and math.isnan(density[number])
            continue
        assert coverage[number] == pytest.approx(sum(fragments) / words)
        assert density[number] == pytest.approx(sum(size**2 for size in fragments) / words)


def test_a_fragment_does_not_run_into_the_next_document() -> None:
    first, second = Words.of(["a b", "c d"]), Words.of(["b c", "c d"])
    coverage, density = similarity.extractiveness(first, second)
    np.testing.assert_allclose(coverage, [0.5, 1])
    np.testing.assert_allclose(density, [0.5, 2])


# ROUGE-L


def plain_subsequence(first: list[str], second: list[str]) -> int:
    """The table of the textbook."""
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if a == b else longer
    return int(table[-1, -1])


@pytest.mark.parametrize("vocabulary", [2, 20])
def test_rouge_l_is_that_of_the_table(vocabulary: int) -> None:
    first, second = (texts(seed, 25, vocabulary, most=90) for seed in (5, 6))
    expected = []
    for one, other in zip(first, second, strict=True):
        a, b = one.split(), other.split()
        expected.append(2 * plain_subsequence(a, b) / (len(a) + len(b)) if a or b else math.nan)
    np.testing.assert_allclose(similarity.rouge_l(Words.of(first), Words.of(second)), expected)
