"""A synthetic corpus: Megatron prefixes with columns that say where each document came from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from megatron_sbp.corpus.documents import Corpus, recorded_corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.npy import open_npy

COLUMNS: dict[str, Any] = {
    "seed": np.int64,  # flat id of the seed document in the corpus that the manifest names
    "sampling_seed": np.uint64,  # what all random choices of the document follow from
    "finish_reason": np.uint8,  # 0: end of document, 1: maximum length
    "seed_tokens": np.int32,  # tokens of the seed, and of the documents with it, in the prompt
    "checkpoint": np.uint64,  # the first 8 bytes of the model's checksum, little-endian
    "generation": np.uint8,  # 1: from a real seed, by a model trained on real documents alone
}
ORIGIN = "document"
"""Column of a filtered corpus, int64: number of the document before filtering."""


@dataclass(kw_only=True, slots=True)
class Provenance:
    """Where a document comes from."""

    seed: int
    """Flat id of the seed document."""
    sampling_seed: int
    """What all random choices of the document follow from."""
    seed_tokens: int
    """Tokens of the seed, and of the documents given with it, that stood in the prompt."""
    checkpoint: int
    """Which model it is from, see ``checkpoint_id``."""
    generation: int
    """How many rounds of synthesis lie behind it, this one included."""
    seed_cut: bool
    """Whether these documents have more tokens than that."""


def column_path(prefix: str | Path, name: str) -> Path:
    """The file of a provenance column."""
    return Path(f"{prefix}.{name}.npy")


def checkpoint_id(sha256: str) -> int:
    """What stands in the column ``checkpoint`` for a model with this checksum."""
    return int.from_bytes(bytes.fromhex(sha256)[:8], "little")


class SyntheticCorpus:
    """Finished outputs of ``synthesize.py`` or ``filter_synthetic.py``, memory-mapped.

    Args:
        prefixes: Path without ``.bin``/``.idx``, or several, such as the parts of an array job.

    Raises:
        InputError: If a file is missing or damaged, or a column has another length than the corpus.
    """

    def __init__(self, prefixes: str | Path | Sequence[str | Path]):
        given = [prefixes] if isinstance(prefixes, str | Path) else prefixes
        self.documents = Corpus(given)
        """The documents of all prefixes."""
        self.prefixes = self.documents.prefixes
        """The prefixes, in their order."""
        self.manifests = [Manifest.read(prefix.parent) for prefix in self.prefixes]
        """The manifest of every prefix's box."""
        self.columns: Mapping[str, np.ndarray] = _Columns(self.documents)
        """Column name -> values, one row per document; of several prefixes they are copied."""

    def __len__(self) -> int:
        return len(self.documents)

    def files(self) -> list[Path]:
        """Documents and columns, which is what a stage names as its inputs."""
        columns = [column_path(prefix, name) for prefix in self.prefixes for name in COLUMNS]
        return self.documents.files() + columns

    @property
    def _seed_corpora(self) -> list[list[dict[str, Any]]]:
        """Of every prefix the ``Corpus.fingerprints`` of what its seeds were drawn from."""
        return [
            recorded_corpus(manifest, prefix)
            for manifest, prefix in zip(self.manifests, self.prefixes, strict=True)
        ]

    @property
    def seed_corpus(self) -> list[dict[str, Any]]:
        """``Corpus.fingerprints`` of what the seeds were drawn from, which their ids mean.

        Raises:
            InputError: If prefixes have their seeds from different corpora.
        """
        found = self._seed_corpora
        checksums = [[entry["idx_sha256"] for entry in corpus] for corpus in found]
        for prefix, of_prefix in zip(self.prefixes, checksums, strict=True):
            if of_prefix != checksums[0]:
                raise InputError(
                    f"{prefix}: has its seeds from another corpus than {self.prefixes[0]}; "
                    "give them one by one"
                )
        return found[0]

    def with_seeds(self, corpus: Corpus) -> Corpus:
        """A real corpus and, behind it, the synthetic prefixes that seeds were drawn from.

        They are read where they lay when the documents were made. What is not there, or not
        synthetic, is left out, for ``seeds_in`` to say.
        """
        given = {entry["idx_sha256"] for entry in corpus.fingerprints}
        lacking = {
            entry["prefix"]: None
            for entries in self._seed_corpora
            for entry in entries
            if entry["idx_sha256"] not in given and column_path(entry["prefix"], "seed").exists()
        }
        if not lacking:
            return corpus
        return Corpus([*corpus.prefixes, *lacking], corpus.tokenizer.directory)

    def seeds_in(self, corpus: Corpus) -> np.ndarray:
        """Flat ids of the seed documents in a corpus that has the seed corpus among its prefixes.

        Returns:
            int64 [documents].

        Raises:
            InputError: If a prefix that seeds were drawn from is not one of the corpus, or a seed
                is in none.
        """
        given = {entry["idx_sha256"]: number for number, entry in enumerate(corpus.fingerprints)}
        ids = np.array(self.columns["seed"])
        for part, entries in enumerate(self._seed_corpora):
            rows = slice(*self.documents.offsets[part : part + 2])
            counts = [entry["documents"] for entry in entries]
            offsets = np.concatenate(([0], np.cumsum(counts)))
            shifts = np.empty(len(counts), dtype=np.int64)
            for number, entry in enumerate(entries):
                place = given.get(entry["idx_sha256"])
                if place is None:
                    names = ", ".join(map(str, corpus.prefixes))
                    raise InputError(
                        f"{self.prefixes[part]}: its seeds are documents of {entry['prefix']}, "
                        f"which is not among the given corpus ({names}); add it to --corpus"
                    )
                shifts[number] = corpus.offsets[place] - offsets[number]
            outside = (ids[rows] < 0) | (ids[rows] >= offsets[-1])
            if outside.any():
                document = int(np.argmax(outside))
                raise InputError(
                    f"{self.prefixes[part]}: document {document} has the seed "
                    f"{ids[rows][document]}, but its seeds' corpus has ids 0 to "
                    f"{offsets[-1] - 1}; synthesize again"
                )
            ids[rows] += shifts[np.searchsorted(offsets, ids[rows], side="right") - 1]
        return ids


