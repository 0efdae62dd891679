"""For pairs another d1 of similar length, to see what their own says about d2."""

import numpy as np

from megatron_sbp.mining.pairs import PairStore

_WINDOW = 64  # Pairs, neighbours by the length of d1, that one's control is chosen from.


def choose_controls(
    store: PairStore, first: np.ndarray, second: np.ndarray, lengths: np.ndarray, seed: int
) -> np.ndarray:
    """For every pair the d1 of another one, at random among those of similar length.

    Similar, so that the two losses differ by what d1 says and not by how long it is. A d1 that is
    the pair's own, its d2, or mined as related to its d2 is taken only where the window has no
    other, in this order from worst to best.

    Args:
        store: The pairs that were mined.
        first: Ids of d1, int64 [n].
        second: Ids of d2, int64 [n].
        lengths: Lengths of d1, int64 [n].
        seed: Of the choice.

    Returns:
        Ids, int64 [n].
    """
    count = len(first)
    order = np.argsort(lengths, kind="stable")
    width = min(_WINDOW, count)
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)
    low = np.clip(rank - width // 2, 0, count - width)
    begin = np.random.default_rng([seed, count]).integers(width, size=count)
    chosen, least = first.copy(), np.full(count, 4)
    open_ = np.arange(count)
    for step in range(width):
        candidates = first[order[low[open_] + (begin[open_] + step) % width]]
        relation = _relation(store, candidates, first[open_], second[open_])
        better = relation < least[open_]
        chosen[open_[better]] = candidates[better]
        least[open_[better]] = relation[better]
        open_ = open_[least[open_] > 0]
        if not len(open_):
            break
    return chosen


def _relation(
    store: PairStore, candidates: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """How closely candidates are related to pairs: 3 same d1, 2 d2, 1 mined with d2, 0 not."""
    mined = _has(store, candidates, second) | _has(store, second, candidates)
    return np.select([candidates == first, candidates == second, mined], [3, 2, 1], 0)


def _has(store: PairStore, anchors: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Whether a store has pairs, bool [n]."""
    column = np.asarray(store.anchor)
    row, end = (np.searchsorted(column, anchors, side=side) for side in ("left", "right"))
    found = np.zeros(len(anchors), dtype=bool)
    left = np.flatnonzero(row < end)
    while len(left):
        found[left] = store.neighbor[row[left]] == neighbors[left]
        row[left] += 1
        left = left[~found[left] & (row[left] < end[left])]
    return found
