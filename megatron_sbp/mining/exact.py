"""Exact search: every two blocks of documents are joined, over the upper triangle.

unit (I, J), I <= J: candidates of the anchors of I in J, and of those of J in I
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_sbp.mining.best import Best
from megatron_sbp.mining.findings import Found
from megatron_sbp.mining.join import Join, Side
from megatron_sbp.mining.layout import Block, Unit
from megatron_sbp.mining.loading import Loader
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.products import Coded, Products
from megatron_sbp.mining.window import Window

if TYPE_CHECKING:
    import torch


class Triangle:
    """The units of an exact search.

    Args:
        blocks: The corpus, cut.
    """

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = blocks
        self.pairs = [(i, j) for i in range(len(blocks)) for j in range(i, len(blocks))]
        """(I, J) of every unit."""

    def units(self) -> list[Unit]:
        """All units, in the order in which blocks are best re-used."""
        sizes = [stop - start for start, stop in self.blocks]
        return [
            Unit(f"{i:06}/{j:06}", sizes[i] * sizes[j] / (2 if i == j else 1))
            for i, j in self.pairs
        ]

    def unit(self, i: int, j: int) -> int:
        """Number of the unit of two blocks, i <= j."""
        # Row i begins after the rows before it, each of which is shorter by one than the one above.
        return i * len(self.blocks) - i * (i - 1) // 2 + j - i

    def touching(self, block: int) -> list[int]:
        """Units that can have found candidates for the anchors of a block."""
        others = range(len(self.blocks))
        return [self.unit(min(block, other), max(block, other)) for other in others]


class ExactSearch:
    """Exactly the candidates that comparing every two documents would give.

    Args:
        triangle: The units.
        window: Which neighbours are wanted.
        resident: Blocks that this process may keep besides those it compares and reads.
        products: Makes the pre-test.
        loader: Brings blocks to the device.
    """

    def __init__(
        self,
        triangle: Triangle,
        window: Window,
        resident: int,
        products: Products,
        loader: Loader,
    ):
        self._triangle, self._window = triangle, window
        self._products, self._loader = products, loader
        # The last blocks are met in the most units, whose second block is the later one.
        self._resident = range(max(0, len(triangle.blocks) - resident), 1 << 60)

    def find(self, units: Sequence[int]) -> Iterator[Found]:
        """Do some units, in their order; see ``Finder``."""
        blocks, pairs = self._triangle.blocks, [self._triangle.pairs[unit] for unit in units]
        wanted = [block for pair in pairs for block in dict.fromkeys(pair)]
        held = HeldBlocks(self._loader, self._products, blocks, wanted, self._resident)
        for i, j in pairs:
            left = held.next()
            right = left if i == j else held.next()
            yield join_blocks(self._products, self._window, blocks[i], left, blocks[j], right)


type OnDevice = tuple["torch.Tensor", Coded]
"""A block's rows, float16 [n, d], and their code."""


def join_blocks(
    products: Products, window: Window, first: Block, left: OnDevice, second: Block, right: OnDevice
) -> Found:
    """The candidates of two blocks in each other, or of one in itself."""
    join = Join(products)
    sides = [_side(window, first, left)]
    if first == second:
        join.within(sides[0])
    else:
        sides.append(_side(window, second, right))
        join.between(sides[0], sides[1])
    bests = [side.best for side in sides if side.best is not None]
    return Found(
        pairs=Pairs.join([best.take() for best in bests]),
        above=sum(best.above for best in bests),
        highest=join.highest,
    )


def _side(window: Window, block: Block, held: OnDevice) -> Side:
    ids = np.arange(*block)
    return Side(ids, *held, Best(window, ids, rising=True))


class HeldBlocks:
    """Blocks in the order in which they are wanted; some stay on the device between two uses.

    Args:
        loader: Brings them.
        products: Codes them.
        blocks: The corpus, cut.
        wanted: Numbers of blocks.
        resident: Those that stay. Of the others the last two are held.
    """

    def __init__(
        self,
        loader: Loader,
        products: Products,
        blocks: Sequence[Block],
        wanted: Sequence[int],
        resident: range,
    ):
        self._products, self._resident = products, resident
        self._wanted = iter(wanted)
        self._held: OrderedDict[int, OnDevice] = OrderedDict()
        self._loaded = loader.load(blocks[number] for number in self._missed(wanted))

    def _missed(self, wanted: Sequence[int]) -> Iterator[int]:
        """The blocks that will not be held when they are wanted."""
        held: OrderedDict[int, None] = OrderedDict()
        for block in wanted:
            if block not in held:
                yield block
            self._keep(held, block, None)

    def _keep[T](self, held: OrderedDict[int, T], block: int, value: T) -> None:
        held[block] = value
        held.move_to_end(block)
        passing = [other for other in held if other not in self._resident]
        for other in passing[:-2]:
            del held[other]

    def next(self) -> OnDevice:
        """The next block that is wanted."""
        block = next(self._wanted)
        value = self._held.get(block)
        if value is None:
            rows = next(self._loaded)
            value = rows, self._products.code(rows)
        self._keep(self._held, block, value)
        return value
