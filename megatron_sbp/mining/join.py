"""The dense join: all pairs of two sets of documents whose exact score is high enough.

    tile of coded products -> peaks of groups of columns -> pairs that pass -> exact scores -> Best

A tile is compared with limits that lie below the wanted scores by the error bound of the products'
format (``Products.slack``), so no wanted pair is lost; what passes is scored exactly. Limits differ
between anchors and rise while candidates are found. A tile where many pairs pass is computed again
as a whole in float64, which is exact as well.

Shapes: h x w a tile of products, d dimensions. A row of a tile is seen as w / LANES groups of LANES
columns; the peak of a lane is its highest product over all groups.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_sbp.mining.best import Best
from megatron_sbp.mining.products import LANES, Coded, Products

if TYPE_CHECKING:
    import torch

_TILE = {"cpu": 2048, "cuda": 8192}  # On a CPU larger tiles of products fall out of the cache.
_DENSE = 32  # A tile is dense if one in this many pairs passes.
_PAIRS = 1 << 16  # Pairs scored at a time.
_NEVER = 2**31 - 1  # A limit that no product reaches.

type Allowed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of pairs of places (left, right), which may be candidates, bool."""


@dataclass(slots=True, eq=False)
class Side:
    """One of two sets of documents."""

    ids: np.ndarray
    """Rising, int64 [n]."""
    rows: "torch.Tensor"
    """float16 [n, d], on the device."""
    coded: Coded
    best: Best | None
    """Where candidates of these documents go; None if they are neighbours only."""
    _wide: "tuple[slice, torch.Tensor] | None" = None

    def float32(self, span: slice) -> "torch.Tensor":
        """Some rows in float32; the last ones are kept, as those of a tile meet many others."""
        if self._wide is None or self._wide[0] != span:
            self._wide = span, self.rows[span].float()
        return self._wide[1]


