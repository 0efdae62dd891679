from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.mining.control import RandomSearch
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.mining.search import ExactSearch, Found, IndexSearch, Window, build_index
from tests.mining.test_pairs import Row, save
from tests.mining.vectors import brute_force, clustered, unit, write_shards

SEED = 11


def random_vectors() -> np.ndarray:
    return unit(np.random.default_rng(SEED).standard_normal((300, 24)))


def duplicated_vectors() -> np.ndarray:
    return np.repeat(clustered(60, 24, 6, SEED), 5, axis=0)


def all_equal_vectors() -> np.ndarray:
    return np.repeat(clustered(1, 24, 1, SEED), 200, axis=0)


def permuted_vectors() -> np.ndarray:
    """A constant vector, and permutations of another one.

    The scores of the first with all others are equal, but float32 sums of them are not.
    """
    source = np.random.default_rng(SEED)
    values = 1 + 0.2 * source.standard_normal(250)
    others = [source.permutation(values) for _ in range(150)]
    return unit(np.stack([np.ones(250), *others]))


TIED = brute_force(permuted_vectors(), 0.75)[0][2]


def rows(found: Found) -> list[Row]:
    pairs = found.pairs
    return list(
        zip(pairs.anchor.tolist(), pairs.neighbor.tolist(), pairs.score.tolist(), strict=True)
    )


def search_all(search: ExactSearch | IndexSearch, documents: int, step: int) -> list[Row]:
    blocks = [(start, min(start + step, documents)) for start in range(0, documents, step)]
    return [row for block in blocks for row in rows(search.find(*block))]


@pytest.mark.parametrize(
    ("vectors", "minimum", "maximum"),
    [
        (random_vectors(), 0.2, np.inf),
        (random_vectors(), -1.0, 0.1),
        (clustered(400, 24, 12, SEED), 0.6, np.inf),
        (clustered(400, 24, 12, SEED), 0.6, 0.8),
        (duplicated_vectors(), 0.5, np.inf),
        (duplicated_vectors(), 0.5, 0.95),
        (all_equal_vectors(), 0.75, np.inf),
        (all_equal_vectors(), 0.75, 0.9),
        (permuted_vectors(), 0.75, np.inf),
        (permuted_vectors(), TIED, np.inf),
        (permuted_vectors(), 0.75, TIED),
    ],
    ids=[
        "random",
        "random-low",
        "clustered",
        "clustered-window",
        "duplicated",
        "duplicated-window",
        "all-equal",
        "all-equal-window",
        "permuted",
        "permuted-at-minimum",
        "permuted-at-maximum",
    ],
)
@pytest.mark.parametrize("depth", [1, 7, 10_000])
def test_exact_is_brute_force(
    vectors: np.ndarray, minimum: float, maximum: float, depth: int, tmp_path: Path
) -> None:
    depth = min(depth, len(vectors) - 1)
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors, shards=3))
    window = Window(minimum=minimum, maximum=maximum, depth=depth)
    expected = brute_force(vectors, minimum, maximum, depth)
    # Blocks that divide the documents and blocks that do not.
    for block, step in ((len(vectors), len(vectors)), (64, 37)):
        search = ExactSearch(embeddings, window, block)
        assert search_all(search, len(vectors), step) == expected, f"block {block}, seed {SEED}"


def test_pairs_above_the_window_are_counted(tmp_path: Path) -> None:
    vectors = duplicated_vectors()
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors))
    search = ExactSearch(embeddings, Window(minimum=0.5, maximum=0.9, depth=5), 100)
    found = search.find(0, len(vectors))
    above = brute_force(vectors, float(np.nextafter(np.float32(0.9), np.float32(1))))
    assert found.above == len(above)
    assert found.highest == pytest.approx(max(score for *_, score in above), abs=1e-5)


def test_index_that_searches_everything_is_brute_force(tmp_path: Path) -> None:
    vectors = clustered(400, 24, 12, SEED)
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors, shards=2))
    window = Window(minimum=0.6, maximum=np.inf, depth=20)
    build_index(embeddings, "IVF8,Flat", tmp_path / "index", block=64, seed=0)
    search = IndexSearch(embeddings, window, tmp_path / "index", "nprobe=8")
    assert search_all(search, 400, 150) == brute_force(vectors, 0.6, depth=20)


def test_index_that_finds_a_part_scores_it_exactly(tmp_path: Path) -> None:
    vectors = clustered(400, 24, 12, SEED)
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors))
    window = Window(minimum=0.6, maximum=np.inf, depth=20)
    build_index(embeddings, "PQ4x4", tmp_path / "index", block=400, seed=0)
    found = set(search_all(IndexSearch(embeddings, window, tmp_path / "index", ""), 400, 400))
    assert found and found <= set(brute_force(vectors, 0.6))


@pytest.mark.parametrize("factory", ["IVF1000,Flat", "Nonsense7"])
def test_index_that_faiss_refuses(factory: str, tmp_path: Path) -> None:
    embeddings = Embeddings(write_shards(tmp_path / "e", random_vectors()))
    with pytest.raises(InputError, match=factory):
        build_index(embeddings, factory, tmp_path / "index", block=400, seed=0)


def test_control_has_the_anchors_and_true_scores(tmp_path: Path) -> None:
    vectors = clustered(90, 24, 5, SEED)
    mined = brute_force(vectors, 0.7)
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors, shards=2))
    search = RandomSearch(embeddings, PairStore(save(tmp_path, mined)), seed=3)
    drawn = [row for block in ((0, 31), (31, 90)) for row in rows(search.find(*block))]
    assert [row[0] for row in drawn] == [row[0] for row in mined]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(brute_force(vectors, -1))
    # As many random pairs are above the threshold as there are among all pairs, roughly.
    share = np.mean([row[2] >= 0.7 for row in drawn])
    assert abs(share - len(mined) / (90 * 89)) < 0.1
    assert drawn == rows(search.find(0, 90)), "draws depend on the block"
