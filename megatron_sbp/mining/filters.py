"""Filters on the candidates of a block: identical documents, near-copies, the cap per anchor."""

from collections import Counter
from hashlib import blake2b

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.shingles import shingles
from megatron_sbp.corpus.words import read
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import Pairs, place_in_run

_CACHED_SHINGLES = 1 << 24  # 128 MiB.
_PAIRS = 8192  # Pairs compared at a time.


class PairFilters:
    """The filters of a mining job.

    Args:
        options: Their thresholds.
        corpus: The documents; None switches the filters off that look into them.
    """

    def __init__(self, options: MineOptions, corpus: Corpus | None):
        self._options, self._corpus = options, corpus
        self._overlap = None if corpus is None else Overlap(corpus, options.shingle_words)

    @staticmethod
    def names(options: MineOptions, corpus: Corpus | None) -> list[str]:
        """The filters that are on, in the order in which they work."""
        limits = ["outside_token_limits"] if options.min_tokens or options.max_tokens else []
        tokens = [*limits, "identical", "near_copies"] if corpus is not None else []
        return [*tokens, "beyond_neighbors"]

    def apply(self, pairs: Pairs) -> tuple[Pairs, Counter[str]]:
        """Filter candidates that are in the order of the pair store.

        Returns:
            Those that are kept, in the same order, and how many each filter removed.
        """
        removed: Counter[str] = Counter()
        if self._corpus is not None and self._overlap is not None:
            lengths = self._lengths(self._corpus, pairs)
            outside = self._outside(lengths)
            pairs, lengths = pairs[~outside], lengths[:, ~outside]
            same = identical(self._corpus, pairs, lengths)
            pairs = pairs[~same]
            jaccard, containment = self._overlap.compare(pairs)
            copies = jaccard >= self._options.max_jaccard
            copies |= containment >= self._options.max_containment
            pairs = pairs[~copies]
            removed.update(
                outside_token_limits=int(outside.sum()),
                identical=int(same.sum()),
                near_copies=int(copies.sum()),
            )
        beyond = place_in_run(pairs.anchor) >= self._options.neighbors
        removed.update(beyond_neighbors=int(beyond.sum()))
        return pairs[~beyond], removed

    def _lengths(self, corpus: Corpus, pairs: Pairs) -> np.ndarray:
        """Tokens of the anchors and of the neighbours, int64 [2, pairs]."""
        eod = corpus.tokenizer.eod
        return np.stack([corpus.body_lengths(ids, eod) for ids in (pairs.anchor, pairs.neighbor)])

    def _outside(self, lengths: np.ndarray) -> np.ndarray:
        """Of each pair, whether a document is shorter or longer than allowed, bool [pairs]."""
        most = self._options.max_tokens or np.iinfo(np.int64).max
        return ((lengths < self._options.min_tokens) | (lengths > most)).any(0)


class Overlap:
    """Shares of common word shingles between documents of a corpus.

    A shingle is a run of ``words`` words (letters, digits and underscores, lower-cased); a shorter
    document is one shingle. Shingles are compared by 64-bit hashes.

    Args:
        corpus: The documents.
        words: Words per shingle.
    """

    def __init__(self, corpus: Corpus, words: int):
        self._corpus, self._words = corpus, words
        self._cache: dict[int, np.ndarray] = {}

    def compare(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        """Jaccard index and containment of each pair, float64 [pairs] each.

        The Jaccard index is common shingles over all shingles of both documents, containment is
        common shingles over those of the smaller one (Broder, 1997). A document without words has
        nothing in common with any other.
        """
        from scipy.sparse import csr_array

        documents, rows = np.unique(
            np.concatenate([pairs.anchor, pairs.neighbor]), return_inverse=True
        )
        found = self._shingles(documents)
        sizes = np.array([len(own) for own in found], dtype=np.int64)
        hashes, columns = np.unique(
            np.concatenate([*found, np.empty(0, np.uint64)]), return_inverse=True
        )
        ones = np.ones(len(columns), dtype=np.int32)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        matrix = csr_array((ones, columns, bounds), shape=(len(documents), len(hashes)))
        left, right = rows[: len(pairs)], rows[len(pairs) :]
        common = np.empty(len(pairs), dtype=np.int64)
        for low in range(0, len(pairs), _PAIRS):
            piece = slice(low, low + _PAIRS)
            common[piece] = matrix[left[piece]].multiply(matrix[right[piece]]).sum(axis=1)
        union = sizes[left] + sizes[right] - common
        smaller = np.minimum(sizes[left], sizes[right])
        return common / np.maximum(union, 1), common / np.maximum(smaller, 1)

    def _shingles(self, documents: np.ndarray) -> list[np.ndarray]:
        """Sorted shingle hashes (uint64) of each document."""
        missing = [document for document in documents.tolist() if document not in self._cache]
        if sum(map(len, self._cache.values())) > _CACHED_SHINGLES:
            missing = documents.tolist()
            self._cache.clear()
        numbers = iter(missing)
        for batch in read(self._corpus, missing):
            for found in shingles(batch.words(), self._words).distinct().split():
                self._cache[next(numbers)] = found
        return [self._cache[document] for document in documents.tolist()]


def identical(corpus: Corpus, pairs: Pairs, lengths: np.ndarray) -> np.ndarray:
    """Whether the two documents of each pair have the same tokens, bool [pairs].

    The end-of-document token does not count. Tokens are compared by a 128-bit hash of each
    document, which is made once, and only where lengths are equal.

    Args:
        corpus: The documents.
        pairs: Pairs of them.
        lengths: Tokens of the anchors and of the neighbours, int64 [2, pairs].
    """
    same = lengths[0] == lengths[1]
    equal = pairs[same]
    documents, places = np.unique(
        np.concatenate([equal.anchor, equal.neighbor]), return_inverse=True
    )
    hashes = np.array([_token_hash(corpus.body(document)) for document in documents.tolist()])
    if len(equal):
        same[same] = hashes[places[: len(equal)]] == hashes[places[len(equal) :]]
    return same


def _token_hash(tokens: np.ndarray) -> bytes:
    return blake2b(tokens.astype(np.int64).tobytes(), digest_size=16).digest()
