"""Best-fit-decreasing packing of any number of pieces, by the histogram of their lengths.

The longest pieces are placed first, each into the row with the least room that still takes it.
Pieces of one length are alike, and so are rows with the same content, so it is enough to count
them: the work depends on the number of lengths and not on that of pieces.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Pattern:
    """Rows of the same content."""

    rows: int
    """How many there are."""
    content: tuple[tuple[int, int], ...]
    """(length, pieces of this length) in each of them, by falling length."""

    @property
    def pieces(self) -> int:
        """Pieces of a row."""
        return sum(number for _, number in self.content)


def best_fit(histogram: np.ndarray) -> list[Pattern]:
    """Pack pieces into rows.

    Args:
        histogram: int64 [capacity + 1], pieces of every length from 0 to that of a row; pieces of
            length 0 are left out.

    Returns:
        As many rows as best-fit-decreasing fills piece by piece; the same for the same histogram.
    """
    capacity = len(histogram) - 1
    by_room: dict[int, list[Pattern]] = {}
    rooms: list[int] = []  # of by_room, sorted
    for length in range(capacity, 0, -1):
        left = int(histogram[length])
        while left:
            at = bisect_left(rooms, length)
            room = rooms[at] if at < len(rooms) else capacity
            taken = by_room[room].pop() if at < len(rooms) else Pattern(left, ())
            # A row that takes one piece is then the best fit for the next one, until it is full.
            each = min(room // length, left)
            rows = min(taken.rows, left // each)
            left -= rows * each
            if at < len(rooms) and rows < taken.rows:
                by_room[room].append(Pattern(taken.rows - rows, taken.content))
            elif at < len(rooms) and not by_room[room]:
                del by_room[room], rooms[at]
            rest = room - each * length
            if rest not in by_room:
                by_room[rest] = []
                insort(rooms, rest)
            by_room[rest].append(Pattern(rows, (*taken.content, (length, each))))
    return [pattern for room in rooms for pattern in by_room[room]]


class Layout:
    """Where every piece stands when rows are written one after another, pattern by pattern.

    Args:
        patterns: The rows.
    """

    def __init__(self, patterns: Sequence[Pattern]):
        table = []
        runs: dict[int, list[tuple[int, int, int, int]]] = {}
        row = piece = 0
        for pattern in patterns:
            table.append((row, piece, pattern.pieces))
            start = piece
            for length, each in pattern.content:
                of_length = runs.setdefault(length, [])
                of_length.append((each * pattern.rows, start, pattern.pieces, each))
                start += each
            row += pattern.rows
            piece += pattern.rows * pattern.pieces
        self.table = np.array(table, dtype=np.int64).reshape(-1, 3)
        """int64 [patterns, 3]: first row, place of its first piece, pieces of a row."""
        self.rows = row
        """Number of rows."""
        self._runs = {length: np.array(run, dtype=np.int64).T for length, run in runs.items()}
        self._begins = {length: np.cumsum(run[0]) - run[0] for length, run in self._runs.items()}

    def numbers(self) -> dict[int, int]:
        """Pieces of every length."""
        return {length: int(run[0].sum()) for length, run in self._runs.items()}

    def places(self, length: int, numbers: np.ndarray) -> np.ndarray:
        """Places of pieces of one length.

        Args:
            length: Their length.
            numbers: int64 [n], which of the pieces of this length, from 0.

        Returns:
            int64 [n].
        """
        _, starts, strides, each = self._runs[length]
        run = np.searchsorted(self._begins[length], numbers, side="right") - 1
        row, inside = np.divmod(numbers - self._begins[length][run], each[run])
        return starts[run] + row * strides[run] + inside
