"""The documents of one split of a run, by the ids that a pair store has for them."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.utils import Split

from megatron_sbp import manifest
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import idx_path
from megatron_sbp.errors import InputError
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.training.pairs.config import PairedDocumentDatasetConfig

_SAMPLE = 1024  # Documents of a prefix that are looked at for how they end.


@dataclass(frozen=True)
class PairedPrefix:
    """One data path of the run, seen as part of the corpus that pairs were mined over."""

    pairs: PairStore
    """The pair store."""
    path: str
    """This prefix."""
    number: int
    """Its position in the pair store's corpus."""
    documents: int
    """Number of its documents."""
    idx_sha256: str
    """Checksum of its ``.idx``."""


def find_prefix(path: str, config: PairedDocumentDatasetConfig) -> PairedPrefix:
    """Find a data path in the pair stores' corpora, by content and not by name.

    Raises:
        InputError: If no store was mined over this prefix, or more than one.
    """
    wanted = _idx_sha256(path)
    found, mined = [], []
    for store in map(_open_pairs, config.pairs, config.pairs_fingerprints):
        for number, entry in enumerate(store.corpus or ()):
            mined.append(entry["prefix"])
            if entry["idx_sha256"] == wanted:
                found.append(PairedPrefix(store, path, number, entry["documents"], wanted))
                break
    if not found:
        raise InputError(
            f"{path}: is not a corpus of the pairs in {', '.join(config.pairs)} (mined over "
            f"{', '.join(mined)}); mine pairs over it or leave it out of the data path"
        )
    if len(found) > 1:
        stores = " and ".join(str(prefix.pairs.directory) for prefix in found)
        raise InputError(
            f"{path}: the pairs in {stores} were all mined over it; give --sbp-pairs one of them, "
            "or mine once over all prefixes"
        )
    return found[0]


@lru_cache(maxsize=64)
def _open_pairs(directory: str, _fingerprint: str) -> PairStore:
    """A pair store; of a run's ranks only the first checks all rows, which it builds before."""
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    store = PairStore(directory, check_rows=first)
    if store.corpus is None:
        raise InputError(f"{directory}: does not say which corpus its ids mean; mine with --corpus")
    return store


def _idx_sha256(path: str) -> str:
    index = idx_path(path)
    try:
        status = index.stat()
    except OSError as error:
        raise InputError(f"{index}: {error.strerror}; check the data path") from None
    return _checksum(index, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _checksum(path: Path, _size: int, _time: int) -> str:
    return str(manifest.fingerprint(path)["sha256"])


@lru_cache(maxsize=64)
def _open_corpus(paths: tuple[str, ...], _checksums: tuple[str, ...]) -> Corpus:
    return Corpus(paths)


def _members(
    config: PairedDocumentDatasetConfig, store: PairStore, split: Split
) -> list[tuple[PairedPrefix, int, int]]:
    """The prefixes of a store that a split reads, with their first document and last + 1."""
    if config.blend_per_split is not None:
        blend, share = config.blend_per_split[split.value], (0.0, 1.0)
    else:
        blend, share = config.blend, config.split_matrix[split.value]
    members = {}
    for path in blend[0]:
        prefix = find_prefix(path, config)
        # Builder threads may have opened one store twice, so that it is not the same object.
        if prefix.pairs.directory == store.directory:
            # The rounding of BlendedMegatronDatasetBuilder._build_megatron_dataset_splits.
            first, last = (round(bound * float(prefix.documents)) for bound in share)
            members[prefix.number] = (prefix, first, last)
    return list(members.values())


class SplitDocuments:
    """The documents of a split that a pair store has ids for.

    Args:
        config: The run's data paths, splits and end-of-document token.
        store: The pair store.
        split: The split.
    """

    def __init__(self, config: PairedDocumentDatasetConfig, store: PairStore, split: Split):
        members = _members(config, store, split)
        self.prefixes = [prefix for prefix, _, _ in members]
        """The prefixes of the store that the split reads."""
        self.ends: list[bool] | None = None
        """Of each prefix whether all its documents are taken to end in ``eod``, so that their
        lengths without it are known from the ``.idx``; None until ``sample_ends``."""
        self._eod = config.eod
        self._corpus = _open_corpus(
            tuple(prefix.path for prefix in self.prefixes),
            tuple(prefix.idx_sha256 for prefix in self.prefixes),
        )
        counts = [entry["documents"] for entry in store.corpus or ()]
        self._offsets = np.cumsum([0, *counts])
        self._begins = self._offsets.tolist()
        # By position in the store's corpus. Prefixes that the split does not read have none.
        self._bounds = np.zeros((2, len(counts)), dtype=np.int64)
        self._shifts = np.zeros(len(counts), dtype=np.int64)
        for place, (prefix, first, last) in enumerate(members):
            offset = self._offsets[prefix.number]
            self._bounds[:, prefix.number] = offset + first, offset + last
            self._shifts[prefix.number] = self._corpus.offsets[place] - offset
        self._shift_list: list[int] = self._shifts.tolist()

    def bounds(self, prefix: PairedPrefix) -> tuple[int, int]:
        """Id of the split's first document in a prefix, and of its last + 1."""
        first, last = self._bounds[:, prefix.number].tolist()
        return first, last

    def contain(self, ids: np.ndarray) -> np.ndarray:
        """Whether documents of the store's corpus are in the split, bool [n]."""
        first, last = self._bounds[:, self._numbers(ids)]
        return (ids >= first) & (ids < last)

    def sample_ends(self) -> None:
        """See how some documents of every prefix end, and set ``ends``."""
        self.ends = []
        for count, offset in zip(self._corpus.counts, self._corpus.offsets, strict=False):
            sample = offset + np.unique(np.linspace(0, count - 1, _SAMPLE).astype(np.int64))
            empty = self._corpus.lengths_of(sample) == 0
            self.ends.append(bool(np.all(self._corpus.end_in(sample, self._eod) | empty)))

    def body_lengths(self, ids: np.ndarray) -> np.ndarray:
        """Lengths of documents of the split without the ``eod`` at their end, int64 [n]."""
        assert self.ends is not None
        documents = ids + self._shifts[self._numbers(ids)]
        lengths = self._corpus.lengths_of(documents)
        if all(self.ends):
            return np.maximum(lengths - 1, 0)
        place = np.searchsorted(self._corpus.offsets, documents, side="right") - 1
        ends = np.array(self.ends)[place]
        lengths[ends] = np.maximum(lengths[ends] - 1, 0)
        lengths[~ends] = self._corpus.body_lengths(documents[~ends], self._eod)
        return lengths

    def body(self, document: int) -> np.ndarray:
        """Tokens of a document of the split without the ``eod`` at its end.

        Raises:
            InputError: If it has none, though it is taken to end in one.
        """
        inside = document + self._shift_list[bisect_right(self._begins, document) - 1]
        tokens = self._corpus.tokens(inside)
        if not tokens.size:
            return tokens
        if tokens.item(-1) == self._eod:
            return tokens[:-1]
        place, row = self._corpus.locate(inside)
        assert self.ends is not None
        if self.ends[place]:
            raise InputError(
                f"{self._corpus.prefixes[place]}: document {row} does not end in the "
                f"end-of-document token {self._eod}, but all of {_SAMPLE:,} others that were "
                "looked at do; make the corpus again with --append-eod"
            )
        return tokens

    def _numbers(self, ids: np.ndarray) -> np.ndarray:
        """Positions of documents' prefixes in the store's corpus, int64 [n]."""
        return np.searchsorted(self._offsets, ids, side="right") - 1
