"""Checks of the pair stores of a run, against its data paths and their splits."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from megatron.core.datasets.utils import Split

from megatron_sbp.corpus.indexed import idx_path
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import fingerprint
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.training.data import paired_config
from megatron_sbp.training.lint.arguments import Run, spelled
from megatron_sbp.training.lint.check import Check, Finding
from megatron_sbp.training.pairs.config import PairedDocumentDatasetConfig
from megatron_sbp.training.pairs.documents import SplitDocuments, find_prefix
from megatron_sbp.training.sources import sources

_ROWS = 1 << 22  # Rows looked at at a time: tens of megabytes.


def checks(run: Run) -> Iterator[tuple[str, Check]]:
    """Name and function of every check."""
    args = run.args
    if args.sbp_objective != "synthesis" or not run.complete:
        return
    stores: list[PairStore] = []
    for directory in args.sbp_pairs:
        yield "pairs", partial(_check_store, directory, run.paths, stores)
    configs: list[PairedDocumentDatasetConfig] = []
    if len(stores) == len(args.sbp_pairs):
        yield "template", partial(_check_template, run, configs)
    for config in configs:
        covered: list[str] = []
        yield "pairs", partial(_check_paths, run.paths, config, covered)
        if covered == run.paths:
            yield "pairs", partial(_check_splits, run, config)


def _check_template(run: Run, configs: list[PairedDocumentDatasetConfig]) -> Iterator[Finding]:
    """Make the configuration of the pairs' dataset, and put it into ``configs``."""
    config = paired_config(run.args)
    configs.append(config)
    parts = zip((config.before, config.between, config.after), ("d1", "d2", ""), strict=True)
    shown = " ".join(f"{spelled(run.tokenizer, ids)} {document}" for ids, document in parts)
    others = config.context_documents - 1
    beside = f", with d1 up to {others:,} of its neighbors" if others else ""
    text = f"{shown.rstrip()}; {config.room:,} tokens for both documents{beside}"
    yield Finding("ok", "template", text)


def _check_store(directory: str, paths: list[str], stores: list[PairStore]) -> list[Finding]:
    """Read a store, look for its corpus among the data paths, and put it into ``stores``."""
    store = PairStore(directory)
    if store.corpus is None:
        raise InputError(f"{directory}: does not say which corpus its ids mean; mine with --corpus")
    mined = {entry["idx_sha256"]: entry["prefix"] for entry in store.corpus}
    if not mined.keys() & {fingerprint(idx_path(path))["sha256"] for path in paths}:
        raise InputError(
            f"{directory}: was mined over {', '.join(mined.values())}, and none of that is a data "
            "path of the run; mine pairs over its data paths"
        )
    stores.append(store)
    return []


def _check_paths(
    paths: list[str], config: PairedDocumentDatasetConfig, covered: list[str]
) -> Iterator[Finding]:
    """Look for the pairs of every data path, and put those that have some into ``covered``."""
    for path in paths:
        try:
            find_prefix(path, config)
        except InputError as error:
            yield Finding("error", "pairs", str(error))
        else:
            covered.append(path)


def _check_splits(run: Run, config: PairedDocumentDatasetConfig) -> Iterator[Finding]:
    """Count the pairs of every store in the splits, and those that are in none."""
    splits: dict[PairStore, dict[Split, SplitDocuments]] = {}
    for source in sources(run.args):
        store = find_prefix(source.path, config).pairs
        documents = splits.setdefault(store, {})
        if source.split not in documents:
            documents[source.split] = SplitDocuments(config, store, source.split)
    for store, documents in splits.items():
        counts, crossing, absent = _count(store, documents)
        inside = "".join(f"{count:,} in the {split.name} set, " for split, count in counts.items())
        yield Finding(
            "ok",
            "pairs",
            f"{store.directory}: {len(store):,} pairs, {inside}{crossing:,} left out with "
            f"documents of different splits, {absent:,} with one that is in no split",
        )
        for split, count in counts.items():
            if not count:
                text = f"no pair has both documents in the {split.name} set"
                yield Finding(
                    "error", "pairs", f"{store.directory}: {text}; mine over its prefixes"
                )


def _count(
    store: PairStore, documents: dict[Split, SplitDocuments]
) -> tuple[dict[Split, int], int, int]:
    """Pairs in each split, pairs across splits, and pairs with a document that is in none."""
    counts = dict.fromkeys(documents, 0)
    crossing = absent = 0
    for start in range(0, len(store), _ROWS):
        rows = store[start : start + _ROWS]
        first = {split: some.contain(rows.anchor) for split, some in documents.items()}
        second = {split: some.contain(rows.neighbor) for split, some in documents.items()}
        together = {split: first[split] & second[split] for split in documents}
        for split, pairs in together.items():
            counts[split] += int(np.count_nonzero(pairs))
        known = np.logical_or.reduce([*first.values()]) & np.logical_or.reduce([*second.values()])
        absent += int(np.count_nonzero(~known))
        crossing += int(np.count_nonzero(known & ~np.logical_or.reduce([*together.values()])))
    return counts, crossing, absent
