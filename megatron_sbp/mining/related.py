"""The documents that stand beside d1 where a model conditions on several: d1's best neighbors.

Training and synthesis both ask here, so that a model is given the same documents in the same order.
"""

from collections.abc import Callable

import numpy as np

from megatron_sbp.mining.pairs import PairStore


def related(
    store: PairStore,
    documents: np.ndarray,
    most: int,
    allowed: Callable[[np.ndarray], np.ndarray],
    excluded: np.ndarray | None = None,
) -> np.ndarray:
    """The first neighbors of documents in the order of the store, which is by falling score.

    Args:
        store: The pairs.
        documents: Ids, int64 [n]; sorted ones are found faster.
        most: Neighbors of each.
        allowed: Whether documents may be taken: ids int64 [m] to bool [m].
        excluded: Of each document one that may not, int64 [n].

    Returns:
        Ids, int64 [n, most]; -1 at the end of rows that have fewer.
    """
    found = np.full((len(documents), most), -1, dtype=np.int64)
    taken = np.zeros(len(documents), dtype=np.int64)
    anchors, neighbors = np.asarray(store.anchor), np.asarray(store.neighbor)
    row, end = (np.searchsorted(anchors, documents, side=side) for side in ("left", "right"))
    open_ = np.flatnonzero((row < end) & (most > 0))
    while len(open_):
        candidates = neighbors[row[open_]]
        good = allowed(candidates)
        if excluded is not None:
            good &= candidates != excluded[open_]
        some = open_[good]
        found[some, taken[some]] = candidates[good]
        taken[some] += 1
        row[open_] += 1
        open_ = open_[(taken[open_] < most) & (row[open_] < end[open_])]
    return found
