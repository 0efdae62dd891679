"""What a run reads of each source: epochs and tokens, and that synthetic documents come once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_sbp.errors import InputError
from megatron_sbp.training.pairs.dataset import PairedDocumentDataset


def check_synthetic_once(dataset: Any, synthetic: Sequence[str]) -> None:
    """Refuse a run that would read a synthetic document twice.

    The method trains on synthetic documents once and repeats real ones (arXiv 2509.15248,
    section 3). Megatron builds 0.5% more samples than a blend draws
    (``--mid-level-dataset-surplus``) and shuffles over all epochs it builds, so what counts is what
    is built.

    Raises:
        InputError: Naming the prefix and how often it would be read.
    """
    for member in _members(dataset):
        if member.dataset_path not in synthetic:
            continue
        epochs = len(member.document_index) // len(member.indices)
        if epochs > 1:
            tokens, length = _tokens(member), member.config.sequence_length
            raise InputError(
                f"{member.dataset_path}: the run asks for {member.num_samples * length:,} tokens "
                f"of its {tokens:,} synthetic ones and would read them {epochs} times; "
                "lower its weight or synthesize more"
            )


def ledger(dataset: Any, consumed: int, synthetic: Sequence[str]) -> list[dict[str, Any]]:
    """What a run read of each source.

    Args:
        dataset: The training dataset.
        consumed: Samples that were trained on.
        synthetic: Prefixes that are synthetic.

    Returns:
        One entry a source: prefix, kind, documents (or pairs), tokens (unique ones; for pairs the
        supervised tokens of an epoch), tokens_seen, epochs, and for pairs what an epoch holds, see
        ``PairedDocumentDataset.counts``.
    """
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
        entries.append(entry)
    return entries


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
