"""The encoder that is the model itself: pooled hidden states of a Megatron checkpoint.

The checkpoint, saved with any tensor and pipeline parallelism, is exported to a Hugging Face
directory. Documents are read as the tokens of the corpus, without a detour through text.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.encoders import Encoded, sample
from megatron_sbp.embedding.transformer import (
    LIBRARIES_BYTES,
    LongDocuments,
    Machine,
    Pooling,
    Transformer,
    TransformerSpec,
    check_dimensions,
    check_length,
)
from megatron_sbp.errors import InputError
from megatron_sbp.models import export, vocabulary
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.npy import open_npy, save_npy

PREFIX = "megatron:"
"""What stands before the directory of a checkpoint in the name of an encoder."""
_MODEL, _CENTER = "model", "center.npy"


@dataclass(kw_only=True, frozen=True)
class MegatronSpec(TransformerSpec):
    """A checkpoint, and which of its hidden states become a vector."""

    saved: str
    """Directory that Megatron saved to."""
    layer: int
    """Hidden layer, from 1; 0: the last one."""
    center: bool
    """Whether the mean vector is subtracted."""
    fit_documents: int
    """Documents that the mean vector is taken over, drawn at random."""
    seed: int
    """Of that draw."""
    parameters: int
    """Weights of the model, for an estimate of its memory."""

    @classmethod
    def resolve(
        cls,
        saved: str,
        *,
        machine: Machine,
        pooling: Pooling | None = None,
        layer: int = 0,
        center: bool = True,
        fit_documents: int = 1024,
        seed: int = 0,
        max_length: int = 0,
        long_documents: LongDocuments = "head",
        max_windows: int = 8,
        dimensions: int = 0,
    ) -> "MegatronSpec":
        """Fill in from the checkpoint what is not given.

        Raises:
            InputError: If there is no checkpoint, or a value given does not fit the model.
        """
        checkpoint, name = MegatronCheckpoint(saved), PREFIX + saved
        args = checkpoint.args
        check_length(name, max_length, args.max_position_embeddings)
        check_dimensions(name, dimensions, args.hidden_size)
        if layer > args.num_layers:
            raise InputError(f"--layer {layer}: {name} has {args.num_layers}; give at most that")
        if pooling == "cls":
            raise InputError(
                f"--pooling cls: the first token of {name} sees no other one; give mean or last"
            )
        return cls(
            name=name,
            saved=saved,
            pooling=pooling or "mean",
            layer=0 if layer == args.num_layers else layer,
            center=center,
            fit_documents=fit_documents,
            seed=seed,
            parameters=sum(math.prod(shape) for shape in checkpoint.shapes.values()),
            max_length=max_length or args.max_position_embeddings,
            long_documents=long_documents,
            max_windows=max_windows if long_documents == "mean" else 1,
            dimensions=dimensions,
            machine=machine,
        )

    @property
    def memory_bytes(self) -> int:
        """Libraries, and the weights twice: as stored and as converted."""
        return LIBRARIES_BYTES + 2 * 4 * self.parameters

    def settings(self) -> dict[str, Any]:
        """Every field but where it lies and runs, and one checksum of the checkpoint's files."""
        checkpoint, digest = MegatronCheckpoint(self.saved), hashlib.sha256()
        for path, entry in checkpoint.fingerprints().items():
            digest.update(f"{Path(path).name} {entry['sha256']}\n".encode())
        own: dict[str, Any] = {
            "encoder": PREFIX + checkpoint.directory.name,
            "layer": self.layer,
            "center": self.center,
            "sha256": digest.hexdigest(),
        }
        if self.center:
            own |= {"fit_documents": self.fit_documents, "seed": self.seed}
        return own | super().settings()

    def prepare(self, corpus: Corpus, directory: Path) -> None:
        """Export the checkpoint, and take the mean vector of a sample of documents.

        Raises:
            InputError: If the corpus has another tokenizer than the model, or the model has no
                Hugging Face layout.
        """
        checkpoint = MegatronCheckpoint(self.saved)
        vocabulary.check(checkpoint, corpus.tokenizer)
        export.write_model(checkpoint, corpus.tokenizer, directory / _MODEL)
        if self.center:
            # On one thread, so that the mean does not depend on their number.
            encoder = MegatronEncoder(self, corpus, directory / _MODEL, None, threads=1)
            vectors = encoder.states(corpus, sample(corpus, self.fit_documents, self.seed)).vectors
            mean = vectors[vectors.any(1)].mean(0, dtype=np.float64)
            save_npy(directory / _CENTER, mean.astype(np.float32))

    def open(
        self, corpus: Corpus, directory: Path, *, threads: int | None = None, gpu: int = 0
    ) -> "MegatronEncoder":
        """Load the exported model."""
        center = np.array(open_npy(directory / _CENTER)) if self.center else None
        return MegatronEncoder(self, corpus, directory / _MODEL, center, threads=threads, gpu=gpu)


