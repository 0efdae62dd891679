"""Random orders that are computed for one index at a time, so that none is held in memory."""

from collections.abc import Sequence
from math import isqrt

import numpy as np

_MASK = (1 << 32) - 1
_ODD = 0x45D9F3B
_ROUNDS = 3


class Permutation:
    """A random order of 0, 1, ..., count - 1 that follows from a key, in constant memory.

    A Feistel network over a grid of ``a * b >= count`` cells (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002): each of two coordinates in turn is moved, around the grid's
    edge, by a hash of the other. An index that lands on a cell past ``count`` walks on until it
    does not, which few do.

    Args:
        count: Number of indices, from 1 to 2^62.
        key: Non-negative integers that choose the order.
    """

    def __init__(self, count: int, key: Sequence[int]):
        self.count = count
        root = isqrt(count - 1) + 1
        # Of some grids that are about square, the one with the fewest cells past count.
        heights = range(root, root + 1 + min(64, root // 8))
        self._height = min(heights, key=lambda height: -count % height)
        self._width = -(-count // self._height)
        words = np.random.SeedSequence(list(key)).generate_state(2 * _ROUNDS, np.uint32)
        self._keys = [int(word) for word in words]

    def __call__[T: (int, np.ndarray)](self, index: T) -> T:
        """Where indices go.

        Args:
            index: One index, or an int64 array of some.

        Returns:
            As many, each in 0 to count - 1.
        """
        place = self._step(index)
        if isinstance(place, int):
            while place >= self.count:
                place = self._step(place)
            return place
        while (beyond := place >= self.count).any():
            place[beyond] = self._step(place[beyond])
        return place

    def _step[T: (int, np.ndarray)](self, index: T) -> T:
        column, row = index // self._height, index % self._height
        for number in range(0, 2 * _ROUNDS, 2):
            row += (mix(column ^ self._keys[number]) * self._height) >> 32
            row -= self._height * (row >= self._height)
            column += (mix(row ^ self._keys[number + 1]) * self._width) >> 32
            column -= self._width * (column >= self._width)
        return column * self._height + row


def mix[T: (int, np.ndarray)](value: T) -> T:
    """A hash of non-negative integers below 2^32, in 0 to 2^32 - 1; the highest bits are best."""
    # The constant has 27 bits, so that no product leaves the 63 bits of an int64.
    value = value ^ (value >> 16)
    value *= _ODD
    value &= _MASK
    value ^= value >> 16
    value *= _ODD
    value &= _MASK
    return value
