"""The best candidates of a set of anchors, gathered piece by piece."""

import numpy as np

from megatron_sbp.mining.pairs import Pairs, place_in_run
from megatron_sbp.mining.window import Window

_NEW = 1 << 20  # Candidates gathered before the worst are dropped: 20 megabytes.


class Best:
    """At most ``Window.depth`` candidates of each anchor: the highest scores, then the lowest ids.

    Args:
        window: Which neighbours are candidates.
        anchors: Ids of the anchors, rising, int64 [n].
        rising: Whether the neighbours of one anchor are added with rising ids. Then an anchor with
            enough candidates needs only higher scores from then on, which makes copies cheap.
    """

    def __init__(self, window: Window, anchors: np.ndarray, *, rising: bool):
        self.window = window
        self._anchors, self._rising = anchors, rising
        self.lowest = np.full(len(anchors), np.float32(window.minimum))
        """float32 [n], the lowest score that can still become a candidate of each anchor."""
        self.above = 0
        """Scores above the window that were added."""
        self.version = 0
        """Changes when ``lowest`` does."""
        self._kept, self._new, self._count = Pairs.none(), [Pairs.none()], 0

    def add(self, rows: np.ndarray, neighbors: np.ndarray, scores: np.ndarray) -> None:
        """Offer candidates.

        Args:
            rows: Places of their anchors in ``anchors``, int64 [m].
            neighbors: Ids, int64 [m].
            scores: Exact scores, float32 [m].
        """
        above = self.window.above(scores)
        self.above += int(np.count_nonzero(above))
        good = np.flatnonzero((scores >= self.lowest[rows]) & ~above)
        self._new.append(Pairs(rows[good], neighbors[good], scores[good]))
        self._count += len(good)
        if self._count > max(_NEW, len(self._kept)):
            self._keep_best()

    def _keep_best(self) -> None:
        best = self.window.best(Pairs.join([self._kept, *self._new]))
        full = np.flatnonzero(place_in_run(best.anchor) == self.window.depth - 1)
        last = best.score[full]
        self.lowest[best.anchor[full]] = np.nextafter(last, np.float32(2)) if self._rising else last
        self.version += 1
        self._kept, self._new, self._count = best, [Pairs.none()], 0

    def take(self) -> Pairs:
        """The candidates of all anchors, in the order of the pair store."""
        self._keep_best()
        best = self._kept
        return Pairs(self._anchors[best.anchor], best.neighbor, best.score)
