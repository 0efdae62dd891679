"""All pairs of a store in figures and a plot; read once, in pieces."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.manifest import atomic_write
from megatron_sbp.mining.pairs import PairStore

_ROWS = 1 << 22  # Rows looked at a time.
_GRID = 1000  # Thresholds per unit of score.
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200)  # Of the table, in thresholds.
_LONGEST_TABLE = 12
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_STYLE: Any = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "svg.fonttype": "none",
    "svg.hashsalt": "pairs",  # The same file in every run.
}
_COLOUR = "#2a6f97"


@dataclass(kw_only=True, slots=True, eq=False)
class Overview:
    """How many pairs a store has at which scores, and how many an anchor."""

    pairs: int
    """At least one."""
    thresholds: np.ndarray
    """float64 [t], every 0.001 from the lowest score or below it up to the highest."""
    at_least: np.ndarray
    """int64 [t], pairs with a score of at least each threshold (in float32, as scores are)."""
    step: int
    """The table shows every ``step``-th threshold."""
    anchors: np.ndarray
    """int64 [most + 1], how many anchors have 0, 1, 2, ... pairs; the first one is 0."""

    @classmethod
    def of(cls, store: PairStore) -> "Overview":
        """Count the pairs of a store that is not empty."""
        pieces = [store.score[start : start + _ROWS] for start in range(0, len(store), _ROWS)]
        first = math.floor(min(float(piece.min()) for piece in pieces) * _GRID)
        last = math.ceil(max(float(piece.max()) for piece in pieces) * _GRID)
        fitting = (step for step in _STEPS if last // step - first // step < _LONGEST_TABLE)
        step = next(fitting, _STEPS[-1])
        thresholds = np.arange(first - first % step, last + 1) / _GRID
        below = np.zeros(len(thresholds) + 1, dtype=np.int64)
        for piece in pieces:
            places = np.searchsorted(thresholds.astype(np.float32), piece, side="right")
            below += np.bincount(places, minlength=len(below))
        at_least = len(store) - np.cumsum(below)[:-1]
        some = at_least > 0
        return cls(
            pairs=len(store),
            thresholds=thresholds[some],
            at_least=at_least[some],
            step=step,
            anchors=_anchors(store.anchor),
        )

    def quantile(self, share: float) -> float:
        """The highest threshold that at most this share of the pairs lies below."""
        left = self.pairs - int(share * self.pairs)
        return float(self.thresholds[self.at_least >= left][-1])

    def median(self) -> int:
        """Pairs of the anchor in the middle, of those that have any."""
        anchors = np.cumsum(self.anchors)
        return int(np.searchsorted(anchors, (anchors[-1] + 1) // 2))

    def lines(self) -> Iterator[str]:
        """The figures as text."""
        most = len(self.anchors) - 1
        quantiles = [f"{share:.0%} {self.quantile(share):.3f}" for share in _QUANTILES]
        yield f"pairs               {self.pairs:,}"
        yield f"anchors with pairs  {self.anchors.sum():,}"
        yield f"pairs per anchor    median {self.median():,}, most {most:,}"
        yield f"quantiles of score  {', '.join(quantiles)}"
        yield ""
        yield f"{'score at least':>18}  {'pairs':>16}  {'share':>7}"
        table = slice(None, None, self.step)
        for threshold, count in zip(self.thresholds[table], self.at_least[table], strict=True):
            yield f"{threshold:18.3f}  {count:16,}  {count / self.pairs:7.2%}"


def _anchors(anchor: np.ndarray) -> np.ndarray:
    """How many documents stand 0, 1, 2, ... times in a sorted column."""
    found = np.zeros(1, dtype=np.int64)
    first = 0
    for start in range(0, len(anchor), _ROWS):
        # Ends of runs; a row more, so that the last one of the piece is compared, too.
        piece = anchor[start : start + _ROWS + 1]
        ends = start + 1 + np.flatnonzero(piece[1:] != piece[:-1])
        if start + _ROWS >= len(anchor):
            ends = np.append(ends, len(anchor))
        runs = np.bincount(np.diff(ends, prepend=first), minlength=len(found))
        runs[: len(found)] += found
        found = runs
        if len(ends):
            first = int(ends[-1])
    return found


def draw(overview: Overview, path: Path) -> None:
    """Draw pairs against threshold, and pairs per anchor; the ending of the path is the format."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")  # inches
        left, right = figure.subplots(1, 2)
        edges = np.append(overview.thresholds, overview.thresholds[-1] + 1 / _GRID)
        left.stairs(overview.at_least, edges, baseline=None, color=_COLOUR, linewidth=1.6)
        left.set(
            yscale="log", xlabel="threshold", ylabel="pairs with a score of at least the threshold"
        )
        edges = np.arange(len(overview.anchors)) + 0.5
        right.stairs(overview.anchors[1:], edges, fill=True, color=_COLOUR)
        right.set(xlabel="pairs per anchor", ylabel="anchors", ylim=(0, None))
        with atomic_write(path) as temporary:
            date = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=date)
