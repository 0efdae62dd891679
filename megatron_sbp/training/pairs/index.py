"""Which pairs of a split stand in which row, as arrays in the data cache.

An *entry* is a pair read in one direction: row ``r`` of the pair store (counted from the prefix's
first) is entry ``r``, or with direction "both" entries ``2r`` and ``2r + 1``. The index lists the
entries row by row. Two passes in chunks make it, so that memory does not grow with the number of
pairs: the first measures every entry, the second gives each a place among the pieces of its length.
"""

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np

from megatron_sbp.manifest import atomic_write
from megatron_sbp.mining.related import related
from megatron_sbp.npy import create_npy, open_npy, save_npy
from megatron_sbp.training.pairs.config import PairedDocumentDatasetConfig, Room
from megatron_sbp.training.pairs.controls import choose_controls
from megatron_sbp.training.pairs.documents import PairedPrefix, SplitDocuments
from megatron_sbp.training.pairs.packing import Layout, best_fit
from megatron_sbp.training.pairs.shuffle import Permutation, mix

FORMAT = 1
"""Number that changes when the same inputs give other rows, so that no older index is used."""
_MEASURED = 1 << 19  # Entries that a thread measures at a time: some 60 MB.
_PLACED = 1 << 23  # Entries that are placed at a time: some 150 MB.
_THREADS = 2  # NumPy's longer steps run beside each other.
_CONTROLLED = 1 << 20  # Pairs among which controls are exchanged.


