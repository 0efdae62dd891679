"""What is true in a concepts corpus: of its documents, of pairs of them, and of synthetic ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import batched
from pathlib import Path

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.concepts.grammar import Documents, Rows
from megatron_sbp.corpus.concepts.parse import Parser
from megatron_sbp.corpus.concepts.world import World
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.words import MIX, mixed
from megatron_sbp.errors import InputError
from megatron_sbp.npy import open_npy

_BATCH = 1 << 14


def concept_path(prefix: str | Path) -> Path:
    """The file with the concept of every document of a prefix."""
    return Path(f"{prefix}.concept.npy")


def concepts_of(corpus: Corpus) -> np.ndarray:
    """Concept of every document of a corpus that make_concepts.py wrote, int64 [documents].

    Raises:
        InputError: If a prefix has no such file, or one of another length.
    """
    columns = []
    for prefix, count in zip(corpus.prefixes, corpus.counts.tolist(), strict=True):
        path = concept_path(prefix)
        try:
            column = open_npy(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); give a prefix that make_concepts.py wrote"
            ) from None
        if column.shape != (count,):
            raise InputError(
                f"{path}: {list(column.shape)} concepts, but {prefix} has {count} documents; "
                "make the corpus again"
            )
        columns.append(column.astype(np.int64))
    return np.concatenate(columns)


def read(corpus: Corpus) -> Iterator[tuple[np.ndarray, Rows]]:
    """The tokens of a corpus in batches, with the ids of the documents, int64 [n]."""
    with Progress("reading documents", len(corpus), "documents") as progress:
        for batch in batched(range(len(corpus)), _BATCH):
            yield np.array(batch), Rows.of([corpus.tokens(document) for document in batch])
            progress.update(len(batch))


def read_documents(world: World, corpus: Corpus) -> Documents:
    """What the documents of a corpus say that the grammar wrote.

    Raises:
        InputError: If one is not of the grammar.
    """
    parser, parts = Parser(world.grammar), []
    for ids, rows in read(corpus):
        whole, documents = parser.documents(rows)
        if not whole.all():
            prefix, row = corpus.locate(int(ids[np.argmin(whole)]))
            raise InputError(
                f"{corpus.prefixes[prefix]}: document {row} is not of this corpus's grammar; give "
                "a prefix that make_concepts.py wrote"
            )
        parts.append(documents)
    return Documents.join(parts)


def told(world: World, concepts: np.ndarray, documents: Documents) -> np.ndarray:
    """Which values some documents tell of their concepts, bool [concepts, attributes].

    Args:
        world: The concepts.
        concepts: int64 [n], what each document is about.
        documents: The documents.
    """
    table = np.zeros(world.values.shape, dtype=bool)
    table[concepts[:, None], documents.attribute] = True
    return table


@dataclass(frozen=True, slots=True)
class PairTruth:
    """Pairs from some similarity on: how many there are and how many share a concept."""

    similarity: float
    """Lowest similarity."""
    pairs: int
    """Pairs, each counted once whichever way round, and if both ways round once."""
    true: int
    """Of these, pairs that share a concept."""
    anchors: int
    """Documents that stand first in a pair."""
    possible: int
    """Pairs that share a concept, of all documents."""

    @property
    def precision(self) -> float:
        """Share of the pairs that share a concept."""
        return self.true / self.pairs if self.pairs else float("nan")

    @property
    def recall(self) -> float:
        """Share of the pairs that share a concept that are found."""
        return self.true / self.possible if self.possible else float("nan")


def pair_truth(
    concepts: np.ndarray,
    anchor: np.ndarray,
    neighbor: np.ndarray,
    score: np.ndarray,
    thresholds: Sequence[float],
) -> list[PairTruth]:
    """Precision and recall of pairs by threshold.

    Args:
        concepts: int64 [documents]
        anchor: int64 [pairs]
        neighbor: int64 [pairs]
        score: float [pairs]
        thresholds: Lowest similarities.
    """
    counts = np.bincount(concepts)
    possible = int((counts * (counts - 1) // 2).sum())
    order = np.argsort(-score)  # of a pair both ways round the higher score counts
    low = np.minimum(anchor, neighbor)[order]
    high = np.maximum(anchor, neighbor)[order]
    _, first = np.unique(low * len(concepts) + high, return_index=True)
    true = (concepts[low] == concepts[high])[first]
    best = score[order][first]
    rows = []
    for threshold in thresholds:
        above = best >= threshold
        anchors = len(np.unique(anchor[score >= threshold]))
        found = int((true & above).sum())
        rows.append(PairTruth(threshold, int(above.sum()), found, anchors, possible))
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class DocumentTruth:
    """What documents say, and what of it is true; one row per document."""

    named: np.ndarray
    """int64 [n], concept that the document names; -1: none, or a name that nothing has"""
    whole: np.ndarray
    """bool [n], whether the grammar could have written it, whatever is true"""
    statements: np.ndarray
    """int64 [n], statements found"""
    well_formed: np.ndarray
    """int64 [n], statements with an attribute and one of its values"""
    true: np.ndarray
    """int64 [n], well-formed statements that are true of the named concept"""
    from_seed: np.ndarray
    """int64 [n], true statements that the seed makes too; 0 without seeds"""
    copied: np.ndarray
    """bool [n], whether a training document about the same concept makes the same statements"""
    same_concept: np.ndarray
    """bool [n], whether the named concept is the seed's; False without seeds"""

    @classmethod
    def join(cls, parts: Sequence["DocumentTruth"]) -> "DocumentTruth":
        """The documents of several batches as one."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class Truth:
    """Checks documents against the concepts and the training documents.

    Args:
        world: The concepts.
        corpus: The training documents.
    """

    def __init__(self, world: World, corpus: Corpus):
        self.world, self._corpus = world, corpus
        self._parser = Parser(world.grammar)
        self.concepts = concepts_of(corpus)
        """int64 [documents], concept of each training document."""

    @cached_property
    def training(self) -> Documents:
        """What the training documents say."""
        return read_documents(self.world, self._corpus)

    @cached_property
    def _sets(self) -> np.ndarray:
        """Hash of what each training document says of its concept, sorted uint64 [documents]."""
        documents = np.repeat(np.arange(len(self.training)), self.world.difficulty.statements)
        statements = self._number(self.training.attribute, self.training.value).reshape(-1)
        return np.sort(_hash_sets(self.concepts, documents, statements))

    def _number(self, attribute: np.ndarray, value: np.ndarray) -> np.ndarray:
        return attribute * self.world.difficulty.values + value

    def check(self, rows: Rows, seeds: np.ndarray | None = None) -> DocumentTruth:
        """What some documents say and what of it is true.

        Args:
            rows: The documents.
            seeds: int64 [n], training document that each was made from.
        """
        parser, world, count = self._parser, self.world, len(rows)
        named = world.find(parser.names(rows))
        statements = parser.statements(rows)
        good = statements[statements.attribute >= 0]
        concept = named[good.document]
        right = (world.values[concept, good.attribute] == good.value) & (concept >= 0)
        numbers = self._number(good.attribute, good.value)
        hashes = _hash_sets(named, good.document, numbers)
        says_something = np.bincount(good.document, minlength=count) > 0
        from_seed = np.zeros(len(good), dtype=bool)
        same_concept = np.zeros(count, dtype=bool)
        if seeds is not None:
            seed = seeds[good.document]
            of_seed = self._number(self.training.attribute[seed], self.training.value[seed])
            from_seed = right & (of_seed == numbers[:, None]).any(axis=1)
            same_concept = named == self.concepts[seeds]
        return DocumentTruth(
            named=named,
            whole=parser.documents(rows)[0],
            statements=np.bincount(statements.document, minlength=count),
            well_formed=np.bincount(good.document, minlength=count),
            true=np.bincount(good.document[right], minlength=count),
            from_seed=np.bincount(good.document[from_seed], minlength=count),
            copied=says_something & (named >= 0) & np.isin(hashes, self._sets),
            same_concept=same_concept,
        )

    def check_corpus(self, corpus: Corpus, seeds: np.ndarray | None = None) -> DocumentTruth:
        """The same of all documents of a corpus."""
        return DocumentTruth.join(
            [self.check(rows, None if seeds is None else seeds[ids]) for ids, rows in read(corpus)]
        )


def _hash_sets(concepts: np.ndarray, documents: np.ndarray, statements: np.ndarray) -> np.ndarray:
    """Hash of each document's concept and set of statements.

    Args:
        concepts: int64 [documents]
        documents: int64 [n], ascending, document of each statement.
        statements: int64 [n], number of each statement.

    Returns:
        uint64 [documents].
    """
    hashes = mixed((concepts + 1).astype(np.uint64) * MIX)
    distinct = np.unique(np.stack([documents, statements]), axis=1)
    np.add.at(hashes, distinct[0], mixed(~(distinct[1].astype(np.uint64) * MIX)))
    return hashes
