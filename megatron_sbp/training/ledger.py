"""What a run has read of each source: tokens and epochs, beside what was planned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_sbp.training.pairs.dataset import PairedDocumentDataset
from megatron_sbp.training.sources import Planned


def ledger(
    dataset: Any, consumed: int, synthetic: Sequence[str], planned: Sequence[Planned] = ()
) -> list[dict[str, Any]]:
    """What a run read of each source.

    Args:
        dataset: The training dataset.
        consumed: Samples that were trained on.
        synthetic: Prefixes that are synthetic.
        planned: What was to be read of documents.

    Returns:
        One entry a source: prefix, kind, documents (or pairs), tokens (unique ones; for pairs the
        supervised tokens of an epoch), tokens_seen, epochs, for documents tokens_planned, of as
        many samples, and for pairs what an epoch holds, see ``PairedDocumentDataset.counts``.
    """
    plans = {source.path: source for source in planned}
    total = sum(source.rows for source in planned)
    entries = []
    for member in _members(dataset):
        samples = _samples(dataset, member, consumed)
        counts: dict[str, int] = {}
        if isinstance(member, PairedDocumentDataset):
            counts = member.counts()
            kind, documents, tokens = "pairs", counts["pairs"], counts["supervised_tokens"]
            epochs = samples / counts["rows"]
            # Rows of an epoch differ in their supervised tokens, so part of one is an estimate.
            seen = round(epochs * tokens)
        else:
            kind = "synthetic" if member.dataset_path in synthetic else "real"
            documents, tokens = len(member.indices), _tokens(member)
            seen = samples * member.config.sequence_length
            epochs = seen / tokens
        entry: dict[str, Any] = {
            "prefix": member.dataset_path,
            "kind": kind,
            "documents": documents,
            "tokens": tokens,
            "tokens_seen": seen,
            "epochs": epochs,
        }
        if counts:
            entry["counts"] = counts
        if plan := plans.get(member.dataset_path):
            entry["tokens_planned"] = round(consumed * plan.rows / total) * plan.length
        entries.append(entry)
    return entries


def differences(entries: Sequence[dict[str, Any]], length: int) -> list[str]:
    """The sources of which more or less was read than planned, by more than rounding.

    Args:
        entries: Of ``ledger``.
        length: Tokens of a row. A blend is a row off its weights for each source at most.
    """
    return [
        f"{entry['prefix']}: {entry['tokens_seen']:,} tokens were read, but "
        f"{entry['tokens_planned']:,} were planned"
        for entry in entries
        if "tokens_planned" in entry
        and abs(entry["tokens_seen"] - entry["tokens_planned"]) > length * len(entries)
    ]


def _tokens(member: GPTDataset) -> int:
    return int(member.dataset.sequence_lengths[member.indices].sum())


def _members(dataset: Any) -> list[Any]:
    return dataset.datasets if isinstance(dataset, BlendedDataset) else [dataset]


def _samples(dataset: Any, member: Any, consumed: int) -> int:
    """How many of the first ``consumed`` samples come from ``member``."""
    if not isinstance(dataset, BlendedDataset):
        return consumed
    number = dataset.datasets.index(member)
    return int(np.count_nonzero(dataset.dataset_index[:consumed] == number))
