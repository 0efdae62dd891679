"""What the stages do, counted; the formulas that `tools/plan.py` prints are these.

Mining has a module of its own, ``megatron_sbp.planning.mining``.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.planning.amounts import Amounts, not_shared
from megatron_sbp.recipes.shape import Shape

_ID = 2  # bytes of a token id on disk, below a vocabulary of 65,500
_FLOAT16 = 2
_PER_DIRECTORY = 1000  # shards of a synthetic corpus
_COLUMNS = 26  # bytes of a synthetic document's provenance
_DOCUMENT = 20  # bytes of a document in an .idx: length, pointer, document index


@dataclass(frozen=True, kw_only=True, slots=True)
class Work(Amounts):
    """What a stage does."""

    products: float = 0.0
    """Operations (a multiplication or an addition) of matrix products."""
    traffic: float = 0.0
    """Bytes of weights, keys and values read to draw tokens one after another."""
    numbers: float = 0.0
    """Numbers that everything between the products writes: norms, gates, residuals, logits."""
    steps: float = not_shared()
    """Layers gone through by one device, whatever their size; backward counts twice."""
    tokens: float = 0.0
    """Tokens of text read."""
    documents: float = 0.0
    """Documents read."""
    learned: float = not_shared()
    """Tokens that one process learns an encoder from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How fast a stage is."""

    each: Work
    """Seconds of one device for one of each kind of work."""
    start: float
    """Seconds until all processes of a job work."""

    def seconds(self, work: Work, devices: int) -> float:
        """Time of a job on so many devices."""
        return self.start + work.times(self.each, devices)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a plan."""

    name: str
    kind: str
    """Whose rates it has: embed, embed-lexical, mine, train, synthesize or filter."""
    work: Work
    flop: str = ""
    """How the operations are counted, in words and numbers."""
    read: float = 0.0
    """Bytes read from disk."""
    stored: float = 0.0
    """Bytes on disk when it has ended."""
    files: int = 0
    """Files in its largest directory."""
    memory: float = 0.0
    """Bytes of a device, at most."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What else a reader of the plan wants to know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A corpus, by its size."""

    documents: float
    tokens: float
    lengths: np.ndarray | None = None
    """int32 [documents], tokens of each; None where they are not known."""

    @classmethod
    def of(cls, corpus: Corpus) -> Self:
        """The size of a corpus that is there."""
        lengths = corpus.lengths
        return cls(documents=len(lengths), tokens=float(lengths.sum()), lengths=lengths)

    @property
    def mean(self) -> float:
        """Tokens of a document."""
        return self.tokens / self.documents

    def cut(self, limit: float) -> float:
        """Mean tokens of a document of which no more than ``limit`` are read.

        Unknown lengths are taken to be exponentially distributed: m (1 - exp(-limit / m)).
        """
        if self.lengths is not None:
            return float(np.minimum(self.lengths, np.int64(limit)).mean())
        return self.mean * -math.expm1(-limit / self.mean)

    @property
    def bytes(self) -> float:
        """On disk: token ids and index."""
        return self.tokens * _ID + self.documents * _DOCUMENT


def embed(
    text: Text,
    encoder: Shape | None,
    *,
    limit: int,
    dimensions: int,
    per_shard: int,
    learned: int,
) -> Stage:
    """Documents into vectors.

    Args:
        text: The corpus.
        encoder: Shape of the encoder; None for one without a model.
        limit: Most tokens that it reads of a document.
        dimensions: Numbers of a vector.
        per_shard: Documents of a file.
        learned: Documents that an encoder without a model learns from, at most.
    """
    tokens = text.documents * text.cut(limit)
    each = encoder.forward_flop(text.cut(limit) / 2, output=False) if encoder else 0.0
    weights = encoder.parameters * _FLOAT16 if encoder else 0.0
    return Stage(
        name="embed",
        kind="embed" if encoder else "embed-lexical",
        # The products of a model explain its time alone; without one there are none.
        work=Work(products=each * tokens)
        if encoder
        else Work(
            tokens=tokens,
            documents=text.documents,
            learned=min(learned, text.documents) * text.cut(limit),
        ),
        flop=f"{tokens:.3g} tokens x {each:.3g} of one in the encoder",
        read=text.bytes,
        stored=text.documents * dimensions * _FLOAT16,
        files=math.ceil(text.documents / per_shard),
        memory=weights,
    )


