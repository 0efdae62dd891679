"""Pairs of related documents as samples of Megatron's dataset layer.

A pair is the sequence ``before d1 between d2 after`` of its template, by default
``[bos] d1 [sep] d2 [eod]``. With several context documents d1's best neighbors in the pair store
follow it, ``[bos] d1 [sep] n1 [sep] n2 [sep] d2 [eod]``, but neither d2 nor documents of another
split. The loss mask lies on the labels and covers d2 and what comes after it (arXiv 2509.15248,
section 3.2: the objective is log p(d2|d1), d1 is context). A row holds as many pairs as packing
found to fit, or one. Only ids are held; tokens come from the indexed datasets.

Which pairs belong to which split follows from Megatron's own data arguments: a pair is in a split
if both its documents are. Documents of the validation set therefore appear in no training pair.

On validation every row comes twice, once with its pairs' own d1 and once with those of other pairs
of the split (``control`` 1): the difference of the two losses is the conditional gain.
"""

import hashlib
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.megatron_dataset import MegatronDataset
from megatron.core.datasets.utils import Split

from megatron_sbp.corpus.template import join
from megatron_sbp.errors import InputError
from megatron_sbp.training.pairs import index as pair_index
from megatron_sbp.training.pairs.config import PairedDocumentDatasetConfig, Segment
from megatron_sbp.training.pairs.documents import PairedPrefix, SplitDocuments, find_prefix
from megatron_sbp.training.pairs.index import Entries, PairIndex
from megatron_sbp.training.pairs.rows import RowWriter, scalar
from megatron_sbp.training.pairs.shuffle import Permutation

_KEY = """pairs_fingerprints before separator between after eod pad context_documents direction
packing overflow truncate_d1 d1_share min_d2 multiple blend blend_per_split""".split()


