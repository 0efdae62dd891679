"""The filter stage: synthetic corpora in, one corpus without their failures out."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus, recorded_corpus
from megatron_sbp.corpus.indexed import IndexedWriter, optimal_dtype
from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.embedding.shards import Embeddings, check_corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Stage, difference, peak_memory_bytes
from megatron_sbp.npy import save_npy
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.filter_options import FilterOptions
from megatron_sbp.synthesis.store import (
    COLUMNS,
    ORIGIN,
    ColumnWriter,
    SyntheticCorpus,
    column_path,
)
from megatron_sbp.synthesis.verdicts import FILTERS, PASSED, Filters

_EXAMPLES = 5
_WRITTEN = 4096  # documents written at a time
_SAME = ("documents_per_shard",)  # an option of the embed stage that its vectors do not depend on


@dataclass(kw_only=True, slots=True)
class Filtered:
    """What a filtering run found."""

    counts: dict[str, Any]
    """As they stand in the manifest."""
    examples: dict[str, list[tuple[int, str]]]
    """Filter -> number and text of the first documents that it left out; empty for an output
    that was there already."""


class _Inputs:
    """What the options name, opened and found to belong together.

    Args:
        options: The options.
    """

    def __init__(self, options: FilterOptions):
        self.synthetic, self.real = SyntheticCorpus(options.synthetic), Corpus(options.corpus)
        self.encoder: EncoderSpec | None = None
        self.embeddings: Embeddings | None = None
        if options.encoder is not None:
            named = EmbedOptions(corpus=options.corpus, output="", encoder=options.encoder)
            self.encoder = named.spec()
        if options.embeddings is not None:
            self.embeddings = Embeddings(options.embeddings)
            self._check_embeddings(self.embeddings)

    def _check_embeddings(self, embeddings: Embeddings) -> None:
        """Refuse embeddings of another corpus, or by another encoder."""
        if len(embeddings) != len(self.real):
            raise InputError(
                f"{embeddings.directory}: has {len(embeddings):,} rows, but --corpus has "
                f"{len(self.real):,} documents; give the embeddings of this corpus"
            )
        if embeddings.manifest is None or self.encoder is None:
            return
        recorded = recorded_corpus(embeddings.manifest, embeddings.directory)
        check_corpus(recorded, self.real, embeddings.directory)
        made = {k: v for k, v in embeddings.manifest.options.items() if k not in _SAME}
        if changes := difference(made, self.encoder.settings()):
            raise InputError(
                f"{embeddings.directory}: was not made by this --encoder ({changes}); name the one "
                "it was made by, or leave --embeddings out"
            )

    def files(self) -> list[Path]:
        """What the stage names as its inputs."""
        embeddings = [] if self.embeddings is None else self.embeddings.files()
        return [*self.synthetic.files(), *self.real.files(), *embeddings]


def filter_synthetic(options: FilterOptions, ranks: Ranks | None = None) -> Filtered:
    """Leave out the documents that fail a filter, on all ranks.

    Raises:
        InputError: On one rank, if a corpus cannot be read, seeds are not in the real corpus,
            something given does not fit, or nothing is left; the others end with status 2.
    """
    ranks = ranks or Ranks()
    inputs = ranks.together(lambda: _Inputs(options))
    with ExitStack() as stack:
        stage = ranks.on_first(lambda: _open_stage(options, inputs, stack))
        counts = ranks.share(stage.manifest.counts if stage and stage.complete else None)
        if counts is not None:
            return Filtered(counts=counts, examples={})
        filters = Filters(options, inputs.synthetic, inputs.real, ranks)
        verdicts = filters.verdicts(inputs.encoder, inputs.embeddings)
        found = ranks.together(lambda: _summarise(inputs.synthetic, verdicts))
        peak = ranks.most(peak_memory_bytes())
        ranks.on_first(lambda: _finish(stage, options, inputs, verdicts, found, peak))
    return found


def _open_stage(options: FilterOptions, inputs: _Inputs, stack: ExitStack) -> Stage | None:
    """The stage; None for a dry run."""
    if options.dry_run or options.output_prefix is None:
        return None
    stage = Stage.open(
        Path(options.output_prefix).parent,
        "filter",
        options=options.content(inputs.encoder),
        inputs=inputs.files(),
    )
    return stack.enter_context(stage)


def _summarise(synthetic: SyntheticCorpus, verdicts: np.ndarray) -> Filtered:
    """Count what each filter takes, and read its first documents."""
    kept = np.flatnonzero(verdicts == PASSED)
    removed = np.bincount(verdicts, minlength=PASSED + 1)[:PASSED]
    examples = {}
    for number, name in enumerate(FILTERS):
        first = np.flatnonzero(verdicts == number)[:_EXAMPLES].tolist()
        examples[name] = list(zip(first, synthetic.documents.texts(first), strict=True))
    counts = {
        "documents": len(kept),
        "tokens": int(synthetic.documents.lengths_of(kept).sum()),
        "given": len(synthetic),
        "removed": dict(zip(FILTERS, removed.tolist(), strict=True)),
        "corpus": synthetic.seed_corpus,
        "checkpoint": synthetic.manifests[0].counts["checkpoint"],
    }
    return Filtered(counts=counts, examples=examples)


def _finish(
    stage: Stage | None,
    options: FilterOptions,
    inputs: _Inputs,
    verdicts: np.ndarray,
    found: Filtered,
    peak: int,
) -> None:
    """Write the documents that are kept, unless it is a dry run."""
    if stage is None or options.output_prefix is None:
        return
    if not found.counts["documents"]:
        reasons = ", ".join(f"{name} {count}" for name, count in found.counts["removed"].items())
        raise InputError(
            f"{' '.join(options.synthetic)}: no document passes the filters ({reasons}); "
            "relax them or tune the synthesizer for longer"
        )
    kept = np.flatnonzero(verdicts == PASSED)
    _write(inputs.synthetic, kept, stage.workspace / Path(options.output_prefix).name)
    stage.finish(counts=found.counts, peak_memory=peak)


def _write(synthetic: SyntheticCorpus, kept: np.ndarray, prefix: Path) -> None:
    """Write the documents that are kept and their columns."""
    tokenizer = synthetic.documents.tokenizer
    dtype = optimal_dtype(tokenizer.vocab_size)
    with IndexedWriter(prefix, dtype) as documents, ColumnWriter(prefix) as columns:
        for begin in range(0, len(kept), _WRITTEN):
            rows = kept[begin : begin + _WRITTEN]
            tokens = [synthetic.documents.tokens(number) for number in rows.tolist()]
            documents.extend(np.concatenate(tokens), [len(some) for some in tokens])
            columns.extend({name: synthetic.columns[name][rows] for name in COLUMNS})
    save_npy(column_path(prefix, ORIGIN), kept)
    tokenizers.copy(str(tokenizer.directory), prefix.parent / "tokenizer")