class MegatronEncoder:
    """A loaded checkpoint; see ``MegatronSpec``.

    Every window begins with the token that begins a sequence, as documents do in training. That
    token is not pooled, as its state is the same in all documents.

    Args:
        spec: The settings.
        corpus: What will be encoded; has the model's tokenizer.
        directory: The exported model.
        center: float32 [hidden size], what is subtracted from every vector.
        threads: Threads of torch in this process, None for torch's own choice.
        gpu: Number of the CUDA device, if it runs on one.
    """

    def __init__(
        self,
        spec: MegatronSpec,
        corpus: Corpus,
        directory: Path,
        center: np.ndarray | None,
        *,
        threads: int | None = None,
        gpu: int = 0,
    ):
        self._spec, self._center, self._tokenizer = spec, center, corpus.tokenizer
        self._room = spec.max_length - 1
        self._transformer = Transformer(
            directory,
            spec,
            pad=self._tokenizer.pad,
            first=1,
            layer=spec.layer,
            threads=threads,
            gpu=gpu,
        )

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of texts, tokenised as the corpus is; see ``Encoder.encode``."""
        return self._finish(self._states(self._tokenizer.encode_batch(texts)))

    def encode_documents(self, corpus: Corpus, documents: Sequence[int]) -> Encoded:
        """Vectors of documents; see ``Encoder.encode_documents``."""
        return self._finish(self.states(corpus, documents))

    def states(self, corpus: Corpus, documents: Sequence[int]) -> Encoded:
        """Pooled hidden states of documents as they are, not centred.

        Raises:
            InputError: If a document has a token that the tokenizer does not have.
        """
        most = self._room * self._spec.max_windows + 1  # one more shows that it is longer
        bodies = [corpus.body(document)[:most].tolist() for document in documents]
        for document, body in zip(documents, bodies, strict=True):
            if max(body, default=0) >= self._tokenizer.vocab_size:
                prefix, row = corpus.locate(document)
                raise InputError(
                    f"{corpus.prefixes[prefix]}: document {row} has token {max(body)}, but "
                    f"{self._tokenizer.directory} has {self._tokenizer.vocab_size} ids; give the "
                    "tokenizer that the corpus was made with"
                )
        return self._states(bodies)

    def _states(self, bodies: Sequence[list[int]]) -> Encoded:
        reach = self._room * self._spec.max_windows
        documents = [
            [
                [self._tokenizer.bos, *body[start : start + self._room]]
                for start in range(0, min(len(body), reach), self._room)
            ]
            for body in bodies
        ]
        vectors = self._transformer.vectors(documents)
        return Encoded(vectors, sum(len(body) > reach for body in bodies))

    def _finish(self, states: Encoded) -> Encoded:
        """Centre, and cut dimensions; a document without tokens stays zero."""
        vectors = states.vectors
        if self._center is not None:
            vectors[vectors.any(1)] -= self._center
        return Encoded(vectors[:, : self._spec.dimensions or None], states.cut)
