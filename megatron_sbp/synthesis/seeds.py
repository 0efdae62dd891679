"""Which documents a synthetic one is written from: the seed, and related documents beside it."""

from pathlib import Path
from typing import Literal

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.mining.related import related
from megatron_sbp.npy import create_npy, open_npy

UNIFORM, TOKENS = "uniform", "tokens"
_DOCUMENTS = 1 << 22  # weights summed up at a time


class Seeds:
    """The documents that seeds are drawn from.

    Args:
        corpus: Every document may be a seed.
        cumulative: Sums of the documents' weights up to each, float64 [documents], rising; None for
            equal weights.
        neighbors: Gives the related documents of a seed; None for seeds that stand alone.
    """

    def __init__(
        self,
        corpus: Corpus,
        cumulative: np.ndarray | None = None,
        neighbors: "Neighbors | None" = None,
    ):
        self.corpus = corpus
        self._cumulative, self._neighbors = cumulative, neighbors

    def draw(self, random: np.random.Generator) -> int:
        """Flat id of a seed."""
        if self._cumulative is None:
            return int(random.integers(len(self.corpus)))
        total = self._cumulative[-1]
        # Below the total, which the product may round to, or there would be no such document.
        mark = min(random.random() * total, np.nextafter(total, 0))
        return int(np.searchsorted(self._cumulative, mark, side="right"))

    def with_related(self, seed: int) -> list[int]:
        """Flat ids of a seed and of what stands beside it."""
        return [seed, *(self._neighbors.of(seed) if self._neighbors else [])]


class Neighbors:
    """The related documents of seeds, from the pairs that were mined over their corpus.

    Args:
        store: The pairs.
        corpus: The seed corpus; its documents alone are taken.
        most: Related documents of each seed.

    Raises:
        InputError: If the pairs were not mined over every prefix of the corpus.
    """

    def __init__(self, store: PairStore, corpus: Corpus, most: int):
        if store.corpus is None:
            raise InputError(
                f"{store.directory}: does not say which corpus its ids mean; mine with --corpus"
            )
        self._store, self._corpus, self._most = store, corpus, most
        mined = {entry["idx_sha256"]: number for number, entry in enumerate(store.corpus)}
        self._offsets = np.cumsum([0, *(entry["documents"] for entry in store.corpus)])
        self._prefix = np.full(len(store.corpus), -1)  # of the seed corpus, by that of the store
        self._number = np.empty(len(corpus.prefixes), dtype=np.int64)  # the other way round
        for prefix, entry in enumerate(corpus.fingerprints):
            number = mined.get(entry["idx_sha256"])
            if number is None:
                raise InputError(
                    f"{store.directory}: was not mined over {entry['prefix']}; give --pairs over "
                    "the corpus that seeds are drawn from"
                )
            self._prefix[number], self._number[prefix] = prefix, number

    def of(self, seed: int) -> list[int]:
        """Flat ids of the related documents of a seed, the most similar first."""
        prefix, row = self._corpus.locate(seed)
        document = np.array([self._offsets[self._number[prefix]] + row])
        (found,) = related(self._store, document, self._most, self._is_known)
        found = found[found >= 0]
        numbers = self._numbers(found)
        ids = found - self._offsets[numbers] + self._corpus.offsets[self._prefix[numbers]]
        return [int(document) for document in ids]

    def _is_known(self, ids: np.ndarray) -> np.ndarray:
        return self._prefix[self._numbers(ids)] >= 0

    def _numbers(self, ids: np.ndarray) -> np.ndarray:
        """Positions of documents' prefixes in the store's corpus."""
        return np.searchsorted(self._offsets, ids, side="right") - 1


def write_cumulative(weights: Literal["tokens"] | str, corpus: Corpus, path: Path) -> None:
    """Sum up the weights of documents, for ``Seeds``.

    Args:
        weights: ``tokens``, for the documents' lengths as they stand in the ``.idx``, or a ``.npy``
            file of numbers [documents].
        corpus: The documents.
        path: Where to write, float64 [documents].

    Raises:
        InputError: If the file cannot be read, is not for this corpus, or has a weight that is
            negative or not finite, or none above zero.
    """
    given = None if weights == TOKENS else _open_weights(weights, len(corpus))
    sums = create_npy(path, np.float64, len(corpus))
    total = 0.0
    for start in range(0, len(corpus), _DOCUMENTS):
        stop = min(start + _DOCUMENTS, len(corpus))
        some = corpus.lengths_of(np.arange(start, stop)) if given is None else given[start:stop]
        some = some.astype(np.float64)
        wrong = ~(np.isfinite(some) & (some >= 0))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{weights}: document {start + at} has weight {some[at]}; weights must be finite "
                "and at least 0"
            )
        # One running sum, so that the pieces decide nothing.
        sums[start:stop] = np.cumsum(np.concatenate(([total], some)))[1:]
        total = float(sums[stop - 1])
    if not 0 < total < np.inf:
        raise InputError(
            f"{weights}: the weights add up to {total}; give at least one document a weight above "
            "0, and none a huge one"
        )
    sums.flush()


def _open_weights(path: str, documents: int) -> np.ndarray:
    """The weights of a file, memory-mapped."""
    try:
        given = open_npy(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--seed-weights {path}: cannot be read ({error}); give uniform, tokens or a .npy file"
        ) from None
    if given.shape != (documents,) or given.dtype.kind not in "fiu":
        raise InputError(
            f"--seed-weights {path}: {given.dtype} {list(given.shape)}, but the corpus has "
            f"{documents} documents; give one number for each, in the order of the prefixes"
        )
    return given
