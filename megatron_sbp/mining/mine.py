"""The mine stage: embeddings in, pairs of related documents out.

    prepare ── all ranks ──> a search and its units of work
    units ── dealt to ranks ──> candidates, one file per unit
    blocks of anchors ── dealt to ranks ──> the best candidates, filtered, one part per block
    parts ── dealt to ranks ──> one direction, cap per neighbour, the three columns

A file depends on nothing but its unit or block, so the result is the same for any number of ranks,
and an interrupted run continues with what has no file.
"""

import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.shards import Embeddings, check_corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage, fingerprint, peak_memory_bytes
from megatron_sbp.mining import recall
from megatron_sbp.mining.arrays import check_arrays
from megatron_sbp.mining.clusters import gathered_bytes
from megatron_sbp.mining.filters import PairFilters
from megatron_sbp.mining.findings import Findings, map_pairs, save_pairs
from megatron_sbp.mining.index import INDEX
from megatron_sbp.mining.layout import Block, Layout, cut, shares
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import Pairs, PairStore
from megatron_sbp.mining.parts import Parts
from megatron_sbp.mining.products import usable_device
from megatron_sbp.mining.ring import SpreadEmbeddings
from megatron_sbp.mining.search import Preparation, Search
from megatron_sbp.mining.settle import Settled, settle
from megatron_sbp.mining.window import Window
from megatron_sbp.ranks import Ranks
from megatron_sbp.sealed import check_seal


@dataclass(slots=True, eq=False)
class Inputs:
    """What a mining job reads."""

    embeddings: Embeddings
    corpus: Corpus | None
    pairs: PairStore | None
    """Mined pairs, for a control set."""

    @classmethod
    def open(cls, options: MineOptions, ranks: Ranks) -> "Inputs":
        """Open everything and check that it belongs together; collective.

        Raises:
            InputError: If something is missing or damaged, the embeddings are not the corpus's, or
                there are fewer documents than neighbours asked for.
        """
        if options.transfer == "ring":
            embeddings: Embeddings = SpreadEmbeddings(options.embeddings, ranks)
        else:
            embeddings = ranks.together(lambda: Embeddings(options.embeddings))
        return ranks.together(lambda: cls._check(options, embeddings))

    @classmethod
    def _check(cls, options: MineOptions, embeddings: Embeddings) -> "Inputs":
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

    def files(self) -> dict[str, dict[str, Any]]:
        """Every file with its fingerprint, which is what the stage names as its inputs."""
        boxes = (self.embeddings, self.corpus, self.pairs)
        known: dict[str, dict[str, Any]] = {}
        if isinstance(self.embeddings, SpreadEmbeddings):
            known = self.embeddings.fingerprints
        paths = [path for box in boxes if box is not None for path in box.files()]
        return {str(path): known.get(str(path)) or fingerprint(path) for path in paths}

    def fingerprints(self) -> list[dict[str, Any]] | None:
        """Those of the corpus, from the embeddings' manifest if no corpus is given."""
        if self.corpus is not None:
            return self.corpus.fingerprints
        manifest = self.embeddings.manifest
        return manifest.counts.get("corpus") if manifest else None

    def layout(self, options: MineOptions) -> Layout:
        """The blocks of the job.

        Raises:
            InputError: If the memory does not suffice.
        """
        count = len(self.embeddings)
        shape = (count, self.embeddings.dimensions, options.depth(count))
        memory, taken = options.memory_bytes, 0
        if options.search == "clusters":
            taken = gathered_bytes(memory)
        if options.block_size:
            return Layout.of_size(*shape, options.block_size, memory=memory, taken=taken)
        device = usable_device(options.device).type
        return Layout.fit(*shape, memory=memory, device=device, taken=taken)

    def blocks(self, size: int) -> list[Block]:
        """The corpus, cut into blocks."""
        if isinstance(self.embeddings, SpreadEmbeddings):
            return self.embeddings.blocks(size)
        return cut(len(self.embeddings), size)


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
    inputs = Inputs.open(options, ranks)
    layout = ranks.together(lambda: inputs.layout(options))
    with ExitStack() as stack:
        stage = ranks.on_first(lambda: stack.enter_context(_open_stage(options, inputs)))
        scratch = ranks.share(stage.scratch if stage and not stage.complete else None)
        if scratch is not None:
            job = _Job(options, inputs, layout, scratch, ranks)
            ranks.on_first(job.remove_other_blocks)
            job.check_left()
            counts = job.run()
            if not counts["pairs"]:
                ranks.on_first(lambda: shutil.rmtree(scratch))  # Other options will be tried next.
                ranks.on_first(lambda: _refuse_nothing(options, counts))
            peak = ranks.most(peak_memory_bytes())
            ranks.on_first(lambda: stage.finish(counts=counts, peak_memory=peak) if stage else None)
        manifest = ranks.share(stage.manifest if stage else None)
    assert manifest is not None
    return manifest


