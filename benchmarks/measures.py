"""Documents per second and core of every measure of texts, beside a plain reading of it.

    python -m benchmarks.measures --corpus quickstart/corpus/real

Each document is measured with the one after it as its seed, then the same for documents joined to
--long tokens. The plain readings (``re``, sets, datasketch) measure the first --plain documents.
Times are those of the processor, so that whatever else the machine does counts little; what is read
is in memory by then. "All" is what an audit asks of a document: its text and its seed's are made
from tokens once, their words are found once, then come all measures.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np

from benchmarks import plain_measures as plain
from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.duplicates import NearDuplicates, signatures
from megatron_sbp.corpus.shingles import ngrams
from megatron_sbp.corpus.words import Characters, batches, is_space, is_word, lower_case
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.overlap import CorpusOverlap
from megatron_sbp.evaluation.similarity import extractiveness
from megatron_sbp.synthesis.text import containment, is_repetitive, same_words

_OVERLAPS = (5, 13)
_REPEATS = 5

type Measure = Callable[[], object]


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the documents to measure."""
    documents: int = 2000
    """Documents to measure, from the first on."""
    plain: int = field(default=200, metadata={"metavar": "DOCUMENTS"})
    """Documents that the plain readings measure; 0 leaves them out."""
    long: int = field(default=800, metadata={"metavar": "TOKENS"})
    """Least tokens of the joined documents."""

    def __post_init__(self) -> None:
        if self.documents < 2:
            raise InputError(f"--documents {self.documents}: must be at least 2")


class Batches:
    """Documents and their seeds as every measure takes them.

    Args:
        tokens: Token ids of each document.
        corpus: What they are from.
    """

    def __init__(self, tokens: list[np.ndarray], corpus: Corpus):
        self._tokenizer, self.tokens = corpus.tokenizer, tokens
        self.texts = self.decode()
        self.characters = self.split(self.texts)
        self.words = [batch.words() for batch in self.characters]
        self.seeds = [one.words() for one in self.split(self.texts[1:] + self.texts[:1])]
        self.wanted = {size: CorpusOverlap(self.words, size) for size in _OVERLAPS}

    def decode(self) -> list[str]:
        """The texts."""
        return self._tokenizer.decode_batch(self.tokens)

    def split(self, texts: list[str]) -> list[Characters]:
        """Batches that break where those of the documents do, so that seeds stand beside them."""
        counts = [len(batch) for batch in batches(self.texts)]
        bounds = np.concatenate([[0], np.cumsum(counts)]).tolist()
        return [Characters.of(texts[begin:end]) for begin, end in pairwise(bounds)]

    def fresh(self) -> Iterable[Characters]:
        """The characters, nothing known about them yet."""
        return (Characters(batch.codes, batch.starts) for batch in self.characters)

    def measures(self) -> dict[str, Measure]:
        """Every measure by itself, from what it needs on."""
        pairs = list(zip(self.words, self.seeds, strict=True))
        return {
            "texts from tokens": self.decode,
            "words": lambda: [batch.words() for batch in self.split(self.texts)],
            "repetition": lambda: [is_repetitive(batch) for batch in self.fresh()],
            "containment in the seed": lambda: [containment(*pair) for pair in pairs],
            "equal to the seed": lambda: [same_words(*pair) for pair in pairs],
            "coverage, density": lambda: [extractiveness(d1, d2) for d2, d1 in pairs],
            "near duplicates": self.near,
            **{f"{size}-grams of a corpus": partial(self.read, size) for size in _OVERLAPS},
            "distinct-3": lambda: [np.unique(ngrams(words, 3).hashes) for words in self.words],
        }

    def near(self) -> None:
        """Signatures, and the search among all earlier documents."""
        known = NearDuplicates()
        for words in self.words:
            known.seen(signatures(words))

    def read(self, size: int) -> None:
        """The documents as the corpus that n-grams are looked for in."""
        for words in self.words:
            self.wanted[size].read(words)

    def all_together(self) -> None:
        """Everything that an audit asks of each document, with nothing done twice."""
        known = NearDuplicates()
        texts = self.decode()
        for batch, seeds in zip(self.split(texts), self.split(texts[1:] + texts[:1]), strict=True):
            words, first = batch.words(), seeds.words()
            is_repetitive(batch)
            containment(words, first)
            same_words(words, first)
            extractiveness(first, words)
            known.seen(signatures(words))
            for overlap in self.wanted.values():
                overlap.read(words)
            np.unique(ngrams(words, 3).hashes)

    def plainly(self, count: int) -> dict[str, Measure]:
        """The plain readings of the first documents."""
        texts = self.texts[:count]
        pairs = list(zip(texts, [*texts[1:], texts[0]], strict=True))
        ids = [tokens.tolist() for tokens in self.tokens[:count]]
        wanted = {
            size: {gram for text in texts for gram in plain.ngrams(plain.words(text), size)}
            for size in _OVERLAPS
        }
        return {
            "texts from tokens": lambda: [self._tokenizer.decode(some) for some in ids],
            "words": lambda: [plain.words(text) for text in texts],
            "repetition": lambda: [plain.is_repetitive(text) for text in texts],
            "containment in the seed": lambda: [plain.containment(*pair) for pair in pairs],
            "equal to the seed": lambda: [plain.same_words(*pair) for pair in pairs],
            "coverage, density": lambda: [plain.extractiveness(d1, d2) for d2, d1 in pairs],
            "near duplicates": lambda: plain.near_duplicates(texts),
            **{
                f"{size}-grams of a corpus": partial(plainly_read, texts, wanted[size], size)
                for size in _OVERLAPS
            },
            "distinct-3": lambda: [set(plain.ngrams(plain.words(text), 3)) for text in texts],
        }