class _Columns(Mapping[str, np.ndarray]):
    """The columns of some prefixes, each joined when it is first asked for.

    Args:
        corpus: The documents.
    """

    def __init__(self, corpus: Corpus):
        self._parts = {
            name: [
                _open(column_path(prefix, name), dtype, count)
                for prefix, count in zip(corpus.prefixes, corpus.counts.tolist(), strict=True)
            ]
            for name, dtype in COLUMNS.items()
        }
        self._joined: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._joined:
            parts = self._parts[name]
            self._joined[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return self._joined[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _open(path: Path, dtype: Any, documents: int) -> np.ndarray:
    """The column of one prefix, memory-mapped."""
    try:
        column = open_npy(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a prefix that synthesize.py or "
            "filter_synthetic.py wrote"
        ) from None
    if column.shape != (documents,) or column.dtype != dtype:
        raise InputError(
            f"{path}: {column.dtype} {list(column.shape)}, but the corpus needs "
            f"{np.dtype(dtype)} [{documents}]; synthesize again"
        )
    return column


class ColumnWriter:
    """Writes the columns of a corpus batch by batch, holding none of them.

    Args:
        prefix: Of the corpus.
    """

    def __init__(self, prefix: str | Path):
        self._files: dict[str, BinaryIO] = {}
        self._rows = 0
        for name in COLUMNS:
            # Closed by __exit__, all together.
            self._files[name] = open(column_path(prefix, name), "wb")  # noqa: SIM115
            self._write_header(name)

    def _write_header(self, name: str) -> None:
        """The header of so many rows; NumPy leaves room in it for any number."""
        descr = np.lib.format.dtype_to_descr(np.dtype(COLUMNS[name]))
        header = {"descr": descr, "fortran_order": False, "shape": (self._rows,)}
        np.lib.format.write_array_header_1_0(self._files[name], header)

    def extend(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows.

        Args:
            columns: Values [n] of every column; others are left out.
        """
        for name, dtype in COLUMNS.items():
            self._files[name].write(np.ascontiguousarray(columns[name], dtype).tobytes())
        self._rows += len(columns["seed"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name, file in self._files.items():
            file.seek(0)
            self._write_header(name)
            file.close()
