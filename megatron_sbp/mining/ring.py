"""Exact search without a shared file system for the embeddings: blocks are passed round a ring.

Every rank reads the shards that lie on its machine. In turn each rank's first block, second block,
and so on travel from rank to rank; a rank compares the block that visits it with all of its own,
while that block goes on to the next rank. Half of the ring is enough: the other half has met the
block's rank with blocks of its own.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_sbp.embedding.shards import Embeddings, open_shard, present_shards
from megatron_sbp.manifest import fingerprint
from megatron_sbp.mining.exact import HeldBlocks, Triangle, join_blocks
from megatron_sbp.mining.findings import Found
from megatron_sbp.mining.layout import Block, cut
from megatron_sbp.mining.loading import Loader
from megatron_sbp.mining.products import Products
from megatron_sbp.mining.window import Window
from megatron_sbp.ranks import Ranks

if TYPE_CHECKING:
    import torch


type Visit = tuple[int | None, list[int]]
"""A block that visits a rank, None if there is no more, and the rank's own blocks that it meets."""


class SpreadEmbeddings(Embeddings):
    """Embeddings of which every rank has some shards, under the same path on its own machine.

    Each shard belongs to one of the ranks that have it, so that ranks own about as many documents.
    ``rows`` and ``take`` work for the shards that a rank has.

    Args:
        directory: Holds the shards.
        ranks: All take part.

    Raises:
        InputError: If a shard is on no machine, or they do not fit together.
    """

    def __init__(self, directory: str | Path, ranks: Ranks):
        present = ranks.together(lambda: present_shards(Path(directory)))
        own = ranks.together(lambda: {key: _tell(path) for key, path in present.items()})
        told = ranks.gather(own)
        everywhere = {key: said for rank in told for key, said in rank.items()}
        found = {key: path for key, (path, _, _) in everywhere.items()}
        shapes = {key: shape for key, (_, shape, _) in everywhere.items()}
        ranks.together(lambda: self._begin(Path(directory), found, shapes))
        self.fingerprints: dict[str, dict[str, Any]] = {
            str(path): entry for _, (path, _, entry) in sorted(everywhere.items())
        }
        """Size and checksum of every shard, by path."""
        self.owners: list[int] = []
        """Rank that each shard belongs to."""
        load = [0] * ranks.size
        for key in sorted(everywhere):
            having = (rank for rank in range(ranks.size) if key in told[rank])
            owner = min(having, key=load.__getitem__)
            self.owners.append(owner)
            load[owner] += shapes[key][0]

    def owner(self, document: int) -> int:
        """The rank that a document's shard belongs to."""
        return self.owners[int(np.searchsorted(self.offsets, document, side="right")) - 1]

    def blocks(self, size: int) -> list[Block]:
        """The corpus, cut into blocks of at most ``size`` documents of one shard."""
        return [
            (low + start, low + stop)
            for low, high in itertools.pairwise(self.offsets.tolist())
            for start, stop in cut(high - low, size)
        ]


def _tell(path: Path) -> tuple[Path, tuple[int, ...], dict[str, Any]]:
    """What a rank tells the others about a shard that it has."""
    return path, open_shard(path).shape, fingerprint(path)


