"""Pairs of related documents as samples of Megatron's dataset layer.

A sample is ``[bos] d1 [sep] d2 [eod]``, one pair a row, padded to the sequence length. The loss
mask lies on the labels and covers d2 and the end-of-document after it (arXiv 2509.15248, section
3.2: the objective is log p(d2|d1), d1 is context). Only ids are held; tokens come from the indexed
datasets.

Which pairs belong to which split follows from Megatron's own data arguments: a pair is in a split
if both its documents are. Documents of the validation set therefore appear in no training pair.

On validation every pair comes twice, once with its own d1 and once with that of another pair of the
split (``control`` 1): the difference of the two losses is the conditional gain.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split

from megatron_sbp import manifest
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.mining.pairs import PairStore

_CONTROL_WINDOW = 32


@dataclass
class PairedDocumentDatasetConfig(BlendedMegatronDatasetConfig):
    """Megatron's dataset configuration and what pairs need besides."""

    pairs: str = ""
    """Directory of the pair store."""
    pairs_fingerprint: str = field(init=False, default="")
    """SHA-256 of the pair store's manifest; set from ``pairs``."""
    bos: int = 0
    """Token id before d1."""
    separator: tuple[int, ...] = ()
    """Token ids between d1 and d2."""
    eod: int = 0
    """Token id after d2, and stripped from the end of both documents as they are read."""
    pad: int = 0
    """Token id that fills the row; never supervised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        path = Path(self.pairs) / manifest.FILENAME
        self.pairs_fingerprint = manifest.fingerprint(path)["sha256"]
        if not self.separator:
            raise InputError("--sbp-separator is empty; give a token or a string")


@dataclass(frozen=True)
class PairedPrefix:
    """One data path of the run, seen as part of the corpus that the pairs were mined over."""

    pairs: PairStore
    """The pair store."""
    path: str
    """This prefix."""
    number: int
    """Its position in the pair store's corpus."""
    documents: int
    """Number of its documents."""


type Lengths = np.ndarray | np.integer
"""One length or many."""


