"""What a run is to read of each source of documents, computed before anything is built.

"Synthetic documents once, real ones repeated" (arXiv 2509.15248, section 3) as token counts and
epochs. They follow from the data arguments and from how many tokens there are: of a path that
belongs to one split as a whole the sizes of its files say that, so that every rank may ask.
"""

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split, get_blend_from_list, normalize
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_sbp.corpus.indexed import bin_path, idx_path
from megatron_sbp.errors import InputError

_SURPLUS = 0.005  # of a Megatron that has no --mid-level-dataset-surplus
_WHOLE = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Source:
    """Documents of one data path that belong to one split."""

    split: Split
    path: str
    weight: float | None
    """Share of the split's rows; None: all of its rows, once."""
    share: tuple[float, float]
    """Where its documents begin and end, as shares of the path's."""

    def documents(self, count: int) -> tuple[int, int]:
        """First document and last + 1, of ``count``; rounded as Megatron's builder does."""
        first, last = (round(bound * float(count)) for bound in self.share)
        return first, last


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run is to read of one source."""

    path: str
    synthetic: bool
    documents: int
    tokens: int
    """Tokens that it has."""
    rows: int
    """Rows of the run that are its."""
    built: int
    """Rows that Megatron builds: some more, see ``--mid-level-dataset-surplus``."""
    length: int
    """Tokens of a row."""

    @property
    def tokens_read(self) -> int:
        """Tokens that are trained on."""
        return self.rows * self.length

    @property
    def epochs(self) -> float:
        """How often its tokens are read."""
        return self.tokens_read / self.tokens

    @property
    def epochs_built(self) -> int:
        """Whole epochs that Megatron builds and shuffles; it reads one token more than the rows."""
        return math.ceil((self.built * self.length + 1) / self.tokens)

    def line(self) -> str:
        """The source in one line."""
        kind = "synthetic" if self.synthetic else "real"
        return (
            f"{self.path}: {kind}, {self.documents:,} documents, {self.tokens_read:,} tokens are "
            f"read of its {self.tokens:,}: {self.epochs:.4f} epochs"
        )


def training_rows(args: Namespace) -> int:
    """Rows that the run trains on."""
    return int(args.train_samples or (args.train_iters or 0) * args.global_batch_size)


def sources(args: Namespace) -> list[Source]:
    """What Megatron's data arguments say about every split."""
    blend, per_split = get_blend_and_blend_per_split(args)
    shares: list[tuple[float, float] | None] = [_WHOLE] * len(Split)
    if blend is not None:
        shares = convert_split_vector_to_split_matrix(parse_and_normalize_split(args.split))
    found = []
    for split in Split:
        chosen = blend if per_split is None else per_split[split.value]
        share = shares[split.value]
        if chosen is None or share is None:
            continue
        paths, weights = chosen
        weights = [None] * len(paths) if weights is None else normalize(weights)
        found += [Source(split, *one, share) for one in zip(paths, weights, strict=True)]
    return found


def set_weights(args: Namespace) -> None:
    """Turn ``--sbp-synthetic-share`` into the weights of ``--train-data-path``.

    Of the real sources each gets rows by its tokens, so that all are read as often; so do the
    synthetic ones.

    Raises:
        InputError: Naming the flag, or the file that cannot be read, and the cure.
    """
    share, synthetic = args.sbp_synthetic_share, args.sbp_synthetic_data
    if share is None:
        return
    flag = f"--sbp-synthetic-share {share:g}"
    if not 0 <= share < 1:
        raise InputError(f"{flag}: must be from 0 to below 1")
    if args.sbp_objective != "lm":
        raise InputError(f"{flag} is for --sbp-objective lm; leave it out")
    if args.train_data_path is None:
        raise InputError(f"{flag} computes the weights of --train-data-path; give that")
    real, weights = get_blend_from_list(args.train_data_path)
    if weights is not None:
        raise InputError(f"{flag} computes the weights of --train-data-path; leave them out there")
    if share and not synthetic:
        raise InputError(f"{flag} needs --sbp-synthetic-data PREFIX")
    if twice := sorted({*real} & {*synthetic}):
        raise InputError(f"{twice[0]}: is in --train-data-path and in --sbp-synthetic-data; once")
    if not share:
        args.sbp_synthetic_data = []
    if share or len(real) > 1:
        blend = [*_by_tokens(real, 1 - share), *(_by_tokens(synthetic, share) if share else [])]
        args.train_data_path = [part for pair in blend for part in pair]
    else:
        args.train_data_path = real


