"""The part of an audit that reads texts and needs neither model nor judge."""

from collections.abc import Callable, Iterable

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.duplicates import NearDuplicates, signatures
from megatron_sbp.corpus.shingles import ngrams
from megatron_sbp.corpus.words import Characters, Words, read
from megatron_sbp.evaluation.audit_samples import Batch, Samples, places_of
from megatron_sbp.evaluation.findings import NOT_MEASURED, Figure, Findings, mean, ratio, share
from megatron_sbp.evaluation.overlap import CorpusOverlap
from megatron_sbp.evaluation.similarity import distinct, extractiveness, self_bleu
from megatron_sbp.synthesis.text import containment, is_repetitive, same_words

COPY = 0.8
"""Share of its 5-word shingles from which on d2 copies d1."""
FROM_CORPUS = 0.5
"""Share of its 13-grams from which on a document is copied from the corpus."""
_SHOWN = 0.01  # share of copied 13-grams from which on a document may be among the worst
_COPIED, _NOVEL = 13, 5  # words of the n-grams that show copying, and novelty
_LENGTHS = (("10%", 0.1), ("median", 0.5), ("90%", 0.9))
_SHARES = np.linspace(0, 1, 51).tolist()  # bins of distributions

Columns = dict[str, np.ndarray]


def measure_texts(samples: Samples, findings: Findings) -> None:
    """Repetition, duplicates, lengths, copying of the seed."""
    total = 2 * samples.size + len(samples.anchors)
    with Progress("read the samples", total, "documents") as progress:
        new = _collect(samples.generated_pairs(), progress, _DocumentMeasures(), measure_pairs)
        real = _collect(samples.real_batches(), progress, _DocumentMeasures())
        true = _collect(samples.true_pairs(), progress, measure_pairs)
    _add_documents(new, real, findings)
    _add_pairs(new, true, findings)


