"""Centroids of a corpus, and the nearest ones of every document, the same for any number of ranks.

Assignments are decided by products of int8 codes, which are integers, and centroids are means of
float16 rows, whose sums are exact in float64: neither depends on how the work is cut.
"""

import contextlib
import math
import os

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.mining.products import coded_rows
from megatron_sbp.ranks import Ranks

_ITERATIONS = 10
_LEAST_PER_CLUSTER = 39  # FAISS asks for as many training rows per centroid.
_TRAIN_PER_CLUSTER = 64
_CHUNK = 8192  # Documents assigned at a time.


def suitable(documents: int) -> int:
    """Number of clusters with which assigning documents costs about as much as joining them."""
    return min(round(2 * math.sqrt(documents)), most(documents))


def most(documents: int) -> int:
    """The most clusters that documents support."""
    return max(1, documents // _LEAST_PER_CLUSTER)


def train(embeddings: Embeddings, clusters: int, seed: int, ranks: Ranks) -> np.ndarray:
    """Train centroids by FAISS's k-means on a sample that is spread over ranks.

    Args:
        embeddings: Every document's.
        clusters: Number of centroids, at most ``documents / _LEAST_PER_CLUSTER``.
        seed: Of the sample and of the first centroids.
        ranks: All take part.

    Returns:
        float32 [clusters, d], unit rows, the same on every rank.
    """
    from faiss.contrib.clustering import kmeans

    draw = np.random.default_rng(seed)
    count = min(len(embeddings), clusters * _TRAIN_PER_CLUSTER)
    sample = np.sort(draw.choice(len(embeddings), count, replace=False))
    data = _SpreadSample(embeddings, sample, ranks)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return unit(kmeans(clusters, data, niter=_ITERATIONS, seed=seed, verbose=False))


class _SpreadSample:
    """A training sample for ``faiss.contrib.clustering.kmeans``: every rank has a part of it.

    It has the interface of that module's ``DatasetAssign``.
    """

    def __init__(self, embeddings: Embeddings, sample: np.ndarray, ranks: Ranks):
        self._ranks, self._sample, self._embeddings = ranks, sample, embeddings
        own = np.array_split(sample, ranks.size)[ranks.rank]
        self._rows = embeddings.take(own)

    def count(self) -> int:
        return len(self._sample)

    def dim(self) -> int:
        return self._embeddings.dimensions

    def get_subset(self, indices: np.ndarray) -> np.ndarray:
        return self._embeddings.take(self._sample[indices]).astype(np.float32)

    def assign_to(
        self, centroids: np.ndarray, weights: None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nearest centroid of every row of the sample, a stand-in for distances, and sums."""
        from scipy.sparse import csr_array

        nearest = assign(self._rows, unit(centroids), 1)[:, 0]
        ends = np.arange(len(nearest) + 1)
        shape = (len(nearest), len(centroids))
        member = csr_array((np.ones(len(nearest)), nearest, ends), shape=shape)
        parts = self._ranks.gather((nearest, member.T @ self._rows.astype(np.float64)))
        everyone = np.concatenate([part[0] for part in parts])
        sums = np.sum([part[1] for part in parts], axis=0).astype(np.float32)
        return everyone, np.zeros(1, np.float32), sums


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; a zero row stays."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return (rows / np.maximum(norms, 1e-30)[:, None]).astype(np.float32)


def assign(rows: np.ndarray, centroids: np.ndarray, nearest: int) -> np.ndarray:
    """The nearest centroids of every row.

    Args:
        rows: float16 [n, d].
        centroids: float32 [c, d].
        nearest: How many.

    Returns:
        int32 [n, nearest], the nearest first.
    """
    import torch

    # Which centroid is nearest depends on the step of the centroids' codes, which is one for all,
    # but not on that of a row, which may be its own.
    places = coded_rows(torch.from_numpy(centroids), common=True)
    found = np.empty((len(rows), nearest), dtype=np.int32)
    for first in range(0, len(rows), _CHUNK):
        chunk = torch.from_numpy(rows[first : first + _CHUNK].astype(np.float32))
        products = torch._int_mm(coded_rows(chunk, common=False), places.T)
        products = products[: len(chunk), : len(centroids)]
        found[first : first + len(chunk)] = products.topk(nearest, dim=1).indices
    return found
