"""Embedding shards on disk: their names, and a checked, memory-mapped reader."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.files import most_open
from megatron_sbp.manifest import Manifest
from megatron_sbp.npy import open_npy, positions

_NAME = re.compile(r"embeddings-([0-9]{1,9})-of-([0-9]{1,9})\.npy")
_CHECKED = 1 << 15  # Numbers checked at a time.
_NORM_TOLERANCE = 1e-2  # Rounding a unit row to float16 changes its norm by less than 1e-3.

type ShardKey = tuple[int, int]
"""Number of a shard, and of how many."""


def shard_name(number: int, count: int) -> str:
    """File name of shard ``number`` of ``count``."""
    return f"embeddings-{number:05}-of-{count:05}.npy"


class Span(NamedTuple):
    """Consecutive rows of one shard."""

    shard: int
    """Number of the shard."""
    first: int
    """Its first row."""
    after: int
    """The row after the last."""


class Embeddings:
    """A directory of ``embeddings-*.npy``: float16 [documents, d] in shards, in document order.

    A manifest is not needed: shards that another tool wrote are read the same way. Rows are checked
    when they are read: finite, and of length 1 (to 1%).

    Args:
        directory: Holds the shards; other files in it are ignored.

    Raises:
        InputError: If there is no shard, one is missing or damaged, or type or width differ.
    """

    def __init__(self, directory: str | Path):
        found = present_shards(Path(directory))
        shapes = {key: open_shard(path).shape for key, path in found.items()}
        self._begin(Path(directory), found, shapes)

    def _begin(
        self,
        directory: Path,
        found: Mapping[ShardKey, Path],
        shapes: Mapping[ShardKey, tuple[int, ...]],
    ) -> None:
        """Take the shards of a directory, of which the shapes are known."""
        self.directory = directory
        self.paths = _complete(directory, found)
        ordered = [shapes[key] for key in sorted(found)]
        self.dimensions: int = ordered[0][1]
        """Length d of every row."""
        for path, shape in zip(self.paths, ordered, strict=True):
            if shape[1] != self.dimensions:
                raise InputError(
                    f"{path}: rows of {shape[1]} numbers, but {self.paths[0].name} has "
                    f"{self.dimensions}; give shards made by one encoder"
                )
        self.offsets = np.cumsum([0] + [shape[0] for shape in ordered], dtype=np.int64)
        """int64 [shards + 1], document of each shard's first row, then their number."""
        if not len(self):
            raise InputError(f"{self.directory}: the shards hold no rows; embed a corpus")
        self.manifest = Manifest.read_if_there(self.directory, "embed", "embed_documents.py")
        """The manifest beside the shards, None if another tool wrote them."""
        self.shard = lru_cache(maxsize=most_open())(lambda number: open_shard(self.paths[number]))
        """Memory map of a shard by its number."""

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def files(self) -> list[Path]:
        """The shards, which is what a stage names as its inputs."""
        return list(self.paths)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows of the documents ``start`` to ``stop - 1`` as float16 [stop - start, d]."""
        pieces = []
        for shard, low, high in self.spans(start, stop):
            piece = np.asarray(self.shard(shard)[low:high])
            self.check(piece, self.offsets[shard] + np.arange(low, high))
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def spans(self, start: int, stop: int) -> Iterator[Span]:
        """Where the documents ``start`` to ``stop - 1`` lie."""
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"documents {start} to {stop} of {len(self)}")
        shard = int(np.searchsorted(self.offsets, start, side="right")) - 1
        while start < stop:
            base, end = int(self.offsets[shard]), int(self.offsets[shard + 1])
            if start < end:
                yield Span(shard, start - base, min(stop, end) - base)
                start = end
            shard += 1

    def take(self, documents: np.ndarray) -> np.ndarray:
        """Rows of the given documents (int64 [n], any order) as float16 [n, d]."""
        rows = np.empty((len(documents), self.dimensions), dtype=np.float16)
        shards = np.searchsorted(self.offsets, documents, side="right") - 1
        for shard, where in positions(shards):
            rows[where] = self.shard(shard)[documents[where] - self.offsets[shard]]
        self.check(rows, documents)
        return rows

    def check(self, rows: np.ndarray, documents: np.ndarray) -> None:
        """Refuse rows that are not finite or not of unit length.

        Args:
            rows: float16 [n, d].
            documents: Their ids, int64 [n].

        Raises:
            InputError: It names the document.
        """
        norms = np.empty(len(rows), dtype=np.float32)
        # In pieces that stay in the cache; float16 is widened much faster by itself.
        step = max(1, _CHECKED // rows.shape[1])
        for first in range(0, len(rows), step):
            some = rows[first : first + step].astype(np.float32)
            norms[first : first + step] = np.sqrt(np.einsum("ij,ij->i", some, some))
        self.refuse(norms, documents)

    def refuse(self, norms: np.ndarray, documents: np.ndarray) -> None:
        """Raise if a document's row has another length than 1; see ``check``."""
        wrong = ~(np.abs(norms - 1) <= _NORM_TOLERANCE)  # NaN is wrong, too
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{self.directory}: the embedding of document {documents[at]} has length "
                f"{norms[at]}, not 1; normalise the rows, and embed again where they are not finite"
            )


