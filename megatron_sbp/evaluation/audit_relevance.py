"""The part of an audit that asks an encoder how near documents are to each other."""

from itertools import batched

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.words import Words
from megatron_sbp.embedding.encoders import Encoder, EncoderSpec
from megatron_sbp.evaluation.audit_samples import Samples, places_of
from megatron_sbp.evaluation.findings import NEITHER, NOT_MEASURED, Findings, mean
from megatron_sbp.evaluation.similarity import rouge_l

_BATCH = 32
_COSINES = np.linspace(-1, 1, 81).tolist()  # bins of the distribution


class Vectors:
    """Unit vectors of documents, each document encoded once.

    Args:
        model: The encoder.
    """

    def __init__(self, model: Encoder):
        self._model = model
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def of(self, corpus: Corpus, documents: np.ndarray) -> np.ndarray:
        """float32 [documents, d]; a document without content has zeros."""
        keys = [(id(corpus), document) for document in documents.tolist()]
        missing = [key for key in dict.fromkeys(keys) if key not in self._known]
        with Progress("embed", len(missing), "documents") as progress:
            for batch in batched(missing, _BATCH):
                texts = list(corpus.texts(document for _, document in batch))
                rows = self._model.encode(texts).vectors
                norms = np.linalg.norm(rows, axis=1, keepdims=True)
                self._known |= zip(batch, rows / np.where(norms > 0, norms, 1), strict=True)
                progress.update(len(batch))
        return np.stack([self._known[key] for key in keys])


def measure_relevance(
    samples: Samples, encoder: EncoderSpec | None, most: int, findings: Findings
) -> None:
    """Cosine of d2 with its d1, with the d1 of another pair, and with the true d2 of its d1.

    Args:
        samples: What to measure.
        encoder: None leaves the cosines out.
        most: Pairs of each kind.
        findings: Where the rows go.
    """
    chosen = places_of(samples.size, most)
    places, one, another = samples.neighbors_of_seeds(chosen)
    _add_rouge(samples, places, one, another, findings)
    if encoder is None:
        for name in ("relevance", "relevance, pairs mixed", "d2 beside true d2, cosine"):
            findings.add(name, NEITHER, unit="cosine", note="no encoder")
        return
    vectors = Vectors(encoder.load(samples.real))
    _add_cosines(samples, vectors, encoder.name, most, findings)
    note = _note(places, samples)
    if not len(places):
        findings.add("d2 beside true d2, cosine", NEITHER, unit="cosine", note=note)
        return
    new = vectors.of(samples.new, samples.synthetic_documents[places])
    true = vectors.of(samples.real, one)
    two = another >= 0
    generated = _cosines(new, true)
    real = _cosines(true[two], vectors.of(samples.real, another[two])) if two.any() else np.empty(0)
    sides = mean(generated), mean(real)
    findings.add("d2 beside true d2, cosine", sides, unit="cosine", note=note)
    kinds = {"synthetic": generated, "real": real}
    findings.add_distribution("true_d2", _COSINES, kinds)


def _add_cosines(
    samples: Samples, vectors: Vectors, name: str, most: int, findings: Findings
) -> None:
    """Generated and true pairs, each as they are and mixed up."""
    chosen = places_of(samples.size, most)
    sides = [(samples.new, samples.synthetic_documents[chosen], samples.seeds[chosen])]
    note = f"{name}, {len(chosen):,} pairs; "
    if len(samples.anchors):
        rows = places_of(len(samples.anchors), most)
        sides.append((samples.real, samples.neighbors[rows], samples.anchors[rows]))
        note += "real: true pairs"
    else:
        note += "true pairs not measured: no --pairs"
    matched, mixed = [], []
    for corpus, second, first in sides:
        d1, d2 = vectors.of(samples.sources, first), vectors.of(corpus, second)
        matched.append(_cosines(d1, d2))
        # Half of all pairs away: neighbouring ones may be related.
        mixed.append(_cosines(d1, np.roll(d2, len(d2) // 2, axis=0)))
    for row, values in (("relevance", matched), ("relevance, pairs mixed", mixed)):
        figures = [*map(mean, values), NOT_MEASURED][:2]
        findings.add(row, figures, unit="cosine", note=note)
    true = matched[1] if len(matched) > 1 else np.empty(0)
    kinds = {"generated": matched[0], "true": true, "random": mixed[-1]}
    findings.add_distribution("similarity", _COSINES, kinds)
    findings.add_worst("relevance", matched[0], "cosine {:.2f}", places=chosen, lowest=True)


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products of the rows of two matrices of unit vectors."""
    return np.einsum("nd,nd->n", first, second, dtype=np.float64)


def _add_rouge(
    samples: Samples, places: np.ndarray, one: np.ndarray, another: np.ndarray, findings: Findings
) -> None:
    """Common words of the generated d2 and a true one, and of two true ones."""
    name, note = "d2 beside true d2, ROUGE-L", _note(places, samples)
    if not len(places):
        findings.add(name, NEITHER, unit="F1", note=note)
        return
    new = Words.of(samples.new.texts(samples.synthetic_documents[places].tolist()))
    true = Words.of(samples.real.texts(one.tolist()))
    two = np.flatnonzero(another >= 0)
    other = Words.of(samples.real.texts(another[two].tolist()))
    figures = mean(rouge_l(true, new)), mean(rouge_l(true.take(two), other))
    findings.add(name, figures, unit="F1", note=note)


def _note(places: np.ndarray, samples: Samples) -> str:
    if samples.store is None:
        return "no --pairs"
    if not len(places):
        return "no seed of the sample has a pair"
    return f"{len(places):,} documents; real: two neighbours of the seed"
