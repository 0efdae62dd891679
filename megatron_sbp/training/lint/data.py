"""Checks of the data paths of a run: files, token ids, and how often every source is read."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import bin_path, idx_path
from megatron_sbp.corpus.tokenizer import FILENAME as TOKENIZER
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import FILENAME as MANIFEST
from megatron_sbp.training.data import data_paths, gpt_config
from megatron_sbp.training.lint.arguments import Run
from megatron_sbp.training.lint.check import Check, Finding
from megatron_sbp.training.sources import Source, check_once, planned, sources

_MAX_DOCUMENTS = 2**31 - 1  # Megatron keeps document numbers in int32 (its issue 1056).
_LENGTHS = 1 << 22  # Lengths looked at at a time: tens of megabytes.


def checks(run: Run, documents: int) -> Iterator[tuple[str, Check]]:
    """Name and function of every check; ``documents`` of every path are read."""
    yield "data paths", partial(_find_paths, run)
    for path in run.paths:
        yield "data path", partial(_check_path, run, path)
        if path in run.readable and run.tokenizer is not None:
            yield "token ids", partial(_check_tokens, run, path, documents)
    if run.complete:
        yield "sources", partial(check_sources, run)
    if run.paths:
        yield "cache", partial(_check_cache, run)


def _find_paths(run: Run) -> list[Finding]:
    run.paths = data_paths(run.args)
    if not run.paths:
        gpt_config(run.args)  # says which argument is missing
    return []


def _check_path(run: Run, path: str) -> Iterator[Finding]:
    """Whether the run can open a data path, what is in it, and which tokenizer made it."""
    args = run.args
    # Documents of several sequences are no error to Megatron; ids of documents need one for each.
    ours = args.sbp_objective == "synthesis" or (Path(path).parent / MANIFEST).exists()
    several = ""
    try:
        corpus = Corpus([path], tokenizer=args.tokenizer_model)
    except InputError as error:
        if ours or not _is_whole(path):
            raise
        several = str(error)
    dataset = IndexedDataset(path)
    if len(dataset) > _MAX_DOCUMENTS:
        raise InputError(
            f"{path}: {len(dataset):,} documents, but Megatron counts to {_MAX_DOCUMENTS:,} in one "
            "prefix; split it over several"
        )
    run.readable.append(path)
    lengths = dataset.sequence_lengths
    empty = _count(lengths, 0, 0)
    long = _count(lengths, args.seq_length + 1, np.iinfo(np.int32).max)
    tokens = int(lengths.sum(dtype=np.int64))
    yield Finding(
        "ok",
        "data path",
        f"{path}: {len(dataset):,} documents, {tokens:,} tokens ({np.dtype(dataset.index.dtype)}); "
        f"{long:,} documents ({long / len(dataset):.2%}) are longer than --seq-length "
        f"{args.seq_length:,}",
    )
    if several:
        yield Finding("warning", "data path", f"{several} (--sbp-objective lm does without)")
    if empty:
        text = f"{path}: {empty:,} documents ({empty / len(dataset):.2%}) are empty"
        yield Finding("warning", "data path", text)
    if not several:
        yield from _check_tokenizer(args.tokenizer_model, corpus)


def _is_whole(path: str) -> bool:
    """Whether a prefix is what Megatron reads, and holds all of the tokens it tells of."""
    if not (idx_path(path).exists() and bin_path(path).exists()):
        return False
    try:
        dataset = IndexedDataset(path)
    except Exception:  # Megatron asserts
        return False
    dtype = np.dtype(dataset.index.dtype)
    size = int(dataset.sequence_lengths.sum(dtype=np.int64)) * dtype.itemsize
    return dtype.kind in "iu" and bin_path(path).stat().st_size == size


def _check_tokenizer(given: str | None, corpus: Corpus) -> Iterator[Finding]:
    """Compare the tokenizer that a corpus was made with, if it says so, with the run's."""
    (prefix,) = corpus.prefixes
    text = f"{prefix}: cannot tell whether it was made with the tokenizer of the run: "
    if not (prefix.parent / MANIFEST).exists():
        yield Finding("warning", "data path", text + f"no {MANIFEST} is beside it")
    elif given is None or not (Path(given) / TOKENIZER).is_file():
        yield Finding("warning", "data path", text + f"{given} is no directory with {TOKENIZER}")
    else:
        _ = corpus.tokenizer  # compares checksums


