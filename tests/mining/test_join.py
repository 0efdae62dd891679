"""The dense join and exact search against comparing everything in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.mining.best import Best
from megatron_sbp.mining.exact import ExactSearch, Triangle
from megatron_sbp.mining.findings import Findings, Found
from megatron_sbp.mining.join import Join, Side
from megatron_sbp.mining.layout import Unit, cut
from megatron_sbp.mining.loading import MapLoader
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.products import Precision, Products
from megatron_sbp.mining.recall import exact_candidates
from megatron_sbp.mining.window import Window
from tests.embedding.test_huge import REAL, write_sparse
from tests.mining.test_pairs import Row
from tests.mining.vectors import brute_force, clustered, unit, write_shards

SEED = 11
CPU = torch.device("cpu")


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


def near_threshold_vectors() -> np.ndarray:
    """Rows whose score with the first one is 0.75, but for the last places of float16."""
    source = np.random.default_rng(SEED)
    first = np.eye(1, 40)[0]
    others = source.standard_normal((400, 40)) * (1 - first)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    aimed = 0.75 * (1 + 2e-4 * source.standard_normal((400, 1)))
    return unit(np.concatenate([first[None], aimed * first + np.sqrt(1 - aimed**2) * others]))


def spiky_vectors() -> np.ndarray:
    """Rows with one number much larger than all others, which a common step of int8 suits least."""
    source = np.random.default_rng(SEED)
    rows = 0.05 * source.standard_normal((300, 64))
    rows[np.arange(300), source.integers(0, 4, 300)] += 1
    return unit(rows)


VECTORS = {
    "random": random_vectors(),
    "clustered": clustered(400, 24, 12, SEED),
    "duplicated": duplicated_vectors(),
    "all-equal": all_equal_vectors(),
    "permuted": permuted_vectors(),
    "near-threshold": near_threshold_vectors(),
    "spiky": spiky_vectors(),
}
TIED = brute_force(permuted_vectors(), 0.75)[0][2]
WINDOWS = [
    ("random", 0.2, np.inf),
    ("random", -1.0, 0.1),
    ("clustered", 0.6, np.inf),
    ("clustered", 0.6, 0.8),
    ("duplicated", 0.5, np.inf),
    ("duplicated", 0.5, 0.95),
    ("all-equal", 0.75, np.inf),
    ("all-equal", 0.75, 0.9),
    ("permuted", 0.75, np.inf),
    ("permuted", TIED, np.inf),
    ("permuted", 0.75, TIED),
    ("near-threshold", 0.75, np.inf),
    ("near-threshold", 0.7, 0.75),
    ("spiky", 0.9, np.inf),
]


def rows(pairs: Pairs) -> list[Row]:
    return list(
        zip(pairs.anchor.tolist(), pairs.neighbor.tolist(), pairs.score.tolist(), strict=True)
    )


def side(vectors: np.ndarray, ids: np.ndarray, products: Products, window: Window | None) -> Side:
    taken = torch.from_numpy(vectors[ids])
    best = None if window is None else Best(window, ids, rising=True)
    return Side(ids, taken, products.code(taken), best)


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize(("name", "minimum", "maximum"), WINDOWS)
@pytest.mark.parametrize("depth", [1, 7, 10_000])
def test_a_set_within_itself_is_brute_force(
    name: str, minimum: float, maximum: float, depth: int, precision: Precision
) -> None:
    vectors = VECTORS[name]
    depth = min(depth, len(vectors) - 1)
    expected = brute_force(vectors, minimum, maximum, depth)
    above = 0
    if maximum < 1:
        above = len(brute_force(vectors, float(np.nextafter(np.float32(maximum), np.float32(2)))))
    products = Products(precision, CPU, vectors.shape[1])
    for tile in (64, 128, 2048):
        window = Window(minimum=minimum, maximum=maximum, depth=depth)
        documents = side(vectors, np.arange(len(vectors)), products, window)
        Join(products, tile).within(documents)
        assert documents.best is not None
        assert rows(documents.best.take()) == expected, f"tile {tile}, seed {SEED}"
        assert documents.best.above == above


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("name", ["random", "duplicated", "all-equal"])
def test_two_sets_that_overlap(name: str, precision: Precision) -> None:
    vectors = VECTORS[name]
    source = np.random.default_rng(SEED)
    left, right = (np.sort(source.choice(len(vectors), 130, replace=False)) for _ in range(2))
    products = Products(precision, CPU, vectors.shape[1])
    window = Window(minimum=0.2, maximum=np.inf, depth=9)
    anchors = side(vectors, left, products, window)
    Join(products, 64).between(anchors, side(vectors, right, products, None))
    wanted = set(right.tolist())
    pairs = [row for row in brute_force(vectors, 0.2) if row[1] in wanted]
    expected = []
    for anchor in left.tolist():
        expected += [row for row in pairs if row[0] == anchor][:9]
    assert anchors.best is not None and rows(anchors.best.take()) == expected, f"seed {SEED}"


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize("name", sorted(VECTORS))
def test_no_product_is_off_by_more_than_the_slack(name: str, precision: Precision) -> None:
    vectors = VECTORS[name]
    products = Products(precision, CPU, vectors.shape[1])
    coded = products.code(torch.from_numpy(vectors))
    raw = products.multiply(coded.rows, coded.rows)[: len(vectors), : len(vectors)].numpy()
    value = np.vectorize(lambda product: products.value(int(product), coded, coded))(raw)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    positive = exact > 0.1  # Others are in no order, and never wanted by a limit above 0.
    off = np.abs(value - exact)[positive].max()
    assert off <= products.slack(coded, coded), f"seed {SEED}"
    # And a bound that is met by a wide margin would only cost time.
    assert products.slack(coded, coded) < {"int8": 0.06, "bf16": 0.02, "fp32": 1e-4}[precision]


@pytest.mark.parametrize("resident", [0, 2, 100])
def test_blocks_and_resident_blocks_do_not_matter(resident: int, tmp_path: Path) -> None:
    vectors = VECTORS["clustered"]
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors, shards=3))
    window = Window(minimum=0.6, maximum=np.inf, depth=7)
    expected = brute_force(vectors, 0.6, depth=7)
    products = Products("int8", CPU, 24)
    for size in (400, 64, 37):
        triangle = Triangle(cut(400, size))
        loader = MapLoader(embeddings)
        search = ExactSearch(triangle, window, resident, products, loader)
        found = list(search.find(range(len(triangle.pairs))))
        assert rows(window.best(Pairs.join([one.pairs for one in found]))) == expected
        for block, bounds in enumerate(triangle.blocks):
            touching = [found[unit] for unit in triangle.touching(block)]
            assert anchors_in(touching, bounds) == anchors_in(found, bounds)


def anchors_in(found: list[Found], bounds: tuple[int, int]) -> int:
    """Candidates of the anchors of a block."""
    anchors = np.concatenate([one.pairs.anchor for one in found])
    return int(np.sum((anchors >= bounds[0]) & (anchors < bounds[1])))


def test_ids_above_2_to_the_31(tmp_path: Path) -> None:
    """Two blocks at the end of 3 * 2^30 rows, most of which are holes in sparse files."""
    real = write_sparse(tmp_path / "e", [2**30] * 3)
    embeddings = Embeddings(tmp_path / "e")
    last = len(embeddings)
    middle, blocks = last - REAL // 2, [(last - REAL, last - REAL // 2), (last - REAL // 2, last)]
    products, loader = Products("int8", CPU, 2), MapLoader(embeddings)
    window = Window(minimum=0.9, maximum=np.inf, depth=5)
    search = ExactSearch(Triangle(blocks), window, 0, products, loader)
    found = window.best(Pairs.join([one.pairs for one in search.find([0, 1, 2])]))
    vectors = np.stack([real[document] for document in range(last - REAL, last)])
    expected = [
        (last - REAL + anchor, last - REAL + neighbor, score)
        for anchor, neighbor, score in brute_force(vectors, 0.9, depth=5)
    ]
    assert rows(found) == expected and middle > 2**31

    sample = np.array([last - REAL + 3, last - 2])
    pairs = exact_candidates(embeddings, sample, window, products, loader, blocks)
    assert rows(pairs) == [row for row in expected if row[0] in sample.tolist()]

    Findings(tmp_path / "found", [Unit("one", 1.0)]).save(0, Found(pairs=found))
    second = Findings(tmp_path / "found", [Unit("one", 1.0)]).pairs(0, blocks[1])
    assert rows(second) == [row for row in expected if row[0] >= middle]
