"""Neighbour search: FAISS finds candidates, exact scores decide.

Embeddings are float16 and rows have length 1, so in float64 every product and every partial sum of
an inner product is exact (multiples of 2^-48 below 2): a score does not depend on the order of
summation, the size of a block, the number of threads or of ranks. Scores are that exact value,
rounded once to float32, and every decision is taken on them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write
from megatron_sbp.mining.pairs import Pairs, place_in_run

_SPARE = 8  # Neighbours searched beyond those wanted, so that a tie at the end is seldom.
_PAIRS = 4096  # Pairs scored at a time: two float64 copies of their rows.
_DENSE_ROWS = 256  # Anchors compared at a time with a whole block in float64.
_TRAIN_ROWS = 262_144  # Sample that an approximate index is trained on.


@dataclass(kw_only=True, frozen=True, slots=True)
class Window:
    """Which neighbours of an anchor are candidates."""

    minimum: float
    """Lowest score."""
    maximum: float
    """Highest score."""
    depth: int
    """At most this many per anchor: the highest scores, of equal ones the lowest ids."""

    def above(self, scores: np.ndarray) -> np.ndarray:
        """Whether each float32 score is above the window."""
        return scores > np.float32(self.maximum)

    def best(self, pairs: Pairs) -> Pairs:
        """The pairs that are candidates, in the order of the pair store."""
        inside = (pairs.score >= np.float32(self.minimum)) & ~self.above(pairs.score)
        ordered = pairs[inside].ordered()
        return ordered[place_in_run(ordered.anchor) < self.depth]


@dataclass(kw_only=True, slots=True, eq=False)
class Found:
    """Candidates of a range of anchors."""

    pairs: Pairs
    """In the order of the pair store."""
    above: int = 0
    """Ordered pairs above the window."""
    highest: float = -1.0
    """Highest similarity of two documents that was seen, inside the window or not."""


class Search(Protocol):
    """A way to find candidates."""

    def find(self, start: int, stop: int) -> Found:
        """Candidates of the anchors ``start`` to ``stop - 1``."""


def scored(embeddings: Embeddings, anchor: np.ndarray, neighbor: np.ndarray) -> Pairs:
    """Pairs of documents with their exact inner products, rounded to float32."""
    score = np.empty(len(anchor), dtype=np.float32)
    for low in range(0, len(anchor), _PAIRS):
        piece = slice(low, low + _PAIRS)
        left, right = (embeddings.take(ids[piece]).astype(np.float64) for ids in (anchor, neighbor))
        score[piece] = np.einsum("ij,ij->i", left, right)
    return Pairs(anchor, neighbor, score)


class ExactSearch:
    """Exactly the candidates that comparing every two documents would give.

    FAISS compares a block of anchors with every block of documents in float32 and keeps a list per
    anchor. Its scores differ from the exact ones by at most ``slack``, so a list is known to be
    complete where its last entry is that far below the window or below the last candidate. The
    other anchors, those with ties there or with many documents above the window, are compared
    again in float64.

    Args:
        embeddings: Every document's.
        window: Which neighbours are wanted.
        block: Documents held in memory at a time, besides the anchors.
    """

    def __init__(self, embeddings: Embeddings, window: Window, block: int):
        self._embeddings, self._window, self._block = embeddings, window, block
        # A float32 sum of d products errs by (d + 1) 2^-24 of the sum of their absolute values,
        # which is the product of the norms at most (1.02, as rows are checked to 1%).
        self._slack = np.float32(1.1 * (embeddings.dimensions + 2) * 2.0**-24)

    def find(self, start: int, stop: int) -> Found:
        """Candidates of the anchors ``start`` to ``stop - 1``; see ``Search``."""
        numbers = np.arange(start, stop)
        rows = self._embeddings.rows(start, stop)
        near, ids = self._nearest(rows)
        other = ids != numbers[:, None]
        row, place = np.nonzero(other & (near >= self._window.minimum - self._slack))
        listed = scored(self._embeddings, numbers[row], ids[row, place])
        best = self._window.best(listed)
        complete = self._complete(near[:, -1], best, start)
        above = int(np.sum(self._window.above(listed.score) & complete[row]))
        found = [best[complete[best.anchor - start]]]
        unsure = np.flatnonzero(~complete)
        for low in range(0, len(unsure), _DENSE_ROWS):
            some = unsure[low : low + _DENSE_ROWS]
            dense, more = self._compare(numbers[some], rows[some])
            found.append(dense)
            above += more
        return Found(
            pairs=Pairs.join(found).ordered(),
            above=above,
            highest=float(near.max(where=other, initial=-1)),
        )

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first document, float16 rows) of every block."""
        for first in range(0, len(self._embeddings), self._block):
            last = min(first + self._block, len(self._embeddings))
            yield first, self._embeddings.rows(first, last)

    def _nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's scores (float32 [rows, k], falling) and ids (int64); self is among them."""
        import faiss

        k = min(self._window.depth + 1 + _SPARE, len(self._embeddings))
        heap = faiss.ResultHeap(len(rows), k, keep_max=True)
        queries = rows.astype(np.float32)
        for first, block in self._blocks():
            scores, ids = faiss.knn(
                queries, block.astype(np.float32), min(k, len(block)), faiss.METRIC_INNER_PRODUCT
            )
            heap.add_result(scores, ids + first)
        heap.finalize()
        return heap.D, heap.I

    def _complete(self, floor: np.ndarray, best: Pairs, start: int) -> np.ndarray:
        """Of each anchor, whether no candidate can be missing; ``floor`` is its list's last score.

        No document outside a list has an exact score above ``floor + slack``.
        """
        last = np.full(len(floor), -np.inf, dtype=np.float32)
        ends = best[place_in_run(best.anchor) == self._window.depth - 1]
        last[ends.anchor - start] = ends.score
        bound = floor + self._slack
        everything = self._window.depth + 1 + _SPARE >= len(self._embeddings)
        return everything | (bound < self._window.minimum) | (bound < last)

    def _compare(self, numbers: np.ndarray, rows: np.ndarray) -> tuple[Pairs, int]:
        """Candidates of some anchors by float64 products with every document, and those above."""
        left = rows.astype(np.float64)
        best, above = Pairs.none(), 0
        for first, block in self._blocks():
            scores = (left @ block.astype(np.float64).T).astype(np.float32)
            ids = np.arange(first, first + len(block))
            scores[numbers[:, None] == ids] = -np.inf
            above += int(np.sum(self._window.above(scores)))
            row, place = np.nonzero(scores >= np.float32(self._window.minimum))
            found = Pairs(numbers[row], ids[place], scores[row, place])
            best = self._window.best(Pairs.join([best, found]))
        return best, above


