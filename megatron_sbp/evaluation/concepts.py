"""Pairs and synthetic documents of a concepts corpus, measured against what is true."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_sbp.corpus.concepts.make import ORACLE, REAL
from megatron_sbp.corpus.concepts.truth import (
    DocumentTruth,
    PairTruth,
    Truth,
    concepts_of,
    pair_truth,
)
from megatron_sbp.corpus.concepts.world import World
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.findings import Figure, ratio, share
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.store import SyntheticCorpus

_STEP = 0.05  # between two thresholds
_FEWEST = 10  # pairs at the highest threshold shown


@dataclass(kw_only=True, slots=True)
class CheckOptions:
    """Options of tools/check_concepts.py."""

    concepts: str = field(metadata={"metavar": "DIR"})
    """Directory that make_concepts.py wrote."""
    pairs: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Pairs mined over its `real` documents: how many share a concept, by similarity."""
    synthetic: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Synthetic documents written from its `real` documents: what of them is true."""

    def __post_init__(self) -> None:
        if self.pairs is None and not self.synthetic:
            raise InputError("nothing to check; give --pairs, --synthetic or both")


def check_pairs(directory: str | Path, pairs: str | Path) -> list[PairTruth]:
    """Precision and recall of pairs mined over the training documents, by similarity.

    Args:
        directory: The concepts corpus.
        pairs: The pair store.

    Raises:
        InputError: If one cannot be read, or the pairs are another corpus's.
    """
    corpus = Corpus([Path(directory) / REAL])
    store = PairStore(pairs, corpus)
    ordered = np.sort(store.score)
    if not len(ordered):
        raise InputError(f"{store.directory}: has no pairs; mine again with other options")
    highest = ordered[max(0, len(ordered) - _FEWEST)]
    thresholds = np.arange(np.floor(ordered[0] / _STEP), np.floor(highest / _STEP) + 1) * _STEP
    return pair_truth(
        concepts_of(corpus), store.anchor, store.neighbor, store.score, thresholds.tolist()
    )


def check_synthetic(directory: str | Path, prefixes: list[str]) -> DocumentTruth:
    """What synthetic documents say, and what of it is true.

    Args:
        directory: The concepts corpus, whose training documents the seeds must be.
        prefixes: Of the synthetic documents.

    Raises:
        InputError: If one cannot be read, or the seeds are another corpus's.
    """
    corpus = Corpus([Path(directory) / REAL])
    synthetic = SyntheticCorpus(prefixes)
    truth = Truth(World.open(directory), corpus)
    return truth.check_corpus(synthetic.documents, synthetic.seeds_in(corpus))


def check_oracle(directory: str | Path) -> DocumentTruth:
    """The same of the oracle's documents, which are what synthetic ones should be."""
    truth = Truth(World.open(directory), Corpus([Path(directory) / REAL]))
    return truth.check_corpus(Corpus([Path(directory) / ORACLE]))


def figures(documents: DocumentTruth, chance: float) -> Mapping[str, Figure]:
    """The measures of some documents with their intervals.

    Args:
        documents: What they say.
        chance: Share of statements that are true if values are drawn at random.
    """
    known = documents.named >= 0
    well_formed, true = documents.well_formed[known], documents.true[known]
    return {
        "documents that are whole": share(documents.whole),
        "documents that name a concept": share(known),
        "documents that name the seed's": share(documents.same_concept),
        "documents that repeat a real one": share(documents.copied),
        "statements that are well formed": ratio(documents.well_formed, documents.statements),
        f"statements that are true (chance {chance:.3f})": ratio(true, well_formed),
        "true statements that the seed makes": ratio(documents.from_seed, documents.true),
    }


def check(options: CheckOptions) -> Iterator[str]:
    """Lines to print.

    Raises:
        InputError: As ``check_pairs`` and ``check_synthetic``.
    """
    world = World.open(options.concepts)
    if options.pairs is not None:
        yield f"pairs: {options.pairs}"
        yield "  similarity      pairs  precision  recall  anchors"
        for row in check_pairs(options.concepts, options.pairs):
            yield (
                f"  {row.similarity:>10.2f} {row.pairs:>10,} {row.precision:>10.3f} "
                f"{row.recall:>7.3f} {row.anchors:>8,}"
            )
    if options.synthetic:
        documents = check_synthetic(options.concepts, options.synthetic)
        yield f"synthetic documents: {len(documents.named):,}"
        for name, figure in figures(documents, 1 / world.difficulty.values).items():
            yield f"  {name:<44} {_shown(figure)}"


def _shown(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    low, high = figure.interval or (figure.value, figure.value)
    return f"{figure.value:.3f} [{low:.3f}, {high:.3f}]"
