"""The mine stage: embeddings in, pairs of related documents out.

    blocks of anchors ── spread over ranks ──> search ──> filters ──> one part file per block
    parts ── rank 0, piece by piece ──> one direction, cap per neighbour ──> the three columns

A part depends on nothing but its block, so the result is the same for any number of ranks, and an
interrupted run continues with the blocks that have no part.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.shards import Embeddings, check_corpus
from megatron_sbp.errors import InputError, require
from megatron_sbp.manifest import Manifest, Stage, peak_memory_bytes
from megatron_sbp.mining.control import RandomSearch
from megatron_sbp.mining.filters import PairFilters
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import PairStore, write_columns
from megatron_sbp.mining.parts import Block, Parts, blocks
from megatron_sbp.mining.search import ExactSearch, IndexSearch, Search, Window, build_index
from megatron_sbp.mining.settle import Settling
from megatron_sbp.ranks import Ranks

_INDEX = "index.faiss"


@dataclass(slots=True, eq=False)
class Inputs:
    """What a mining job reads."""

    embeddings: Embeddings
    corpus: Corpus | None
    pairs: PairStore | None
    """Mined pairs, for a control set."""

    @classmethod
    def open(cls, options: MineOptions) -> "Inputs":
        """Open everything and check that it belongs together.

        Raises:
            InputError: If something is missing or damaged, the embeddings are not the corpus's, or
                there are fewer documents than neighbours asked for.
        """
        embeddings = Embeddings(options.embeddings)
        corpus = Corpus(options.corpus, options.tokenizer) if options.corpus else None
        if corpus is not None:
            _check_belongs(embeddings, corpus)
        pairs = PairStore(options.pairs, corpus) if options.pairs else None
        if pairs is None and options.neighbors >= len(embeddings):
            raise InputError(
                f"--neighbors {options.neighbors}: {embeddings.directory} has {len(embeddings)} "
                f"documents, so each has {len(embeddings) - 1} neighbours; ask for no more than "
                "that, or give more documents"
            )
        return cls(embeddings, corpus, pairs)

    def files(self) -> list[Path]:
        """Every file, which is what the stage names as its inputs."""
        boxes = (self.embeddings, self.corpus, self.pairs)
        return [path for box in boxes if box is not None for path in box.files()]

    def fingerprints(self) -> list[dict[str, Any]] | None:
        """Those of the corpus, from the embeddings' manifest if no corpus is given."""
        if self.corpus is not None:
            return self.corpus.fingerprints
        manifest = self.embeddings.manifest
        return manifest.counts.get("corpus") if manifest else None


def _check_belongs(embeddings: Embeddings, corpus: Corpus) -> None:
    recorded = embeddings.manifest.counts.get("corpus") if embeddings.manifest else None
    if recorded is not None:
        check_corpus(recorded, corpus, embeddings.directory)
    elif len(embeddings) != len(corpus):
        raise InputError(
            f"{embeddings.directory}: holds {len(embeddings):,} rows, but the corpus has "
            f"{len(corpus):,} documents; give the corpus that was embedded"
        )


def mine(options: MineOptions, ranks: Ranks) -> Manifest:
    """Mine pairs, or a control set, on all ranks.

    Raises:
        InputError: On one rank, if anything given is wrong; the others end with status 2.
    """
    inputs = ranks.together(lambda: Inputs.open(options))
    with ExitStack() as stack:
        stage = ranks.on_first(lambda: stack.enter_context(_open_stage(options, inputs)))
        workspace = ranks.share(stage.workspace if stage and not stage.complete else None)
        if workspace is not None:
            parts = Parts(workspace / "parts", blocks(len(inputs.embeddings), options.block_size))
            missing = ranks.share(ranks.on_first(parts.missing)) or []
            ranks.on_first(lambda: _build_index(options, inputs, workspace))
            share = missing[ranks.rank :: ranks.size]
            ranks.together(lambda: _fill(options, inputs, parts, share, ranks))
            peak = ranks.most(peak_memory_bytes())
            ranks.on_first(lambda: _finish(options, inputs, parts, stage, peak) if stage else None)
        manifest = ranks.share(stage.manifest if stage else None)
    assert manifest is not None
    return manifest


def _open_stage(options: MineOptions, inputs: Inputs) -> Stage:
    return Stage.open(
        options.output, "mine", options=options.content(), inputs=inputs.files(), resumable=True
    )