def _collect(
    batches: Iterable[Batch],
    progress: Progress,
    *measures: Callable[[Characters, Words, Words], Columns],
) -> Columns:
    """The figures of all documents, name -> [documents].

    Args:
        batches: What to measure.
        progress: What to tell.
        measures: Give the figures of a batch.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for characters, words, first in batches:
        for measure in measures:
            for name, values in measure(characters, words, first).items():
                parts.setdefault(name, []).append(values)
        progress.update(len(words))
    return {name: np.concatenate(values) for name, values in parts.items()}


class _DocumentMeasures:
    """What is measured of each document, and of it among those before."""

    def __init__(self) -> None:
        self._known = NearDuplicates()

    def __call__(self, characters: Characters, words: Words, _: Words) -> Columns:
        return {
            "words": words.counts,
            "repetitive": is_repetitive(characters),
            "duplicate": self._known.seen(signatures(words)),
        }


def measure_pairs(_: Characters, second: Words, first: Words) -> Columns:
    """What d2 has from its d1, [pairs] each."""
    coverage, density = extractiveness(first, second)
    return {
        "equal": same_words(second, first),
        "containment": containment(second, first),
        "coverage": coverage,
        "density": density,
    }


def _add_documents(new: Columns, real: Columns, findings: Findings) -> None:
    both = (new, real)
    repetitive = (share(side["repetitive"]) for side in both)
    findings.add("repetition", repetitive, note="MassiveText's rules")
    duplicates = (share(side["duplicate"]) for side in both)
    note = f"of {len(new['words']):,} documents, Jaccard 0.8 of 5-word shingles"
    findings.add("duplicates", duplicates, note=note)
    for name, quantile in _LENGTHS:
        values = (Figure(float(np.quantile(side["words"], quantile))) for side in both)
        findings.add(f"length, {name}", values, unit="words")
    longest = float(np.quantile(np.concatenate([side["words"] for side in both]), 0.99))
    edges = np.linspace(0, max(longest, 1), 51).tolist()
    findings.add_distribution("length", edges, {"synthetic": new["words"], "real": real["words"]})
    for name in ("repetitive", "duplicate"):
        shown = {"repetitive": "repetition", "duplicate": "duplicates"}[name]
        findings.add_worst(shown, new[name].astype(float), "", least=1)


def _add_pairs(new: Columns, true: Columns, findings: Findings) -> None:
    note = "real: true pairs" if true else "true pairs not measured: no --pairs"
    true = true or {name: np.empty(0) for name in new}
    both = (new, true)
    equal = (share(side["equal"]) for side in both)
    findings.add("pair copying, equal", equal, note=note)
    copied = (share(side["containment"] >= COPY) for side in both)
    findings.add("pair copying, 80% of shingles", copied, note=note)
    covered = (mean(side["coverage"]) for side in both)
    findings.add("coverage by the seed", covered, note=note)
    density = (mean(side["density"]) for side in both)
    findings.add("density by the seed", density, unit="words", note=note)
    kinds = {"synthetic": new["containment"], "real": true["containment"]}
    findings.add_distribution("containment", _SHARES, kinds)
    findings.add_worst(
        "pair copying, 80% of shingles", new["containment"], "{:.0%} of its shingles", least=COPY
    )
    findings.add_worst("density by the seed", new["density"], "{:,.1f} words")


def measure_corpus(samples: Samples, most: int, findings: Findings) -> None:
    """What is copied from the whole corpus, what is novel, and how much the n-grams repeat.

    The corpus is read once.

    Args:
        samples: What to measure.
        most: Documents of each side whose n-grams are held in memory.
        findings: Where the rows go.
    """
    real = samples.real
    places = places_of(samples.size, most)
    new = _words(samples.new, samples.synthetic_documents[places])
    old = _words(real, samples.real_documents[places])
    overlaps = {size: CorpusOverlap([*new, *old], size) for size in (_COPIED, _NOVEL)}
    with Progress("read the corpus", len(real), "documents") as progress:
        for batch in read(real, range(len(real))):
            words = batch.words()
            for overlap in overlaps.values():
                overlap.read(words)
            progress.update(len(words))
    # A real document has its n-grams in common with itself: they must be in a second one.
    sides = [(Words.concatenate(new), 1), (Words.concatenate(old), 2)]
    copied, known = (
        [overlap.shared(words, least) for words, least in sides] for overlap in overlaps.values()
    )
    shares = [side.shares for side in copied]
    of = f"of {len(places):,} documents"
    findings.add(
        "copied from the corpus",
        (share(some[~np.isnan(some)] >= FROM_CORPUS) for some in shares),
        note=f"{of}, 13 words or more: half of the 13-grams in another document",
    )
    findings.add(
        "13-grams in the corpus",
        (ratio(side.found, side.total) for side in copied),
        note="in another document of it",
    )
    findings.add(
        "novel 5-grams",
        (ratio(side.total - side.found, side.total) for side in known),
        note="in no other document of it",
    )
    findings.add_distribution(
        "copied", _SHARES, dict(zip(("synthetic", "real"), shares, strict=True))
    )
    form = "{:.0%} of its 13-grams"
    findings.add_worst("copied from the corpus", shares[0], form, places=places, least=_SHOWN)
    novel = 1 - known[0].shares
    form = "{:.0%} of its 5-grams are novel"
    findings.add_worst("novel 5-grams", novel, form, places=places, lowest=True)
    _add_distinct([words for words, _ in sides], findings)


def _words(corpus: Corpus, documents: np.ndarray) -> list[Words]:
    return [batch.words() for batch in read(corpus, documents.tolist())]


def _add_distinct(sides: list[Words], findings: Findings) -> None:
    """Distinct n-grams among equally many n-grams of both sides; the share falls with these."""
    for size in (1, 2, 3):
        grams = [ngrams(words, size).hashes for words in sides]
        most = min(map(len, grams))
        values = (
            Figure(len(distinct(some[:most])) / most) if most else NOT_MEASURED for some in grams
        )
        findings.add(f"distinct-{size}", values, note=f"of the first {most:,} n-grams")


def measure_self_bleu(samples: Samples, most: int, findings: Findings) -> None:
    """How much the documents of one side repeat each other's wording.

    Args:
        samples: What to measure.
        most: Documents of each side that are compared with each other.
        findings: Where the row goes.
    """
    places = places_of(samples.size, most)
    values = [
        self_bleu(Words.of(corpus.texts(documents[places].tolist())))
        for corpus, documents in (
            (samples.new, samples.synthetic_documents),
            (samples.real, samples.real_documents),
        )
    ]
    note = f"each of {len(places):,} documents with the others"
    # No interval: the documents are each other's references.
    means = (Figure(mean(some).value) for some in values)
    findings.add("self-BLEU", means, unit="BLEU", note=note)
    findings.add_worst("self-BLEU", values[0], "{:.2f}", places=places)
