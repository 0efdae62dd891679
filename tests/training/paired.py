"""Datasets of pairs for the tests, and what they should hold, written out pair by pair."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.training.pairs.dataset import (
    PairedDocumentDataset,
    PairedDocumentDatasetConfig,
)

BOS, SEP, EOD, PAD = 0, 1, 0, 2
DEFAULTS: dict[str, Any] = {
    "sequence_length": 96,
    "random_seed": 5,
    "before": (BOS,),
    "between": (SEP,),
    "after": (EOD,),
    "eod": EOD,
    "pad": PAD,
}

type Pair = tuple[int, int]
type Segment = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Tokens, labels and loss mask."""


def config(corpus: Corpus, *stores: Path, **options: Any) -> PairedDocumentDatasetConfig:
    """Training on the first prefix of a corpus, validation on the second."""
    if "blend" not in options and "blend_per_split" not in options:
        train, heldout = map(str, corpus.prefixes)
        options["blend_per_split"] = [([train], None), ([heldout], None), None]
    return PairedDocumentDatasetConfig(pairs=tuple(map(str, stores)), **(DEFAULTS | options))


def build(
    corpus: Corpus,
    *stores: Path,
    sizes: Sequence[int | None] = (None, None, None),
    **options: Any,
) -> list[Any]:
    """The datasets of training, validation and test."""
    made = config(corpus, *stores, **options)
    return BlendedMegatronDatasetBuilder(PairedDocumentDataset, sizes, lambda: True, made).build()


def rows_of(store: Path) -> list[Pair]:
    """The pairs of a store."""
    columns = (np.load(store / f"{name}.npy").tolist() for name in ("anchor", "neighbor"))
    return list(zip(*columns, strict=True))


def body(corpus: Corpus, document: int) -> list[int]:
    """A document without its end."""
    tokens = [int(token) for token in corpus.tokens(document)]
    return tokens[:-1] if tokens and tokens[-1] == EOD else tokens


class Expected:
    """What an epoch should hold, by the letter of the contract.

    Args:
        corpus: The documents.
        pairs: (d1, d2), in the direction they are read.
        options: As for ``build``.
    """

    def __init__(self, corpus: Corpus, pairs: Iterable[Pair], **options: Any):
        self._options = {
            **DEFAULTS,
            **{"overflow": "truncate", "truncate_d1": "tail", "d1_share": 0.5, "min_d2": 1},
            **{"multiple": 1, "packing": True},
            **options,
        }
        self.segments: list[Segment] = []
        self.counts: Counter[str] = Counter()
        for first, second in pairs:
            self._add(body(corpus, first), body(corpus, second))

    def _add(self, first: list[int], second: list[int]) -> None:
        options = self._options
        before, between, after = (list(options[k]) for k in ("before", "between", "after"))
        room = options["sequence_length"] + 1 - len(before + between + after)
        kept1, kept2 = len(first), len(second)
        while kept1 + kept2 > room:
            if options["overflow"] == "skip":
                self.counts["skipped_long"] += 1
                return
            if kept1 > int(options["d1_share"] * room):
                kept1 -= 1
            else:
                kept2 -= 1
        if kept2 < options["min_d2"]:
            self.counts["skipped_short"] += 1
            return
        end = after if kept2 == len(second) else []
        self.counts["pairs"] += 1
        self.counts["cut_d1"] += kept1 < len(first)
        self.counts["cut_d2"] += kept2 < len(second)
        d1 = first[:kept1] if options["truncate_d1"] == "tail" else first[len(first) - kept1 :]
        whole = before + d1 + between + second[:kept2] + end
        supervised = kept2 + len(end)
        self.counts["tokens"] += len(whole) - 1
        self.counts["supervised_tokens"] += supervised
        tokens, labels = whole[:-1], whole[1:]
        mask = [0] * (len(labels) - supervised) + [1] * supervised
        filling = -len(tokens) % options["multiple"]
        self.segments.append(
            (
                (*tokens, *[options["pad"]] * filling),
                (*labels, *[0] * filling),
                (*mask, *[0] * filling),
            )
        )


def segments_of(sample: Mapping[str, torch.Tensor]) -> list[Segment]:
    """The segments of a row, without the padding at its end."""
    columns = [sample[name].int().tolist() for name in ("tokens", "labels", "loss_mask")]
    length = len(sample["position_ids"])
    assert [len(column) for column in columns] == [length] * 3
    bounds = sample["cu_seqlens"].tolist() if "cu_seqlens" in sample else [0, length]
    segments: list[Segment] = []
    for begin, end in pairwise(bounds):
        tokens, labels, mask = (tuple(column[begin:end]) for column in columns)
        if any(mask):
            segments.append((tokens, labels, mask))
        else:
            assert set(tokens) <= {PAD} and not any(labels)
    return segments


def epoch(dataset: Any) -> list[dict[str, torch.Tensor]]:
    """The samples of a dataset's first epoch."""
    return [dataset[index] for index in range(len(dataset))]


def contents(samples: Iterable[Mapping[str, torch.Tensor]]) -> list[Segment]:
    """The segments of several rows, sorted."""
    return sorted(segment for sample in samples for segment in segments_of(sample))
