"""Streaming to a GPU: every loader brings the rows of the shards while the GPU multiplies."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_sbp.embedding.shards import Embeddings, shard_name
from megatron_sbp.errors import InputError
from megatron_sbp.mining.loading import Loader, PinnedLoader, open_loader
from tests.mining.vectors import unit

if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)

SEED = 29
ROWS, STEP = 40_000, 3_000
CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    directory = tmp_path_factory.mktemp("embeddings")
    vectors = unit(np.random.default_rng(SEED).standard_normal((ROWS, 256)))
    pieces = np.split(vectors, [1, 9_000, 9_000, 20_001])
    for number, piece in enumerate(pieces):
        np.save(directory / shard_name(number, len(pieces)), piece)
    return Embeddings(directory)


def loaders(embeddings: Embeddings) -> list[Loader]:
    found: list[Loader] = [PinnedLoader(embeddings, CUDA)]
    try:
        from megatron_sbp.mining.loading_dali import RegionLoader

        # By DALI's GPU reader if it works here; its CPU reader in any case.
        found += [open_loader(embeddings, CUDA, "dali"), RegionLoader(embeddings, CUDA)]
    except InputError as error:
        print(f"without DALI: {error}")
    return found


def test_rows_and_products_are_those_of_the_shards(embeddings: Embeddings) -> None:
    """Blocks are kept, let go and multiplied while others are on their way."""
    ranges = [(start, min(start + STEP, ROWS)) for start in range(0, ROWS, STEP)] * 3
    for loader in loaders(embeddings):
        kept, sums = [], []
        for number, block in enumerate(loader.load(ranges)):
            assert block.device == CUDA and block.dtype == torch.float16
            for _ in range(20):  # Work that is still queued when the next block is asked for.
                product = block.float().T @ block.float()
            sums.append(product)
            if number % 5 == 0:
                kept.append((ranges[number], block))
            del block
        for (start, stop), block in kept:
            expected = embeddings.rows(start, stop)
            assert np.array_equal(block.cpu().numpy(), expected), f"{loader.name}, seed {SEED}"
        for (start, stop), product in zip(ranges, sums, strict=True):
            rows = embeddings.rows(start, stop).astype(np.float64)
            # TF32 would round to 1e-3; a block that was overwritten is off by far more.
            assert np.abs(product.cpu().numpy() - rows.T @ rows).max() < 0.1, loader.name


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(SEED).standard_normal((900, 64)))
    vectors[413, 2] = np.nan
    np.save(tmp_path / shard_name(0, 1), vectors)
    for loader in loaders(Embeddings(tmp_path)):
        blocks = loader.load([(0, 413), (400, 900)])
        next(blocks)
        with pytest.raises(InputError, match="embedding of document 413 has length"):
            next(blocks)


def test_auto_is_dali_where_it_is_installed(embeddings: Embeddings) -> None:
    names = {loader.name for loader in loaders(embeddings)}
    wanted = {"dali-gpu", "dali-cpu"} if len(names) > 1 else {"pinned"}
    assert open_loader(embeddings, CUDA, "auto").name in wanted
