"""Overlap of texts, and MassiveText's rules on repetition, for many documents at a time."""

import numpy as np

from megatron_sbp.corpus.shingles import common, shingles
from megatron_sbp.corpus.words import MIX, Characters, Words, is_space, keyed, mixed

# Thresholds of Gopher's MassiveText (Rae et al., 2021, table A1): a document is repetitive if one
# is exceeded.
_LINES, _LINE_CHARACTERS = 0.30, 0.20  # the same for paragraphs
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_DUPLICATE = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_NEWLINE = ord("\n")
_COUNT_SHIFT = 40  # a count in the bits from here on, characters in those before


def containment(words: Words, others: Words) -> np.ndarray:
    """Share of the distinct 5-word shingles of each document that its partner has too.

    Args:
        words: Documents, d2.
        others: As many others, d1; document i is compared with document i.

    Returns:
        float64 [documents], 0 for a document without words.
    """
    own = shingles(words).distinct()
    return common(own, shingles(others).distinct()) / np.maximum(own.counts, 1)


def same_words(words: Words, others: Words) -> np.ndarray:
    """Whether each document is equal to its partner up to case, white space and punctuation.

    Returns:
        bool [documents].
    """
    return (words.counts == others.counts) & (_sequence(words) == _sequence(others))


def _sequence(words: Words) -> np.ndarray:
    """Hash of all words of each document in their order, uint64 [documents]."""
    places = np.arange(len(words.hashes)) - np.repeat(words.starts[:-1], words.counts)
    terms = mixed(words.hashes + places.astype(np.uint64) * MIX)
    return np.diff(np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])[words.starts])


def is_repetitive(texts: Characters) -> np.ndarray:
    """Whether each document breaks one of MassiveText's rules on repetition, bool [documents].

    The rules limit duplicate lines and paragraphs (their share, and their share of characters),
    the characters of the most frequent 2-, 3- and 4-gram, and the characters in 5- to 10-grams
    that occur more than once. Lines and paragraphs are compared without the white space around
    them, and empty ones do not count. Characters of n-grams are counted within words, which differ
    in case.
    """
    broken = np.zeros(len(texts), dtype=bool)
    newline = texts.codes == _NEWLINE
    # Paragraphs lie between two newlines or more; single ones at their ends are stripped anyway.
    double = newline.copy()
    double[:-1] &= newline[1:]
    double[1:] |= double[:-1] & newline[1:]
    for separator in (newline, double):
        broken |= _repeats_parts(texts, np.flatnonzero(separator))
    return broken | _repeats_ngrams(texts.words(lower=False))


def _repeats_parts(texts: Characters, separators: np.ndarray) -> np.ndarray:
    """Whether too many of a document's parts, or of their characters, repeat an earlier part.

    Args:
        texts: The documents.
        separators: Places of the newlines after which a part begins, int64 [n].
    """
    begins = np.union1d(texts.starts[:-1], separators + 1)
    solid = np.flatnonzero(~is_space()[texts.codes])
    low = np.searchsorted(solid, begins)
    high = np.append(low[1:], len(solid))
    low, high = low[high > low], high[high > low]
    first, after = solid[low], solid[high - 1] + 1
    documents = np.searchsorted(texts.starts, first, side="right") - 1
    keys = keyed(documents, texts.hashes(first, after), len(texts))
    order = np.argsort(keys)
    again = order[1:][keys[order[1:]] == keys[order[:-1]]]

    def shares(weights: np.ndarray) -> np.ndarray:
        whole = np.bincount(documents, weights, len(texts))
        return np.bincount(documents[again], weights[again], len(texts)) / np.maximum(whole, 1)

    lengths = after - first
    return (shares(np.ones_like(lengths)) > _LINES) | (shares(lengths) > _LINE_CHARACTERS)


def _repeats_ngrams(words: Words) -> np.ndarray:
    """Whether each document breaks a rule on the characters of its n-grams."""
    broken = np.zeros(len(words), dtype=bool)
    documents = words.documents
    last = words.starts[1:][documents]
    before = np.concatenate([[0], np.cumsum(words.characters, dtype=np.int64)])
    whole = np.diff(before[words.starts])
    places, names = np.arange(len(documents)), words.hashes.copy()
    for size in range(2, max(_DUPLICATE) + 1):
        # An n-gram can occur twice only where both (n-1)-grams in it do.
        places = places[places + size <= last[places]]
        grams = names[places] * MIX + words.hashes[places + (size - 1)]
        keys = keyed(documents[places], grams, len(words))
        order = np.argsort(keys)
        first = np.flatnonzero(np.append(True, keys[order[1:]] != keys[order[:-1]])[: len(order)])
        counts = np.diff(np.append(first, len(order)))
        names[places] = keys
        if size in _TOP:
            one = places[order[first[counts > 1]]]
            top = _most_frequent(
                documents[one], counts[counts > 1], before[one + size] - before[one], len(words)
            )
            broken |= top > _TOP[size] * whole
        places = np.sort(places[order[np.repeat(counts > 1, counts)]])
        if size in _DUPLICATE:
            covered = np.diff(_covered(places, size, before)[words.starts])
            broken |= covered > _DUPLICATE[size] * whole
        places = places[:-1][np.diff(places) == 1]
    return broken


def _most_frequent(
    documents: np.ndarray, counts: np.ndarray, characters: np.ndarray, size: int
) -> np.ndarray:
    """Characters of the most frequent n-gram of each document, times its count.

    Args:
        documents: Document of each n-gram that occurs twice or more, int64 [n].
        counts: How often it does, int64 [n].
        characters: Of one occurrence, int64 [n].
        size: Number of documents.

    Returns:
        int64 [documents], of several most frequent ones that with the most characters; 0 without.
    """
    most = np.zeros(size, dtype=np.int64)
    np.maximum.at(most, documents, (counts << _COUNT_SHIFT) | (counts * characters))
    return most & ((1 << _COUNT_SHIFT) - 1)


def _covered(places: np.ndarray, size: int, before: np.ndarray) -> np.ndarray:
    """Characters of the words that lie in some n-grams, before each word.

    Args:
        places: First word of each n-gram, ascending, int64 [n].
        size: Words of an n-gram.
        before: Characters before each word, int64 [words + 1].

    Returns:
        int64 [words + 1].
    """
    depth = np.zeros(len(before), dtype=np.int64)
    depth[places] += 1
    depth[places + size] -= 1
    inside = np.cumsum(depth[:-1]) > 0
    return np.concatenate([[0], np.cumsum(np.diff(before) * inside)])
