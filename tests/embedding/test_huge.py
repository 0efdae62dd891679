"""Embeddings of more than 2^31 documents, in shards whose rows are holes but for a few."""

from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from megatron_sbp.embedding.shards import Embeddings, shard_name
from megatron_sbp.errors import InputError

SEED = 23
REAL = 50  # Rows at either end of a shard that are no holes.


def write_sparse(directory: Path, sizes: list[int]) -> dict[int, np.ndarray]:
    """Write shards of two dimensions; the real rows by document."""
    directory.mkdir()
    source = np.random.default_rng(SEED)
    real: dict[int, np.ndarray] = {}
    offset = 0
    for number, size in enumerate(sizes):
        path = directory / shard_name(number, len(sizes))
        shard = open_memmap(path, mode="w+", dtype=np.float16, shape=(size, 2))
        angles = source.uniform(0, 2 * np.pi, 2 * REAL)
        rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
        shard[:REAL], shard[-REAL:] = rows[:REAL], rows[REAL:]
        numbers = [*range(offset, offset + REAL), *range(offset + size - REAL, offset + size)]
        real |= dict(zip(numbers, rows, strict=True))
        offset += size
        shard.flush()
        del shard
    return real


@pytest.mark.parametrize(
    "sizes", [[2**30, 2**30 + 7, 2**30 - 3], [2**31 + 1000, 300]], ids=["shards", "one shard"]
)
def test_rows_and_take_above_2_to_the_31(sizes: list[int], tmp_path: Path) -> None:
    real = write_sparse(tmp_path / "embeddings", sizes)
    embeddings = Embeddings(tmp_path / "embeddings")
    count = sum(sizes)
    assert len(embeddings) == count > 2**31
    ends = np.cumsum(sizes).tolist()
    for end in ends:
        expected = [real[document] for document in range(end - REAL, end)]
        assert np.array_equal(embeddings.rows(end - REAL, end), expected), f"seed {SEED}"
    for end in ends[:-1]:
        expected = [real[document] for document in range(end - REAL, end + REAL)]
        assert np.array_equal(embeddings.rows(end - REAL, end + REAL), expected)
    documents = np.random.default_rng(SEED).permutation(np.array(list(real), dtype=np.int64))
    assert documents.max() == count - 1
    assert np.array_equal(embeddings.take(documents), [real[one] for one in documents.tolist()])
    bad = count - REAL - 1  # A hole: its length is 0.
    with pytest.raises(InputError, match=f"document {bad} has length 0"):
        embeddings.rows(bad, count)
    with pytest.raises(InputError, match=f"document {bad} has length 0"):
        embeddings.take(np.array([count - 1, bad]))
