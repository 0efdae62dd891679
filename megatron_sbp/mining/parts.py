"""Part files: what was found for one block of anchors, written whole or not at all.

A file holds every pair twice: in the order of the pair store, and by the block that its neighbour
lies in. So all pairs that lead to a block of documents are gathered from the parts without reading
the others.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sbp.files import most_open
from megatron_sbp.mining.arrays import map_arrays, save_arrays
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.pairs import COLUMNS, Pairs


@dataclass(kw_only=True, slots=True, eq=False)
class Part:
    """The mapped file of one block of anchors."""

    pairs: Pairs
    """In the order of the pair store."""
    by_target: Pairs
    """The same by the block of the neighbour, and inside a block in the order of the store."""
    rows: np.ndarray
    """Integers [n]: the row in ``pairs`` of each row in ``by_target``."""
    targets: np.ndarray
    """int64 [t], rising numbers of the blocks that neighbours lie in."""
    bounds: np.ndarray
    """int64 [t + 1]: in ``by_target``, ``targets[i]`` has the rows from ``bounds[i]`` up to
    ``bounds[i + 1]``."""
    counts: Counter[str]
    """What search and filters counted."""

    def towards(self, target: int) -> Pairs:
        """The pairs (mapped) whose neighbour lies in a block."""
        return self.by_target[self._span(target)]

    def count_towards(self, target: int) -> int:
        """Number of pairs whose neighbour lies in a block."""
        span = self._span(target)
        return span.stop - span.start

    def _span(self, target: int) -> slice:
        place = int(np.searchsorted(self.targets, target))
        if place == len(self.targets) or self.targets[place] != target:
            return slice(0, 0)
        return slice(int(self.bounds[place]), int(self.bounds[place + 1]))


class Parts:
    """The part files of a job in one directory.

    Args:
        directory: For these blocks alone; made when the first part is saved.
        blocks: All blocks of the job, in order, each beginning where the one before it ends, of at
            most 2^31 documents.
    """

    def __init__(self, directory: Path, blocks: Sequence[Block]):
        assert max(stop - start for start, stop in blocks) <= 1 << 31
        self.directory, self.blocks = directory, blocks
        self._starts = np.array([start for start, _ in blocks], dtype=np.int64)
        self.open = functools.lru_cache(most_open())(self._open)

    def path(self, number: int, kind: str = "part") -> Path:
        """Where a file for the block with this number is or will be.

        Args:
            number: Of the block.
            kind: ``part``, or what else is kept for every block.
        """
        return self.directory / f"{kind}-{number:06}.arrays"

    def missing(self) -> list[int]:
        """Numbers of the blocks that have no part yet."""
        there = set(self.directory.glob("*"))
        return [number for number in range(len(self.blocks)) if self.path(number) not in there]

    def save(self, number: int, pairs: Pairs, counts: Mapping[str, int]) -> None:
        """Write the part of a block.

        Args:
            number: Of the block that all anchors lie in.
            pairs: In the order of the pair store.
            counts: What search and filters counted.
        """
        target = np.searchsorted(self._starts, pairs.neighbor, side="right") - 1
        # NumPy sorts integers of 16 bits or fewer in linear time.
        target = target.astype(np.min_scalar_type(len(self.blocks)))
        order = np.argsort(target, kind="stable")
        targets, firsts = np.unique(target[order], return_index=True)
        by_target = pairs[order]
        self.directory.mkdir(parents=True, exist_ok=True)
        save_arrays(
            self.path(number),
            {
                "targets": targets.astype(np.int64),
                "bounds": np.append(firsts, len(pairs)).astype(np.int64),
                "rows": order.astype(np.min_scalar_type(len(pairs))),
                **{name: getattr(pairs, name) for name in COLUMNS},
                **{f"by_target.{name}": getattr(by_target, name) for name in COLUMNS},
            },
            counts,
        )

    def _open(self, number: int) -> Part:
        arrays, counts = map_arrays(self.path(number))
        return Part(
            pairs=Pairs(*(arrays[name] for name in COLUMNS)),
            by_target=Pairs(*(arrays[f"by_target.{name}"] for name in COLUMNS)),
            rows=arrays["rows"],
            targets=arrays["targets"],
            bounds=arrays["bounds"],
            counts=Counter(counts),
        )

    def pairs(self, number: int) -> Pairs:
        """The pairs of a block, memory-mapped, in the order of the pair store."""
        return self.open(number).pairs

    def counts(self, number: int) -> Counter[str]:
        """What search and filters counted for a block."""
        return self.open(number).counts
