"""What each filter says of each synthetic document.

    alone ── each document, and its seed ──> real ── the whole corpus ──> similarity ──> synthetic

A document that one filter takes is not shown to the next. Near duplicates among the synthetic
documents come last, so that none is left out for the sake of one that is itself left out.
"""

from collections.abc import Iterator
from functools import partial
from itertools import batched

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.duplicates import (
    BYTES_PER_DOCUMENT,
    NearDuplicates,
    SignatureIndex,
    signatures,
)
from megatron_sbp.corpus.words import Characters, Words, read
from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.engine import END_OF_DOCUMENT
from megatron_sbp.synthesis.filter_options import FilterOptions
from megatron_sbp.synthesis.store import SyntheticCorpus
from megatron_sbp.synthesis.text import containment, is_repetitive, same_words

FILTERS = (
    "no_end_of_document",
    "too_short",
    "repetition",
    "copy_of_seed",
    "near_duplicate_of_real",
    "outside_similarity",
    "near_duplicate_of_synthetic",
)
"""In the order in which they are asked: the first one that a document fails takes the count."""
PASSED = len(FILTERS)
"""The verdict on a document that passes; otherwise it is the number of the filter it fails."""

_ENCODED = 512  # documents encoded at a time
_SIGNED = 1 << 18  # documents whose signatures ranks give each other at a time
_LISTED = 4096


