"""Part files: what was found for one block of anchors, written whole or not at all."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sbp.manifest import atomic_write
from megatron_sbp.mining.pairs import COLUMNS, Pairs

_ANCHOR_BLOCKS = 16  # Blocks that a small corpus is cut into, so that ranks can share it.
_SMALLEST_BLOCK = 256

type Block = tuple[int, int]
"""First anchor, and the one after the last."""


def blocks(documents: int, size: int) -> list[Block]:
    """Cut a corpus into blocks of anchors of at most ``size`` documents."""
    size = min(size, max(_SMALLEST_BLOCK, -(-documents // _ANCHOR_BLOCKS)))
    return [(start, min(start + size, documents)) for start in range(0, documents, size)]


@dataclass(kw_only=True, slots=True)
class Figures:
    """What the search and the filters of one block counted."""

    pairs: int
    """Pairs kept."""
    highest: float
    """Highest similarity seen between two documents, kept or not."""
    counts: Counter[str]
    """Candidates, and what each filter removed."""


class Parts:
    """The part files of a job in one directory.

    Args:
        directory: Made when the first part is saved.
        blocks: All blocks of the job.
    """

    def __init__(self, directory: Path, blocks: Sequence[Block]):
        self.directory, self.blocks = directory, blocks

    def path(self, block: Block) -> Path:
        """Where the part of a block is or will be."""
        return self.directory / f"{block[0]:012}-{block[1]:012}.npz"

    def missing(self) -> list[Block]:
        """Blocks that have no part yet; parts of blocks of another size are removed."""
        wanted = {self.path(block): block for block in self.blocks}
        for path in self.directory.glob("*"):
            if wanted.pop(path, None) is None:
                path.unlink()
        return list(wanted.values())

    def save(self, block: Block, pairs: Pairs, highest: float, counts: Mapping[str, int]) -> None:
        """Write the part of a block, its pairs in the order of the pair store."""
        self.directory.mkdir(exist_ok=True)
        columns = {name: getattr(pairs, name) for name in COLUMNS}
        figures = json.dumps({"pairs": len(pairs), "highest": highest, "counts": counts})
        with atomic_write(self.path(block)) as temporary, open(temporary, "wb") as file:
            np.savez(file, figures=np.array(figures), **columns)

    def pairs(self, block: Block) -> Pairs:
        """The pairs of a block."""
        with np.load(self.path(block)) as file:
            return Pairs(*(file[name] for name in COLUMNS))

    def figures(self, block: Block) -> Figures:
        """The figures of a block."""
        with np.load(self.path(block)) as file:
            figures = json.loads(str(file["figures"]))
        return Figures(**(figures | {"counts": Counter(figures["counts"])}))