def _build_index(options: MineOptions, inputs: Inputs, workspace: Path) -> None:
    """Build the index that every rank will read, if the search needs one."""
    path = workspace / _INDEX
    if options.factory and not path.exists():
        require("faiss", package="faiss-cpu")
        build_index(
            inputs.embeddings,
            options.factory,
            path,
            block=options.block_size,
            seed=options.seed,
        )


def _search(options: MineOptions, inputs: Inputs, workspace: Path) -> Search:
    """The search that the options name, ready on this rank."""
    if inputs.pairs is not None:
        return RandomSearch(inputs.embeddings, inputs.pairs, options.seed)
    require("faiss", package="faiss-cpu")
    window = Window(
        minimum=options.min_similarity,
        maximum=np.inf if options.max_similarity is None else options.max_similarity,
        depth=min(options.candidates or 2 * options.neighbors, len(inputs.embeddings) - 1),
    )
    if options.factory:
        path = workspace / _INDEX
        return IndexSearch(inputs.embeddings, window, path, options.search_parameters)
    return ExactSearch(inputs.embeddings, window, options.block_size)


def _fill(
    options: MineOptions, inputs: Inputs, parts: Parts, share: Sequence[Block], ranks: Ranks
) -> None:
    """Search and filter this rank's share of the blocks."""
    from threadpoolctl import threadpool_limits

    search = _search(options, inputs, parts.directory.parent)
    filters = None if inputs.pairs else PairFilters(options, inputs.corpus)
    title = f"mine, share of rank 0 of {ranks.size}" if ranks.size > 1 else "mine"
    anchors = sum(stop - start for start, stop in share)
    shown = Progress(title, anchors, "documents") if ranks.rank == 0 else nullcontext()
    with threadpool_limits(ranks.cores), shown as progress:
        for block in share:
            ranks.check()
            found = search.find(*block)
            pairs = found.pairs
            counts = Counter(candidates=len(pairs), above_maximum=found.above)
            if filters is not None:
                pairs, removed = filters.apply(pairs)
                counts.update(removed)
            parts.save(block, pairs, found.highest, counts)
            if progress is not None:
                progress.update(block[1] - block[0])


def _finish(
    options: MineOptions, inputs: Inputs, parts: Parts, stage: Stage, peak_memory: int
) -> None:
    """Take the decisions that need all parts, write the columns, complete the output."""
    figures = [parts.figures(block) for block in parts.blocks]
    totals = sum((figure.counts for figure in figures), Counter[str]())
    kept = Settling(parts, [figure.pairs for figure in figures])
    counts: dict[str, Any] = {
        "documents": len(inputs.embeddings),
        "candidates": totals["candidates"],
        "highest_similarity": max(figure.highest for figure in figures),
        "token_filters": inputs.corpus is not None,
        "corpus": inputs.fingerprints(),
    }
    if options.control == "none":
        counts["removed"] = _settle(options, kept, totals, counts)
    counts["pairs"] = len(kept)
    if not len(kept):
        shutil.rmtree(parts.directory)  # The next attempt will have other options.
        raise InputError(_nothing_left(options, counts))
    write_columns(stage.workspace, len(kept), kept.pieces())
    shutil.rmtree(parts.directory)
    (stage.workspace / _INDEX).unlink(missing_ok=True)
    stage.finish(counts=counts, peak_memory=peak_memory)


def _settle(
    options: MineOptions, kept: Settling, totals: Counter[str], counts: dict[str, Any]
) -> dict[str, int]:
    """Apply what needs all parts; return how many ordered pairs every filter removed.

    With the pairs that are left they add up to ``documents * (documents - 1)``.
    """
    names = ["beyond_neighbors"]
    if counts["token_filters"]:
        names = ["identical", "near_copies", *names]
    compared = counts["documents"] * (counts["documents"] - 1)
    removed = {
        "above_maximum": totals["above_maximum"],
        "below_minimum_or_not_nearest": compared - totals["above_maximum"] - totals["candidates"],
    }
    removed |= {name: totals[name] for name in names}
    if options.direction == "one":
        removed["other_direction"] = kept.one_direction()
    if options.max_anchors_per_neighbor:
        removed["beyond_anchors_per_neighbor"] = kept.cap_neighbors(
            options.max_anchors_per_neighbor
        )
    return removed


def _nothing_left(options: MineOptions, counts: dict[str, Any]) -> str:
    if counts["candidates"]:
        return (
            f"{options.output}: the filters removed all {counts['candidates']:,} candidate pairs "
            f"({counts['removed']}); loosen them"
        )
    return (
        f"--min-similarity {options.min_similarity}: no two documents are that similar; the "
        f"highest similarity is {counts['highest_similarity']:.3f}, choose a lower limit"
    )