class PairedDocumentDataset(MegatronDataset):
    """Rows of p(d2|d1) for the pairs whose documents both lie in one split.

    Args:
        dataset: The prefix that holds the anchors of this dataset's pairs.
        dataset_path: Its path.
        indices: Documents of the prefix that are in the split.
        num_samples: Least number of rows to offer; None for one epoch.
        index_split: The split.
        config: The configuration.

    Raises:
        InputError: If no pair of the prefix lies in the split, or the index cannot be written.
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
        self._store = dataset.pairs.directory
        self._documents = SplitDocuments(config, dataset.pairs, index_split)
        self._entries = Entries(dataset, self._documents, config)
        self._with_control = index_split is not Split.train
        self.unique_identifiers["format"] = pair_index.FORMAT
        self.unique_identifiers["idx_sha256"] = [
            prefix.idx_sha256 for prefix in self._documents.prefixes
        ]
        self.unique_description = _describe(self.unique_identifiers)
        self.unique_description_hash = _checksum(self.unique_description)
        self._writer = RowWriter(config)
        self._base = self._index_path()
        if not PairIndex.exists(self._base):
            self._build_index()
        self._index = PairIndex(self._base)
        self._documents.ends = self._index.ends

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: Any) -> PairedPrefix:
        """See ``find_prefix``."""
        return find_prefix(dataset_path, config)

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: PairedPrefix) -> int:
        """Number of documents, so that Megatron's ``--split`` divides documents."""
        return low_level_dataset.documents

    @staticmethod
    def _key_config_attributes() -> list[str]:
        return [*MegatronDataset._key_config_attributes(), *_KEY]

    def counts(self) -> dict[str, int]:
        """What one epoch of the pairs holds.

        Returns:
            pairs; those with a cut_d1 and those with a cut_d2; pairs of the split left out as
            skipped_long and skipped_short; rows, without those of controls; tokens (positions that
            hold real ones) and supervised_tokens.
        """
        return dict(self._index.counts)

    def _index_path(self) -> Path:
        """Path of the index in the data cache, without the files' endings."""
        # The rows do not depend on how many of them a run takes.
        named = {k: v for k, v in self.unique_identifiers.items() if k != "num_samples"}
        name = type(self).__name__
        cache = self.config.path_to_cache or Path(self.dataset_path, "cache", f"{name}_indices")
        return Path(cache, f"{_checksum(_describe(named))}-{name}-{self.index_split.name}")

    def _build_index(self) -> None:
        try:
            counts = pair_index.build(
                self._base,
                self._entries,
                self.config,
                self.unique_description,
                controls=self._with_control,
            )
        except OSError as error:
            raise InputError(
                f"{self._base.parent}: cannot write the index of the pairs ({error.strerror}); "
                "give --data-cache-path a directory that can be written"
            ) from None
        if counts["pairs"]:
            return
        where = f"the {self.index_split.name} set of {self.dataset_path}"
        skipped = counts["skipped_long"] + counts["skipped_short"]
        if skipped:
            raise InputError(
                f"{self._store}: all {skipped:,} pairs of {where} are skipped "
                f"({counts['skipped_long']:,} too long, {counts['skipped_short']:,} with too short "
                "a d2); change --sbp-overflow or --sbp-min-d2"
            )
        raise InputError(
            f"{self._store}: no pair has both documents in {where}; mine over these prefixes "
            "together or lower --min-similarity"
        )

    def __len__(self) -> int:
        return max(self._epoch, self.num_samples or 0)

    @cached_property
    def _epoch(self) -> int:
        """Samples of an epoch."""
        return self._index.counts["rows"] * (2 if self._with_control else 1)

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """One row.

        Returns:
            tokens, labels, position_ids: int64 [sequence_length]; loss_mask: float32
            [sequence_length]; control: int64 [], 1 if other d1 stand in place of the pairs' own;
            with packing also cu_seqlens: int32 [sequence_length + 1], where segments begin and the
            last one ends, filled up with sequence_length; max_seqlen: int64 [].
        """
        epoch, position = divmod(int(idx), self._epoch)
        control = 0
        if self._with_control:
            # Every evaluation reads the same rows in the same order.
            epoch, (position, control) = 0, divmod(position, 2)
        row = _order(self._index.counts["rows"], self.config.random_seed, epoch)(position)
        return self._writer.write(self._pairs(row, control)) | {"control": scalar(control)}

    def _pairs(self, row: int, control: int) -> list[tuple[np.ndarray, np.ndarray, Segment]]:
        """The documents of a row's pairs, and what is kept of them."""
        index, room = self._index, self._entries.room
        here = index.row(row)
        ids = [self._entries.pair(entry) for entry in index.entries[here].tolist()]
        bodies = [self._documents.body(second) for _, second in ids]
        pairs = []
        for first, second in zip(self._contexts(ids), bodies, strict=True):
            segment = room.fit(len(first), len(second), min, max)
            pairs.append((first, second, segment))
        if sum(segment.size for _, _, segment in pairs) > self.config.sequence_length:
            raise InputError(
                f"{self.dataset_path}: its documents are longer than they were when the index "
                f"{self._base}-* was made of them; remove it"
            )
        if not control:
            return pairs
        assert index.controls is not None
        chosen = index.controls[here].tolist()
        others = self._contexts(
            [(other, second) for other, (_, second) in zip(chosen, ids, strict=True)]
        )
        return [
            (other, second, segment.with_first(min(segment.first, len(other))))
            for other, (_, second, segment) in zip(others, pairs, strict=True)
        ]

    def _contexts(self, pairs: list[tuple[int, int]]) -> list[np.ndarray]:
        """What stands in the place of d1, for ids of d1 and d2."""
        body = self._documents.body
        if self.config.context_documents == 1:
            return [body(first) for first, _ in pairs]
        beside = self._entries.beside(*np.array(pairs, dtype=np.int64).T)
        return [
            join(
                [body(first), *(body(other) for other in others if other >= 0)],
                self.config.separator,
            )
            for (first, _), others in zip(pairs, beside.tolist(), strict=True)
        ]


@lru_cache(maxsize=64)
def _order(rows: int, seed: int, epoch: int) -> Permutation:
    return Permutation(rows, [seed, epoch])


def _describe(identifiers: Any) -> str:
    return json.dumps(identifiers, indent=4, default=lambda part: part.unique_identifiers)


def _checksum(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
