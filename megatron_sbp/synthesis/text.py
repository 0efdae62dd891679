"""What is counted in texts: words, n-grams of words, their overlap, and MassiveText's repetition.

A word is a run of letters, digits and underscores; case is folded wherever texts are compared.
"""

import re
from collections import Counter
from functools import lru_cache
from hashlib import blake2b

import numpy as np

SHINGLE = 5
"""Words of a shingle, the n-gram by which two documents are compared."""

_WORD = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing modulo 2^64

# Thresholds of Gopher's MassiveText (Rae et al., 2021, table A1): a document is repetitive if one
# is exceeded.
_LINES, _LINE_CHARACTERS = 0.30, 0.20  # the same for paragraphs
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def words(text: str) -> list[str]:
    """Words of a text, in lower case."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=1 << 20)
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")


def word_hashes(text: str) -> np.ndarray:
    """64-bit hash of every word of a text, uint64 [words]."""
    return np.array([_word_hash(word) for word in words(text)], dtype=np.uint64)


def ngrams(hashes: np.ndarray, size: int) -> np.ndarray:
    """Hash of every n-gram of a sequence of hashes.

    Args:
        hashes: uint64 [words].
        size: Words of an n-gram.

    Returns:
        uint64 [max(0, words - size + 1)], in order; equal n-grams have equal hashes.
    """
    count = max(0, len(hashes) - size + 1)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(size):
        total = total * _MIX + hashes[offset : offset + count]  # wraps around, as intended
    return total


def shingles(text: str) -> np.ndarray:
    """Hashes of the distinct shingles of a text; a shorter text is one shingle.

    Returns:
        uint64 [distinct shingles], sorted.
    """
    hashes = word_hashes(text)
    return np.unique(ngrams(hashes, min(SHINGLE, len(hashes)) or 1))


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
    found = _WORD.findall(text)
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
