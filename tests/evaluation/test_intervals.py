"""Confidence intervals and histograms of the audit."""

import numpy as np
import pytest

from megatron_sbp.evaluation.intervals import bootstrap, histogram, wilson


@pytest.mark.parametrize(("found", "asked"), [(0, 7), (7, 7), (1, 40), (33, 200), (500, 1000)])
def test_wilson_is_where_the_score_test_turns(found: int, asked: int) -> None:
    """At its ends the observed share lies 1.96 standard errors away, errors taken at the ends."""
    interval = wilson(found, asked)
    assert interval is not None
    for end in interval:
        if 0 < end < 1:
            error = np.sqrt(end * (1 - end) / asked)
            assert abs(found / asked - end) / error == pytest.approx(1.959964, abs=1e-4)
    assert interval[0] <= found / asked <= interval[1]


@pytest.mark.parametrize("count", [50, 20_000])
def test_bootstrap_is_near_the_normal_interval(count: int) -> None:
    """Of a ratio of sums, by the delta method; resampling 1,000 times leaves some error."""
    random = np.random.default_rng(4)
    weights = random.integers(1, 100, count)
    values = random.binomial(weights, 0.3)
    low, high = bootstrap(values, weights) or (np.nan, np.nan)
    share = values.sum() / weights.sum()
    error = np.sqrt(((values - share * weights) ** 2).sum()) / weights.sum()
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.12)
    assert (low + high) / 2 == pytest.approx(share, abs=0.5 * error)


def test_nothing_has_no_interval() -> None:
    assert wilson(0, 0) is None
    assert bootstrap(np.array([3.0])) is None
    assert bootstrap(np.zeros(5), np.zeros(5)) is None
    assert histogram(np.empty(0), [0, 1]) is None


def test_histograms_keep_what_lies_beyond_their_edges() -> None:
    found = histogram(np.array([-9, 0.1, 0.6, 0.7, 99]), [0, 0.5, 0.65, 1])
    assert found is not None
    assert found["share"] == [0.4, 0.2, 0.4]
    assert (found["count"], found["mean"]) == (5, pytest.approx(18.28))
    assert found["deciles"][4] == 0.6
