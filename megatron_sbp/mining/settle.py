"""Decisions that need all pairs at once: one direction only, and the cap per neighbour.

Both look at groups of rows that may lie far apart. Ids are split into intervals so that the rows of
one interval fit into memory; every interval is gathered from all parts and decided on its own.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

import numpy as np

from megatron_sbp.mining.pairs import Pairs, place_in_run
from megatron_sbp.mining.parts import Parts

_INTERVAL_PAIRS = 1 << 23  # About this many rows at a time: some hundreds of megabytes.


class Settling:
    """The pairs of all parts and which of them are kept.

    Args:
        parts: The parts, in the order of their anchors.
        counts: Pairs in each part.
    """

    def __init__(self, parts: Parts, counts: Sequence[int]):
        self._parts = parts
        self._offsets = np.cumsum([0, *counts])
        self._kept = np.ones(self._offsets[-1], dtype=bool)

    def __len__(self) -> int:
        return int(np.count_nonzero(self._kept))

    def pieces(self) -> Iterator[Pairs]:
        """The pairs that are kept, part by part."""
        for number, block in enumerate(self._parts.blocks):
            kept = self._kept[self._offsets[number] : self._offsets[number + 1]]
            yield self._parts.pairs(block)[kept]

    def one_direction(self) -> int:
        """Of pairs found both ways keep one; return how many were dropped.

        The lower id stays anchor where the sum of both ids is even, the higher one where it is
        odd: decided by the ids alone, and in favour of neither end of the corpus.
        """
        return sum(self._drop(rows, _backwards(pairs)) for rows, pairs in self._intervals(_lower))

    def cap_neighbors(self, limit: int) -> int:
        """Keep the ``limit`` best anchors of every neighbour; return how many pairs were dropped.

        Best: highest score, of equal ones the lowest anchor.
        """
        neighbor = attrgetter("neighbor")
        return sum(
            self._drop(rows, _beyond(pairs, limit)) for rows, pairs in self._intervals(neighbor)
        )

    def _drop(self, rows: np.ndarray, dropped: np.ndarray) -> int:
        self._kept[rows[dropped]] = False
        return int(np.count_nonzero(dropped))

    def _intervals(self, key: Callable[[Pairs], np.ndarray]) -> Iterator[tuple[np.ndarray, Pairs]]:
        """Row numbers and pairs that are still kept, by intervals of a key."""
        count = max(1, -(-len(self) // _INTERVAL_PAIRS))
        documents = self._parts.blocks[-1][1]
        bounds = [documents * number // count for number in range(count + 1)]
        for low, high in itertools.pairwise(bounds):
            rows, pieces = [np.empty(0, np.int64)], [Pairs.none()]
            for number, block in enumerate(self._parts.blocks):
                part, first = self._parts.pairs(block), self._offsets[number]
                keys = key(part)
                inside = self._kept[first : first + len(part)] & (keys >= low) & (keys < high)
                rows.append(first + np.flatnonzero(inside))
                pieces.append(part[inside])
            yield np.concatenate(rows), Pairs.join(pieces)


def _lower(pairs: Pairs) -> np.ndarray:
    return np.minimum(pairs.anchor, pairs.neighbor)


def _backwards(pairs: Pairs) -> np.ndarray:
    """Of each pair, whether it is also there the other way round and that way is preferred."""
    low, high = np.minimum(pairs.anchor, pairs.neighbor), np.maximum(pairs.anchor, pairs.neighbor)
    order = np.lexsort((pairs.anchor, high, low))
    low, high = low[order], high[order]
    twin = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    both = np.zeros(len(pairs), dtype=bool)
    both[order[1:][twin]] = both[order[:-1][twin]] = True
    even = (pairs.anchor + pairs.neighbor) % 2 == 0
    return both & (even != (pairs.anchor < pairs.neighbor))


def _beyond(pairs: Pairs, limit: int) -> np.ndarray:
    """Of each pair, whether its neighbour has ``limit`` better anchors."""
    order = np.lexsort((pairs.anchor, -pairs.score, pairs.neighbor))
    beyond = np.zeros(len(pairs), dtype=bool)
    beyond[order] = place_in_run(pairs.neighbor[order]) >= limit
    return beyond