def _by_tokens(paths: Sequence[str], share: float) -> list[tuple[str, str]]:
    """Weight and path of each, in proportion to its tokens; ``share`` all together."""
    tokens = [_size(Source(Split.train, path, None, _WHOLE))[1] for path in paths]
    weights = [share * count / sum(tokens) for count in tokens]
    return [(repr(weight), path) for weight, path in zip(weights, paths, strict=True)]


def planned(args: Namespace) -> list[Planned]:
    """What the run is to read of each source of documents.

    Args:
        args: Megatron's arguments with the SBP group, validated.

    Raises:
        InputError: If a source cannot be read or has no tokens in the training set, or if sources
            without weights, which are read once, do not suffice.
    """
    training = [source for source in sources(args) if source.split is Split.train]
    sizes = [_size(source) for source in training]
    if len(training) > 1 and training[0].weight is None:
        rows = _read_once([tokens for _, tokens in sizes], args)
    else:
        rows = [_weighted(source, len(training) == 1, args) for source in training]
    return [
        Planned(
            path=source.path,
            synthetic=source.path in args.sbp_synthetic_data,
            documents=documents,
            tokens=tokens,
            rows=read,
            built=built,
            length=args.seq_length,
        )
        for source, (documents, tokens), (read, built) in zip(training, sizes, rows, strict=True)
    ]


def _size(source: Source) -> tuple[int, int]:
    """Documents and tokens of a source."""
    for path in (idx_path(source.path), bin_path(source.path)):
        if not path.is_file():
            raise InputError(f"{path}: no such file; check the prefix")
    dataset = IndexedDataset(source.path)  # its lengths are gone as soon as it is
    first, last = source.documents(len(dataset))
    if source.share == _WHOLE:
        size = np.dtype(dataset.index.dtype).itemsize
        tokens = bin_path(source.path).stat().st_size // size
    else:
        tokens = int(dataset.sequence_lengths[first:last].sum(dtype=np.int64))
    if not tokens:
        raise InputError(f"{source.path}: no tokens are in the training set; see --split")
    return last - first, tokens


def _read_once(tokens: Sequence[int], args: Namespace) -> list[tuple[int, int]]:
    """Rows that are read and built of sources without weights: as many as are there."""
    there = [(count - 1) // args.seq_length for count in tokens]
    total = training_rows(args)
    if total > sum(there):
        raise InputError(
            f"the training paths have no weights, so they are read once: {sum(there):,} rows, but "
            f"the run needs {total:,}; give every path a weight"
        )
    return [(round(total * rows / sum(there)), rows) for rows in there]


def _weighted(source: Source, alone: bool, args: Namespace) -> tuple[int, int]:
    """Rows that are read and built of a source, as Megatron's builder of blends counts them."""
    total = training_rows(args)
    of_split = args.data_path is None and args.data_args_path is None
    if source.weight is None or (alone and of_split):
        return total, total
    surplus = 1 + getattr(args, "mid_level_dataset_surplus", _SURPLUS)
    return round(total * source.weight), math.ceil(math.ceil(total * source.weight) * surplus)


def check_once(found: Sequence[Planned]) -> None:
    """Refuse a run that would read a synthetic document twice.

    Megatron builds more rows than a blend draws and shuffles over all epochs it builds, so what
    counts is what is built.

    Raises:
        InputError: Naming the prefix, its tokens and the cure.
    """
    for source in found:
        if source.synthetic and source.epochs_built > 1:
            least = (source.tokens - 1) / (source.built * source.length)
            raise InputError(
                f"{source.path}: the run asks for {source.built * source.length:,} tokens of its "
                f"{source.tokens:,} synthetic ones and would read them {source.epochs_built} "
                f"times; lower its share to {least:.3f} of what it is, synthesize "
                "more, or give --sbp-allow-synthetic-repeats"
            )


def announce(args: Namespace) -> list[Planned]:
    """What the run is to read, which rank 0 prints; for the objective ``lm``.

    Raises:
        InputError: As ``planned``, and as ``check_once`` without ``--sbp-allow-synthetic-repeats``.
    """
    found = planned(args)
    if args.rank == 0:
        for source in found:
            print(source.line(), flush=True)
    if not args.sbp_allow_synthetic_repeats:
        check_once(found)
    return found
