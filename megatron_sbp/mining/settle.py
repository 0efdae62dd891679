"""Decisions that need all pairs at once: one direction only, and the cap per neighbour.

    every block of neighbours ── one rank ──> which of the pairs that lead to it are dropped
    every block of anchors ── one rank ──> its pairs that are kept, into the columns

The blocks of both steps are dealt to the ranks. A decision depends on nothing but the pairs, so the
columns are the same for any number of ranks and any blocks.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.files import most_open
from megatron_sbp.mining.arrays import map_arrays, save_arrays
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.pairs import (
    ColumnWriter,
    Pairs,
    create_columns,
    place_in_run,
    rank_order,
)
from megatron_sbp.mining.parts import Parts
from megatron_sbp.ranks import Ranks

_RULES = ("other_direction", "beyond_anchors_per_neighbor")
_ROWS = 1 << 23  # Held before the cap is applied to them: some hundreds of megabytes.


@dataclass(kw_only=True, slots=True)
class Settled:
    """What ``settle`` did."""

    pairs: int
    """Pairs that are left."""
    removed: dict[str, int]
    """Pairs dropped as ``other_direction`` and ``beyond_anchors_per_neighbor``, if asked for."""


def settle(
    parts: Parts, workspace: Path, ranks: Ranks, *, one_direction: bool, cap: int
) -> Settled:
    """Take the last decisions on the pairs of all parts and write the columns; collective.

    What is dropped stands in files beside the parts, and those that exist are kept, so that an
    interrupted run continues. If no pair is left, no column is written.

    Args:
        parts: None missing.
        workspace: Where the columns go.
        ranks: Share the work.
        one_direction: Of pairs found both ways keep one. The lower id stays anchor where the sum of
            both ids is even, the higher one where it is odd: decided by the ids alone, and in
            favour of neither end of the corpus.
        cap: Of what is left keep this many best anchors of every neighbour: highest score, of equal
            ones the lowest anchor; 0: all.
    """
    share = range(ranks.rank, len(parts.blocks), ranks.size)
    drops = _Drops(parts, one_direction, cap)
    kept = _total(ranks, ranks.together(lambda: _sizes(parts, share)))
    removed: Counter[str] = Counter()
    if one_direction or cap:
        filled = np.flatnonzero(kept)
        lost, own_removed = ranks.together(lambda: _decide(drops, share, filled, ranks))
        kept = kept - _total(ranks, lost)
        removed = sum(ranks.gather(own_removed), Counter())
    pairs = int(kept.sum())
    if pairs:
        ranks.on_first(lambda: create_columns(workspace, pairs))
        ranks.together(lambda: _write(drops, share, kept, workspace, ranks))
    asked = zip(_RULES, (one_direction, cap > 0), strict=True)
    return Settled(pairs=pairs, removed={rule: removed[rule] for rule, yes in asked if yes})


def _total(ranks: Ranks, values: np.ndarray) -> np.ndarray:
    """The sum of all ranks' arrays, on every rank."""
    return np.sum(ranks.gather(values), axis=0)


def _each(share: range, ranks: Ranks, title: str) -> Iterator[int]:
    """This rank's blocks one by one, as long as no other rank has failed."""
    title = f"{title}, share of rank 0 of {ranks.size}" if ranks.size > 1 else title
    shown = Progress(title, len(share), "blocks") if ranks.rank == 0 else nullcontext()
    with shown as progress:
        for number in share:
            ranks.check()
            yield number
            if progress is not None:
                progress.update()


def _sizes(parts: Parts, share: range) -> np.ndarray:
    """How many pairs each part of this rank's share has, int64 [blocks]."""
    sizes = np.zeros(len(parts.blocks), dtype=np.int64)
    for number in share:
        sizes[number] = len(parts.pairs(number))
    return sizes


def _decide(
    drops: "_Drops", share: range, filled: np.ndarray, ranks: Ranks
) -> tuple[np.ndarray, Counter[str]]:
    """Decide on the pairs that lead to this rank's blocks.

    Returns:
        How many pairs each part lost (int64 [blocks]), and how many each rule dropped.
    """
    lost = np.zeros(len(drops.parts.blocks), dtype=np.int64)
    removed: Counter[str] = Counter()
    for target in _each(share, ranks, "settle"):
        drops.decide(target, filled)
        decision = drops.open(target)
        lost[decision.numbers] += decision.lost
        removed.update(decision.removed)
    return lost, removed


def _write(drops: "_Drops", share: range, kept: np.ndarray, workspace: Path, ranks: Ranks) -> None:
    """Write what is left of this rank's parts into the columns."""
    firsts = np.cumsum(kept) - kept
    with ColumnWriter(workspace) as columns:
        for number in _each(share, ranks, "write pairs"):
            pairs = drops.parts.pairs(number)
            if kept[number] < len(pairs):
                pairs = pairs[drops.kept(number)]
            columns.write(int(firsts[number]), pairs)


@dataclass(kw_only=True, slots=True, eq=False)
class _Decision:
    """What is dropped of the pairs that lead to one block; its fields are the arrays of a file."""

    numbers: np.ndarray
    """int64 [m], rising numbers of the parts that have such pairs."""
    bounds: np.ndarray
    """int64 [m + 1]: ``dropped[bounds[i]:bounds[i + 1]]`` is for those of part ``numbers[i]``."""
    dropped: np.ndarray
    """bool, in the order of ``Part.towards``."""
    lost: np.ndarray
    """int64 [m], pairs dropped of each part."""
    removed: dict[str, int]
    """Pairs dropped by each rule."""


