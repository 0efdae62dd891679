"""95% intervals of means and of ratios of means, over few runs."""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from megatron_sbp.evaluation.intervals import Interval

_CONFIDENCE = 0.95


@cache
def quantile(freedom: int) -> float:
    """What Student's t with so many degrees of freedom exceeds on either side in 5% of cases."""
    from scipy.stats import t

    return float(t.ppf((1 + _CONFIDENCE) / 2, freedom))


def t_interval(values: np.ndarray) -> Interval | None:
    """Interval of the mean of what some values were drawn from, taken to be normal.

    Args:
        values: float64 [runs].

    Returns:
        None for fewer than two.
    """
    if len(values) < 2:
        return None
    half = quantile(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


@dataclass(frozen=True, slots=True)
class Ratios:
    """The ratios of two means that some pairs of values do not contradict."""

    kind: Literal["between", "outside", "any"]
    """Those between two ends; those up to the low one and from the high one on, as the mean below
    the line may be 0; or all, as both means may be."""
    low: float | None = None
    high: float | None = None

    def __contains__(self, ratio: float) -> bool:
        if self.low is None or self.high is None:
            return True
        inside = self.low <= ratio <= self.high
        return inside if self.kind == "between" else not self.low < ratio < self.high


def fieller(over: np.ndarray, under: np.ndarray) -> Ratios | None:
    """The ratios r for which the mean of ``over - r * under`` may be 0 (Fieller, 1954).

    That is a t interval for each r, and so exact for normal values also where the mean below the
    line is not far from 0.

    Args:
        over: float64 [runs].
        under: float64 [runs], of the same runs.

    Returns:
        None for fewer than two runs.
    """
    count = len(over)
    if count < 2:
        return None
    (over_over, over_under), (_, under_under) = np.cov(over, under) / count
    allowed = quantile(count - 1) ** 2
    # The mean's square is at most the allowed multiple of its variance: a r² - 2 b r + c <= 0.
    a = under.mean() ** 2 - allowed * under_under
    b = over.mean() * under.mean() - allowed * over_under
    c = over.mean() ** 2 - allowed * over_over
    if a == 0 or (a < 0 and b**2 <= a * c):
        return Ratios("any")
    root = np.sqrt(max(b**2 - a * c, 0.0))
    low, high = sorted((float((b - root) / a), float((b + root) / a)))
    return Ratios("between" if a > 0 else "outside", low, high)
