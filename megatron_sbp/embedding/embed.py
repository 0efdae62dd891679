"""The embed stage: documents in, shards of unit vectors out."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_sbp.cli import Progress
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding import minilm
from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.embedding.huggingface import HuggingFaceSpec, fetch
from megatron_sbp.embedding.lexical import LexicalSpec
from megatron_sbp.embedding.pool import Range, encode_ranges
from megatron_sbp.embedding.shards import shard_name
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage, atomic_write

# Documents encoded as one piece. Batches of similar length are formed within a piece, so this
# decides the rounding of every vector and must not depend on machine or options.
_PIECE = 512


@dataclass(kw_only=True, slots=True)
class EmbedOptions:
    """Options of ``tools/embed_documents.py``."""

    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus (paths without .bin and .idx), in the order that decides document
    ids."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the corpus, by default `tokenizer/` beside the first prefix."""
    encoder: str = field(default="minilm", metadata={"metavar": "NAME"})
    """`minilm`, `lexical`, or the directory or Hub name of a Hugging Face model."""
    max_length: int = field(default=0, metadata={"metavar": "TOKENS"})
    """Read this many of the encoder's tokens of every document; 0: what the model was made for."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """How a Hugging Face model's hidden states become one vector; auto: as its own files say, mean
    if they say nothing."""
    prompt: str | None = field(default=None, metadata={"metavar": "TEXT"})
    """Text put before every document, by default the model's own."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of weights and products; auto: bf16 where the device multiplies it natively."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a Hugging Face model runs; auto: on a CUDA device if there is one."""
    workers: int = field(default=0, metadata={"metavar": "PROCESSES"})
    """Encoding processes on a CPU; 0: one per core, as many as fit into memory."""
    batch_tokens: int = field(default=0, metadata={"metavar": "TOKENS"})
    """Padded tokens of one batch; 0: 2,048 on a CPU, 131,072 on a GPU."""
    documents_per_shard: int = field(default=65536, metadata={"metavar": "DOCUMENTS"})
    """Documents of one output file; an interrupted run continues at the first missing one."""
    dimensions: int = field(default=256, metadata={"metavar": "NUMBERS"})
    """Dimensions of `lexical`."""
    fit_documents: int = field(default=100_000, metadata={"metavar": "DOCUMENTS"})
    """Documents that `lexical` learns from, drawn at random from larger corpora."""
    seed: int = 0
    """Seed of `lexical`."""

    def __post_init__(self) -> None:
        for name in ("max_length", "workers", "batch_tokens", "seed"):
            _at_least(name, getattr(self, name), 0)
        for name in ("documents_per_shard", "dimensions", "fit_documents"):
            _at_least(name, getattr(self, name), 1)

    def spec(self) -> EncoderSpec:
        """The encoder that the options name.

        Raises:
            InputError: If there is none of that name.
        """
        if self.encoder == "lexical":
            return LexicalSpec(
                dimensions=self.dimensions, fit_documents=self.fit_documents, seed=self.seed
            )
        return HuggingFaceSpec.resolve(
            self.encoder,
            minilm.locate() if self.encoder == "minilm" else fetch(self.encoder),
            pooling=None if self.pooling == "auto" else self.pooling,
            prompt=self.prompt,
            max_length=self.max_length,
            dtype=None if self.dtype == "auto" else self.dtype,
            device=None if self.device == "auto" else self.device,
            batch_tokens=self.batch_tokens,
        )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        flag = "--" + name.replace("_", "-")
        raise InputError(f"{flag} {value}: must be at least {least}")


def embed(options: EmbedOptions) -> Manifest:
    """Embed every document of a corpus.

    Writes ``embeddings-00000-of-000NN.npy`` (float16 [n, d], unit rows, document order). An
    interrupted run continues at the first shard that is missing.

    Raises:
        InputError: If corpus or encoder cannot be used, or a document gets no direction.
    """
    corpus = Corpus(options.corpus, options.tokenizer)
    spec = options.spec()
    with Stage.open(
        options.output,
        "embed",
        options=spec.settings() | {"documents_per_shard": options.documents_per_shard},
        inputs=corpus.files(),
        resumable=True,
    ) as stage:
        if not stage.complete:
            workers = options.workers or _default_workers(spec)
            workers = workers if spec.parallel else 1
            shards = _shards(len(corpus), options.documents_per_shard)
            _write_shards(stage, spec, corpus, shards, workers)
            rows = np.load(stage.workspace / shard_name(0, len(shards)), mmap_mode="r")
            stage.finish(
                counts={
                    "documents": len(corpus),
                    "dimensions": rows.shape[1],
                    "cut": _collect_cut(stage.workspace),
                    "corpus": corpus.fingerprints,
                }
            )
    return stage.manifest


def _default_workers(spec: EncoderSpec) -> int:
    """One process per core this process may use, as many as fit into three quarters of memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fitting = int(0.75 * memory / max(spec.memory_bytes, 1))
    return max(1, min(len(os.sched_getaffinity(0)), fitting))


def _shards(documents: int, per_shard: int) -> list[Range]:
    """(first, after the last) document of every shard."""
    return [(start, min(start + per_shard, documents)) for start in range(0, documents, per_shard)]


def _write_shards(
    stage: Stage, spec: EncoderSpec, corpus: Corpus, shards: list[Range], workers: int
) -> None:
    """Write the shards that the workspace of a stage does not have yet."""
    paths = [stage.workspace / shard_name(number, len(shards)) for number in range(len(shards))]
    missing = [
        (path, shard)
        for path, shard in zip(paths, shards, strict=True)
        if not (path.exists() and _cut_path(path).exists())
    ]
    pieces = [piece for _, shard in missing for piece in _pieces(shard)]
    if not pieces:
        return
    # Loading the libraries costs a process as much as a piece or two.
    workers = max(1, min(workers, len(pieces) // 2))
    done = len(corpus) - sum(stop - start for start, stop in pieces)
    with (
        closing(encode_ranges(spec, corpus, pieces, workers)) as results,
        Progress(f"embed with {spec.name}", len(corpus), "documents", initial=done) as progress,
    ):
        for path, shard in missing:
            vectors, cut = [], 0
            for _, rows in zip(_pieces(shard), results, strict=False):
                vectors.append(rows.vectors)
                cut += rows.cut
                progress.update(len(rows.vectors))
            with atomic_write(_cut_path(path)) as temporary:
                temporary.write_text(str(cut))
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.save(file, np.concatenate(vectors))
            stage.checkpoint()


def _pieces(shard: Range) -> Iterator[Range]:
    start, stop = shard
    for first in range(start, stop, _PIECE):
        yield first, min(first + _PIECE, stop)


def _cut_path(shard: Path) -> Path:
    return shard.with_suffix(".cut")


def _collect_cut(workspace: Path) -> int:
    """Sum the counts of cut documents over the shards, and remove them."""
    total = 0
    for path in workspace.glob("*.cut"):
        total += int(path.read_text())
        path.unlink()
    return total