def present_shards(directory: Path) -> dict[ShardKey, Path]:
    """The shards that lie in a directory, which may be some of all.

    Raises:
        InputError: If there is no such directory, or a shard is in it twice.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give one that holds embeddings-*.npy")
    found: dict[ShardKey, Path] = {}
    for path in sorted(directory.iterdir()):
        if match := _NAME.fullmatch(path.name):
            key = int(match[1]), int(match[2])
            if key in found:
                raise InputError(f"{path}: is the same shard as {found[key].name}; remove one")
            found[key] = path
    return found


def _complete(directory: Path, found: Mapping[ShardKey, Path]) -> list[Path]:
    """The paths of all shards in order, none missing."""
    if not found:
        raise InputError(
            f"{directory}: holds no {shard_name(0, 1)} or the like; run embed_documents.py first"
        )
    counts = {count for _, count in found}
    if len(counts) > 1:
        raise InputError(
            f"{directory}: holds shards of {' and of '.join(map(str, sorted(counts)))}; "
            "keep those of one embedding"
        )
    (count,) = counts
    for number in range(count):
        if (number, count) not in found:
            raise InputError(
                f"{directory}: {shard_name(number, count)} is missing; copy it, or embed again"
            )
    if len(found) != count:
        raise InputError(f"{directory}: holds {len(found)} shards of {count}; remove the others")
    return [found[key] for key in sorted(found)]


def open_shard(path: Path) -> np.ndarray:
    """Memory-map one shard and check its type and shape.

    Raises:
        InputError: If it cannot be read, or is no shard.
    """
    try:
        shard = open_npy(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the file") from None
    except ValueError as error:
        raise InputError(f"{path}: not a complete .npy file ({error}); embed again") from None
    if shard.dtype != np.float16 or shard.ndim != 2:
        raise InputError(
            f"{path}: {shard.dtype} with {shard.ndim} axes, but a shard is float16 with 2; "
            "convert it with numpy's astype('float16')"
        )
    if not shard.shape[1]:
        raise InputError(f"{path}: its rows have no numbers; embed again")
    return shard


def check_corpus(recorded: Sequence[Mapping[str, Any]], corpus: Corpus, source: str | Path) -> None:
    """Refuse a corpus that is not the one whose fingerprints a box keeps.

    Documents, tokens and the checksum of the ``.idx`` are compared for every prefix, in order;
    paths are not, so a corpus may be moved.

    Args:
        recorded: ``Corpus.fingerprints`` of the corpus that the box was made from.
        corpus: The corpus given now.
        source: The box, named in the error.

    Raises:
        InputError: If they differ.
    """
    if len(recorded) != len(corpus.fingerprints):
        raise InputError(
            f"{source}: was made from {len(recorded)} corpus prefixes "
            f"({', '.join(str(entry['prefix']) for entry in recorded)}), but "
            f"{len(corpus.fingerprints)} are given; give the same ones in the same order"
        )
    for then, now in zip(recorded, corpus.fingerprints, strict=True):
        if any(then[key] != now[key] for key in ("documents", "tokens", "idx_sha256")):
            raise InputError(
                f"{now['prefix']}: is not the corpus that {source} was made from "
                f"({now['documents']:,} documents, {now['tokens']:,} tokens; then "
                f"{then['documents']:,} and {then['tokens']:,} in {then['prefix']}); "
                "give that one, or make it again from this one"
            )