class RingSearch:
    """Like ``ExactSearch``, where a rank reads only its own blocks.

    Args:
        embeddings: Every document's.
        triangle: The units.
        window: Which neighbours are wanted.
        resident: Blocks of its own that a rank may keep besides the visiting ones.
        products: Makes the pre-test.
        loader: Brings own blocks to the device.
        ranks: The ring.
    """

    def __init__(
        self,
        embeddings: SpreadEmbeddings,
        triangle: Triangle,
        window: Window,
        resident: int,
        products: Products,
        loader: Loader,
        ranks: Ranks,
    ):
        self._embeddings, self._triangle, self._window = embeddings, triangle, window
        self._resident, self._products, self._loader = resident, products, loader
        self._ranks = ranks
        owners = [embeddings.owner(start) for start, _ in triangle.blocks]
        every = range(len(owners))
        self._own = [[b for b in every if owners[b] == rank] for rank in range(ranks.size)]

    def dealt(self) -> list[list[int]]:
        """The units of every rank, in the order in which it does them."""
        return [
            [
                self._meeting(own, visitor)
                for visitor, partners in self._visits(rank)
                for own in partners
                if visitor is not None
            ]
            for rank in range(self._ranks.size)
        ]

    def _meeting(self, own: int, visitor: int | None) -> int:
        """The unit of two blocks."""
        assert visitor is not None
        return self._triangle.unit(min(own, visitor), max(own, visitor))

    def _visits(self, rank: int) -> Iterator[Visit]:
        """The blocks that come to a rank one after another, and those of its own that they meet.

        Its own block comes first, then the blocks that the ranks after it began with; where a rank
        has no more blocks, nothing comes.
        """
        size = self._ranks.size
        for turn in range(max(map(len, self._own))):
            for step in range(size // 2 + 1):
                home = (rank + step) % size
                visitor = self._own[home][turn] if turn < len(self._own[home]) else None
                partners = [] if visitor is None else self._own[rank]
                if visitor is not None and step == 0:
                    partners = [own for own in partners if own <= visitor]
                elif visitor is not None and 2 * step == size:
                    # Opposite ranks visit each other: each takes half of the meetings.
                    parity = rank > home
                    partners = [own for own in partners if (own + visitor) % 2 == parity]
                yield visitor, partners

    def find(self, units: Sequence[int]) -> Iterator[Found]:
        """Do some of the units that ``dealt`` gives this rank, in that order.

        All ranks must call this, those without units too: blocks are passed on all the same.
        """
        blocks, wanted = self._triangle.blocks, set(units)
        visits = [
            (visitor, [own for own in partners if self._meeting(own, visitor) in wanted])
            for visitor, partners in self._visits(self._ranks.rank)
        ]
        partners = [own for _, partners in visits for own in partners]
        own = self._own[self._ranks.rank]
        resident = range(([*own, 1 << 60])[-1 - min(self._resident, len(own))], 1 << 60)
        held = HeldBlocks(self._loader, self._products, blocks, partners, resident)
        for (visitor, meets), rows in zip(visits, self._passing(visits), strict=True):
            if visitor is None or not meets:
                continue
            guest = rows, self._products.code(rows)
            for host in meets:
                met = sorted([(host, held.next()), (visitor, guest)], key=lambda side: side[0])
                (i, left), (j, right) = met
                yield join_blocks(self._products, self._window, blocks[i], left, blocks[j], right)

    def _passing(self, visits: Sequence[Visit]) -> Iterator["torch.Tensor"]:
        """The rows of every visitor; while one is here, it is sent on and the next one comes."""
        import torch

        steps = self._ranks.size // 2 + 1
        for turn in itertools.batched(visits, steps):
            rows = self._rows(turn[0][0])
            for place in range(steps):
                arrive = self._pass_on(rows, turn[place + 1][0]) if place + 1 < steps else None
                yield torch.from_numpy(rows).to(self._products.device)
                if arrive is not None:
                    rows = arrive()

    def _pass_on(self, rows: np.ndarray, coming: int | None) -> Callable[[], np.ndarray]:
        """Send rows on; the function that is returned waits for those of the next visitor."""
        received = np.empty(self._shape(coming), dtype=np.float16)
        wait = self._ranks.pass_round(rows, received)

        def arrive() -> np.ndarray:
            wait()
            return received

        return arrive

    def _shape(self, block: int | None) -> tuple[int, int]:
        start, stop = (0, 0) if block is None else self._triangle.blocks[block]
        return stop - start, self._embeddings.dimensions

    def _rows(self, block: int | None) -> np.ndarray:
        """A block of this rank's own; no rows if it has no more."""
        if block is None:
            return np.empty(self._shape(block), dtype=np.float16)
        return np.array(self._embeddings.rows(*self._triangle.blocks[block]))
