"""Clustered search: documents are joined inside clusters, each of them being in a few.

A document is *stored* in its ``overlap`` nearest clusters and compared with what is stored in its
``probes`` nearest ones (``overlap <= probes``). With an overlap of 1 these are the comparisons of
an inverted-file index; a higher overlap finds more pairs for the same work where documents lie
between clusters. How many pairs a choice finds is known before anything is joined: for the exact
candidates of a sample of anchors the nearest clusters alone decide it.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.files import most_open
from megatron_sbp.mining.arrays import map_arrays, save_arrays
from megatron_sbp.mining.best import Best
from megatron_sbp.mining.centroids import assign
from megatron_sbp.mining.findings import Found
from megatron_sbp.mining.join import Allowed, Join, Side
from megatron_sbp.mining.layout import Block, Unit
from megatron_sbp.mining.options import MOST_OVERLAP, MOST_PROBES
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.products import Products
from megatron_sbp.mining.recall import Recall, estimate
from megatron_sbp.mining.window import Window
from megatron_sbp.npy import positions

if TYPE_CHECKING:
    import torch

_UNITS = (64, 4096)  # Pieces of work, at least and at most: enough to share them evenly.
_UNIT_COST = 1e8  # Of a piece, in pairs compared, if that makes a number between these.
_SMALL = 1024  # Clusters of fewer documents are compared in float32: coding would cost more.
_MEMBER = 40  # Bytes of a document of a cluster while clusters are gathered, copies included.
_READ_COST = 500  # Fetching a document costs as much as comparing it with this many others.


@dataclass(frozen=True, slots=True, order=True)
class Reach:
    """Which clusters of a document count."""

    overlap: int
    """Clusters that it is stored in."""
    probes: int
    """Clusters whose stored documents it is compared with, those it is stored in among them."""

    def within(self, clusters: int) -> "Reach":
        """The same, where there are only so many clusters."""
        return Reach(min(self.overlap, clusters), min(self.probes, clusters))


class BlockFiles:
    """Files of arrays, one per block of the corpus, in a directory that the first one makes."""

    def __init__(self, directory: Path, blocks: Sequence[Block]):
        self._directory, self.blocks = directory, blocks

    def missing(self) -> list[int]:
        """Blocks that have no file yet."""
        return [block for block in range(len(self.blocks)) if not self._path(block).exists()]

    def _path(self, block: int) -> Path:
        return self._directory / f"{block:06}.arrays"

    def _save(self, block: int, **arrays: np.ndarray) -> None:
        self._directory.mkdir(exist_ok=True)
        save_arrays(self._path(block), arrays, {})

    def _map(self, block: int) -> dict[str, np.ndarray]:
        return map_arrays(self._path(block))[0]


class Assignments(BlockFiles):
    """The nearest clusters of every document."""

    def __init__(self, directory: Path, blocks: Sequence[Block]):
        super().__init__(directory, blocks)
        self._starts = np.array([start for start, _ in blocks])
        # Opening a file takes longer than reading what a small cluster needs of it.
        self._open = lru_cache(maxsize=most_open())(self._map)

    def make(
        self, block: int, rows: np.ndarray, centroids: np.ndarray, device: "torch.device"
    ) -> None:
        """Assign the documents of a block, float16 [n, d]."""
        nearest = assign(rows, centroids, min(MOST_PROBES, len(centroids)), device)
        self._save(block, nearest=nearest)

    def __getitem__(self, block: int) -> np.ndarray:
        """Nearest clusters of the documents of a block, int32 [n, clusters per document]."""
        return self._open(block)["nearest"]

    def of(self, documents: np.ndarray) -> np.ndarray:
        """Nearest clusters of some documents (int64 [n], any order), int32 [n, ...]."""
        blocks = np.searchsorted(self._starts, documents, side="right") - 1
        found = np.empty((len(documents), self[0].shape[1]), dtype=np.int32)
        for block, here in positions(blocks):
            found[here] = self[block][documents[here] - self._starts[block]]
        return found

    def sizes(self, clusters: int, blocks: Iterable[int]) -> np.ndarray:
        """How many documents of some blocks have a cluster as their nearest, second nearest, ...

        Returns:
            Whole numbers, float64 [clusters per document, clusters].
        """
        sizes = np.zeros((self[0].shape[1], clusters))
        for block in blocks:
            for place, column in enumerate(self[block].T):
                sizes[place] += np.bincount(column, minlength=clusters)
        return sizes


class Members(BlockFiles):
    """Assignments turned round: the documents of every cluster.

    A rank reads of them what its clusters need; of the assignments it would have to read all.

    Args:
        directory: Made when the first block is turned.
        assignments: Nearest clusters of all documents.
        clusters: How many there are.
        probes: How many nearest clusters of a document count.
    """

    def __init__(self, directory: Path, assignments: Assignments, clusters: int, probes: int):
        super().__init__(directory, assignments.blocks)
        self._assignments, self._clusters, self._probes = assignments, clusters, probes

    def make(self, block: int) -> None:
        """Turn a block: cluster by cluster where in its assignments, row by row, a cluster is."""
        nearest = self._assignments[block][:, : self._probes].ravel()
        order = np.argsort(nearest, kind="stable")
        bounds = np.searchsorted(nearest[order], np.arange(self._clusters + 1))
        self._save(block, order=order.astype(np.min_scalar_type(len(order))), bounds=bounds)

    def of(self, clusters: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Documents that have one of some clusters among those that count.

        Yields, for every cluster:
            Their ids, rising, int64 [n], and at which place they have it, int8 [n].
        """
        found: list[tuple[np.ndarray, ...]] = []
        for block, (start, _) in enumerate(self.blocks):
            arrays = self._map(block)
            bounds = arrays["bounds"][clusters.start : clusters.stop + 1]
            row, place = np.divmod(arrays["order"][bounds[0] : bounds[-1]], self._probes)
            cluster = np.repeat(np.arange(len(clusters), dtype=np.int32), np.diff(bounds))
            found.append((cluster, start + row.astype(np.int64), place.astype(np.int8)))
        cluster, ids, places = (np.concatenate(columns) for columns in zip(*found, strict=True))
        found.clear()
        order = np.argsort(cluster, kind="stable")
        bounds = np.searchsorted(cluster[order], np.arange(len(clusters) + 1))
        for low, high in itertools.pairwise(bounds):
            yield ids[order[low:high]], places[order[low:high]]


