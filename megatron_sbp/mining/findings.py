"""What a search found, one file per unit of work, written whole or not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sbp.mining.arrays import map_arrays, save_arrays
from megatron_sbp.mining.layout import Block, Unit
from megatron_sbp.mining.pairs import COLUMNS, Pairs


@dataclass(kw_only=True, slots=True, eq=False)
class Found:
    """Candidates that one unit of work found."""

    pairs: Pairs
    """In the order of the pair store."""
    above: int = 0
    """Ordered pairs above the window."""
    highest: float = -1.0
    """About the highest score of two documents that were compared, candidates or not."""


class Findings:
    """The files of a search in one directory.

    Args:
        directory: For these units alone; made when the first file is saved.
        units: All units of the search; their names are paths in the directory.
    """

    def __init__(self, directory: Path, units: Sequence[Unit]):
        self._directory, self._units = directory, units

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._units[number].name}.arrays"

    def missing(self) -> list[int]:
        """Numbers of the units without a file."""
        there = set(self._directory.rglob("*.arrays"))
        return [number for number in range(len(self._units)) if self._path(number) not in there]

    def save(self, number: int, found: Found) -> None:
        """Write what a unit found."""
        pairs = found.pairs
        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_pairs(path, pairs, above=found.above, millionths=round(found.highest * 1e6))

    def figures(self, number: int) -> tuple[int, float]:
        """Pairs above the window, and the highest score, of a unit."""
        _, counts = map_pairs(self._path(number))
        return counts["above"], counts["millionths"] / 1e6

    def pairs(self, number: int, block: Block) -> Pairs:
        """What a unit found for the anchors of a block, in the order of the pair store."""
        pairs, _ = map_pairs(self._path(number))
        low, high = np.searchsorted(pairs.anchor, block)
        return pairs[low:high]


def save_pairs(path: Path, pairs: Pairs, **counts: int) -> None:
    """Write pairs and some counts into one file, or none."""
    save_arrays(path, {name: getattr(pairs, name) for name in COLUMNS}, counts)


def map_pairs(path: Path) -> tuple[Pairs, dict[str, int]]:
    """The pairs (memory-mapped) and the counts that ``save_pairs`` wrote."""
    arrays, counts = map_arrays(path)
    return Pairs(**arrays), counts