def filter_pairs(pairs: float, text: Text) -> Work:
    """What mining does besides the search: both documents of every pair found are read."""
    return Work(tokens=2 * pairs * text.mean, documents=2 * pairs)


def train(
    name: str,
    shape: Shape,
    *,
    iterations: int,
    rows: int,
    sequence: int,
    evaluated: float,
    evaluated_at_once: int,
    saves: int,
    kept: int,
    memory: float,
    devices: int,
) -> Stage:
    """A training run of Megatron.

    Args:
        name: Of the run.
        shape: The model.
        iterations: Steps.
        rows: Global batch.
        sequence: Tokens of a row.
        evaluated: Rows of all evaluations, each of which is gone through forward.
        evaluated_at_once: Rows of a step of evaluation.
        saves: Checkpoints that are written.
        kept: Checkpoints that stay.
        memory: Bytes of a device.
        devices: Of the run.
    """
    tokens = float(iterations) * rows * sequence
    forward = shape.training_flop(sequence) / 3
    passes = 3 * tokens + evaluated * sequence
    # bf16 weights, and fp32 weights and two moments of the optimizer.
    checkpoint = shape.parameters * (2 + 12)
    return Stage(
        name=name,
        kind="train",
        work=Work(
            products=forward * passes,
            numbers=written_forward(shape) * passes,
            steps=shape.layers * (3 * iterations + evaluated / evaluated_at_once),
        ),
        flop=f"(3 x {tokens:.3g} tokens + {evaluated * sequence:.3g} evaluated) x {forward:.3g} "
        "of one forward",
        read=tokens * _ID,
        stored=kept * checkpoint,
        files=2 * devices,
        memory=memory,
        notes={"checkpoint": checkpoint, "checkpoints": saves},
    )


def written_forward(shape: Shape) -> float:
    """Numbers that everything between the products writes for a token."""
    return shape.layers * (10 * shape.hidden + 3 * shape.ffn) + 2 * shape.vocabulary


def synthesize(
    shape: Shape,
    *,
    documents: float,
    prompt: float,
    new: float,
    batch: float,
    width: int,
    per_shard: int,
    devices: int,
) -> Stage:
    """Documents drawn from seeds.

    Args:
        shape: The model.
        documents: To draw.
        prompt: Tokens of a prompt, on average.
        new: Tokens of a drawn document, on average.
        batch: Documents that a device has at work.
        width: Bytes of a number of the model.
        per_shard: Documents of a file.
        devices: Of the run.
    """
    read, drawn = documents * prompt, documents * new
    behind = prompt + new / 2
    reading, drawing = shape.forward_flop(prompt / 2, output=False), shape.forward_flop(behind)
    weights, cache = shape.parameters * width, shape.cache_bytes(width)
    return Stage(
        name="synthesize",
        kind="synthesize",
        work=Work(
            products=read * reading + drawn * drawing,
            traffic=drawn * (weights / batch + behind * cache),
            numbers=drawn * 2 * shape.vocabulary,
            steps=drawn / (batch * devices) * shape.layers,
            documents=documents,
        ),
        flop=f"{read:.3g} tokens of prompts x {reading:.3g} + {drawn:.3g} drawn x {drawing:.3g}",
        read=read * _ID,
        stored=drawn * _ID + documents * (_DOCUMENT + _COLUMNS),
        files=min(_PER_DIRECTORY, math.ceil(documents / per_shard)),
        memory=weights + batch * (prompt + new) * cache,
        notes={"documents": documents, "tokens": drawn, "documents at work": batch},
    )


def filter_synthetic(synthetic: Text, real: Text) -> Stage:
    """Synthetic documents judged; the whole real corpus is read past them."""
    tokens, documents = synthetic.tokens + real.tokens, synthetic.documents + real.documents
    return Stage(
        name="filter",
        kind="filter",
        work=Work(tokens=tokens, documents=documents),
        flop=f"{tokens:.3g} tokens of {documents:.3g} documents read",
        read=synthetic.bytes + real.bytes,
        stored=synthetic.bytes,
        files=10,
    )
