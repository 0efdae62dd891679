"""The filter stage: a synthetic corpus in, the same corpus without its failures out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.duplicates import Duplicates
from megatron_sbp.corpus.indexed import IndexedWriter, optimal_dtype
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Stage
from megatron_sbp.synthesis.engine import END_OF_DOCUMENT
from megatron_sbp.synthesis.store import COLUMNS, ORIGIN, SyntheticCorpus, column_path
from megatron_sbp.synthesis.text import containment, is_repetitive, same_words

FILTERS = (
    "no_end_of_document",
    "too_short",
    "repetition",
    "copy_of_seed",
    "near_duplicate_of_synthetic",
    "near_duplicate_of_real",
)
"""In the order in which they are asked: the first one that a document fails takes the count."""
_EXAMPLES = 5


@dataclass(kw_only=True, slots=True)
class FilterOptions:
    """Options of ``tools/filter_synthetic.py``."""

    synthetic: str = field(metadata={"metavar": "S"})
    """Prefix of the synthetic corpus."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the real corpus; those that the seeds come from must be among them."""
    output_prefix: str | None = field(default=None, metadata={"metavar": "F"})
    """Path without .bin/.idx of the filtered corpus; needed unless --dry-run."""
    dry_run: bool = False
    """Say what would be left out, and write nothing."""
    min_tokens: int = field(default=16, metadata={"metavar": "TOKENS"})
    """Leave out documents with fewer tokens, the end-of-document token not counted."""
    repetition: bool = True
    """Leave out documents that break MassiveText's rules on repetition."""
    max_containment: float = field(default=0.8, metadata={"metavar": "SHARE"})
    """Leave out documents of which this share of the 5-word shingles, or more, is in the seed."""

    def __post_init__(self) -> None:
        if self.output_prefix is None and not self.dry_run:
            raise InputError("give --output-prefix F, or --dry-run to write nothing")
        if self.min_tokens < 0:
            raise InputError(f"--min-tokens {self.min_tokens}: must be at least 0")
        if not 0 < self.max_containment <= 1:
            raise InputError(
                f"--max-containment {self.max_containment}: must be above 0 and at most 1"
            )

    def content(self) -> dict[str, Any]:
        """What decides the content of the output, besides the inputs."""
        names = ("min_tokens", "repetition", "max_containment")
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True, slots=True)
class Filtered:
    """What a filtering run found."""

    counts: dict[str, Any]
    """As they stand in the manifest."""
    examples: dict[str, list[tuple[int, str]]]
    """Filter -> number and text of the first documents that it left out; empty for an output
    that was there already."""


def filter_synthetic(options: FilterOptions) -> Filtered:
    """Leave out the documents that fail a filter.

    Raises:
        InputError: If a corpus cannot be read, seeds are not in the real corpus, or nothing is
            left.
    """
    synthetic, real = SyntheticCorpus(options.synthetic), Corpus(options.corpus)
    if options.dry_run:
        return _find(options, synthetic, real)[1]
    assert options.output_prefix is not None
    output = Path(options.output_prefix)
    with Stage.open(
        output.parent,
        "filter",
        options=options.content(),
        inputs=[*synthetic.files(), *real.files()],
    ) as stage:
        if stage.complete:
            return Filtered(counts=stage.manifest.counts, examples={})
        kept, found = _find(options, synthetic, real)
        if not len(kept):
            reasons = ", ".join(
                f"{name} {count}" for name, count in found.counts["removed"].items()
            )
            raise InputError(
                f"{options.synthetic}: no document passes the filters ({reasons}); "
                "relax them or tune the synthesizer for longer"
            )
        _write(synthetic, kept, stage.workspace / output.name)
        stage.finish(counts=found.counts)
    return found


def _find(
    options: FilterOptions, synthetic: SyntheticCorpus, real: Corpus
) -> tuple[np.ndarray, Filtered]:
    """Numbers int64 of the documents to keep, and what was found."""
    kept: list[int] = []
    removed = Counter(dict.fromkeys(FILTERS, 0))
    examples: dict[str, list[tuple[int, str]]] = {name: [] for name in FILTERS}
    with Progress("filter", len(real) + len(synthetic), "documents") as progress:
        for number, (text, failed) in enumerate(_judge(options, synthetic, real, progress)):
            if failed is None:
                kept.append(number)
                continue
            removed[failed] += 1
            if len(examples[failed]) < _EXAMPLES:
                examples[failed].append((number, text))
    counts = {
        "documents": len(kept),
        "tokens": int(synthetic.documents.lengths[kept].sum()),
        "given": len(synthetic),
        "removed": dict(removed),
        "corpus": synthetic.manifest.counts["corpus"],
        "checkpoint": synthetic.manifest.counts["checkpoint"],
    }
    return np.array(kept, dtype=np.int64), Filtered(counts=counts, examples=examples)


def _judge(
    options: FilterOptions, synthetic: SyntheticCorpus, real: Corpus, progress: Progress
) -> Iterator[tuple[str, str | None]]:
    """Yield the text of every synthetic document and the first filter that it fails."""
    seeds = synthetic.seeds_in(real)
    among_real, among_synthetic = Duplicates("near"), Duplicates("near")
    for text in real.texts(range(len(real))):
        among_real.seen(text)
        progress.update()
    texts = synthetic.documents.texts(range(len(synthetic)))
    for number, (text, seed) in enumerate(zip(texts, real.texts(seeds), strict=True)):
        progress.update()
        if synthetic.columns["finish_reason"][number] != END_OF_DOCUMENT:
            yield text, "no_end_of_document"
        elif synthetic.documents.lengths[number] - 1 < options.min_tokens:
            yield text, "too_short"
        elif options.repetition and is_repetitive(text):
            yield text, "repetition"
        elif same_words(text, seed) or containment(text, seed) >= options.max_containment:
            yield text, "copy_of_seed"
        elif among_synthetic.seen(text):
            yield text, "near_duplicate_of_synthetic"
        # This remembers the text too, but a later text that is like it never comes this far.
        elif among_real.seen(text):
            yield text, "near_duplicate_of_real"
        else:
            yield text, None


def _write(synthetic: SyntheticCorpus, kept: np.ndarray, prefix: Path) -> None:
    """Write the documents that are kept and their columns."""
    tokenizer = synthetic.documents.tokenizer
    with IndexedWriter(prefix, optimal_dtype(tokenizer.vocab_size)) as writer:
        for number in kept.tolist():
            writer.append(synthetic.documents.tokens(number))
    for name in COLUMNS:
        np.save(column_path(prefix, name), synthetic.columns[name][kept])
    np.save(column_path(prefix, ORIGIN), kept)
    tokenizers.copy(str(tokenizer.directory), prefix.parent / "tokenizer")
