"""Near-duplicate removal against sets of words, compared pair by pair."""

import random
import re

import numpy as np

from megatron_sbp.corpus.duplicates import Duplicates, shingles
from megatron_sbp.corpus.shingles import SHINGLE

SEED = 20260917


def word_sets(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    width = min(SHINGLE, len(words)) or 1
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def planted(rng: random.Random) -> list[str]:
    """Random documents, each followed at some distance by a copy with a few words replaced."""
    vocabulary = [f"w{i}" for i in range(5000)]
    documents = []
    for _ in range(250):
        words = rng.choices(vocabulary, k=rng.randint(30, 200))
        documents.append(" ".join(words))
        for position in rng.sample(range(len(words)), rng.choice([0, 1, 2, 8])):
            words[position] = rng.choice(vocabulary)
        documents.append(rng.choice(["  ", "\n"]).join(words).title())
    rng.shuffle(documents)
    return documents


def test_shingles_are_the_sets_of_words() -> None:
    documents = [*planted(random.Random(SEED)), "a", "a b", "a b c d e", "Straße ÄÖ", "...", ""]
    for text in documents:
        assert len(shingles(text)) == len(word_sets(text)), (SEED, text)
    rng = np.random.default_rng(SEED)
    for i, j in rng.integers(0, len(documents) - 2, (2000, 2)):
        ours = len(np.intersect1d(shingles(documents[i]), shingles(documents[j])))
        assert ours == len(word_sets(documents[i]) & word_sets(documents[j])), (SEED, i, j)


def test_near_duplicates_are_those_of_brute_force() -> None:
    """Certain above Jaccard 0.9 and below 0.7; between them an estimate decides."""
    documents = planted(random.Random(SEED))
    duplicates = Duplicates("near")
    kept: list[set[tuple[str, ...]]] = []
    above = below = 0
    for number, text in enumerate(documents):
        shingled = word_sets(text)
        nearest = max((jaccard(shingled, other) for other in kept), default=0.0)
        verdict = duplicates.seen(text)
        if nearest >= 0.9:
            above += 1
            assert verdict is not None, (SEED, number, nearest)
        if nearest < 0.7:
            below += 1
            assert verdict is None, (SEED, number, nearest)
        if verdict is None:
            kept.append(shingled)
    assert above > 50 < below


def test_exact_duplicates_differ_in_white_space_only() -> None:
    duplicates = Duplicates("exact")
    assert duplicates.seen("One two\n three") is None
    assert duplicates.seen(" One  two three\n") == "exact duplicate"
    assert duplicates.seen("one two three") is None
    assert duplicates.seen("One two three.") is None


def test_near_finds_exact_ones_of_any_length() -> None:
    duplicates = Duplicates("near")
    for text in ("a", "a b c", "...", "???", "one two three four five six"):
        assert duplicates.seen(text) is None, text
        assert duplicates.seen(text + "\n") == "exact duplicate"
