"""The documents and pairs that an audit looks at, drawn at random, the same for every measure."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.words import Characters, Words, read
from megatron_sbp.evaluation.findings import Findings
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.store import SyntheticCorpus

_CHARACTERS = 1000  # shown of each of the worst documents

type Batch = tuple[Characters, Words, Words]
"""Some documents, their words, and the words of the d1 of each."""


class Samples:
    """Numbers of documents; texts are read when they are asked for.

    Args:
        synthetic: The synthetic corpus.
        real: The real corpus.
        store: True pairs over the real corpus, if there are any.
        size: Most documents of each side, and most true pairs.
        seed: Of the draws.
    """

    def __init__(
        self,
        synthetic: SyntheticCorpus,
        real: Corpus,
        store: PairStore | None,
        *,
        size: int,
        seed: int,
    ):
        random = np.random.default_rng(seed)
        self.size = min(size, len(synthetic), len(real))
        """Documents of each side."""
        self.new, self.real = synthetic.documents, real
        """The corpora."""
        self.sources = synthetic.with_seeds(real)
        """The real corpus and, behind it, the synthetic one that seeds were drawn from."""
        self.synthetic_documents = _draw(random, len(synthetic), self.size)
        """int64 [size], in the synthetic corpus."""
        self.real_documents = _draw(random, len(real), self.size)
        """int64 [size], in the real corpus."""
        self.seeds = synthetic.seeds_in(self.sources)[self.synthetic_documents]
        """int64 [size], the seed of each synthetic document in the sources."""
        self.store = store
        rows = np.empty(0, np.int64)
        if store is not None:
            rows = _draw(random, len(store), min(self.size, len(store)))
            self.anchors, self.neighbors = store.anchor[rows], store.neighbor[rows]
        else:
            self.anchors = self.neighbors = rows
        """int64 [pairs] each, true pairs in the real corpus; empty without a store."""
        self._random = random

    def generated_pairs(self) -> Iterator[Batch]:
        """The synthetic documents and their seeds."""
        return _pairs(self.new, self.synthetic_documents, self.sources, self.seeds)

    def true_pairs(self) -> Iterator[Batch]:
        """d2 of the true pairs and their d1."""
        return _pairs(self.real, self.neighbors, self.real, self.anchors)

    def real_batches(self) -> Iterator[Batch]:
        """The real documents, which have no d1."""
        for batch in read(self.real, self.real_documents.tolist()):
            yield batch, batch.words(), Words.of([])

    def neighbors_of_seeds(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Synthetic documents whose seed has true neighbours, and two of these drawn at random.

        Args:
            chosen: Places in the sample to look at, int64 [n].

        Returns:
            The places that have some, one neighbour of the seed, and another one or -1 where there
            is only one; int64 [documents] each.
        """
        if self.store is None:
            return (np.empty(0, np.int64),) * 3
        seeds = self.seeds[chosen]
        first = np.searchsorted(self.store.anchor, seeds)
        counts = np.searchsorted(self.store.anchor, seeds, side="right") - first
        places, first, counts = (values[counts > 0] for values in (chosen, first, counts))
        one = self._random.integers(counts)
        other = (one + self._random.integers(1, np.maximum(counts, 2))) % counts
        neighbor = self.store.neighbor
        another = np.where(counts > 1, neighbor[first + other], -1)
        return places, neighbor[first + one], another

    def worst(self, findings: Findings) -> list[dict[str, Any]]:
        """The worst documents of every measure, with their seeds, as ``audit.json`` has them."""
        return [
            {
                "measure": name,
                "documents": [
                    {
                        "score": form.format(score),
                        "synthetic": _shown(self.new, int(self.synthetic_documents[place])),
                        "seed": _shown(self.sources, int(self.seeds[place])),
                    }
                    for place, score in zip(places, scores.tolist(), strict=True)
                ],
            }
            for name, form, places, scores in findings.worst
        ]


def _shown(corpus: Corpus, document: int) -> dict[str, Any]:
    text = corpus.text(document)
    return {
        "document": document,
        "text": text[:_CHARACTERS],
        "characters": len(text),
        "tokens": int(corpus.lengths_of(np.array([document]))[0]),
    }


def _pairs(
    of_second: Corpus, second: np.ndarray, of_first: Corpus, first: np.ndarray
) -> Iterator[Batch]:
    done = 0
    for batch in read(of_second, second.tolist()):
        partners = first[done : done + len(batch)].tolist()
        done += len(batch)
        yield batch, batch.words(), Words.of(of_first.texts(partners))


def _draw(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Different numbers below ``count``, ascending, so that a corpus is read in its order."""
    return np.sort(random.choice(count, size, replace=False))


def places_of(size: int, most: int) -> np.ndarray:
    """At most so many of the places in a sample, evenly spaced, int64."""
    return spread(np.arange(size), most)


def spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spaced."""
    places = np.linspace(0, len(values) - 1, min(most, len(values)))
    return values[places.astype(np.int64)]
