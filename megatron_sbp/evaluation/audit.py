"""The audit stage: synthetic documents beside real ones, measured with the same code."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import batched

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.embed import EmbedOptions
from megatron_sbp.embedding.encoders import Encoder, EncoderSpec
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation import measures
from megatron_sbp.evaluation.measures import CorpusOverlap
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.store import SyntheticCorpus

FILENAME = "audit.json"
_COPIED, _NOVEL = 13, 5  # words of the n-grams that show copying, and novelty
_COPY = 0.8  # share of shingles from which on d2 copies d1
_FROM_CORPUS = 0.5  # share of 13-grams from which on a document is copied from the corpus
_BATCH = 32
_NOTHING = (math.nan, math.nan)
_JUDGED = ("non-factual", "pair irrelevance")


@dataclass(kw_only=True, slots=True)
class AuditOptions:
    """Options of ``tools/audit_synthetic.py``."""

    synthetic: str = field(metadata={"metavar": "S"})
    """Prefix of the synthetic corpus."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the real corpus; those that the seeds come from must be among them."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    pairs: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Pair store over the corpus: true pairs to compare the synthetic ones with."""
    encoder: str = field(default="minilm", metadata={"metavar": "NAME"})
    """Encoder of the pair relevance: minilm, lexical, the directory or Hub name of a Hugging Face
    model, or none."""
    sample: int = field(default=2000, metadata={"metavar": "DOCUMENTS"})
    """Documents drawn at random of each side; the duplicate rate grows with their number."""
    encoded: int = field(default=64, metadata={"metavar": "PAIRS"})
    """Pairs of each kind that are embedded."""
    seed: int = 0
    """Seed of the samples."""

    def __post_init__(self) -> None:
        for name in ("sample", "encoded"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")


@dataclass(kw_only=True, slots=True)
class Row:
    """One measure of the table."""

    name: str
    synthetic: float | None
    """None if it was not measured, which ``note`` explains."""
    real: float | None
    unit: str
    note: str


class Samples:
    """Texts drawn at random, the same for every measure.

    Args:
        options: Of the audit.
        synthetic: The synthetic corpus.
        real: The real corpus.
        store: True pairs over the real corpus, if there are any.
    """

    def __init__(
        self,
        options: AuditOptions,
        synthetic: SyntheticCorpus,
        real: Corpus,
        store: PairStore | None,
    ):
        random = np.random.default_rng(options.seed)
        size = min(options.sample, len(synthetic), len(real))
        chosen = _draw(random, len(synthetic), size)
        self.size = size
        """Documents of each side."""
        self.synthetic = list(synthetic.documents.texts(chosen))
        """Synthetic documents."""
        self.real = list(real.texts(_draw(random, len(real), size)))
        """Real documents."""
        self.seeds = list(real.texts(synthetic.seeds_in(real)[chosen]))
        """The seed of each synthetic document."""
        self.true_pairs: list[tuple[str, str]] = []
        """(d1, d2) of the pair store; none without one."""
        if store is not None:
            rows = _draw(random, len(store), min(size, len(store)))
            first, second = np.asarray(store.anchor)[rows], np.asarray(store.neighbor)[rows]
            self.true_pairs = list(zip(real.texts(first), real.texts(second), strict=True))

    @property
    def generated_pairs(self) -> list[tuple[str, str]]:
        """(seed, synthetic document)."""
        return list(zip(self.seeds, self.synthetic, strict=True))


def _draw(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    return np.sort(random.choice(count, size, replace=False))


def audit(options: AuditOptions) -> tuple[Manifest, list[Row]]:
    """Measure a synthetic corpus beside the real one; write ``audit.json``.

    Returns:
        The manifest and the rows of the table.

    Raises:
        InputError: If anything given cannot be read or does not belong together.
    """
    synthetic, real = SyntheticCorpus(options.synthetic), Corpus(options.corpus)
    store = None if options.pairs is None else PairStore(options.pairs, real)
    encoder = None
    if options.encoder != "none":
        encoder = EmbedOptions(corpus=options.corpus, output="", encoder=options.encoder).spec()
    with Stage.open(
        options.output,
        "audit",
        options={
            "encoder": None if encoder is None else encoder.settings(),
            "sample": options.sample,
            "encoded": options.encoded,
            "seed": options.seed,
        },
        inputs=[*synthetic.files(), *real.files(), *(store.files() if store else [])],
    ) as stage:
        if not stage.complete:
            rows = measure(Samples(options, synthetic, real, store), real, encoder, options.encoded)
            table = [asdict(row) for row in rows]
            content = {"sample": min(options.sample, len(synthetic), len(real)), "measures": table}
            (stage.workspace / FILENAME).write_text(json.dumps(content, indent=1) + "\n")
            measured = sum(row.synthetic is not None for row in rows)
            stage.finish(counts={"measured": measured, "not_measured": len(rows) - measured})
    table = json.loads((stage.directory / FILENAME).read_text())["measures"]
    return stage.manifest, [Row(**row) for row in table]


def measure(samples: Samples, real: Corpus, encoder: EncoderSpec | None, encoded: int) -> list[Row]:
    """All rows of the table.

    Args:
        samples: What to measure.
        real: The real corpus.
        encoder: For the relevance of pairs; None leaves it out.
        encoded: Pairs of each kind to embed.
    """
    return [
        *_texts(samples),
        *_pair_copying(samples),
        *_corpus_copying(samples, real),
        *_relevance(samples, real, encoder, encoded),
        *_judged(),
    ]


def _row(name: str, values: Iterable[float], unit: str, note: str = "") -> Row:
    """A row of two values, synthetic and real; nan stands for what was not measured."""
    synthetic, real = (None if math.isnan(value) else value for value in values)
    return Row(name=name, synthetic=synthetic, real=real, unit=unit, note=note)


def _texts(samples: Samples) -> Iterator[Row]:
    """What can be said of each text, or of the texts together."""
    both = (samples.synthetic, samples.real)
    yield _row("repetition", map(measures.repetition_rate, both), "share", "MassiveText's rules")
    at = f"in {samples.size:,} documents, 5-word shingles, Jaccard 0.8"
    yield _row("duplicates", map(measures.duplicate_rate, both), "share", at)
    lengths = zip(*map(measures.length_quantiles, both), strict=True)
    for name, values in zip(("10%", "median", "90%"), lengths, strict=True):
        yield _row(f"length, {name}", values, "words")
    for size in (1, 2, 3):
        most = min(measures.count_ngrams(texts, size) for texts in both)
        rates = [measures.distinct_rate(texts, size, most) for texts in both]
        yield _row(f"distinct-{size}", rates, "share", f"of the first {most:,}")


def _pair_copying(samples: Samples) -> Iterator[Row]:
    """How often d2 is d1 again, for generated and for true pairs."""
    pairs = (samples.generated_pairs, samples.true_pairs)
    note = "" if samples.true_pairs else "true pairs not measured: no --pairs"
    equal = map(measures.equality_rate, pairs)
    yield _row("pair copying, equal", equal, "share", note)
    rates = [measures.copying_rate(some, _COPY) for some in pairs]
    yield _row(f"pair copying, {_COPY:.0%} of shingles", rates, "share", note)


def _corpus_copying(samples: Samples, real: Corpus) -> Iterator[Row]:
    """What the documents have in common with the whole corpus; real ones with all others of it."""
    both = samples.synthetic + samples.real
    copied, novel = CorpusOverlap(both, _COPIED), CorpusOverlap(both, _NOVEL)
    with Progress("read the corpus", len(real), "documents") as progress:
        for text in real.texts(range(len(real))):
            copied.read(text)
            novel.read(text)
            progress.update()
    # A real document has its n-grams in common with itself: they must be in a second one.
    sides = ((samples.synthetic, 1), (samples.real, 2))
    shares = [copied.shares(texts, least) for texts, least in sides]
    long = [found[~np.isnan(found)] for found in shares]
    yield _row(
        "copied from the corpus",
        (float((found >= _FROM_CORPUS).mean()) if len(found) else math.nan for found in long),
        "share",
        f"documents with {_FROM_CORPUS:.0%} of their 13-grams in another one",
    )
    rates = [copied.rate(texts, least) for texts, least in sides]
    yield _row("13-grams in the corpus", rates, "share", "in any other document")
    rates = [1 - novel.rate(texts, least) for texts, least in sides]
    yield _row("novel 5-grams", rates, "share", "in no other document")


def _relevance(
    samples: Samples, real: Corpus, encoder: EncoderSpec | None, encoded: int
) -> Iterator[Row]:
    """How near d2 is to its d1, beside the d1 of another pair."""
    names = ("relevance", "relevance, pairs mixed")
    if encoder is None:
        yield from (_row(name, _NOTHING, "cosine", "no encoder") for name in names)
        return
    sides = [_spread(pairs, encoded) for pairs in (samples.generated_pairs, samples.true_pairs)]
    note = f"{encoder.name}, {len(sides[0]):,} pairs"
    note += "" if sides[1] else "; true pairs not measured: no --pairs"
    model = encoder.load(real)
    with Progress("embed pairs", 2 * sum(map(len, sides)), "documents") as progress:
        cosines = [_cosines(model, pairs, progress) for pairs in sides]
    for name, values in zip(names, zip(*cosines, strict=True), strict=True):
        yield _row(name, values, "cosine", note)


def _spread(pairs: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """At most so many of the pairs, evenly spaced."""
    rows = np.linspace(0, len(pairs) - 1, min(most, len(pairs)))
    return [pairs[row] for row in rows.astype(int)]


def _cosines(
    model: Encoder, pairs: list[tuple[str, str]], progress: Progress
) -> tuple[float, float]:
    """Mean cosine of the pairs, and of each d1 with the d2 of another pair."""
    if not pairs:
        return _NOTHING
    vectors = []
    for texts in zip(*pairs, strict=True):
        parts = []
        for batch in batched(texts, _BATCH):
            parts.append(model.encode(batch).vectors)
            progress.update(len(batch))
        vectors.append(np.concatenate(parts))
    first, second = vectors
    # Half of all pairs away: neighbouring ones may be related.
    other = np.roll(second, len(pairs) // 2, axis=0)
    return measures.mean_cosine(first, second), measures.mean_cosine(first, other)


def _judged() -> Iterator[Row]:
    """The two measures of the paper that need a judge."""
    for name in _JUDGED:
        yield _row(name, _NOTHING, "share", "no judge")
