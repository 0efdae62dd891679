"""Vectors that mining is measured on, and what an exact search finds for some of them."""

from pathlib import Path

import numpy as np

from megatron_sbp.embedding.shards import Embeddings, shard_name
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.window import Window

CLUSTER = 40  # documents of a cluster, on average
_TOPIC = 50  # clusters of a topic, on average
_COMMON = 0.6  # cosine of two clusters of a topic
_SHARES = (0.70, 0.98)  # of a document's direction that is its cluster's
_ROWS = 1 << 13  # documents compared at a time
_SHARD = 1 << 14

DESCRIPTION = (
    f"made; clusters of about {CLUSTER} documents, {_TOPIC} clusters to a topic, in which their "
    f"directions have a cosine of {_COMMON}; a document is its cluster's direction times s plus "
    f"noise, s drawn from {_SHARES[0]} to {_SHARES[1]}, so that cosines are {_SHARES[0] ** 2:.2f} "
    f"to {_SHARES[1] ** 2:.2f} in a cluster, {_COMMON * _SHARES[0] ** 2:.2f} to "
    f"{_COMMON * _SHARES[1] ** 2:.2f} in a topic, and near 0 elsewhere"
)


def make_clustered(directory: Path, documents: int, dimensions: int, seed: int) -> None:
    """Write vectors with cluster structure as shards.

    Args:
        directory: Made.
        documents: Number of rows.
        dimensions: Length of a row.
        seed: The same vectors for the same seed and shape.
    """
    draw = np.random.default_rng((seed, documents, dimensions))
    clusters = max(1, documents // CLUSTER)
    topics = _unit(draw.standard_normal((-(-clusters // _TOPIC), dimensions), dtype=np.float32))
    centres = _unit(draw.standard_normal((clusters, dimensions), dtype=np.float32))
    common = topics[draw.integers(0, len(topics), clusters)]
    centres = _unit(np.sqrt(_COMMON) * common + np.sqrt(1 - _COMMON) * centres)
    directory.mkdir(parents=True)
    starts = range(0, documents, _SHARD)
    for number, start in enumerate(starts):
        count = min(_SHARD, documents - start)
        noise = _unit(draw.standard_normal((count, dimensions), dtype=np.float32))
        share = draw.uniform(*_SHARES, (count, 1)).astype(np.float32)
        own = centres[draw.integers(0, clusters, count)]
        rows = _unit(share * own + np.sqrt(1 - share**2) * noise)
        np.save(directory / shard_name(number, len(starts)), rows.astype(np.float16))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def exact_neighbors(embeddings: Embeddings, sample: np.ndarray, window: Window) -> Pairs:
    """The neighbours of some documents, by comparing them with all others in float64.

    Args:
        embeddings: Every document's.
        sample: Ids, int64.
        window: Which neighbours count.
    """
    anchors = embeddings.take(sample).astype(np.float64)
    found = [Pairs.none()]
    for start in range(0, len(embeddings), _ROWS):
        rows = embeddings.rows(start, min(start + _ROWS, len(embeddings)))
        scores = (anchors @ rows.T.astype(np.float64)).astype(np.float32)
        place, column = np.nonzero(scores >= np.float32(window.minimum))
        pairs = Pairs(sample[place], start + column, scores[place, column])
        found.append(pairs[pairs.anchor != pairs.neighbor])
    return window.best(Pairs.join(found))