class Filters:
    """The filters at work on one synthetic corpus, on all ranks.

    Args:
        options: Their thresholds.
        synthetic: The documents.
        real: The real corpus.
        ranks: Who does it.
    """

    def __init__(
        self, options: FilterOptions, synthetic: SyntheticCorpus, real: Corpus, ranks: Ranks
    ):
        self._options, self._real, self._ranks = options, real, ranks
        self._synthetic, self._documents = synthetic, synthetic.documents
        self._sources = ranks.together(lambda: synthetic.with_seeds(real))
        self._seeds = ranks.together(lambda: synthetic.seeds_in(self._sources))
        self._most = max(1, options.memory_bytes // BYTES_PER_DOCUMENT)
        """Documents whose signatures are held at a time."""
        self._verdicts = np.empty(0, dtype=np.uint8)

    def verdicts(self, encoder: EncoderSpec | None, embeddings: Embeddings | None) -> np.ndarray:
        """Ask all filters.

        Args:
            encoder: Of the similarity to the seed; None leaves that filter out.
            embeddings: Of the real corpus by the same encoder, if there are any.

        Returns:
            uint8 [documents], number of the filter that each document fails, or ``PASSED``.

        Raises:
            InputError: On one rank, if a document cannot be read or encoded; the others end with
                status 2.
        """
        share = _share(np.arange(len(self._documents)), self._ranks)
        parts = self._ranks.gather(self._ranks.together(lambda: self._alone(share)))
        self._verdicts = np.concatenate(parts)
        for block in self._blocks():
            self._fail("near_duplicate_of_real", block[self._like_real(block)])
        if encoder is not None:
            left = self._left()
            share = _share(left, self._ranks)
            cosines = self._ranks.together(lambda: self._cosines(share, encoder, embeddings))
            cosine = np.concatenate(self._ranks.gather(cosines))
            inside = (cosine >= self._options.lowest) & (cosine <= self._options.highest)
            self._fail("outside_similarity", left[~inside])
        found = self._ranks.share(self._ranks.on_first(self._like_synthetic))
        assert found is not None
        self._fail("near_duplicate_of_synthetic", found)
        return self._verdicts

    def _fail(self, name: str, documents: np.ndarray) -> None:
        self._verdicts[documents] = FILTERS.index(name)

    def _left(self) -> np.ndarray:
        """Documents that have passed so far, int64 [n]."""
        return np.flatnonzero(self._verdicts == PASSED)

    def _blocks(self) -> Iterator[np.ndarray]:
        """The documents that are left, as many at a time as there is memory for."""
        left = self._left()
        for begin in range(0, len(left), self._most):
            yield left[begin : begin + self._most]

    def _alone(self, documents: np.ndarray) -> np.ndarray:
        """Verdicts of the filters that look at each document and its seed, uint8 [n]."""
        reasons = self._synthetic.columns["finish_reason"][documents]
        tokens = self._documents.lengths_of(documents) - (reasons == END_OF_DOCUMENT)
        verdicts = np.full(len(documents), PASSED, dtype=np.uint8)
        verdicts[tokens < self._options.min_tokens] = FILTERS.index("too_short")
        verdicts[reasons != END_OF_DOCUMENT] = FILTERS.index("no_end_of_document")
        left = np.flatnonzero(verdicts == PASSED)
        with Progress("texts and seeds", len(left), "documents") as progress:
            for rows, batch in _numbered(left, read(self._documents, _each(documents[left]))):
                words = batch.words()
                seeds = Words.of(self._sources.texts(self._seeds[documents[rows]].tolist()))
                copies = same_words(words, seeds)
                copies |= containment(words, seeds) >= self._options.max_containment
                verdicts[rows[copies]] = FILTERS.index("copy_of_seed")
                if self._options.repetition:
                    verdicts[rows[is_repetitive(batch)]] = FILTERS.index("repetition")
                self._ranks.check()
                progress.update(len(rows))
        return verdicts

    def _like_real(self, block: np.ndarray) -> np.ndarray:
        """Whether each document of a block is a near duplicate of a real one, bool [block].

        The whole real corpus is read past the block, a share by every rank.
        """
        index = SignatureIndex()
        with Progress("signatures", len(block), "documents") as progress:
            for begin in range(0, len(block), _SIGNED):
                mine = _share(block[begin : begin + _SIGNED], self._ranks)
                signed = self._ranks.together(partial(self._signatures, mine))
                for part in self._ranks.gather(signed):
                    index.add(part)
                    progress.update(len(part))
        found = np.zeros(len(block), dtype=bool)
        rank, size = self._ranks.rank, self._ranks.size
        share = range(rank * len(self._real) // size, (rank + 1) * len(self._real) // size)

        def look() -> None:
            with Progress("the real corpus", len(share), "documents") as progress:
                for batch in read(self._real, share):
                    for _, rows in index.matches(signatures(batch.words()), settled_rows=found):
                        found[rows] = True
                    self._ranks.check()
                    progress.update(len(batch))

        self._ranks.together(look)
        return np.logical_or.reduce(self._ranks.gather(found))

    def _signatures(self, documents: np.ndarray) -> np.ndarray:
        parts = [signatures(b.words()) for b in read(self._documents, _each(documents))]
        return np.concatenate([signatures(Words.of([])), *parts])

    def _cosines(
        self, documents: np.ndarray, encoder: EncoderSpec, embeddings: Embeddings | None
    ) -> np.ndarray:
        """Cosine of each document and its seed, float64 [n]; 0 for a vector without direction."""
        parts = [np.empty(0)]
        model = encoder.load(self._real)
        with Progress("embed", len(documents), "documents") as progress:
            for batch in batched(_each(documents), _ENCODED):
                own = model.encode(list(self._documents.texts(batch))).vectors
                seeds = self._seeds[list(batch)]
                if embeddings is not None and self._sources is self._real:
                    first = embeddings.take(seeds).astype(np.float32)
                else:
                    first = model.encode_documents(self._sources, seeds.tolist()).vectors
                norms = np.linalg.norm(first, axis=1) * np.linalg.norm(own, axis=1)
                products = np.einsum("nd,nd->n", first, own)
                parts.append(products / np.where(norms > 0, norms, 1))
                self._ranks.check()
                progress.update(len(batch))
        return np.concatenate(parts)

    def _like_synthetic(self) -> np.ndarray:
        """Documents that are near duplicates of an earlier one that passes, int64 [n].

        As many as there is memory for are remembered; all later ones are compared with these, and
        those that are new come round again.
        """
        found = [np.empty(0, np.int64)]
        left = self._left()
        with Progress("the synthetic corpus", len(left), "documents") as progress:
            while len(left):
                known, later = NearDuplicates(), [np.empty(0, np.int64)]
                for rows, batch in _numbered(left, read(self._documents, _each(left))):
                    signed = signatures(batch.words())
                    room = max(self._most - len(known.index), 0)
                    near = known.seen(signed[:room])
                    near = np.concatenate([near, known.index.has(signed[room:])])
                    found.append(rows[near])
                    later.append(rows[room:][~near[room:]])
                    progress.update(len(rows) - len(later[-1]))
                left = np.concatenate(later)
        return np.concatenate(found)


def _share(documents: np.ndarray, ranks: Ranks) -> np.ndarray:
    """Those of some documents that this rank looks at: consecutive ones, in the order of ranks."""
    return np.array_split(documents, ranks.size)[ranks.rank]


def _each(documents: np.ndarray) -> Iterator[int]:
    """The numbers one by one; a list of all of them would take several times their memory."""
    for begin in range(0, len(documents), _LISTED):
        yield from documents[begin : begin + _LISTED].tolist()


def _numbered(
    documents: np.ndarray, batches: Iterator[Characters]
) -> Iterator[tuple[np.ndarray, Characters]]:
    """Batches with the numbers of their documents."""
    place = 0
    for batch in batches:
        yield documents[place : place + len(batch)], batch
        place += len(batch)
