"""Words of a text, and hashes of its word n-grams and shingles, by which documents are compared.

A word is a run of letters, digits and underscores; case is folded wherever texts are compared.
"""

import re
from functools import lru_cache
from hashlib import blake2b

import numpy as np

SHINGLE = 5
"""Words of a shingle, the n-gram by which two documents are compared."""
MIX = np.uint64(0x9E3779B97F4A7C15)
"""Odd, from the golden ratio: multiplying by it loses nothing modulo 2^64."""

_WORD = re.compile(r"\w+")


def words(text: str, *, lower: bool = True) -> list[str]:
    """Words of a text, in lower case or as they stand."""
    return _WORD.findall(text.lower() if lower else text)


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
        # A polynomial modulo 2^64, so the order of the words counts.
        total = total * MIX + hashes[offset : offset + count]
    return total


def shingles(text: str, size: int = SHINGLE) -> np.ndarray:
    """Hashes of the distinct shingles of a text; a shorter text is one shingle.

    Args:
        text: The text.
        size: Words of a shingle.

    Returns:
        uint64 [distinct shingles], sorted; empty for a text without words.
    """
    hashes = word_hashes(text)
    return np.unique(ngrams(hashes, min(size, len(hashes)) or 1))
