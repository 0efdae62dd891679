"""Which positions of a row a context-parallel rank holds."""

from collections.abc import Sequence
from itertools import pairwise

import torch


def chunks(boundaries: Sequence[int], size: int, rank: int) -> list[tuple[int, int, int]]:
    """The pieces of every segment that a rank holds, in the order it holds them.

    Every segment is cut into ``2 * size`` chunks of equal length. Rank r holds chunks r and
    ``2 * size - 1 - r``: a causal query attends to what is before it, so an early chunk and a late
    one together cost every rank the same. It is the order of Megatron's context parallelism, and
    with several segments that of Transformer Engine's ``thd_get_partitioned_indices``.

    Args:
        boundaries: Begin of every segment and the end of the last; their lengths are multiples of
            ``2 * size`` (of 1 where ``size`` is 1).
        size: Context-parallel size.
        rank: Rank in the context-parallel group.

    Returns:
        (begin of the segment, begin of the piece, end of the piece) each.
    """
    pieces = []
    for begin, end in pairwise(boundaries):
        if size == 1:
            pieces.append((begin, begin, end))
            continue
        length = (end - begin) // (2 * size)
        for number in (rank, 2 * size - 1 - rank):
            start = begin + number * length
            pieces.append((begin, start, start + length))
    return pieces


def positions(boundaries: Sequence[int], size: int, rank: int) -> torch.Tensor:
    """Positions that a rank holds, in its order, int64 [length of the row / size]."""
    held = [torch.arange(start, end) for _, start, end in chunks(boundaries, size, rank)]
    return torch.cat(held)
