"""Documents per second of this package's encoder and of sentence-transformers, in one process.

Both get the same texts of a corpus, model, type, longest input, prompt and number of threads, and
give vectors of length 1. Their repetitions alternate, after a warm-up that is not counted; what is
printed is the median of each.

    python -m benchmarks.embedding --corpus PREFIX... [--encoder minilm] [--documents 1000]
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.huggingface import HuggingFaceSpec
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.errors import InputError, require

_PIECE = 512  # documents, as the embed stage encodes them
_WARM_UP = 32  # documents


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of a corpus."""
    encoder: str = field(default="minilm", metadata={"metavar": "NAME"})
    """`minilm`, or the directory or Hub name of a Hugging Face model."""
    documents: int = field(default=1000, metadata={"metavar": "NUMBER"})
    """Documents to encode, evenly spaced over the corpus."""
    max_length: int = field(default=0, metadata={"metavar": "TOKENS"})
    """Tokens read of a document; 0: what the model was made for."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of weights and products."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    threads: int = field(default=1, metadata={"metavar": "NUMBER"})
    """Threads on a CPU, of each of the two; the embed stage runs processes of one."""
    batch_size: int = field(default=32, metadata={"metavar": "TEXTS"})
    """Texts in a batch of sentence-transformers, whose own default is 32."""
    repetitions: int = field(default=5, metadata={"metavar": "NUMBER"})
    """How often each encodes the documents."""

    def __post_init__(self) -> None:
        for name in ("documents", "threads", "batch_size", "repetitions"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {getattr(self, name)}: must be at least 1")

    def spec(self) -> HuggingFaceSpec:
        """The model."""
        spec = EmbedOptions(
            corpus=self.corpus,
            output="",
            encoder=self.encoder,
            max_length=self.max_length,
            dtype=self.dtype,
            device=self.device,
        ).spec()
        if not isinstance(spec, HuggingFaceSpec):
            raise InputError(
                f"--encoder {self.encoder}: sentence-transformers has no such model; give a "
                "Hugging Face one"
            )
        return spec


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    require("sentence_transformers", package="sentence-transformers")
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # of the tokenizers
    spec, corpus = options.spec(), Corpus(options.corpus)
    rows = np.linspace(0, len(corpus) - 1, min(options.documents, len(corpus)))
    texts = list(corpus.texts(rows.astype(int).tolist()))
    encoders = {
        "megatron_sbp": _ours(spec, corpus, options.threads),
        "sentence-transformers": _peer(spec, options.batch_size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    vectors: dict[str, np.ndarray] = {}
    for encode in encoders.values():
        encode(texts[:_WARM_UP])
    for _ in range(options.repetitions):
        for name, encode in encoders.items():
            started = time.perf_counter()
            vectors[name] = encode(texts)
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(texts) / statistics.median(times) for name, times in seconds.items()}
    ours, peer = rates.values()
    cosines = np.einsum("ij,ij->i", *vectors.values())
    cli.summary(
        f"{spec.name}, {spec.machine.dtype}, {spec.max_length} tokens, {spec.machine.device}: "
        f"{len(texts):,} documents, median of {options.repetitions}",
        {name: f"{rate:,.1f} documents/s" for name, rate in rates.items()}
        | {"ratio": f"{ours / peer:.2f}", "largest cosine difference": f"{1 - cosines.min():.1e}"},
    )


def _ours(spec: HuggingFaceSpec, corpus: Corpus, threads: int) -> Callable[[list[str]], np.ndarray]:
    encoder = spec.open(corpus, Path(), threads=threads)

    def encode(texts: list[str]) -> np.ndarray:
        pieces = [
            encoder.encode(texts[start : start + _PIECE]).vectors
            for start in range(0, len(texts), _PIECE)
        ]
        vectors = np.concatenate(pieces)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return encode


def _peer(spec: HuggingFaceSpec, batch_size: int) -> Callable[[list[str]], np.ndarray]:
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[spec.machine.dtype]
    model: Any = SentenceTransformer(
        str(spec.directory), device=spec.machine.device, model_kwargs={"dtype": dtype}
    )
    model.max_seq_length = spec.max_length

    def encode(texts: list[str]) -> np.ndarray:
        vectors = model.encode(
            texts,
            prompt=spec.prompt or None,
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return vectors.astype(np.float32)

    return encode


if __name__ == "__main__":
    cli.run(main)
