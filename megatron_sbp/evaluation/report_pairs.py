"""What a report shows of the pairs: their similarity beside chance, and examples of their use."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.evaluation.report_boxes import ROLES, Box
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.store import SyntheticCorpus

_ROWS = 1 << 22  # pairs looked at in one go
_BINS = np.linspace(-1, 1, 201)  # cosines in steps of 0.01
_FINISH_REASONS = {0: "its end-of-document token", 1: "the maximum length"}


def similarity(boxes: dict[str, Box], random_pairs: int, seed: int) -> dict[str, Any] | None:
    """Histograms of the cosine of kept pairs and of pairs drawn at random from the embeddings."""
    kept = random = least = None
    if "pairs" in boxes:
        pairs = boxes["pairs"]
        kept = _histogram(PairStore(pairs.directory).score)
        least = pairs.manifest.options.get("min_similarity")
    if "embeddings" in boxes:
        embeddings = Embeddings(boxes["embeddings"].directory)
        random = _histogram(random_cosines(embeddings, random_pairs, seed))
    if kept is None and random is None:
        return None
    return {"bins": _BINS.tolist(), "min_similarity": least, "kept": kept, "random": random}


def random_cosines(embeddings: Embeddings, count: int, seed: int) -> np.ndarray:
    """Cosines float32 [count] of pairs of different documents, each pair equally probable."""
    documents = len(embeddings)
    if documents < 2:
        return np.empty(0, dtype=np.float32)
    generator = np.random.default_rng(seed)
    first = generator.integers(documents, size=count)
    second = (first + generator.integers(1, documents, size=count)) % documents
    return np.einsum("nd,nd->n", embeddings.take(first), embeddings.take(second), dtype=np.float32)


def _histogram(values: np.ndarray) -> dict[str, Any] | None:
    """Number, mean and share per bin of cosines; those of float16 rows may overstep 1 a little."""
    if len(values) == 0:
        return None
    counts = np.zeros(len(_BINS) - 1, dtype=np.int64)
    for start in range(0, len(values), _ROWS):
        counts += np.histogram(np.clip(values[start : start + _ROWS], -1, 1), _BINS)[0]
    return {
        "count": len(values),
        "mean": float(np.mean(values, dtype=np.float64)),
        "share": (counts / len(values)).tolist(),
    }


def examples(boxes: dict[str, Box], count: int, characters: int) -> dict[str, Any] | None:
    """Triples of a seed, its most similar document, and the document written from the seed.

    Args:
        boxes: Role -> box; without corpus, pairs and synthetic documents there are no examples.
        count: Number of triples.
        characters: Characters given of each document.
    """
    role = "filtered" if "filtered" in boxes else "synthetic"
    if not {role, "corpus", "pairs"} <= boxes.keys():
        return None
    corpus = mined_corpus(boxes["corpus"], boxes["pairs"])
    pairs = PairStore(boxes["pairs"].directory, corpus)
    synthetic = SyntheticCorpus(boxes[role].prefixes)
    documents = Corpus(synthetic.prefixes, tokenizer=corpus.tokenizer.directory)
    seeds, reasons = synthetic.seeds_in(corpus), synthetic.columns["finish_reason"]
    written, best = rank_by_similarity(seeds, pairs)
    # The middles of equal parts of the ranking; fewer documents than parts share some.
    middles = [(2 * part + 1) * len(written) // (2 * count) for part in range(count)]
    triples = []
    for place in sorted(set(middles)) if len(written) else []:
        number, pair = int(written[place]), int(best[place])
        triples.append(
            {
                "similarity": float(pairs.score[pair]),
                "seed": _document(corpus, int(seeds[number]), characters),
                "neighbor": _document(corpus, int(pairs.neighbor[pair]), characters),
                "synthetic": _document(documents, number, characters)
                | {"finish_reason": _FINISH_REASONS.get(int(reasons[number]), "an unknown reason")},
            }
        )
    return {"from": ROLES[role], "eligible": len(written), "triples": triples}


def mined_corpus(given: Box, pairs: Box) -> Corpus:
    """The corpus whose ids the pair store has: the given prefixes, in the order it recorded."""
    corpus = Corpus(given.prefixes)
    recorded = [entry["idx_sha256"] for entry in pairs.manifest.counts.get("corpus", [])]
    found = {entry["idx_sha256"]: Path(entry["prefix"]) for entry in corpus.fingerprints}
    if recorded and all(checksum in found for checksum in recorded):
        return Corpus([found[checksum] for checksum in recorded])
    return corpus


def rank_by_similarity(seeds: np.ndarray, pairs: PairStore) -> tuple[np.ndarray, np.ndarray]:
    """Rank synthetic documents by how similar their seed is to the seed's best neighbour.

    Args:
        seeds: int64 [documents], seed of each synthetic document.
        pairs: The pair store.

    Returns:
        Synthetic documents int64 [n], the least similar first, and the row of each one's pair
        int64 [n]. Documents whose seed has no pair are left out, and of documents with the same
        seed all but the first.
    """
    _, first = np.unique(seeds, return_index=True)
    # Rows of an anchor stand together, the best first.
    rows = np.searchsorted(pairs.anchor, seeds[first])
    found = rows < len(pairs)
    found[found] = pairs.anchor[rows[found]] == seeds[first[found]]
    documents, rows = first[found], rows[found]
    order = np.argsort(pairs.score[rows], kind="stable")
    return documents[order], rows[order]


def _document(corpus: Corpus, document: int, characters: int) -> dict[str, Any]:
    text = corpus.text(document)
    return {
        "document": document,
        "text": text[:characters],
        "characters": len(text),
        "tokens": int(corpus.lengths[document]),
    }