class IndexSearch:
    """The candidates among those that a FAISS index finds; scores are exact, recall is not.

    Args:
        embeddings: Every document's.
        window: Which neighbours are wanted.
        path: The index; see ``build_index``.
        parameters: Of FAISS's ParameterSpace, such as ``nprobe=16``; may be empty.

    Raises:
        InputError: If the index does not have such parameters.
    """

    def __init__(self, embeddings: Embeddings, window: Window, path: Path, parameters: str):
        import faiss

        self._embeddings, self._window = embeddings, window
        self._index = faiss.read_index(str(path))
        space: Any = faiss.ParameterSpace()
        try:
            space.set_index_parameters(self._index, parameters)
        except RuntimeError as error:
            raise _refused(f"search parameters {parameters!r}", error) from None

    def find(self, start: int, stop: int) -> Found:
        """Candidates of the anchors ``start`` to ``stop - 1``; see ``Search``."""
        queries = self._embeddings.rows(start, stop).astype(np.float32)
        k = min(self._window.depth + 1, len(self._embeddings))
        _, ids = self._index.search(queries, k)
        numbers = np.arange(start, stop)
        row, place = np.nonzero((ids >= 0) & (ids != numbers[:, None]))
        listed = scored(self._embeddings, numbers[row], ids[row, place])
        return Found(
            pairs=self._window.best(listed),
            above=int(np.sum(self._window.above(listed.score))),
            highest=float(listed.score.max(initial=-1)),
        )


def build_index(embeddings: Embeddings, factory: str, path: Path, *, block: int, seed: int) -> None:
    """Train a FAISS index on a sample, add every document, and save it.

    Args:
        embeddings: Every document's; the index holds them in memory in its own encoding.
        factory: String for ``faiss.index_factory``, such as ``IVF256,Flat``.
        path: Where to save.
        block: Documents added at a time.
        seed: Of the sample.

    Raises:
        InputError: If FAISS refuses the string or the data.
    """
    import faiss

    draw = np.random.default_rng(seed)
    count = min(len(embeddings), _TRAIN_ROWS)
    sample = np.sort(draw.choice(len(embeddings), count, replace=False))
    try:
        index = faiss.index_factory(embeddings.dimensions, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(embeddings.take(sample).astype(np.float32))
        for first in range(0, len(embeddings), block):
            last = min(first + block, len(embeddings))
            index.add(embeddings.rows(first, last).astype(np.float32))
    except RuntimeError as error:
        raise _refused(factory, error) from None
    with atomic_write(path) as temporary:
        faiss.write_index(index, str(temporary))


def _refused(what: str, error: RuntimeError) -> InputError:
    reason = str(error).strip().splitlines()[-1]
    return InputError(
        f"--search faiss: FAISS refuses {what} ({reason}); see its documentation of "
        "index_factory, or choose exact"
    )