class Join:
    """Joins sets of documents on one device.

    Args:
        products: What makes the pre-test.
        tile: Rows and columns of a tile, 0 for what suits the device.
    """

    def __init__(self, products: Products, tile: int = 0):
        self.products = products
        tile = tile or _TILE[products.device.type]
        self._tile = -(-tile // LANES) * LANES
        self.highest = -1.0
        """About the highest score of two documents that were compared; off by the slack at most."""

    def within(self, side: Side, allowed: Allowed | None = None) -> None:
        """Compare every document of a set with every other."""
        limits = _Limits(self.products, side, side)
        for rows in self._spans(side):
            for columns in self._spans(side, rows.start):
                self._compare(_Tile(side, rows, side, columns, limits), allowed)

    def between(self, left: Side, right: Side, allowed: Allowed | None = None) -> None:
        """Compare every document of one set with every one of another, but none with itself."""
        limits = _Limits(self.products, left, right)
        for rows in self._spans(left):
            for columns in self._spans(right):
                self._compare(_Tile(left, rows, right, columns, limits), allowed)

    def _spans(self, side: Side, start: int = 0) -> Iterator[slice]:
        """Tiles of a set, its padding included."""
        for first in range(start, len(side.coded.rows), self._tile):
            yield slice(first, min(first + self._tile, len(side.coded.rows)))

    def _compare(self, tile: "_Tile", allowed: Allowed | None) -> None:
        """Find the candidates in one tile."""
        left, right = tile.left.coded, tile.right.coded
        products = self.products.multiply(left.rows[tile.rows], right.rows[tile.columns])
        if tile.diagonal:
            products.fill_diagonal_(-(2**15))  # Lower than any product; a document with itself.
        row, column, peak = _passing(products, *tile.limits.of(tile.rows, tile.columns))
        self.highest = max(self.highest, self.products.value(peak, left, right))
        if not len(row):
            return
        if allowed is None and len(row) > products.numel() // _DENSE:
            tile.add_all()
            return
        for first in range(0, len(row), _PAIRS):
            piece = slice(first, first + _PAIRS)
            tile.add(row[piece].cpu().numpy(), column[piece].cpu().numpy(), allowed)


def _passing(
    products: "torch.Tensor", rows: "torch.Tensor", columns: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor", int]:
    """Places of the products that reach the limit of their row or of their column.

    Args:
        products: Integers [h, w].
        rows: Limits of the rows, int32 [h].
        columns: Limits of the columns, int32 [w].

    Returns:
        Rows int64 [m], columns int64 [m], and the highest product.
    """
    import torch

    grouped = products.view(len(rows), -1, LANES)
    columns = columns.view(-1, LANES)
    peaks = grouped.amax(1)
    reach = peaks >= torch.minimum(rows[:, None], columns.amin(0))
    row, lane = reach.nonzero(as_tuple=True)
    reach = grouped[row, :, lane] >= torch.minimum(rows[row, None], columns[:, lane].T)
    which, group = reach.nonzero(as_tuple=True)
    return row[which], group * LANES + lane[which], int(peaks.max())


class _Limits:
    """The lowest products that count, for the documents of two sets, as their ``Best`` say."""

    def __init__(self, products: Products, left: Side, right: Side):
        self._products, self._sides = products, (left, right)
        self._limits: list[torch.Tensor] = []
        self._versions: list[int] = []

    def of(self, rows: slice, columns: slice) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Limits of some rows of the left set and some of the right one, int32 each."""
        versions = [side.best.version if side.best else 0 for side in self._sides]
        if versions != self._versions:
            self._limits = [self._compute(side) for side in self._sides]
            self._versions = versions
        left, right = self._limits
        return left[rows], right[columns]

    def _compute(self, side: Side) -> "torch.Tensor":
        import torch

        left, right = self._sides
        padded = torch.full((len(side.coded.rows),), _NEVER, dtype=torch.int32)
        if side.best is not None:
            lowest = torch.from_numpy(side.best.lowest)
            padded[: side.coded.count] = self._products.limits(lowest, left.coded, right.coded)
        return padded.to(self._products.device)


@dataclass(slots=True, eq=False)
class _Tile:
    """Some documents of one set against some of another."""

    left: Side
    rows: slice
    right: Side
    columns: slice
    limits: _Limits

    @property
    def diagonal(self) -> bool:
        """Whether both are the same documents."""
        return self.left is self.right and self.rows == self.columns

    def add(self, row: np.ndarray, column: np.ndarray, allowed: Allowed | None) -> None:
        """Score pairs of places in the tile and offer them to both sides."""
        row, column = row + self.rows.start, column + self.columns.start
        real = (row < self.left.coded.count) & (column < self.right.coded.count)
        if self.diagonal:
            real &= row < column
        elif self.left is not self.right:
            # Places in the padding have no id.
            real[real] = self.left.ids[row[real]] != self.right.ids[column[real]]
        if allowed is not None:
            real[real] = allowed(row[real], column[real])
        row, column = row[real], column[real]
        score = exact_scores(
            self.left.float32(self.rows),
            self.right.rows[self.columns].float(),
            row - self.rows.start,
            column - self.columns.start,
        )
        left, right = self.left.ids[row], self.right.ids[column]
        if self.left is self.right and self.left.best is not None:
            # In one piece, or an anchor of a tile on the diagonal would not see rising ids.
            self.left.best.add(
                np.concatenate([row, column]),
                np.concatenate([right, left]),
                np.concatenate([score, score]),
            )
            return
        if self.left.best is not None:
            self.left.best.add(row, right, score)
        if self.right.best is not None:
            self.right.best.add(column, left, score)

    def add_all(self) -> None:
        """Score all pairs of the tile and offer the best of each anchor."""
        left = self.left.rows[self.rows].double()
        scores = (left @ self.right.rows[self.columns].double().T).float()
        if self.diagonal:
            scores.fill_diagonal_(-2)
        elif self.left is not self.right:
            rows, columns = self.left.ids[self.rows], self.right.ids[self.columns]
            _, same_row, same_column = np.intersect1d(rows, columns, return_indices=True)
            scores[same_row, same_column] = -2
        _offer(self.left.best, self.rows.start, self.right.ids[self.columns], scores)
        if not self.diagonal:
            _offer(self.right.best, self.columns.start, self.left.ids[self.rows], scores.T)


def _offer(best: Best | None, first: int, ids: np.ndarray, scores: "torch.Tensor") -> None:
    """Offer the best of a whole tile.

    Args:
        best: Of the rows; None if they want none.
        first: Place of the first row.
        ids: Of the columns, rising, int64 [w].
        scores: Exact, float32 [h, w].
    """
    import torch

    if best is None:
        return
    lowest = torch.from_numpy(best.lowest[first : first + len(scores)]).to(scores.device)
    above = scores > best.window.maximum
    best.above += int(above.sum())
    good = (scores >= lowest[:, None]) & ~above
    rows = good.any(1).nonzero()[:, 0]
    # One integer orders by score, then by place. Scores are the bits of a float: negative ones
    # fall where the bits rise.
    bits = scores[rows].contiguous().view(torch.int32).long()
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    places = torch.arange(len(ids), device=scores.device)
    keys = torch.where(good[rows], (bits << 32) + (2**32 - 1 - places), -(2**63))
    top = keys.topk(min(best.window.depth, len(ids)), dim=1).values
    row, place = (top > -(2**63)).nonzero(as_tuple=True)
    row, column = rows[row], 2**32 - 1 - (top[row, place] & (2**32 - 1))
    score = scores[row, column]
    best.add(first + row.cpu().numpy(), ids[column.cpu().numpy()], score.cpu().numpy())


def exact_scores(
    left: "torch.Tensor", right: "torch.Tensor", row: np.ndarray, column: np.ndarray
) -> np.ndarray:
    """Exact inner products, rounded to float32.

    The product of two float16 numbers is exact in float32, and the sum of such products of rows of
    length 1 is exact in float64.

    Args:
        left: float16 numbers in float32, [h, d].
        right: The same, [w, d].
        row: Rows of ``left``, int64 [m].
        column: Rows of ``right``, int64 [m].

    Returns:
        float32 [m].
    """
    import torch

    rows, columns = (torch.from_numpy(places).to(left.device) for places in (row, column))
    return (left[rows] * right[columns]).double().sum(1).float().cpu().numpy()