def _open_stage(options: MineOptions, inputs: Inputs) -> Stage:
    stage = Stage.open(
        options.output, "mine", options=options.content(), inputs=inputs.files(), resumable=True
    )
    if not stage.complete:
        stage.scratch.mkdir(exist_ok=True)
    return stage


class _Job:
    """One mining job on all ranks; every step is collective."""

    def __init__(
        self, options: MineOptions, inputs: Inputs, layout: Layout, scratch: Path, ranks: Ranks
    ):
        self._options, self._inputs, self._layout = options, inputs, layout
        self._ranks, self._workspace = ranks, scratch.parent
        self._blocks = inputs.blocks(layout.size)
        key = zlib.crc32(np.array(self._blocks, dtype=np.int64).tobytes())
        self._scratch = scratch / f"blocks-{key:08x}"
        self._parts = Parts(self._scratch / "parts", self._blocks)

    def remove_other_blocks(self) -> None:
        """Remove what was made with other blocks, of which nothing is of use."""
        for other in self._scratch.parent.iterdir():
            if other != self._scratch:
                shutil.rmtree(other)
        self._scratch.mkdir(exist_ok=True)

    def check_left(self) -> None:
        """Read what an interrupted run has left.

        Raises:
            InputError: If a file is not as it was written.
        """
        left = self._found(lambda: sorted(self._scratch.rglob("*.arrays")))
        own = left[self._ranks.rank :: self._ranks.size]

        def check() -> None:
            for path in own:
                check_arrays(path)

        self._ranks.together(check)
        index = self._scratch / INDEX
        self._ranks.on_first(lambda: check_seal(index) if index.exists() else None)

    def run(self) -> dict[str, Any]:
        """Do what is not done yet; return the counts for the manifest."""
        from threadpoolctl import threadpool_limits

        options, inputs = self._options, self._inputs
        with threadpool_limits(self._ranks.cores):
            preparation = Preparation(
                options,
                inputs.embeddings,
                inputs.pairs,
                self._layout,
                self._blocks,
                self._scratch,
                self._ranks,
            )
            search = preparation.search()
            findings = Findings(self._scratch / "found", search.units)
            balance = self._search(search, findings)
            self._filter(search, findings, preparation.window)
            settled = settle(
                self._parts,
                self._workspace,
                self._ranks,
                one_direction=options.direction == "one" and inputs.pairs is None,
                cap=0 if inputs.pairs else options.max_anchors_per_neighbor,
            )
        counts = self._count(search, findings, settled)
        counts["search"] = search.figures | {
            "block": self._layout.size,
            "units": len(search.units),
            "ranks": self._ranks.size,
            "largest_share": balance,
        }
        return counts

    def _search(self, search: Search, findings: Findings) -> float:
        """Do the units that have no file; return the largest share of work over the mean."""
        missing = self._found(findings.missing)
        if not missing:
            return 1.0
        if search.dealt is None:
            costs = [search.units[unit].cost for unit in missing]
            dealt = [[missing[at] for at in share] for share in shares(costs, self._ranks.size)]
        else:
            wanted = set(missing)
            dealt = [[unit for unit in own if unit in wanted] for own in search.dealt]
        self._ranks.together(lambda: self._do(search, findings, dealt[self._ranks.rank]))
        work = [sum(search.units[unit].cost for unit in own) for own in dealt]
        return round(max(work) * len(work) / sum(work), 3)

    def _do(self, search: Search, findings: Findings, units: Sequence[int]) -> None:
        found = zip(units, search.finder.find(units), strict=True)
        for unit, result in self._shown("search", found, len(units), "units"):
            findings.save(unit, result)

    def _found[T](self, look: Callable[[], list[T]]) -> list[T]:
        """What rank 0 finds in the scratch directory, on every rank."""
        return self._ranks.share(self._ranks.on_first(look)) or []

    def _shown[T](self, title: str, work: Iterator[T], total: int, unit: str) -> Iterator[T]:
        """Work piece by piece, shown on rank 0, as long as no other rank has failed."""
        title = f"{title}, share of rank 0 of {self._ranks.size}" if self._ranks.size > 1 else title
        shown = Progress(title, total, unit) if self._ranks.rank == 0 else nullcontext()
        with shown as progress:
            for piece in work:
                self._ranks.check()
                yield piece
                if progress is not None:
                    progress.update()

    def _filter(self, search: Search, findings: Findings, window: Window) -> None:
        """Make the parts that are missing."""
        missing = self._found(self._parts.missing)
        own = missing[self._ranks.rank :: self._ranks.size]
        filters = None if self._inputs.pairs else PairFilters(self._options, self._inputs.corpus)

        def work() -> None:
            for block in self._shown("filter", iter(own), len(own), "blocks"):
                bounds = self._parts.blocks[block]
                units = search.per_block[block]
                pairs = Pairs.join([Pairs.none(), *(findings.pairs(u, bounds) for u in units)])
                # A control set has its own scores, inside the window or not.
                pairs = window.best(pairs) if filters else pairs.ordered()
                self._keep_sample(block, pairs[np.isin(pairs.anchor, search.sample)])
                counts = Counter(candidates=len(pairs))
                if filters:
                    pairs, removed = filters.apply(pairs)
                    counts.update(removed)
                self._parts.save(block, pairs, counts)

        self._ranks.together(work)

    def _sample_path(self, block: int) -> Path:
        return self._scratch / "sampled" / f"{block:06}.arrays"

    def _keep_sample(self, block: int, pairs: Pairs) -> None:
        """Keep what was found for anchors of the sample that recall is measured on."""
        if len(pairs):
            self._sample_path(block).parent.mkdir(exist_ok=True)
            save_pairs(self._sample_path(block), pairs)

    def _count(self, search: Search, findings: Findings, settled: Settled) -> dict[str, Any]:
        """The counts of the job.

        Pairs and what was removed add up to ``documents * (documents - 1)``.
        """
        own = shares([1.0] * len(search.units), self._ranks.size)[self._ranks.rank]
        figures = self._ranks.gather([findings.figures(unit) for unit in own])
        above = sum(number for part in figures for number, _ in part)
        blocks = range(self._ranks.rank, len(self._parts.blocks), self._ranks.size)
        counted = sum((self._parts.counts(block) for block in blocks), Counter[str]())
        totals = sum(self._ranks.gather(counted), Counter[str]())
        documents = len(self._inputs.embeddings)
        counts: dict[str, Any] = {
            "documents": documents,
            "candidates": totals["candidates"],
            "highest_similarity": max(highest for part in figures for _, highest in part),
            "token_filters": self._inputs.corpus is not None,
            "corpus": self._inputs.fingerprints(),
            "pairs": settled.pairs,
        }
        if self._inputs.pairs is None:
            below = documents * (documents - 1) - above - totals["candidates"]
            names = PairFilters.names(self._options, self._inputs.corpus)
            counts["removed"] = {
                "above_maximum": above,
                "below_minimum_or_not_nearest": below,
                **{name: totals[name] for name in names},
                **settled.removed,
            }
        if search.exact is not None:
            counts["recall"] = self._ranks.share(self._recall(search.exact))
        return counts

    def _recall(self, exact: Pairs) -> dict[str, Any] | None:
        """What was found of the sample's exact candidates; on rank 0."""
        if self._ranks.rank:
            return None
        paths = sorted((self._scratch / "sampled").glob("*.arrays"))
        found = Pairs.join([Pairs.none(), *(map_pairs(path)[0] for path in paths)])
        measured = asdict(recall.estimate(exact.anchor, recall.contained(exact, found)))
        return {name: round(value, 6) for name, value in measured.items()}


def _refuse_nothing(options: MineOptions, counts: dict[str, Any]) -> None:
    if counts["candidates"]:
        raise InputError(
            f"{options.output}: the filters removed all {counts['candidates']:,} candidate pairs "
            f"({counts['removed']}); loosen them"
        )
    raise InputError(
        f"--min-similarity {options.min_similarity}: no two documents are that similar; the "
        f"highest similarity is about {counts['highest_similarity']:.3f}, choose a lower limit"
    )
