"""Rows of a training set as text, with what has a loss marked."""

import itertools
import re
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from megatron.core.datasets.blended_dataset import BlendedDataset

from megatron_sbp.training.data import DatasetsProvider
from megatron_sbp.training.indexes import one_builder
from megatron_sbp.training.ledger import ledger
from megatron_sbp.training.lint.check import Finding, LintOptions
from megatron_sbp.training.sources import training_rows


@contextmanager
def training_set(args: Namespace, rows: int) -> Iterator[Any]:
    """The training set as the run builds it, but of few rows, and with its indices elsewhere.

    Args:
        args: The run's arguments.
        rows: Rows that are needed, at least one.
    """
    with one_builder(), tempfile.TemporaryDirectory(prefix="lint_corpus-") as cache:
        # How often synthetic documents are read depends on the rows; that was checked before.
        changes = {"data_cache_path": cache, "sbp_synthetic_data": []}
        provider = DatasetsProvider(Namespace(**vars(args) | changes))
        yield provider([rows, None if args.full_validation else rows, rows])[0]


def sources(args: Namespace, train: Any) -> Iterator[Finding]:
    """What an epoch of every source of pairs holds, and how much of it the run reads."""
    if args.sbp_objective != "synthesis":
        return
    blended = isinstance(train, BlendedDataset)
    members = train.datasets if blended else [train]
    weights = train.weights if blended else [1.0]
    for member, weight in zip(members, weights, strict=True):
        read = round(training_rows(args) * weight / sum(weights))
        (entry,) = ledger(member, read, args.sbp_synthetic_data)
        counts = entry["counts"]
        filled = counts["tokens"] / (counts["rows"] * args.seq_length)
        yield Finding(
            "ok",
            "sources",
            f"{entry['prefix']}: {counts['pairs']:,} pairs in {counts['rows']:,} rows, "
            f"{filled:.1%} of their positions filled, {counts['supervised_tokens']:,} tokens with "
            f"a loss, of which the run reads {entry['epochs']:.2f} epochs; cut: "
            f"{counts['cut_d1']:,} d1, {counts['cut_d2']:,} d2; left out: "
            f"{counts['skipped_long']:,} too long, {counts['skipped_short']:,} with a d2 too short",
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a row that see each other and nothing else."""

    tokens: list[int]
    """Its tokens, one more than it has positions: the last is only a label."""
    supervised: list[bool]
    """Whether a token is a label with a loss."""
    padding: int
    """Positions after it that hold nothing."""


def segments(sample: dict[str, Any]) -> list[Segment]:
    """Part a row into its segments; one that holds nothing has no tokens.

    Args:
        sample: A row of GPTDataset or PairedDocumentDataset, with cu_seqlens if it is packed.
    """
    tokens, labels = sample["tokens"].numpy(), sample["labels"].numpy()
    mask = sample["loss_mask"].numpy() > 0
    bounds = [0, len(tokens)]
    if "cu_seqlens" in sample:
        bounds = np.unique(sample["cu_seqlens"].numpy()).tolist()
    found = []
    for start, stop in itertools.pairwise(bounds):
        end = stop
        if "control" in sample:
            # A pair ends with a label that has a loss.
            supervised = np.flatnonzero(mask[start:stop])
            end = start + int(supervised[-1]) + 1 if len(supervised) else start
        first = tokens[start : start + 1] if end > start else tokens[:0]
        found.append(
            Segment(
                tokens=[*first.tolist(), *labels[start:end].tolist()],
                supervised=[*[False] * len(first), *mask[start:end].tolist()],
                padding=stop - end,
            )
        )
    return found


def rows(train: Any, tokenizer: Any, options: LintOptions, color: bool) -> Iterator[str]:
    """Lines that show the first rows of a training set.

    Args:
        train: The training set.
        tokenizer: Megatron's tokenizer.
        options: How many rows, and how much of them.
        color: Whether to colour what has a loss; otherwise it stands in [[ ]].
    """
    for number in range(min(options.lint_preview, len(train))):
        sample = train[number]
        member = train.datasets[sample["dataset_id"]] if "dataset_id" in sample else train
        parts = segments(sample)
        padding = sum(part.padding for part in parts)
        length = len(sample["tokens"])
        filled = [part for part in parts if part.tokens]
        supervised = int((sample["loss_mask"] > 0).sum())
        yield ""
        yield (
            f"row {number} of {member.dataset_path}: {length - padding:,} positions in "
            f"{len(filled)} segment{'s' * (len(filled) != 1)}, {supervised:,} with a loss, "
            f"{padding:,} of padding"
        )
        for place, part in enumerate(filled, start=1):
            if len(filled) > 1:
                yield (
                    f"  {place}. {len(part.tokens) - 1:,} positions, {sum(part.supervised):,} with "
                    f"a loss, {part.padding:,} of padding after it"
                )
            yield "     " + _text(part, tokenizer, options.lint_characters, color)


def _text(segment: Segment, tokenizer: Any, characters: int, color: bool) -> str:
    """Text of a segment in one line, what has a loss in green or in [[ ]]."""
    open_mark, close_mark = ("\033[32m", "\033[0m") if color else ("[[", "]]")
    shown = ""
    pieces = zip(segment.tokens, segment.supervised, strict=True)
    for supervised, piece in itertools.groupby(pieces, key=lambda pair: pair[1]):
        ids = [token for token, _ in piece]
        text = _printable(tokenizer.detokenize(ids, skip_special_tokens=False))
        text = _shortened(text, characters)
        shown += f"{open_mark}{text}{close_mark}" if supervised else text
    return shown


def _printable(text: str) -> str:
    """A text that stays in its line; documents must not be able to steer the terminal."""
    text = re.sub(r"\r\n?|\n", "↵", text).expandtabs(4)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _shortened(text: str, most: int) -> str:
    """Head and tail of a text that is longer than ``most`` characters (0: any)."""
    left_out = len(text) - most
    if not most or left_out <= 0:
        return text
    tail = most // 2
    return f"{text[: most - tail]} ... {left_out:,} characters ... {text[len(text) - tail :]}"
