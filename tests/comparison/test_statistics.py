"""Intervals over few runs hold what they promise, and ends lie where their definition says."""

import numpy as np
import pytest
from scipy import stats

from megatron_sbp.comparison.statistics import Ratios, fieller, t_interval

TRIES = 3000


def within_chance(hits: int) -> bool:
    """Whether so many of the tries are what 95% may give, four standard errors either way."""
    return abs(hits / TRIES - 0.95) < 4 * np.sqrt(0.95 * 0.05 / TRIES)


@pytest.mark.parametrize("count", [2, 3, 9])
def test_t_interval_is_scipys(count: int) -> None:
    values = np.random.default_rng(count).normal(2, 0.1, count)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_interval(values) == (pytest.approx(low), pytest.approx(high))
    assert t_interval(values[:1]) is None


def test_t_interval_covers_the_mean_in_95_of_100_experiments() -> None:
    drawn = np.random.default_rng(11).normal(1.5, 0.2, (TRIES, 3))
    intervals = [t_interval(values) or (0.0, 0.0) for values in drawn]
    assert within_chance(sum(low <= 1.5 <= high for low, high in intervals))


@pytest.mark.parametrize(
    ("oracle_gain", "kinds"),
    [(0.6, {"between"}), (0.05, {"between", "outside", "any"}), (0.0, {"outside", "any"})],
)
def test_fieller_covers_the_ratio_in_95_of_100_experiments(
    oracle_gain: float, kinds: set[str]
) -> None:
    """Also where the oracle's gain is hardly above 0; gains share a base, so they correlate."""
    random = np.random.default_rng(12)
    base = random.normal(0, 0.03, (TRIES, 3))
    under = oracle_gain + base + random.normal(0, 0.02, base.shape)
    over = 0.7 * oracle_gain + base + random.normal(0, 0.03, base.shape)
    found = [fieller(*pair) for pair in zip(over, under, strict=True)]
    sets = [ratios for ratios in found if ratios is not None]
    assert len(sets) == TRIES
    # With no gain at all any ratio is true, and all that the sets hold is covered: 0.7 is one.
    hits = sum(0.7 in ratios for ratios in sets)
    assert within_chance(hits)
    assert kinds <= {ratios.kind for ratios in sets}


@pytest.mark.parametrize("seed", range(40))
def test_fieller_is_the_t_test_of_every_ratio(seed: int) -> None:
    random = np.random.default_rng(seed)
    over, under = random.normal((0.3, 0.1), 0.15, (4, 2)).T
    ratios = fieller(over, under)
    assert ratios is not None
    tried = np.linspace(-30, 30, 401)
    kept = stats.ttest_1samp(over - tried[:, None] * under, 0, axis=1).pvalue >= 0.05
    assert [ratio in ratios for ratio in tried] == kept.tolist(), ratios


def test_ratios_that_need_no_chance() -> None:
    exact = fieller(np.array([0.2, 0.2]), np.array([0.4, 0.4]))
    assert exact is not None
    assert (exact.kind, exact.low, exact.high) == ("between", 0.5, 0.5)
    assert fieller(np.zeros(2), np.zeros(2)) == Ratios("any")
    assert fieller(np.array([0.2]), np.array([0.4])) is None
