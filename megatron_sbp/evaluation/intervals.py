"""95% confidence intervals of the audit's figures, and histograms of what they are made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Interval = tuple[float, float]

_Z = 1.959964  # 97.5th percentile of the normal distribution
_RESAMPLES = 1000
_BLOCKS = 1000  # more documents than this are resampled in so many random groups


def wilson(found: int, asked: int) -> Interval | None:
    """Score interval of a share (Wilson, 1927); None if nothing was asked."""
    if not asked:
        return None
    share, weight = found / asked, _Z**2 / asked
    middle = (share + weight / 2) / (1 + weight)
    half = _Z * np.sqrt(share * (1 - share) / asked + weight / (4 * asked)) / (1 + weight)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def bootstrap(values: np.ndarray, weights: np.ndarray | None = None) -> Interval | None:
    """Percentile interval of a mean, or of a ratio of sums, over documents drawn again.

    Args:
        values: [documents]
        weights: [documents]; the ratio is the sum of the values by the sum of these. By default 1.

    Returns:
        None for fewer than two documents, or if all weights are 0.
    """
    weights = np.ones(len(values)) if weights is None else weights
    if len(values) < 2 or not weights.sum():
        return None
    generator = np.random.default_rng(0)
    groups = min(len(values), _BLOCKS)
    block = generator.permutation(len(values)) % groups
    sums = np.bincount(block, values, groups), np.bincount(block, weights, groups)
    drawn = generator.integers(groups, size=(_RESAMPLES, groups))
    over, under = (part[drawn].sum(axis=1) for part in sums)
    low, high = np.quantile(over[under > 0] / under[under > 0], [0.025, 0.975])
    return float(low), float(high)


def histogram(values: np.ndarray, edges: Sequence[float]) -> dict[str, Any] | None:
    """Number, mean, deciles and share per bin of some values; those beyond the edges are moved in.

    None if there is none.
    """
    if not len(values):
        return None
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return {
        "count": len(values),
        "mean": float(np.mean(values, dtype=np.float64)),
        "deciles": np.quantile(values, np.linspace(0.1, 0.9, 9)).tolist(),
        "share": (counts / len(values)).tolist(),
    }