def _count(lengths: np.ndarray, least: int, most: int) -> int:
    """How many of many lengths lie in a range, without an array of their number."""
    pieces = (lengths[start : start + _LENGTHS] for start in range(0, len(lengths), _LENGTHS))
    return sum(int(np.count_nonzero((piece >= least) & (piece <= most))) for piece in pieces)


def _check_tokens(run: Run, path: str, documents: int) -> Iterator[Finding]:
    """Read some documents: whether their ids are the tokenizer's, and whether they end in eod."""
    size, eod = run.tokenizer.vocab_size, run.tokenizer.eod
    dataset = IndexedDataset(path)
    dtype = np.dtype(dataset.index.dtype)
    if np.iinfo(dtype).max < size - 1:
        raise InputError(
            f"{path}: its ids are {dtype}, up to {np.iinfo(dtype).max:,}, but the tokenizer has "
            f"{size:,} ids; make it again with this tokenizer"
        )
    draw = np.random.default_rng(run.args.seed)
    drawn = np.sort(draw.choice(len(dataset), min(documents, len(dataset)), replace=False))
    ended = 0
    for document in drawn:
        tokens = dataset[int(document)]
        wrong = np.flatnonzero((tokens < 0) | (tokens >= size))
        if len(wrong):
            raise InputError(
                f"{path}: document {document} has id {tokens[wrong[0]]} at position {wrong[0]}, "
                f"but the tokenizer has {size:,} ids; give the tokenizer it was made with"
            )
        ended += bool(len(tokens)) and int(tokens[-1]) == eod
    yield Finding(
        "ok" if ended == len(drawn) else "warning",
        "token ids",
        f"{path}: {len(drawn):,} documents drawn, no id outside the tokenizer's; "
        f"{ended / len(drawn):.1%} of them end with eod",
    )


def check_sources(run: Run) -> Iterator[Finding]:
    """How often the run reads every source of documents, and whether that is meant."""
    args = run.args
    found = sources(args)
    yield from _check_overlap(found)
    training = [source for source in found if source.split is Split.train]
    paths = {source.path for source in training}
    for path in args.sbp_synthetic_data:
        if path not in paths:
            text = f"--sbp-synthetic-data {path}: is not spelled as any of the training data paths"
            yield Finding("error", "sources", text)
    if args.sbp_objective == "lm":
        yield from _check_epochs(run)


def _check_overlap(found: list[Source]) -> Iterator[Finding]:
    """Tell of data paths that lie whole in several splits."""
    whole = {source.split: set[str]() for source in found}
    for source in found:
        if source.share == (0.0, 1.0):
            whole[source.split].add(source.path)
    for split, paths in whole.items():
        for path in sorted(paths & whole[Split.train]) if split is not Split.train else []:
            text = f"{path}: is in the training and in the {split.name} set"
            yield Finding("warning", "sources", text)


def _check_epochs(run: Run) -> Iterator[Finding]:
    """How often every source is read."""
    found = planned(run.args)
    if not run.args.sbp_allow_synthetic_repeats:
        check_once(found)
    for source in found:
        yield Finding("ok", "sources", source.line())


def _check_cache(run: Run) -> Iterator[Finding]:
    """Whether the indices of the datasets can be written where the run would write them."""
    given = run.args.data_cache_path
    # The default is Megatron's (GPTDataset._build_document_sample_shuffle_indices).
    for place in [given] if given else [f"{path}/cache" for path in run.paths]:
        above = (Path(place), *Path(place).absolute().parents)
        there = next(directory for directory in above if directory.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise InputError(
                f"{place}: cannot be written ({error.strerror}: {there}); "
                "give --data-cache-path a directory that can"
            ) from None
    shown = given or "PREFIX/cache beside every data path"
    yield Finding("ok", "cache", f"{shown}: can be written")
