"""How a mining job is cut: blocks of documents that fit into memory, units of work, shares."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_sbp.errors import InputError
from megatron_sbp.mining.products import LANES

type Block = tuple[int, int]
"""First document, and the one after the last."""

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_LIBRARIES = 640 << 20  # Resident size of the process with torch, FAISS and a tile of products.
_PAIR = 160  # Bytes of a candidate while the best are chosen: the columns, their copies and sorts.
_CODED = 4  # Bytes of a number in the format of the products, at most.
_LARGEST = {"cpu": 1 << 18, "cuda": 1 << 20}  # Larger blocks gain nothing and are lost when killed.
_FEWEST = 16  # Blocks that a small corpus is cut into, so that ranks can share the work evenly.
_SMALLEST = 256
_TILE = 2048


@dataclass(kw_only=True, frozen=True, slots=True)
class Layout:
    """What a process of a job holds in memory."""

    documents: int
    dimensions: int
    size: int
    """Documents of a block."""
    resident: int
    """Blocks that a process may keep besides the two it compares and the one it reads."""

    @classmethod
    def fit(
        cls,
        documents: int,
        dimensions: int,
        depth: int,
        *,
        memory: int,
        device: str,
        taken: int = 0,
    ) -> "Layout":
        """The largest useful blocks that fit into memory.

        Args:
            documents: Of the corpus.
            dimensions: Of an embedding.
            depth: Candidates per document.
            memory: Bytes that a process may use.
            device: "cpu" or "cuda".
            taken: Bytes of the memory that are used for something else.

        Raises:
            InputError: If not even small blocks fit.
        """
        vectors = dimensions * (2 + _CODED)
        room = memory - _LIBRARIES - taken
        size = min(room // (3 * vectors + 2 * depth * _PAIR), _LARGEST[device])
        if size < min(_SMALLEST, documents):
            raise InputError(
                f"--memory: {memory / (1 << 30):.2f} GiB do not hold two blocks of {_SMALLEST} "
                f"documents with {dimensions} dimensions and {depth} candidates each beside the "
                f"libraries; give {_LIBRARIES / (1 << 30) + 1:.1f}G or more"
            )
        # A small corpus is cut further, into whole tiles.
        share = -(-documents // _FEWEST)
        step = _TILE if share > _TILE else LANES
        size = min(size // LANES * LANES, max(_SMALLEST, -(-share // step) * step))
        return cls.of_size(documents, dimensions, depth, size, memory=memory, taken=taken)

    @classmethod
    def of_size(
        cls,
        documents: int,
        dimensions: int,
        depth: int,
        size: int,
        *,
        memory: int,
        taken: int = 0,
    ) -> "Layout":
        """Blocks of a given number of documents; see ``fit``."""
        block = size * dimensions * (2 + _CODED)
        room = memory - _LIBRARIES - taken - 3 * block - 2 * size * depth * _PAIR
        return cls(
            documents=documents,
            dimensions=dimensions,
            size=size,
            resident=max(0, int(room // block)),
        )


def cut(documents: int, size: int) -> list[Block]:
    """Cut documents into blocks of at most ``size``."""
    return [(start, min(start + size, documents)) for start in range(0, documents, size)]


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work that is done by one rank, and whose result is one file."""

    name: str
    """Path of the result."""
    cost: float
    """Pairs of documents that are compared."""


def shares(costs: Sequence[float], ranks: int) -> list[range]:
    """Deal consecutive units to ranks so that the work, not the number of units, is even.

    Returns:
        The units of each rank; a share differs from the mean by one unit at most.
    """
    ends = np.cumsum(np.asarray(costs, dtype=np.float64))
    middles = ends - np.asarray(costs) / 2
    total = float(ends[-1]) if len(ends) else 0.0
    bounds = [int(np.searchsorted(middles, total * rank / ranks)) for rank in range(ranks)]
    return [range(*bound) for bound in zip(bounds, [*bounds[1:], len(costs)], strict=True)]


def parse_bytes(text: str, flag: str) -> int:
    """Bytes from a number with an optional suffix K, M, G or T (powers of 1,024).

    Raises:
        InputError: If it is none, naming the flag.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise InputError(f"{flag} {text}: is no size; give a number such as 8G or 512M")
    return int(float(match[1]) * _SUFFIXES[match[2].upper()])