class _Drops:
    """The decisions of a job, a file for every block that neighbours lie in."""

    def __init__(self, parts: Parts, one_direction: bool, cap: int):
        self.parts, self._one_direction, self._cap = parts, one_direction, cap
        self._kind = f"dropped-{'one' if one_direction else 'both'}-{cap}"
        self.open = functools.lru_cache(most_open())(self._open)

    def _path(self, target: int) -> Path:
        return self.parts.path(target, self._kind)

    def _open(self, target: int) -> _Decision:
        arrays, removed = map_arrays(self._path(target))
        return _Decision(**arrays, removed=removed)

    def decide(self, target: int, filled: np.ndarray) -> None:
        """Make the file of a block if it is not there.

        Args:
            target: Number of the block.
            filled: Numbers of the parts that have pairs at all.
        """
        if self._path(target).exists():
            return
        part, blocks = self.parts.open, self.parts.blocks
        sizes = np.array([part(n).count_towards(target) for n in filled.tolist()], dtype=np.int64)
        numbers, sizes = filled[sizes > 0], sizes[sizes > 0]
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        backwards = np.zeros(bounds[-1], dtype=bool)
        crowd = _Crowd(self._cap, len(backwards))
        for number, first in zip(numbers.tolist(), bounds[:-1].tolist(), strict=True):
            pairs = part(number).towards(target)
            own = backwards[first : first + len(pairs)]
            if self._one_direction:
                twins = part(target).towards(number)
                own[:] = _backwards(pairs, twins, blocks[number], blocks[target])
            if self._cap:
                left = np.flatnonzero(~own)
                crowd.add(pairs[left], first + left)
        beyond = crowd.beyond()
        dropped = backwards | beyond
        lost = np.add.reduceat(dropped, bounds[:-1], dtype=np.int64)
        arrays = {"numbers": numbers, "bounds": bounds, "dropped": dropped, "lost": lost}
        removed = (int(np.count_nonzero(backwards)), int(np.count_nonzero(beyond)))
        save_arrays(self._path(target), arrays, dict(zip(_RULES, removed, strict=True)))

    def kept(self, number: int) -> np.ndarray:
        """Of each pair of a part, in the order of the store, whether it is kept; bool [n]."""
        part = self.parts.open(number)
        kept = np.ones(len(part.pairs), dtype=bool)
        for place, target in enumerate(part.targets.tolist()):
            decision = self.open(target)
            own = np.searchsorted(decision.numbers, number)
            dropped = decision.dropped[decision.bounds[own] : decision.bounds[own + 1]]
            rows = part.rows[part.bounds[place] : part.bounds[place + 1]]
            kept[rows[dropped]] = False
        return kept


def _backwards(pairs: Pairs, twins: Pairs, source: Block, target: Block) -> np.ndarray:
    """Of each pair, whether it is also there the other way round and that way is preferred.

    Args:
        pairs: From the block ``source`` to the block ``target``.
        twins: From ``target`` to ``source``.
        source: At most 2^31 documents, as ``target``.
        target: May be the same block.
    """
    # One number per pair, below the product of the lengths of both blocks.
    width = target[1] - target[0]
    keys = (pairs.anchor - source[0]) * width + (pairs.neighbor - target[0])
    twin_keys = (twins.neighbor - source[0]) * width + (twins.anchor - target[0])
    even = (pairs.anchor + pairs.neighbor) % 2 == 0
    return np.isin(keys, twin_keys) & (even != (pairs.anchor < pairs.neighbor))


class _Crowd:
    """Finds the pairs whose neighbour has ``cap`` better anchors, of pairs that come in pieces.

    What can be told from the pieces so far is not held any longer, so a document that millions of
    anchors have found costs no more memory than another one.

    Args:
        cap: Pairs to leave per neighbour.
        count: Pairs in all pieces.
    """

    def __init__(self, cap: int, count: int):
        self._cap, self._beyond = cap, np.zeros(count, dtype=bool)
        self._pairs, self._rows = [Pairs.none()], [np.empty(0, np.int64)]
        self._held, self._most = 0, _ROWS

    def add(self, pairs: Pairs, rows: np.ndarray) -> None:
        """Take a piece.

        Args:
            pairs: In any order.
            rows: Where each stands in what ``beyond`` returns.
        """
        self._pairs.append(pairs)
        self._rows.append(rows)
        self._held += len(pairs)
        if self._held > self._most:
            self._thin()

    def beyond(self) -> np.ndarray:
        """Of each pair whether it is beyond the cap, bool [count]; the last call."""
        self._thin()
        return self._beyond

    def _thin(self) -> None:
        pairs, rows = Pairs.join(self._pairs), np.concatenate(self._rows)
        beyond = _beyond(pairs, self._cap)
        self._beyond[rows[beyond]] = True
        self._pairs, self._rows = [pairs[~beyond]], [rows[~beyond]]
        self._held = len(self._rows[0])
        self._most = max(_ROWS, 2 * self._held)


def _beyond(pairs: Pairs, cap: int) -> np.ndarray:
    """Of each pair, whether its neighbour has ``cap`` better anchors."""
    neighbors, counts = np.unique(pairs.neighbor, return_counts=True)
    # Most neighbours have few anchors, and need no sorting.
    rows = np.flatnonzero(np.isin(pairs.neighbor, neighbors[counts > cap]))
    found = pairs[rows]
    order = rank_order(found.neighbor, found.score, found.anchor)
    beyond = np.zeros(len(pairs), dtype=bool)
    beyond[rows[order]] = place_in_run(found.neighbor[order]) >= cap
    return beyond
