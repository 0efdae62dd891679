"""Embeddings for tests, and mining by brute force."""

from pathlib import Path

import numpy as np

from megatron_sbp.embedding.shards import shard_name


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, as a shard holds them: float16 [n, d]."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def clustered(documents: int, dimensions: int, clusters: int, seed: int) -> np.ndarray:
    """Unit rows around some centres, so that many inner products are high."""
    source = np.random.default_rng(seed)
    centres = source.standard_normal((clusters, dimensions))
    noise = 0.5 * source.standard_normal((documents, dimensions))
    return unit(centres[source.integers(0, clusters, documents)] + noise)


def write_shards(directory: Path, vectors: np.ndarray, shards: int = 1) -> Path:
    """Write rows as shards of different sizes, without a manifest."""
    directory.mkdir(parents=True)
    bounds = [len(vectors) * number**2 // shards**2 for number in range(shards + 1)]
    for number in range(shards):
        np.save(
            directory / shard_name(number, shards), vectors[bounds[number] : bounds[number + 1]]
        )
    return directory


def brute_force(
    vectors: np.ndarray, minimum: float, maximum: float = np.inf, depth: int | None = None
) -> list[tuple[int, int, float]]:
    """Every pair inside the limits, at most ``depth`` per anchor, by comparing all in float64."""
    scores = (vectors.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32)
    rows = []
    for anchor, row in enumerate(scores):
        inside = [
            (anchor, neighbor, float(score))
            for neighbor, score in enumerate(row)
            if neighbor != anchor and np.float32(minimum) <= score <= np.float32(maximum)
        ]
        rows += sorted(inside, key=lambda found: (-found[2], found[1]))[:depth]
    return rows
