"""Real and synthetic corpora with defects planted at known places."""

import random
from pathlib import Path

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, optimal_dtype
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.manifest import Manifest
from megatron_sbp.synthesis.store import COLUMNS, column_path


def sentence(source: random.Random, words: int = 60) -> str:
    """A text of words of which hardly any two documents share a run."""
    return " ".join(f"word{source.randrange(400)}" for _ in range(words))


def write_synthetic(
    prefix: Path,
    corpus: Corpus,
    texts: list[str],
    seeds: list[int],
    finish_reasons: list[int] | None = None,
) -> None:
    """Write a synthetic corpus by the letter of docs/formats.md."""
    tokenizer = corpus.tokenizer
    prefix.parent.mkdir(parents=True)
    (prefix.parent / "tokenizer").symlink_to(tokenizer.directory.resolve())
    with IndexedWriter(prefix, optimal_dtype(tokenizer.vocab_size)) as writer:
        for text in texts:
            writer.append([*tokenizer.encode(text), tokenizer.eod])
    values = {
        "seed": seeds,
        "sampling_seed": list(range(len(texts))),
        "finish_reason": finish_reasons or [0] * len(texts),
        "seed_tokens": [0] * len(texts),
        "checkpoint": [0] * len(texts),
        "generation": [1] * len(texts),
    }
    for name, dtype in COLUMNS.items():
        np.save(column_path(prefix, name), np.array(values[name], dtype))
    counts = {
        "documents": len(texts),
        "corpus": corpus.fingerprints,
        "checkpoint": {"path": "checkpoint", "sha256": "0" * 64},
    }
    Manifest(stage="synthesize", options={}, inputs={}, counts=counts).write(prefix.parent)


def write_real(prefix: Path, texts: list[str], tokenizer: Path) -> Corpus:
    """Write a corpus of the given texts with an existing tokenizer."""
    prefix.parent.mkdir(parents=True)
    (prefix.parent / "tokenizer").symlink_to(tokenizer.resolve())
    loaded = Tokenizer(tokenizer)
    with IndexedWriter(prefix, optimal_dtype(loaded.vocab_size)) as writer:
        for text in texts:
            writer.append([*loaded.encode(text), loaded.eod])
    return Corpus([prefix])