def fit(first: Lengths, second: Lengths, room: int) -> tuple[Lengths, Lengths]:
    """Lengths of d1 and d2 that fit into ``room`` tokens together.

    d1 gives way first, but not below half of the room; then d2 does: of 400 tokens, documents of
    (300, 150) get (250, 150) and documents of (300, 300) get (200, 200).

    Args:
        first: Lengths of d1, int64 [n].
        second: Lengths of d2, int64 [n].
        room: Tokens that there are for both.
    """
    least = np.minimum(first, room // 2)
    first = np.minimum(first, np.maximum(room - second, least))
    return first, np.minimum(second, room - first)


class PairedDocumentDataset(MegatronDataset):
    """Samples of p(d2|d1) for the pairs whose documents both lie in one split.

    Args:
        dataset: The prefix that this dataset takes its anchors (d1) from.
        dataset_path: Its path, for bookkeeping.
        indices: Anchor documents of the split, as indices in the prefix.
        num_samples: Least number of samples to offer; None for one epoch.
        index_split: The split.
        config: The configuration.

    Raises:
        InputError: If no pair of the prefix lies in the split.
    """

    def __init__(
        self,
        dataset: PairedPrefix,
        dataset_path: str,
        indices: np.ndarray,
        num_samples: int | None,
        index_split: Split,
        config: PairedDocumentDatasetConfig,
    ):
        super().__init__(dataset, dataset_path, indices, num_samples, index_split, config)
        store = dataset.pairs
        self._offsets = np.cumsum([0, *(entry["documents"] for entry in _corpus(store))])
        ranges = split_ranges(config, store, index_split)
        self._corpora = {number: Corpus([path]) for number, (path, _, _) in ranges.items()}
        low, high = self._offsets[dataset.number] + np.array([indices[0], indices[-1] + 1])
        # Pairs are sorted by anchor, so those of a range of anchors are a slice.
        begin, end = np.searchsorted(store.anchor, (low, high))
        neighbors = np.asarray(store.neighbor[begin:end])
        inside = np.zeros(len(neighbors), dtype=bool)
        for number, (_, first, last) in ranges.items():
            start = self._offsets[number]
            inside |= (neighbors >= start + first) & (neighbors < start + last)
        self._anchors = np.asarray(store.anchor[begin:end])[inside]
        self._neighbors = neighbors[inside]
        if len(self._anchors) == 0:
            raise InputError(
                f"{config.pairs}: no pair has both documents in the {index_split.name} set of "
                f"{dataset_path}; mine over these prefixes together or lower --min-similarity"
            )
        self._with_control = index_split is not Split.train
        self._controls = self._choose_controls() if self._with_control else None

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> PairedPrefix:
        """Find ``dataset_path`` in the pair store's corpus, by content and not by name.

        Raises:
            InputError: If the pairs were not mined over this prefix.
        """
        store = _open_pairs(config.pairs)
        wanted = manifest.fingerprint(f"{dataset_path}.idx")["sha256"]
        for number, entry in enumerate(_corpus(store)):
            if entry["idx_sha256"] == wanted:
                return PairedPrefix(store, dataset_path, number, entry["documents"])
        mined = ", ".join(entry["prefix"] for entry in _corpus(store))
        raise InputError(
            f"{dataset_path}: is not a corpus of the pairs in {config.pairs} (mined over {mined}); "
            "mine pairs over it or leave it out of the data path"
        )

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: PairedPrefix) -> int:
        """Number of documents, so that Megatron's ``--split`` divides documents."""
        return low_level_dataset.documents

    @staticmethod
    def _key_config_attributes() -> list[str]:
        own = ["pairs_fingerprint", "bos", "separator", "eod", "pad", "blend", "blend_per_split"]
        return [*MegatronDataset._key_config_attributes(), *own]

    @property
    def pairs(self) -> int:
        """Number of distinct pairs of this split."""
        return len(self._anchors)

    def cut_pairs(self) -> int:
        """Pairs whose two documents do not fit into a row."""
        both = self._lengths(self._anchors) + self._lengths(self._neighbors)
        return int(np.count_nonzero(both > self._room))

    @property
    def _room(self) -> int:
        """Tokens of a row that d1 and d2 share: a row is one longer than its labels."""
        return self.config.sequence_length + 1 - 2 - len(self.config.separator)

    def supervised_tokens(self) -> int:
        """Tokens of d2, end-of-documents included, over one epoch of the pairs."""
        second = self._lengths(self._neighbors)
        kept = fit(self._lengths(self._anchors), second, self._room)[1]
        return int(np.sum(kept + (kept == second)))

    def _epoch(self) -> int:
        return self.pairs * (2 if self._with_control else 1)

    def __len__(self) -> int:
        return max(self._epoch(), self.num_samples or 0)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """One row.

        Returns:
            tokens, labels, position_ids: int64 [sequence_length]; loss_mask: float32
            [sequence_length]; control: int64 [], 1 if d1 was put in place of the pair's own.
        """
        epoch, position = divmod(idx, self._epoch())
        control = 0
        if self._with_control:
            position, control = divmod(position, 2)
        else:
            position = self._permutation(epoch)[position]
        first = self._body(self._anchors[position])
        second = self._body(self._neighbors[position])
        lengths = fit(np.int64(len(first)), np.int64(len(second)), self._room)
        if control:
            assert self._controls is not None
            first = self._body(self._anchors[self._controls[position]])
        return self._row(first[: lengths[0]], second[: lengths[1]], len(second), control)

    def _row(
        self, first: np.ndarray, second: np.ndarray, whole: int, control: int
    ) -> dict[str, torch.Tensor]:
        """Lay out one pair; a d2 that was cut (shorter than ``whole``) has no end-of-document."""
        config = self.config
        end = [config.eod] if len(second) == whole else []
        row = np.concatenate([[config.bos], first, config.separator, second, end]).astype(np.int64)
        length = config.sequence_length
        filled = np.full(length + 1, config.pad, dtype=np.int64)
        filled[: len(row)] = row
        # Labels are the tokens one step later: d2 begins after bos, d1 and the separator.
        mask = np.zeros(length, dtype=np.float32)
        mask[len(first) + len(config.separator) : len(row) - 1] = 1.0
        return {
            "tokens": torch.from_numpy(filled[:-1].copy()),
            "labels": torch.from_numpy(filled[1:].copy()),
            "loss_mask": torch.from_numpy(mask),
            "position_ids": torch.arange(length),
            "control": torch.tensor(control),
        }

    def _body(self, document: int) -> np.ndarray:
        """Tokens of a document (flat id) without its end-of-document."""
        number = int(np.searchsorted(self._offsets, document, side="right")) - 1
        tokens = self._corpora[number].tokens(int(document - self._offsets[number]))
        return tokens[:-1] if len(tokens) and tokens[-1] == self.config.eod else tokens

    def _lengths(self, documents: np.ndarray) -> np.ndarray:
        """Lengths of documents (flat ids, int64 [n]) without their end-of-document, int64 [n]."""
        lengths = np.empty(len(documents), dtype=np.int64)
        numbers = np.searchsorted(self._offsets, documents, side="right") - 1
        for number, corpus in self._corpora.items():
            here = numbers == number
            inside = documents[here] - self._offsets[number]
            lengths[here] = corpus.body_lengths(inside, self.config.eod)
        return lengths

    def _permutation(self, epoch: int) -> np.ndarray:
        """The order of the pairs in an epoch, from the seed and the epoch alone."""
        return _permutation(self.config.random_seed, epoch, self.pairs)

    def _choose_controls(self) -> np.ndarray:
        """For every pair the position of another one whose d1 replaces its own, int64 [pairs].

        Drawn among those whose d1 is of similar length, so that the two losses differ by what d1
        says and not by how long it is; pairs with the same d1 or d2 are avoided where that is
        possible.
        """
        anchors, neighbors = self._anchors, self._neighbors
        order = np.argsort(self._lengths(anchors), kind="stable")
        random = np.random.default_rng([self.config.random_seed, len(order)])
        chosen = np.empty(len(order), dtype=np.int64)
        for rank, position in enumerate(order):
            low = max(0, min(rank - _CONTROL_WINDOW, len(order) - 2 * _CONTROL_WINDOW))
            near = random.permutation(order[low : low + 2 * _CONTROL_WINDOW])
            related = (anchors[near] == anchors[position]) | (anchors[near] == neighbors[position])
            chosen[position] = near[np.argmin(related)]
        return chosen


def split_ranges(
    config: BlendedMegatronDatasetConfig, store: PairStore, split: Split
) -> dict[int, tuple[str, int, int]]:
    """The documents of a split: position in the pair store's corpus -> (path, first, last + 1)."""
    if config.blend_per_split is not None:
        blend, share = config.blend_per_split[split.value], (0.0, 1.0)
    else:
        blend, share = config.blend, config.split_matrix[split.value]
    ranges = {}
    for path in blend[0]:
        prefix = PairedDocumentDataset.build_low_level_dataset(path, config)
        # The rounding of BlendedMegatronDatasetBuilder._build_megatron_dataset_splits.
        first, last = (round(bound * float(prefix.documents)) for bound in share)
        ranges[prefix.number] = (path, first, last)
    return ranges


@lru_cache(maxsize=8)
def _open_pairs(directory: str) -> PairStore:
    return PairStore(directory)


def _corpus(store: PairStore) -> list[dict[str, Any]]:
    """Fingerprints of the corpus that the ids of a pair store mean."""
    if store.corpus is None:
        raise InputError(
            f"{store.directory}: does not say which corpus its ids mean; mine with --corpus"
        )
    return store.corpus


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
