import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp.errors import InputError
from megatron_sbp.mining.exact import Triangle
from megatron_sbp.mining.layout import Layout, cut, parse_bytes, shares

GIB = 1 << 30


@given(st.lists(st.floats(0, 1e9), max_size=300), st.integers(1, 70))
def test_shares_are_consecutive_and_even(costs: list[float], ranks: int) -> None:
    dealt = shares(costs, ranks)
    assert [unit for share in dealt for unit in share] == list(range(len(costs)))
    mean, largest = sum(costs) / ranks, max(costs, default=0)
    for share in dealt:
        assert abs(sum(costs[unit] for unit in share) - mean) <= largest * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("ranks", [2, 4, 7, 8])
def test_work_of_a_small_corpus_is_even_within_a_tenth(ranks: int) -> None:
    layout = Layout.fit(8000, 384, 64, memory=4 * GIB, device="cpu")
    costs = [unit.cost for unit in Triangle(cut(8000, layout.size)).units()]
    work = [sum(costs[unit] for unit in share) for share in shares(costs, ranks)]
    assert max(work) <= 1.1 * np.mean(work)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_units_cover_every_pair_of_documents_once(size: int) -> None:
    blocks = cut(23, size)
    triangle = Triangle(blocks)
    met = np.zeros((23, 23), dtype=int)
    for unit, (i, j) in enumerate(triangle.pairs):
        assert triangle.unit(i, j) == unit
        met[slice(*blocks[i]), slice(*blocks[j])] += 1
    assert np.array_equal(met + met.T - np.diag(np.diag(met)) > 0, np.ones((23, 23), bool))
    assert np.triu(met).max() == 1
    names = [unit.name for unit in triangle.units()]
    assert len(set(names)) == len(names)
    for block in range(len(blocks)):
        touching = [u for u, pair in enumerate(triangle.pairs) if block in pair]
        assert sorted(triangle.touching(block)) == touching


@pytest.mark.parametrize("memory", [1, 2, 4, 64])
@pytest.mark.parametrize("dimensions", [64, 1024, 4096])
@pytest.mark.parametrize("documents", [10, 8000, 10**6, 10**9])
def test_blocks_fit_into_memory(documents: int, dimensions: int, memory: int) -> None:
    layout = Layout.fit(documents, dimensions, 64, memory=memory * GIB, device="cpu")
    rows = (3 + layout.resident) * layout.size * dimensions * (2 + 4)
    assert rows <= memory * GIB
    if documents == 10**9:
        assert layout.size * dimensions * 6 * layout.resident < memory * GIB


def test_memory_that_is_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=r"--memory: 0\.50 GiB do not hold"):
        Layout.fit(10**6, 384, 64, memory=GIB // 2, device="cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512M", 512 << 20), ("8G", 8 << 30), ("1.5G", 3 << 29), ("2TiB", 2 << 40), ("100", 100)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text, "--memory") == expected


@pytest.mark.parametrize("text", ["", "G", "8X", "-1G", "8 8"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="--memory"):
        parse_bytes(text, "--memory")
