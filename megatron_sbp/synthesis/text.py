"""Overlap of texts, and MassiveText's rules on repetition."""

from collections import Counter

import numpy as np

from megatron_sbp.corpus.shingles import ngrams, shingles, words

# Thresholds of Gopher's MassiveText (Rae et al., 2021, table A1): a document is repetitive if one
# is exceeded.
_LINES, _LINE_CHARACTERS = 0.30, 0.20  # the same for paragraphs
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def containment(text: str, other: str) -> float:
    """Share of the shingles of a text that another one has too; 0 for a text without words."""
    own = shingles(text)
    return float(np.isin(own, shingles(other)).mean()) if len(own) else 0.0


def same_words(text: str, other: str) -> bool:
    """Whether two texts are equal up to case, white space and punctuation."""
    return words(text) == words(other)


def is_repetitive(text: str) -> bool:
    """Whether a text breaks one of MassiveText's rules on repetition.

    The rules limit duplicate lines and paragraphs (their share, and their share of characters),
    the characters of the most frequent 2-, 3- and 4-gram, and the characters in 5- to 10-grams
    that occur more than once. Characters of n-grams are counted within words.
    """
    for separator in ("\n", "\n\n"):
        parts = [part.strip() for part in text.split(separator)]
        count, characters = _duplicates([part for part in parts if part])
        if count > _LINES or characters > _LINE_CHARACTERS:
            return True
    found = words(text, lower=False)
    lengths = np.array([len(word) for word in found])
    ids: dict[str, int] = {}
    sequence = np.array([ids.setdefault(word, len(ids)) for word in found], dtype=np.uint64)
    whole = lengths.sum()
    return any(
        _top_characters(sequence, lengths, size) > limit * whole for size, limit in _TOP.items()
    ) or any(
        _duplicate_characters(sequence, lengths, size) > limit * whole
        for size, limit in _DUPLICATE.items()
    )


def _duplicates(parts: list[str]) -> tuple[float, float]:
    """Shares of parts, and of their characters, that repeat an earlier part."""
    characters = sum(map(len, parts))
    if not characters:
        return 0.0, 0.0
    again = {part: times - 1 for part, times in Counter(parts).items() if times > 1}
    repeated = sum(len(part) * times for part, times in again.items())
    return sum(again.values()) / len(parts), repeated / characters


def _top_characters(sequence: np.ndarray, lengths: np.ndarray, size: int) -> int:
    """Characters of the most frequent n-gram, times its count; 0 if none occurs twice."""
    grams = ngrams(sequence, size)
    if not len(grams):
        return 0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    covered = np.convolve(lengths, np.ones(size, dtype=int), "valid")[first] * counts
    return int(covered[counts == counts.max()].max()) if counts.max() > 1 else 0


def _duplicate_characters(sequence: np.ndarray, lengths: np.ndarray, size: int) -> int:
    """Characters of words that lie in an n-gram which occurs more than once."""
    grams = ngrams(sequence, size)
    if not len(grams):
        return 0
    _, inverse, counts = np.unique(grams, return_inverse=True, return_counts=True)
    covering = np.convolve(counts[inverse] > 1, np.ones(size, dtype=int))
    return int(lengths[covering > 0].sum())