def plainly_read(texts: list[str], wanted: set[plain.Gram], size: int) -> None:
    """The texts as the corpus that n-grams are looked for in."""
    for text in texts:
        plain.overlap(wanted, text, size)


def seconds(measure: Measure, repeats: int) -> float:
    """Processor time of a measure, the best of some turns."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        measure()
        times.append(time.process_time() - started)
    return min(times)


def compare(documents: Batches, count: int) -> None:
    """Print the rates of every measure, and of all together."""
    size = len(documents.texts)
    count = min(count, size)
    lengths = [len(tokens) for tokens in documents.tokens]
    found = sum(len(words.hashes) for words in documents.words)
    print(f"{size:,} documents, {np.mean(lengths):.0f} tokens and {found / size:.0f} words each")
    print(f"{'documents/s per core':<26} {'here':>10} {'plain':>10} {'ratio':>8}")
    plainly = documents.plainly(count) if count else {}
    whole = 0.0
    for name, measure in documents.measures().items():
        rate = size / seconds(measure, _REPEATS)
        line = f"{name:<26} {rate:>10,.0f}"
        if name in plainly:
            spent = seconds(plainly[name], 1)
            whole += spent
            line += f" {count / spent:>10,.0f} {rate * spent / count:>7.1f}x"
        print(line, flush=True)
    rate = size / seconds(documents.all_together, _REPEATS)
    line = f"{'all':<26} {rate:>10,.0f}"
    print(line + (f" {count / whole:>10,.0f} {rate * whole / count:>7.1f}x" if whole else ""))


def joined(tokens: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Consecutive documents put together until they have so many tokens."""
    found: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    for some in tokens:
        parts.append(some)
        if sum(map(len, parts)) >= least:
            found.append(np.concatenate(parts))
            parts = []
    return found


def main() -> None:
    """Measure and print."""
    options = cli.parse(Options, str(__doc__))
    corpus = Corpus(options.corpus)
    tokens = [corpus.body(number) for number in range(min(options.documents, len(corpus)))]
    for table in (is_word, is_space, lower_case):  # made once a process; not timed
        table()
    compare(Batches(tokens, corpus), options.plain)
    long = joined(tokens, options.long)
    if long:
        print(f"\njoined to {options.long:,} tokens")
        compare(Batches(long, corpus), options.plain // 4)


if __name__ == "__main__":
    cli.run(main)