class Entries:
    """The pairs of a split that have their anchor in one prefix, in the direction of the run.

    Args:
        prefix: The prefix.
        documents: Of the split.
        config: The configuration.
    """

    def __init__(
        self,
        prefix: PairedPrefix,
        documents: SplitDocuments,
        config: PairedDocumentDatasetConfig,
    ):
        self.documents = documents
        self.store = prefix.pairs
        self.room = Room(config)
        self._config = config
        self._anchor = np.asarray(prefix.pairs.anchor)
        self._neighbor = np.asarray(prefix.pairs.neighbor)
        # Pairs are sorted by anchor, so those of a range of anchors are a slice.
        self._begin, end = np.searchsorted(self._anchor, documents.bounds(prefix)).tolist()
        self._each = 2 if config.direction == "both" else 1
        self.count = (end - self._begin) * self._each
        """Number of entries, those of other splits and those to be skipped included."""
        self._key = int(np.random.SeedSequence([config.random_seed]).generate_state(1)[0])

    def __getitem__(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of d1 and d2, int64 [n] each, for entries, int64 [n]."""
        rows = self._begin + entries // self._each
        anchor, neighbor = self._anchor[rows], self._neighbor[rows]
        turned = self._turned(entries)
        return np.where(turned, neighbor, anchor), np.where(turned, anchor, neighbor)

    def pair(self, entry: int) -> tuple[int, int]:
        """Ids of d1 and d2 of one entry."""
        row = self._begin + entry // self._each
        anchor, neighbor = self._anchor.item(row), self._neighbor.item(row)
        return (neighbor, anchor) if self._turned(entry) else (anchor, neighbor)

    def beside(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """What stands beside d1 in its context: its best neighbors in the split, but never d2.

        Args:
            first: Ids of d1, int64 [n].
            second: Ids of d2, int64 [n].

        Returns:
            Ids, int64 [n, context documents - 1], -1 at the end of rows that have fewer.
        """
        most = self._config.context_documents - 1
        return related(self.store, first, most, self.documents.contain, excluded=second)

    def context_lengths(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Tokens in the place of d1, int64 [n], for ids of d1 and d2 in the split."""
        lengths = self.documents.body_lengths(first)
        if self._config.context_documents > 1:
            ids = self.beside(first, second)
            row, _ = place = np.nonzero(ids >= 0)
            sizes = self.documents.body_lengths(ids[place]) + len(self._config.separator)
            lengths += np.bincount(row, sizes, minlength=len(first)).astype(np.int64)
        return lengths

    def _turned[T: (int, np.ndarray)](self, entries: T) -> T | bool:
        """Whether the neighbor is d1."""
        match self._config.direction:
            case "both":
                return entries % 2 == 1
            case "random":
                return mix((entries ^ self._key) & 0xFFFFFFFF) >> 31 == 1
        return self._config.direction == "backward"

    def measure(self, start: int, stop: int) -> tuple[np.ndarray, Counter[str]]:
        """Length in a row of every entry of a range, and what there is to count of them.

        Returns:
            int64 [stop - start], 0 for entries of other splits and for skipped ones; pairs, cut_d1,
            cut_d2, skipped_long, skipped_short, tokens, supervised_tokens.
        """
        config = self._config
        first, second = self[np.arange(start, stop)]
        (inside,) = np.nonzero(self.documents.contain(first) & self.documents.contain(second))
        first, second = first[inside], second[inside]
        first, second = self.context_lengths(first, second), self.documents.body_lengths(second)
        segments = self.room.fit(first, second)
        long = (first + second > self.room.tokens) & (config.overflow == "skip")
        short = ~long & (segments.second < config.min_d2)
        kept = ~(long | short)
        sizes = np.zeros(stop - start, dtype=np.int64)
        sizes[inside[kept]] = segments.size[kept]
        after = len(config.after) * segments.whole
        counts = {
            "pairs": np.count_nonzero(kept),
            "cut_d1": np.count_nonzero(kept & (segments.first < first)),
            "cut_d2": np.count_nonzero(kept & ~segments.whole),
            "skipped_long": np.count_nonzero(long),
            "skipped_short": np.count_nonzero(short),
            "tokens": np.sum(segments.positions, where=kept),
            "supervised_tokens": np.sum(segments.second + after, where=kept),
        }
        return sizes, Counter({name: int(value) for name, value in counts.items()})


class PairIndex:
    """The rows of a split, memory-mapped.

    Args:
        base: Path of its files without their endings, as ``build`` wrote them.
    """

    def __init__(self, base: Path):
        record = json.loads(_file(base, "counts.json").read_text())
        self.counts: dict[str, int] = record["counts"]
        """pairs, cut_d1, cut_d2, skipped_long, skipped_short, rows, tokens, supervised_tokens."""
        self.ends: list[bool] = record["ends"]
        """See ``SplitDocuments.ends``."""
        self.entries = np.asarray(open_npy(_file(base, "pairs.npy")))
        """Integers [pairs], the entries of the rows."""
        self.controls: np.ndarray | None = None
        """int64 [pairs], ids of the controls' d1; None where there are none."""
        if _file(base, "controls.npy").exists():
            self.controls = np.asarray(open_npy(_file(base, "controls.npy")))
        table = open_npy(_file(base, "rows.npy"))
        self._rows, self._places, self._pieces = table.T.tolist()

    def row(self, row: int) -> slice:
        """Places of a row's pairs in ``entries`` and ``controls``."""
        pattern = bisect_right(self._rows, row) - 1
        pieces = self._pieces[pattern]
        start = self._places[pattern] + (row - self._rows[pattern]) * pieces
        return slice(start, start + pieces)

    @classmethod
    def exists(cls, base: Path) -> bool:
        """Whether there is a complete index: its counts are written last."""
        return _file(base, "counts.json").exists()


def build(
    base: Path,
    entries: Entries,
    config: PairedDocumentDatasetConfig,
    description: str,
    *,
    controls: bool,
) -> Counter[str]:
    """Write the index of a split, unless it would be empty.

    Args:
        base: Path of its files without their endings.
        entries: What to choose from.
        config: The configuration.
        description: What the index is made of, for people who look into the cache.
        controls: Whether to choose for every pair another d1 to compare with.

    Returns:
        The counts, see ``PairIndex.counts``.

    Raises:
        OSError: If files cannot be written.
    """
    base.parent.mkdir(parents=True, exist_ok=True)
    entries.documents.sample_ends()
    # A file without a name: nothing is left of it, however this process ends.
    with TemporaryFile(dir=base.parent) as scratch:
        lengths = _map(scratch, np.dtype(np.uint32), entries.count)
        histogram, counts = _measure(entries, config, lengths)
        layout = Layout(best_fit(histogram))
        counts["rows"] = layout.rows
        if not layout.rows:
            return counts
        with atomic_write(_file(base, "pairs.npy")) as path:
            dtype = np.uint32 if entries.count <= 1 << 32 else np.int64
            placed = create_npy(path, dtype, counts["pairs"])
            _place(lengths, layout, placed, config.random_seed)
            if controls:
                _choose(_file(base, "controls.npy"), entries, placed, config.random_seed)
    with atomic_write(_file(base, "rows.npy")) as path:
        save_npy(path, layout.table)
    with atomic_write(_file(base, "description.txt")) as path:
        path.write_text(description)
    with atomic_write(_file(base, "counts.json")) as path:
        path.write_text(json.dumps({"counts": counts, "ends": entries.documents.ends}, indent=1))
    return counts


def _measure(
    entries: Entries, config: PairedDocumentDatasetConfig, lengths: np.ndarray
) -> tuple[np.ndarray, Counter[str]]:
    """Measure every entry in units of what segments are padded to.

    Args:
        entries: Those to measure.
        config: The configuration. Without packing the unit is a row, which every pair fills.
        lengths: Integers [entries], where to write them.

    Returns:
        int64 [units of a row + 1], how many have each length, and the counts.
    """
    unit = config.multiple if config.packing else config.sequence_length
    longest = config.sequence_length // unit

    def measure(chunk: tuple[int, int]) -> tuple[np.ndarray, Counter[str]]:
        sizes, counts = entries.measure(*chunk)
        units = -(-sizes // unit)
        lengths[slice(*chunk)] = units
        return np.bincount(units, minlength=longest + 1), counts

    histogram = np.zeros(longest + 1, dtype=np.int64)
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(_THREADS) as pool:
        for some, found in pool.map(measure, _chunks(entries.count, _MEASURED)):
            histogram += some
            for name, count in found.items():
                counts[name] += count
    histogram[0] = 0
    return histogram, counts


def _place(lengths: np.ndarray, layout: Layout, placed: np.ndarray, seed: int) -> None:
    """Give every entry a random one of the places of its length.

    Args:
        lengths: Integers [entries], 0 for those that are left out.
        layout: The places.
        placed: Integers [places], where the entries are written.
        seed: Of the choice.
    """
    orders = {
        length: Permutation(count, [seed, length]) for length, count in layout.numbers().items()
    }
    seen: Counter[int] = Counter()
    for start, stop in _chunks(len(lengths), _PLACED):
        chunk = np.asarray(lengths[start:stop]).astype(np.min_scalar_type(max(orders)))
        by_length = np.argsort(chunk, kind="stable")
        ends = np.cumsum(np.bincount(chunk))
        for length in (np.flatnonzero(np.diff(ends)) + 1).tolist():
            some = by_length[ends[length - 1] : ends[length]]
            numbers = orders[length](np.arange(seen[length], seen[length] + len(some)))
            placed[layout.places(length, numbers)] = start + some
            seen[length] += len(some)


def _choose(path: Path, entries: Entries, placed: np.ndarray, seed: int) -> None:
    """Write the ids of the controls' d1, int64 [places]."""
    with atomic_write(path) as temporary:
        chosen = create_npy(temporary, np.int64, len(placed))
        for start, stop in _chunks(len(placed), _CONTROLLED):
            first, second = entries[placed[start:stop].astype(np.int64)]
            lengths = entries.context_lengths(first, second)
            chosen[start:stop] = choose_controls(entries.store, first, second, lengths, seed)


def _chunks(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges of nearly equal size over so many things, each at most ``most`` long."""
    pieces = max(1, -(-count // most))
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    return pairwise(bounds)


def _map(file: BinaryIO, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """Map an open, empty file for one array."""
    room = max(count, 1)  # Nothing cannot be mapped.
    os.posix_fallocate(file.fileno(), 0, room * dtype.itemsize)
    return np.memmap(file, dtype, "r+", shape=(room,))[:count]


def _file(base: Path, ending: str) -> Path:
    return base.with_name(f"{base.name}-{ending}")
