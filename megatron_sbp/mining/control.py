"""Random pairs with the anchors of mined ones: the control that pairs are compared with."""

from collections.abc import Iterator, Sequence

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.mining.findings import Found
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.mining.window import scored

_ATTEMPTS = 20


class RandomSearch:
    """As many neighbours per anchor as a pair store has, drawn from the neighbours of all pairs.

    So both documents of a pair have the lengths, and whatever else, that they have in mined pairs;
    only their relation is gone. Draws depend on seed and anchor only; an anchor gets no document
    twice.

    Args:
        embeddings: Every document's; they give the scores.
        pairs: The mined pairs.
        seed: Of the draws.
        blocks: The corpus, cut; its units of work.

    Raises:
        InputError: If the pairs have ids that the embeddings do not.
    """

    def __init__(
        self, embeddings: Embeddings, pairs: PairStore, seed: int, blocks: Sequence[Block]
    ):
        if len(pairs) and int(pairs.anchor[-1]) >= len(embeddings):
            raise InputError(
                f"{pairs.directory}: has document {int(pairs.anchor[-1])}, but "
                f"{embeddings.directory} has {len(embeddings)}; give the embeddings it was mined "
                "from"
            )
        self._embeddings, self._pairs, self._seed = embeddings, pairs, seed
        self._blocks = blocks

    def find(self, units: Sequence[int]) -> Iterator[Found]:
        """Random pairs of the anchors of some blocks; see ``Finder``."""
        for unit in units:
            yield self._pair(*self._blocks[unit])

    def _pair(self, start: int, stop: int) -> Found:
        low, high = np.searchsorted(self._pairs.anchor, (start, stop))
        anchors, counts = np.unique(self._pairs.anchor[low:high], return_counts=True)
        neighbors = [
            self._draw(int(anchor), int(count))
            for anchor, count in zip(anchors, counts, strict=True)
        ]
        pairs = scored(
            self._embeddings,
            np.repeat(anchors, counts),
            np.concatenate([*neighbors, np.empty(0, np.int64)]),
        )
        return Found(pairs=pairs.ordered(), highest=float(pairs.score.max(initial=-1)))

    def _draw(self, anchor: int, count: int) -> np.ndarray:
        """``count`` distinct documents other than the anchor."""
        source = np.random.default_rng((self._seed, anchor))
        drawn = np.empty(0, np.int64)
        for _ in range(_ATTEMPTS):
            rows = source.integers(len(self._pairs), size=2 * count)
            drawn = _distinct(np.concatenate([drawn, self._pairs.neighbor[rows]]), anchor)
            if len(drawn) >= count:
                return drawn[:count]
        # Few documents are neighbours at all.
        every = source.permutation(len(self._embeddings))
        return _distinct(np.concatenate([drawn, every]), anchor)[:count]


def _distinct(documents: np.ndarray, anchor: int) -> np.ndarray:
    """The documents other than the anchor, each where it comes first."""
    documents = documents[documents != anchor]
    _, first = np.unique(documents, return_index=True)
    return documents[np.sort(first)]
