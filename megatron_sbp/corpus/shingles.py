"""Word n-grams and shingles of many documents, by which they are compared."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megatron_sbp.corpus.words import MIX, Words

SHINGLE = 5
"""Words of a shingle, the n-gram by which two documents are compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Grams:
    """Hashes of n-grams of some documents, one document after another."""

    hashes: np.ndarray
    """uint64 [n-grams]; equal n-grams have equal hashes."""
    starts: np.ndarray
    """int64 [documents + 1], first n-gram of each document, then the number of n-grams."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """int64 [documents], n-grams of each."""
        return np.diff(self.starts)

    @property
    def documents(self) -> np.ndarray:
        """int64 [n-grams], number of the document of each n-gram."""
        return np.repeat(np.arange(len(self)), self.counts)

    def split(self) -> list[np.ndarray]:
        """The hashes of each document, as views."""
        bounds = self.starts.tolist()
        return [self.hashes[b:e] for b, e in pairwise(bounds)]

    def distinct(self) -> "Grams":
        """The same without repetitions, sorted within each document."""
        hashes = self.hashes.copy()
        for part in Grams(hashes, self.starts).split():
            part.sort()
        first = np.ones(len(hashes), dtype=bool)
        first[1:] = hashes[1:] != hashes[:-1]
        first[self.starts[:-1][self.counts > 0]] = True
        return Grams(hashes[first], np.concatenate([[0], np.cumsum(first)])[self.starts])


def ngrams(words: Words, size: int) -> Grams:
    """All n-grams of the documents, in order.

    Args:
        words: Words of some documents.
        size: Words of an n-gram.

    Returns:
        max(0, words - size + 1) n-grams of each document.
    """
    rolled = _rolled(words.hashes, size)
    counts = np.maximum(words.counts - size + 1, 0)
    starts = np.concatenate([[0], counts]).cumsum(dtype=np.int64)
    rows = np.arange(starts[-1]) + np.repeat(words.starts[:-1] - starts[:-1], counts)
    return Grams(rolled[rows], starts)


def shingles(words: Words, size: int = SHINGLE) -> Grams:
    """All shingles of the documents, in order: their n-grams; a shorter document is one shingle.

    Args:
        words: Words of some documents.
        size: Words of a shingle.

    Returns:
        None for a document without words.
    """
    found = ngrams(words, size)
    short = np.flatnonzero((words.counts > 0) & (words.counts < size))
    whole = [
        _rolled(words.hashes[begin:end], end - begin)[0]
        for begin, end in zip(words.starts[short], words.starts[short + 1], strict=True)
    ]
    hashes = np.insert(found.hashes, found.starts[short], np.array(whole, np.uint64))
    counts = found.counts
    counts[short] = 1
    return Grams(hashes, np.concatenate([[0], counts]).cumsum(dtype=np.int64))


def _rolled(hashes: np.ndarray, size: int) -> np.ndarray:
    """Hash of every run of so many words of a sequence, uint64 [max(0, words - size + 1)]."""
    count = max(0, len(hashes) - size + 1)
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(size):
        # A polynomial modulo 2^64, so the order of the words counts.
        total *= MIX
        total += hashes[offset : offset + count]
    return total


def common(first: Grams, second: Grams) -> np.ndarray:
    """Number of n-grams that each document has in common with its partner.

    Args:
        first: Distinct n-grams of some documents.
        second: Distinct n-grams of as many others; document i is compared with document i.

    Returns:
        int64 [documents].
    """
    both = Grams(
        np.empty(len(first.hashes) + len(second.hashes), np.uint64), first.starts + second.starts
    )
    for place, left, right in zip(both.split(), first.split(), second.split(), strict=True):
        place[: len(left)], place[len(left) :] = left, right
        place.sort()
    twice = both.hashes[1:] == both.hashes[:-1]
    # The last n-gram of a document may be equal to the first one of the next.
    seams = both.starts[1:-1]
    twice[seams[(seams > 0) & (seams < len(both.hashes))] - 1] = False
    return np.diff(np.concatenate([[0, 0], np.cumsum(twice)])[both.starts])