def compared(sizes: np.ndarray, reach: Reach) -> np.ndarray:
    """Pairs of documents that are compared in every cluster, float64 [clusters]."""
    stored = sizes[: reach.overlap].sum(0)
    return stored * stored / 2 + stored * sizes[reach.overlap : reach.probes].sum(0)


def costs(sizes: np.ndarray, reach: Reach) -> np.ndarray:
    """Work in every cluster, in pairs compared, reading included: float64 [clusters]."""
    return compared(sizes, reach) + _READ_COST * sizes[: reach.probes].sum(0)


def probes_needed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many probes find each pair of documents, for every overlap.

    Args:
        left: Nearest clusters of one document of each pair, int32 [m, c].
        right: Of the other, int32 [m, c].

    Returns:
        int64 [MOST_OVERLAP, m]; larger than c where no number of probes does.
    """
    count = left.shape[1]
    common = left[:, :, None] == right[:, None, :]
    nearer, farther = (
        which(np.arange(count)[:, None], np.arange(count)) for which in (np.minimum, np.maximum)
    )
    needed = np.empty((MOST_OVERLAP, len(left)), dtype=np.int64)
    for overlap in range(1, MOST_OVERLAP + 1):
        counts = common & (nearer < overlap)
        needed[overlap - 1] = np.where(counts, farther + 1, count + 1).min(axis=(1, 2))
    return needed


def choose(
    needed: np.ndarray,
    anchor: np.ndarray,
    sizes: np.ndarray,
    target: float,
    given: Reach | None = None,
) -> tuple[Reach, Recall]:
    """The cheapest reach whose recall is at least the target, by its lower 95% limit.

    Args:
        needed: ``probes_needed`` of the exact candidates of a sample of anchors.
        anchor: Their anchors, int64 [m].
        sizes: ``Assignments.sizes``.
        target: Wanted recall; if nothing reaches it, the reach with the highest recall is taken.
        given: The only choice, if there is one.

    Returns:
        The reach and its recall on the sample.
    """
    most = len(sizes)
    every = [
        Reach(overlap, probes)
        for overlap in range(1, min(MOST_OVERLAP, most) + 1)
        for probes in range(overlap, most + 1)
    ]
    found = [
        (
            float(costs(sizes, reach).sum()),
            reach,
            estimate(anchor, needed[reach.overlap - 1] <= reach.probes),
        )
        for reach in ([given.within(most)] if given else every)
    ]
    enough = [entry for entry in found if entry[2].low >= target]
    if enough:
        _, reach, recall = min(enough, key=lambda entry: entry[:2])
    else:
        _, reach, recall = max(found, key=lambda entry: (entry[2].value, -entry[0]))
    return reach, recall


def gathered_bytes(memory: int) -> int:
    """How much of a process's memory holds the documents of clusters that it joins next.

    Gathering opens a file for every block of the corpus, so many clusters are gathered at once.
    """
    return memory // 8


class ClusterSearch:
    """The candidates that share a cluster within the reach.

    Args:
        embeddings: Every document's.
        window: Which neighbours are wanted.
        assignments: Nearest clusters of all documents.
        members: The documents of all clusters.
        groups: Consecutive clusters of every unit; see ``group``.
        sizes: Documents that a cluster is joined from, float64 [clusters].
        reach: Which clusters count.
        products: Makes the pre-test.
        most: Documents of a cluster that are held at a time.
        memory: For the documents of clusters, in bytes; see ``gathered_bytes``.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        window: Window,
        assignments: Assignments,
        members: Members,
        groups: Sequence[range],
        sizes: np.ndarray,
        reach: Reach,
        products: Products,
        most: int,
        memory: int,
    ):
        self._embeddings, self._window, self._assignments = embeddings, window, assignments
        self._groups, self._reach, self._products, self._most = groups, reach, products, most
        self._members, self._sizes, self._gathered = members, sizes, memory // _MEMBER
        self._small = Products("fp32", products.device, embeddings.dimensions)

    def find(self, units: Sequence[int]) -> Iterator[Found]:
        """Join the clusters of some rising units; see ``Finder``."""
        for some in self._batches(units):
            span = range(self._groups[some[0]].start, self._groups[some[-1]].stop)
            members = zip(span, self._members.of(span), strict=True)
            for unit in some:
                yield self._unit(unit, members)

    def _batches(self, units: Sequence[int]) -> Iterator[list[int]]:
        """Units whose clusters are gathered together, as many as fit into memory."""
        batch: list[int] = []
        for unit in units:
            first, last = self._groups[batch[0] if batch else unit], self._groups[unit]
            if batch and self._sizes[first.start : last.stop].sum() > self._gathered:
                yield batch
                batch = []
            batch.append(unit)
        if batch:
            yield batch

    def _unit(self, unit: int, members: Iterator[tuple[int, tuple[np.ndarray, ...]]]) -> Found:
        """Join the clusters of a unit, which come after those of units that are not wanted."""
        bests, highest = [], -1.0
        for cluster, (ids, places) in members:
            if cluster in self._groups[unit]:
                join = Join(self._small if len(ids) < _SMALL else self._products)
                bests += self._join(join, cluster, ids, places)
                highest = max(highest, join.highest)
            if cluster == self._groups[unit].stop - 1:
                break
        pairs = Pairs.join([Pairs.none(), *(best.take() for best in bests)])
        above = sum(best.above for best in bests)
        return Found(pairs=self._window.best(pairs), above=above, highest=highest)

    def _join(self, join: Join, cluster: int, ids: np.ndarray, places: np.ndarray) -> list[Best]:
        """Compare what is stored in a cluster with itself and with the others that probe it."""
        stored = places < self._reach.overlap
        kept, others = self._pieces(ids[stored]), self._pieces(ids[~stored])
        for number, piece in enumerate(kept):
            left = self._side(join.products, piece)
            join.within(left, self._first_meeting(cluster, left, left))
            for later in kept[number + 1 :] + others:
                right = self._side(join.products, later)
                join.between(left, right, self._first_meeting(cluster, left, right))
        return [best for _, best in kept + others]

    def _pieces(self, ids: np.ndarray) -> list[tuple[np.ndarray, Best]]:
        """Documents of a cluster, as many at a time as fit into memory."""
        pieces = [ids[first : first + self._most] for first in range(0, len(ids), self._most)]
        return [(piece, Best(self._window, piece, rising=False)) for piece in pieces]

    def _side(self, products: Products, piece: tuple[np.ndarray, Best]) -> Side:
        import torch

        ids, best = piece
        rows = torch.from_numpy(self._embeddings.take(ids)).to(products.device)
        return Side(ids, rows, products.code(rows), best)

    def _first_meeting(self, cluster: int, left: Side, right: Side) -> Allowed | None:
        """Which pairs meet in no cluster of a lower number, so that each is found once."""
        if self._reach.probes == 1:
            return None
        probes = self._reach.probes
        nearest = [self._assignments.of(side.ids)[:, :probes] for side in (left, right)]
        nearer = np.minimum(np.arange(probes)[:, None], np.arange(probes))
        counts = nearer < self._reach.overlap

        def allowed(row: np.ndarray, column: np.ndarray) -> np.ndarray:
            ours, theirs = nearest[0][row][:, :, None], nearest[1][column][:, None, :]
            meeting = np.where((ours == theirs) & counts, ours, np.iinfo(np.int32).max)
            return meeting.min(axis=(1, 2)) == cluster

        return allowed


def group(costs: np.ndarray) -> list[range]:
    """Consecutive clusters that make pieces of work of about equal size."""
    ends = np.cumsum(costs)
    pieces = int(np.clip(ends[-1] / _UNIT_COST, *_UNITS))
    bounds = np.searchsorted(ends, ends[-1] * np.arange(1, pieces) / pieces)
    edges = np.unique(np.concatenate([[0], bounds, [len(costs)]]))
    return [range(low, high) for low, high in itertools.pairwise(edges.tolist())]


def units(groups: Sequence[range], costs: np.ndarray) -> list[Unit]:
    """The units of work of groups of clusters."""
    return [
        Unit(f"{group.start:07}-{group.stop:07}", float(costs[group.start : group.stop].sum()))
        for group in groups
    ]
