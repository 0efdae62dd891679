"""A synthetic corpus: a Megatron prefix with columns that say where each document came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest

COLUMNS: dict[str, Any] = {
    "seed": np.int64,  # flat id of the seed document in the corpus that the manifest names
    "sampling_seed": np.uint64,  # what all random choices of the document follow from
    "finish_reason": np.uint8,  # 0: end of document, 1: maximum length
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
    """Tokens of the seed document that stood in the prompt."""
    seed_cut: bool
    """Whether the seed document is longer than that."""


def column_path(prefix: str | Path, name: str) -> Path:
    """The file of a provenance column."""
    return Path(f"{prefix}.{name}.npy")


class SyntheticCorpus:
    """A finished output of ``synthesize.py`` or ``filter_synthetic.py``, memory-mapped.

    Args:
        prefix: Path without ``.bin``/``.idx``.

    Raises:
        InputError: If a file is missing or damaged, or a column has another length than the corpus.
    """

    def __init__(self, prefix: str | Path):
        self.prefix = Path(prefix)
        self.documents = Corpus([prefix])
        """The documents."""
        self.manifest = Manifest.read(self.prefix.parent)
        """The manifest of the box."""
        self.columns = {name: self._open(name, dtype) for name, dtype in COLUMNS.items()}
        """Column name -> values, one row per document."""

    def __len__(self) -> int:
        return len(self.documents)

    def files(self) -> list[Path]:
        """Documents and columns, which is what a stage names as its inputs."""
        return self.documents.files() + [column_path(self.prefix, name) for name in COLUMNS]

    def _open(self, name: str, dtype: Any) -> np.ndarray:
        path = column_path(self.prefix, name)
        try:
            column = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); give a prefix that synthesize.py or "
                "filter_synthetic.py wrote"
            ) from None
        if column.shape != (len(self.documents),) or column.dtype != dtype:
            raise InputError(
                f"{path}: {column.dtype} {list(column.shape)}, but the corpus needs "
                f"{np.dtype(dtype)} [{len(self.documents)}]; synthesize again"
            )
        return column

    def seeds_in(self, corpus: Corpus) -> np.ndarray:
        """Flat ids of the seed documents in a corpus that has the seed corpus among its prefixes.

        Returns:
            int64 [documents].

        Raises:
            InputError: If a prefix that seeds were drawn from is not one of the corpus.
        """
        given = {entry["idx_sha256"]: number for number, entry in enumerate(corpus.fingerprints)}
        seeds = np.asarray(self.columns["seed"])
        ids = np.empty_like(seeds)
        start = 0
        for entry in self.manifest.counts["corpus"]:
            number = given.get(entry["idx_sha256"])
            if number is None:
                names = ", ".join(map(str, corpus.prefixes))
                raise InputError(
                    f"{self.prefix}: its seeds are documents of {entry['prefix']}, which is not "
                    f"among the given corpus ({names}); add it to --corpus"
                )
            rows = (seeds >= start) & (seeds < start + entry["documents"])
            ids[rows] = seeds[rows] - start + corpus.offsets[number]
            start += entry["documents"]
        return ids
