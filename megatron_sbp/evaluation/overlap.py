"""What documents have in common with a whole corpus: n-grams copied from it, and novel ones."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from megatron_sbp.corpus.shingles import ngrams
from megatron_sbp.corpus.words import Words
from megatron_sbp.evaluation.similarity import distinct

_MOST = 2  # documents counted per n-gram; whether there are more is never asked
_ROOM = 8  # places of the table that rejects most n-grams of the corpus, per n-gram


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """N-grams that documents have in common with a corpus."""

    found: np.ndarray
    """int64 [documents], n-grams that the corpus has."""
    total: np.ndarray
    """int64 [documents], n-grams."""

    @property
    def shares(self) -> np.ndarray:
        """float64 [documents], nan for a document without n-grams."""
        with np.errstate(invalid="ignore"):
            return self.found / self.total


class CorpusOverlap:
    """Which n-grams of some documents occur in a corpus that is read once, batch by batch.

    Memory is about 25 bytes per different n-gram of the documents, whatever the corpus.

    Args:
        documents: What will be asked about, in batches.
        size: Words of an n-gram.
    """

    def __init__(self, documents: Iterable[Words], size: int):
        self._size = size
        parts = [distinct(ngrams(batch, size).hashes) for batch in documents]
        self._grams = distinct(np.concatenate([np.empty(0, np.uint64), *parts]))
        self._counts = np.zeros(len(self._grams), dtype=np.uint8)
        bits = (_ROOM * max(len(self._grams), 1)).bit_length()
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(1 << bits, dtype=bool)
        self._maybe[self._grams >> self._shift] = True

    def read(self, words: Words) -> None:
        """Take documents of the corpus, every one once."""
        grams = ngrams(words, self._size)
        likely = np.flatnonzero(self._maybe[grams.hashes >> self._shift])
        places, found = self._find(grams.hashes[likely])
        # Each n-gram of a document counts once.
        pairs = distinct(places[found] * len(words) + grams.documents[likely[found]])
        pairs //= max(len(words), 1)
        places = distinct(pairs)
        times = np.diff(np.searchsorted(pairs, places), append=len(pairs))
        self._counts[places] = np.minimum(self._counts[places] + times, _MOST)

    def _find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place of each n-gram among those of the documents, and whether it is there."""
        if not len(self._grams):
            return np.zeros(len(hashes), np.int64), np.zeros(len(hashes), dtype=bool)
        places = np.minimum(np.searchsorted(self._grams, hashes), len(self._grams) - 1)
        return places, self._grams[places] == hashes

    def shared(self, words: Words, documents: int = 1) -> Shared:
        """How many n-grams of each document occur in so many documents of the corpus, or more.

        Args:
            words: Some of the documents given at the start.
            documents: 1; for documents that belong to the corpus themselves, 2.
        """
        grams = ngrams(words, self._size)
        places, found = self._find(grams.hashes)
        found[found] = self._counts[places[found]] >= documents
        return Shared(np.bincount(grams.documents[found], minlength=len(words)), grams.counts)
