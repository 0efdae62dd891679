"""How much of the exact result a search finds, from a random sample of anchors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.mining.best import Best
from megatron_sbp.mining.join import Join, Side
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.loading import Loader
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.products import Products
from megatron_sbp.mining.window import Window

_NORMAL = 1.959964  # Two-sided 95% of the normal distribution.


@dataclass(frozen=True, slots=True)
class Recall:
    """Share of the exact candidates that were found."""

    value: float
    low: float
    """Lower limit of the 95% confidence interval."""
    high: float
    """Upper limit."""
    anchors: int
    """Anchors of the sample that have candidates at all."""
    pairs: int
    """Their exact candidates."""


def draw(documents: int, size: int, seed: int) -> np.ndarray:
    """Random documents without replacement, rising, int64 [at most size]."""
    source = np.random.default_rng((seed, documents))
    return np.sort(source.choice(documents, min(size, documents), replace=False))


def exact_candidates(
    embeddings: Embeddings,
    sample: np.ndarray,
    window: Window,
    products: Products,
    loader: Loader,
    blocks: Sequence[Block],
) -> Pairs:
    """Candidates of a sample of anchors among the documents of some blocks, in rising order.

    Joined over all blocks of the corpus, ``window.best`` of them is the exact result.
    """
    import torch

    rows = torch.from_numpy(embeddings.take(sample)).to(products.device)
    best = Best(window, sample, rising=True)
    anchors = Side(sample, rows, products.code(rows), best)
    for block, other in zip(blocks, loader.load(iter(blocks)), strict=True):
        side = Side(np.arange(*block), other, products.code(other), None)
        Join(products).between(anchors, side)
    return best.take()


def contained(exact: Pairs, found: Pairs) -> np.ndarray:
    """Which exact candidates are among the found ones, bool [exact]."""
    anchors, neighbors = exact.anchor, exact.neighbor
    key = np.dtype([("anchor", np.int64), ("neighbor", np.int64)])
    wanted, there = np.empty(len(exact), key), np.empty(len(found), key)
    wanted["anchor"], wanted["neighbor"] = anchors, neighbors
    there["anchor"], there["neighbor"] = found.anchor, found.neighbor
    return np.isin(wanted, there)


def estimate(anchor: np.ndarray, found: np.ndarray) -> Recall:
    """Recall over all pairs of a sample of anchors, with a confidence interval.

    The pairs of one anchor are found or missed together, so the anchors are the sample: the
    variance is that of a ratio of sums over anchors, and the interval is Wilson's for as many
    independent pairs as would have that variance (Korn and Graubard, 1998).

    Args:
        anchor: Of every exact candidate, int64 [m].
        found: Whether it was found, bool [m].
    """
    _, place, pairs = np.unique(anchor, return_inverse=True, return_counts=True)
    if not len(pairs):
        return Recall(1.0, 0.0, 1.0, 0, 0)
    hits = np.bincount(place, found)
    value, anchors = float(hits.sum() / pairs.sum()), len(pairs)
    spread = float(((hits - value * pairs) ** 2).sum()) * anchors / max(anchors - 1, 1)
    variance = spread / float(pairs.sum()) ** 2
    effective = value * (1 - value) / variance if variance else float(anchors)
    low, high = _wilson(value, effective)
    return Recall(value, low, high, anchors, int(pairs.sum()))


def _wilson(share: float, size: float) -> tuple[float, float]:
    """Limits of Wilson's interval for a share of a sample (1927)."""
    square = _NORMAL**2 / size
    middle = (share + square / 2) / (1 + square)
    half = _NORMAL * np.sqrt(share * (1 - share) / size + square / size / 4) / (1 + square)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
