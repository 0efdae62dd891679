"""The pair store: three columns of equal length, sorted, memory-mapped."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from megatron_sbp.corpus.documents import Corpus, recorded_corpus
from megatron_sbp.embedding.shards import check_corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.npy import open_npy

COLUMNS = {"anchor": np.int64, "neighbor": np.int64, "score": np.float32}
_ROWS = 1 << 22  # Rows checked at a time: tens of megabytes.
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: multiples are far apart.


@dataclass(slots=True, eq=False)
class Pairs:
    """Some pairs in memory."""

    anchor: np.ndarray
    """int64 [n]"""
    neighbor: np.ndarray
    """int64 [n]"""
    score: np.ndarray
    """float32 [n]"""

    def __len__(self) -> int:
        return len(self.anchor)

    def __getitem__(self, rows: np.ndarray | slice) -> "Pairs":
        return Pairs(self.anchor[rows], self.neighbor[rows], self.score[rows])

    def ordered(self) -> "Pairs":
        """The same pairs by anchor, falling score, neighbour: the order of the store."""
        return self[rank_order(self.anchor, self.score, self.neighbor)]

    @classmethod
    def join(cls, pieces: Sequence["Pairs"]) -> "Pairs":
        """The pairs of all pieces, one after another."""
        return cls(
            np.concatenate([piece.anchor for piece in pieces]),
            np.concatenate([piece.neighbor for piece in pieces]),
            np.concatenate([piece.score for piece in pieces]),
        )

    @classmethod
    def none(cls) -> "Pairs":
        """No pairs."""
        return cls(*(np.empty(0, dtype) for dtype in COLUMNS.values()))


class PairStore:
    """Pairs of documents (d1, d2) with their similarity, as ``mine_pairs.py`` writes them.

    Rows are sorted by anchor, then falling score, then neighbour.

    Args:
        directory: Holds ``anchor.npy``, ``neighbor.npy`` and ``score.npy``; a manifest is not
            needed.
        corpus: If given, the ids must be its documents and, where there is a manifest, it must be
            the corpus that was mined.
        check_rows: Whether to read every row, once, to check ids, scores and order.

    Raises:
        InputError: If a column is missing or damaged, rows are not sorted, a pair comes twice, a
            document is paired with itself, a score is not finite, or the corpus is another one.
    """

    def __init__(
        self, directory: str | Path, corpus: Corpus | None = None, *, check_rows: bool = True
    ):
        self.directory = Path(directory)
        self.anchor = self._open("anchor")
        """int64 [pairs], flat ids of d1, the context."""
        self.neighbor = self._open("neighbor")
        """int64 [pairs], flat ids of d2, the target."""
        self.score = self._open("score")
        """float32 [pairs], inner product of their embeddings."""
        lengths = {name: len(getattr(self, name)) for name in COLUMNS}
        if len(set(lengths.values())) > 1:
            raise InputError(
                f"{self.directory}: columns of different lengths ({lengths}); mine again"
            )
        self.manifest = Manifest.read_if_there(self.directory, "mine", "mine_pairs.py")
        """The manifest beside the columns, None if another tool wrote them."""
        self.corpus: list[dict[str, Any]] | None = None
        """``Corpus.fingerprints`` of the corpus that was mined, None if that is not known."""
        if self.manifest and self.manifest.counts.get("corpus") is not None:
            self.corpus = recorded_corpus(self.manifest, self.directory)
        if corpus is not None and self.corpus is not None:
            check_corpus(self.corpus, corpus, self.directory)
        if check_rows:
            self._check_rows(self._documents(corpus))

    def __len__(self) -> int:
        return len(self.anchor)

    def __getitem__(self, rows: np.ndarray | slice) -> Pairs:
        return Pairs(self.anchor[rows], self.neighbor[rows], self.score[rows])

    def files(self) -> list[Path]:
        """The columns, which is what a stage names as its inputs."""
        return [self._path(name) for name in COLUMNS]

    def _documents(self, corpus: Corpus | None) -> int | None:
        """Number of documents that ids may mean, None if that is not known."""
        if corpus is not None:
            return len(corpus)
        return sum(entry["documents"] for entry in self.corpus) if self.corpus else None

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.npy"

    def _open(self, name: str) -> np.ndarray:
        path = self._path(name)
        try:
            column = open_npy(path)
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error}; give the directory that mine_pairs.py wrote"
            ) from None
        except ValueError as error:
            raise InputError(f"{path}: not a complete .npy file ({error}); mine again") from None
        if column.dtype != COLUMNS[name] or column.ndim != 1:
            raise InputError(
                f"{path}: {column.dtype} with {column.ndim} axes, but this column is "
                f"{np.dtype(COLUMNS[name])} with 1; convert it"
            )
        return column

    def _check_rows(self, documents: int | None) -> None:
        """Check ids, scores and order; pieces overlap by a row so that no neighbours are missed."""
        for start in range(0, len(self), _ROWS):
            low, stop = max(start - 1, 0), start + _ROWS
            rows = self[low:stop]
            top = np.iinfo(np.int64).max if documents is None else documents
            lowest = np.minimum(rows.anchor, rows.neighbor)
            outside = (lowest < 0) | (np.maximum(rows.anchor, rows.neighbor) >= top)
            self._refuse(outside, low, f"has an id outside the corpus (0 to {top - 1})")
            self._refuse(rows.anchor == rows.neighbor, low, "pairs a document with itself")
            self._refuse(~np.isfinite(rows.score), low, "has a score that is not finite")
            disorder = ~_follows(rows)
            self._refuse(disorder, low, "comes before its next row (anchor, -score, neighbor)")
            # Those of an anchor stand together, but two with other scores may be far apart.
            first = int(np.searchsorted(self.anchor[:stop], self.anchor[start]))
            self._refuse(_repeated(self[first:stop]), first, "is a pair that comes twice")

    def _refuse(self, wrong: np.ndarray, first: int, what: str) -> None:
        if wrong.any():
            row = first + int(np.argmax(wrong))
            raise InputError(
                f"{self.directory}: row {row} ({self.anchor[row]}, {self.neighbor[row]}, "
                f"{self.score[row]}) {what}; give the corpus that was mined, or mine again"
            )


def _follows(pairs: Pairs) -> np.ndarray:
    """Of each row but the last, whether the next one stands after it in the order of the store."""
    anchor, neighbor, score = pairs.anchor, pairs.neighbor, pairs.score
    same = anchor[:-1] == anchor[1:]
    tied = same & (score[:-1] == score[1:])
    return (
        (anchor[:-1] < anchor[1:])
        | (same & (score[:-1] > score[1:]))
        | (tied & (neighbor[:-1] < neighbor[1:]))
    )


def _repeated(pairs: Pairs) -> np.ndarray:
    """Whether anchor and neighbour of a row are those of an earlier one, bool [n]."""
    # Sorting one number is many times faster than sorting two, and few different pairs share one.
    mixed = pairs.anchor.astype(np.uint64) * _ODD + pairs.neighbor.astype(np.uint64)
    found = np.zeros(len(pairs), dtype=bool)
    if len(pairs) and not np.diff(np.sort(mixed)).all():
        order = np.lexsort((pairs.neighbor, pairs.anchor))
        again = np.diff(pairs.anchor[order]) | np.diff(pairs.neighbor[order])
        found[order[1:][again == 0]] = True
    return found


def create_columns(directory: Path, count: int) -> None:
    """Make the files of the three columns in their full size, for ``ColumnWriter`` to fill."""
    for name, dtype in COLUMNS.items():
        np.lib.format.open_memmap(directory / f"{name}.npy", "w+", dtype, (count,))


class ColumnWriter:
    """Writes rows into the files of ``create_columns``; several processes may at the same time.

    It writes, and maps nothing: on a network file system two machines that map one page would
    overwrite each other's rows.

    Args:
        directory: Of the columns.
    """

    def __init__(self, directory: Path):
        self._files: dict[str, BinaryIO] = {}
        self._starts: dict[str, int] = {}
        for name in COLUMNS:
            # Closed by __exit__, all three together.
            file = self._files[name] = open(directory / f"{name}.npy", "r+b")  # noqa: SIM115
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self._starts[name] = file.tell()

    def write(self, first: int, pairs: Pairs) -> None:
        """Write pairs as the rows from ``first`` on."""
        for name, file in self._files.items():
            column = np.ascontiguousarray(getattr(pairs, name), dtype=COLUMNS[name])
            file.seek(self._starts[name] + first * column.itemsize)
            file.write(column.data)
            # Or the file's buffer would join two writes, with what lay between them before.
            file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.fsync(file.fileno())
            file.close()


def rank_order(group: np.ndarray, score: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The rows by group, falling score, ``last``: the permutation, integers [n].

    Args:
        group: int64 [n]
        score: float32 [n], finite
        last: int64 [n]
    """
    if not len(group):
        return np.empty(0, dtype=np.int64)
    lowest = int(group.min())
    if int(group.max()) - lowest >= 1 << 32:
        return np.lexsort((last, -score, group))
    # One key of 64 bits sorts several times faster than three keys. The bits of floats rise with
    # their size, those of negative ones fall. Zero minus a score has no negative zero.
    bits = (np.float32(0) - score).view(np.uint32)
    bits = np.where(bits >> 31, ~bits, bits | (1 << 31))
    key = ((group - lowest).astype(np.uint64) << np.uint64(32)) | bits
    order = np.argsort(key)
    key = key[order]
    # Rows with equal keys stand together now, in any order.
    equal = np.zeros(len(key) + 1, dtype=bool)
    np.equal(key[1:], key[:-1], out=equal[1:-1])
    tied = np.flatnonzero(equal[1:] | equal[:-1])
    rows = order[tied]
    order[tied] = rows[np.lexsort((last[rows], key[tied]))]
    return order


def place_in_run(*keys: np.ndarray) -> np.ndarray:
    """Of each row, how many rows before it have equal keys; equal keys must stand together."""
    count = len(keys[0])
    starts = np.ones(count, dtype=bool)
    if count:
        starts[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    rows = np.arange(count)
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))
