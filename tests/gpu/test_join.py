"""The dense join on a GPU: the candidates of float64, in every format of the products."""

import numpy as np
import pytest
import torch

from megatron_sbp.mining.best import Best
from megatron_sbp.mining.centroids import assign, unit
from megatron_sbp.mining.join import Join, Side
from megatron_sbp.mining.products import Precision, Products
from megatron_sbp.mining.window import Window
from tests.mining.test_join import VECTORS, WINDOWS, rows
from tests.mining.vectors import brute_force, clustered

if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
@pytest.mark.parametrize(("name", "minimum", "maximum"), WINDOWS)
def test_a_set_within_itself_is_brute_force(
    name: str, minimum: float, maximum: float, precision: Precision
) -> None:
    vectors = VECTORS[name]
    products = Products(precision, CUDA, vectors.shape[1])
    window = Window(minimum=minimum, maximum=maximum, depth=7)
    ids, taken = np.arange(len(vectors)), torch.from_numpy(vectors).to(CUDA)
    documents = Side(ids, taken, products.code(taken), Best(window, ids, rising=True))
    Join(products, 128).within(documents)
    assert documents.best is not None
    assert rows(documents.best.take()) == brute_force(vectors, minimum, maximum, 7)


def test_assignments_are_those_of_the_cpu() -> None:
    vectors = clustered(5000, 64, 40, seed=5)
    places = unit(clustered(40, 64, 40, seed=6).astype(np.float32))
    here = assign(vectors, places, 1, CUDA)
    assert (here == assign(vectors, places, 1, torch.device("cpu"))).mean() > 0.999  # but for ties
