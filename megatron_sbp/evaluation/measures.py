"""Judge-free measures of the quality of texts, as pure functions of lists of strings.

Every share is between 0 and 1. A measure that has nothing to look at (no text, or none long enough)
is nan.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from megatron_sbp.corpus.duplicates import Duplicates
from megatron_sbp.corpus.shingles import ngrams, word_hashes, words
from megatron_sbp.synthesis.text import containment, is_repetitive, same_words


def repetition_rate(texts: Sequence[str]) -> float:
    """Share of texts that break one of MassiveText's rules on repetition."""
    return _mean(is_repetitive(text) for text in texts)


def duplicate_rate(texts: Sequence[str]) -> float:
    """Share of texts that are exact or near duplicates of an earlier one.

    The rate grows with the number of texts: it means nothing without it.
    """
    seen = Duplicates("near")
    return _mean(seen.seen(text) is not None for text in texts)


def equality_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Share of pairs whose texts are equal up to case, white space and punctuation."""
    return _mean(same_words(first, second) for first, second in pairs)


def copying_rate(pairs: Sequence[tuple[str, str]], least: float) -> float:
    """Share of pairs (d1, d2) in which ``least`` of d2's 5-word shingles, or more, are in d1."""
    return _mean(containment(second, first) >= least for first, second in pairs)


def distinct_rate(texts: Sequence[str], size: int, most: int) -> float:
    """Distinct n-grams among the first ``most`` n-grams of the texts, as a share of these.

    The share falls with the number of n-grams: compare at equal ``most`` only.
    """
    found = [ngrams(word_hashes(text), size) for text in texts]
    grams = np.concatenate([*found, np.empty(0, np.uint64)])[:most]
    return len(np.unique(grams)) / len(grams) if len(grams) else float("nan")


def count_ngrams(texts: Sequence[str], size: int) -> int:
    """Number of n-grams in the texts."""
    return sum(max(0, len(words(text)) - size + 1) for text in texts)


def length_quantiles(texts: Sequence[str]) -> tuple[float, float, float]:
    """Tenth percentile, median and ninetieth percentile of the texts' lengths in words."""
    if not texts:
        return (float("nan"),) * 3
    low, middle, high = np.quantile([len(words(text)) for text in texts], [0.1, 0.5, 0.9])
    return float(low), float(middle), float(high)


class CorpusOverlap:
    """Which n-grams of some texts occur in a corpus that is read once, document by document.

    Memory grows with the texts, not with the corpus.

    Args:
        texts: The texts that will be asked about.
        size: Words of an n-gram.
    """

    def __init__(self, texts: Iterable[str], size: int):
        self._size = size
        grams = [np.empty(0, np.uint64), *(self._ngrams(text) for text in texts)]
        self._grams = np.unique(np.concatenate(grams))
        self._documents = np.zeros(len(self._grams), dtype=np.int64)

    def _ngrams(self, text: str) -> np.ndarray:
        return ngrams(word_hashes(text), self._size)

    def _find(self, grams: np.ndarray) -> np.ndarray:
        """Places of those of the given n-grams that are among the texts'."""
        places = np.searchsorted(self._grams, grams)
        places[places == len(self._grams)] = 0
        return places[self._grams[places] == grams] if len(self._grams) else places[:0]

    def read(self, document: str) -> None:
        """Take a document of the corpus."""
        self._documents[self._find(np.unique(self._ngrams(document)))] += 1

    def shares(self, texts: Sequence[str], documents: int = 1) -> np.ndarray:
        """Share of each text's n-grams that occur in so many documents of the corpus, or more.

        Args:
            texts: Some of those given at the start.
            documents: 1; for texts that are documents of the corpus themselves, 2.

        Returns:
            float64 [texts], nan for a text that has no n-gram.
        """
        return np.array([self._share(text, documents) for text in texts])

    def _share(self, text: str, documents: int) -> float:
        places = self._find(self._ngrams(text))
        return float((self._documents[places] >= documents).mean()) if len(places) else float("nan")

    def rate(self, texts: Sequence[str], documents: int = 1) -> float:
        """Share of all n-grams of the texts that ``shares`` counts."""
        places = [self._find(self._ngrams(text)) for text in texts]
        return _mean(
            np.concatenate([np.empty(0), *(self._documents[p] >= documents for p in places)])
        )


def mean_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Mean cosine of the rows of two matrices, [n, d] each; rows of zeros count as orthogonal."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("nd,nd->n", first, second)
    return _mean(products / np.where(norms > 0, norms, 1.0))


def _mean(values: Iterable[float]) -> float:
    found = np.fromiter(values, dtype=np.float64)
    return float(found.mean()) if len(found) else float("nan")
