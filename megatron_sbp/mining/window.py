"""Which neighbours of an anchor are candidates, and the exact score that decides it.

Embeddings are float16 and rows have length 1, so in float64 every product and every partial sum of
an inner product is exact (multiples of 2^-48 below 2): a score does not depend on the order of
summation, the size of a block, the number of threads or of ranks. Scores are that exact value,
rounded once to float32, and every decision is taken on them.
"""

from dataclasses import dataclass

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.mining.pairs import Pairs, place_in_run

_PAIRS = 4096  # Pairs scored at a time: two float64 copies of their rows.


@dataclass(kw_only=True, frozen=True, slots=True)
class Window:
    """Which neighbours of an anchor are candidates."""

    minimum: float
    """Lowest score."""
    maximum: float
    """Highest score."""
    depth: int
    """At most this many per anchor: the highest scores, of equal ones the lowest ids."""

    def above(self, scores: np.ndarray) -> np.ndarray:
        """Whether each float32 score is above the window."""
        return scores > np.float32(self.maximum)

    def best(self, pairs: Pairs) -> Pairs:
        """The pairs that are candidates, in the order of the pair store."""
        inside = (pairs.score >= np.float32(self.minimum)) & ~self.above(pairs.score)
        ordered = pairs[inside].ordered()
        return ordered[place_in_run(ordered.anchor) < self.depth]


def scored(embeddings: Embeddings, anchor: np.ndarray, neighbor: np.ndarray) -> Pairs:
    """Pairs of documents with their exact inner products, rounded to float32."""
    score = np.empty(len(anchor), dtype=np.float32)
    for low in range(0, len(anchor), _PAIRS):
        piece = slice(low, low + _PAIRS)
        left, right = (embeddings.take(ids[piece]).astype(np.float64) for ids in (anchor, neighbor))
        score[piece] = np.einsum("ij,ij->i", left, right)
    return Pairs(anchor, neighbor, score)
