"""Centroids of a corpus, and the nearest ones of every document, the same for any number of ranks.

Assignments are decided by products of int8 codes, which are integers, and centroids are means of
float16 rows, whose sums are exact in float64: neither depends on how the work is cut.
"""

import contextlib
import math
import os
from typing import TYPE_CHECKING

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.mining.products import LANES, coded_rows
from megatron_sbp.ranks import Ranks

if TYPE_CHECKING:
    import torch

_ITERATIONS = 6
_LEAST_PER_CLUSTER = 39  # FAISS asks for as many training rows per centroid.
_TRAIN_PER_CLUSTER = 64
_CODED = 1 << 16  # Documents coded at a time.
_PRODUCTS = 1 << 23  # Products of documents and centroids at a time: 32 megabytes.


def suitable(documents: int) -> int:
    """Number of clusters with which assigning documents costs about as much as joining them."""
    return min(round(2 * math.sqrt(documents)), most(documents))


def most(documents: int) -> int:
    """The most clusters that documents support."""
    return max(1, documents // _LEAST_PER_CLUSTER)


def train(
    embeddings: Embeddings, clusters: int, seed: int, ranks: Ranks, device: "torch.device"
) -> np.ndarray:
    """Train centroids by FAISS's k-means on a sample that is spread over ranks.

    Args:
        embeddings: Every document's.
        clusters: Number of centroids, at most ``most``.
        seed: Of the sample and of the first centroids.
        ranks: All take part.
        device: Where products are made.

    Returns:
        float32 [clusters, d], unit rows, the same on every rank.
    """
    from faiss.contrib.clustering import kmeans

    draw = np.random.default_rng(seed)
    count = min(len(embeddings), clusters * _TRAIN_PER_CLUSTER)
    sample = np.sort(draw.choice(len(embeddings), count, replace=False))
    data = ranks.together(lambda: _SpreadSample(embeddings, sample, ranks, device))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return unit(kmeans(clusters, data, niter=_ITERATIONS, seed=seed, verbose=False))


class _SpreadSample:
    """A training sample for ``faiss.contrib.clustering.kmeans``: every rank has a part of it.

    It has the interface of that module's ``DatasetAssign``.
    """

    def __init__(
        self, embeddings: Embeddings, sample: np.ndarray, ranks: Ranks, device: "torch.device"
    ):
        self._embeddings, self._sample, self._ranks = embeddings, sample, ranks
        own = np.array_split(sample, ranks.size)[ranks.rank]
        rows = embeddings.take(own)
        self._coded = _code(rows, device)
        self._rows = rows.astype(np.float64)

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

        nearest = _nearest(self._coded, len(self._rows), unit(centroids), 1)[:, 0]
        ends = np.arange(len(nearest) + 1)
        shape = (len(nearest), len(centroids))
        member = csr_array((np.ones(len(nearest)), nearest, ends), shape=shape)
        everyone = np.concatenate(self._ranks.gather(nearest))
        sums = self._ranks.total(np.ascontiguousarray(member.T @ self._rows))
        return everyone, np.zeros(1, np.float32), sums.astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32; a zero row stays."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return (rows / np.maximum(norms, 1e-30)[:, None]).astype(np.float32)


def assign(
    rows: np.ndarray, centroids: np.ndarray, nearest: int, device: "torch.device"
) -> np.ndarray:
    """The nearest centroids of every row.

    Args:
        rows: float16 [n, d].
        centroids: float32 [c, d].
        nearest: How many.
        device: Where products are made.

    Returns:
        int32 [n, nearest], the nearest first.
    """
    found = np.empty((len(rows), nearest), dtype=np.int32)
    for first in range(0, len(rows), _CODED):
        some = rows[first : first + _CODED]
        found[first : first + len(some)] = _nearest(
            _code(some, device), len(some), centroids, nearest
        )
    return found


def _code(rows: np.ndarray, device: "torch.device") -> "torch.Tensor":
    import torch

    # Widened by NumPy, as torch warns of the memory map that rows may be.
    return coded_rows(torch.from_numpy(rows.astype(np.float32)).to(device), common=False)


def _nearest(coded: "torch.Tensor", count: int, centroids: np.ndarray, nearest: int) -> np.ndarray:
    """The nearest centroids of coded rows, the first ``count`` of which are no padding.

    Which centroid is nearest depends on the step of the centroids' codes, which is one for all, but
    not on that of a row, which is its own.
    """
    import torch

    places = coded_rows(torch.from_numpy(centroids).to(coded.device), common=True)
    step = max(1, _PRODUCTS // len(places) // LANES) * LANES
    # One buffer for the products of all pieces. With one for each, what is kept of a piece lies
    # between the freed buffers, and the heap grows by a buffer per piece.
    buffer = torch.empty((step, len(places)), dtype=torch.int32, device=coded.device)
    found = torch.empty((len(coded), nearest), dtype=torch.int32, device=coded.device)
    for some, best in zip(coded.split(step), found.split(step), strict=True):
        products = torch._int_mm(some, places.T, out=buffer[: len(some)])
        best.copy_(products[:, : len(centroids)].topk(nearest, dim=1).indices)
    return found[:count].cpu().numpy()
