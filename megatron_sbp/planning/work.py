"""What the stages do, counted; the formulas that `tools/plan.py` prints are these.

Mining has a module of its own, ``megatron_sbp.planning.mining``.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from megatron_sbp.recipes.shape import Shape

_ID = 2  # bytes of a token id on disk, below a vocabulary of 65,500
_FLOAT16 = 2
_PER_DIRECTORY = 1000  # shards of a synthetic corpus
_COLUMNS = 26  # bytes of a synthetic document's provenance
_DOCUMENT = 20  # bytes of a document in an .idx: length, pointer, document index


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Amounts of work of a stage, or seconds of one device for one of each."""

    products: float = 0.0
    """Operations (a multiplication or an addition) of matrix products."""
    traffic: float = 0.0
    """Bytes of weights, keys and values read to draw tokens one after another."""
    numbers: float = 0.0
    """Numbers that everything between the products writes: norms, gates, residuals, logits."""
    steps: float = 0.0
    """Layers gone through by one device, whatever their size."""
    tokens: float = 0.0
    """Tokens of text read."""
    documents: float = 0.0
    """Documents read."""

    def times(self, rates: "Work") -> float:
        """Seconds of one device for all of it but the steps, which devices do not share."""
        shared = (one.name for one in fields(self) if one.name != "steps")
        return sum(getattr(self, name) * getattr(rates, name) for name in shared)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """How fast a stage is."""

    each: Work
    """Seconds of one device for one of each kind of work."""
    start: float
    """Seconds until all processes of a job work."""

    def seconds(self, work: Work, devices: int) -> float:
        """Time of a job on so many devices."""
        return self.start + work.steps * self.each.steps + work.times(self.each) / devices


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a plan."""

    name: str
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

    @property
    def mean(self) -> float:
        """Tokens of a document."""
        return self.tokens / self.documents

    def cut(self, limit: float) -> float:
        """Mean tokens of a document of which no more than ``limit`` are read.

        Lengths are taken to be exponentially distributed: m (1 - exp(-limit / m)).
        """
        return self.mean * -math.expm1(-limit / self.mean)

    @property
    def bytes(self) -> float:
        """On disk: token ids and index."""
        return self.tokens * _ID + self.documents * _DOCUMENT


def embed(
    text: Text, encoder: Shape | None, *, limit: int, dimensions: int, per_shard: int
) -> Stage:
    """Documents into vectors.

    Args:
        text: The corpus.
        encoder: Shape of the encoder; None for one without a model.
        limit: Most tokens that it reads of a document.
        dimensions: Numbers of a vector.
        per_shard: Documents of a file.
    """
    tokens = text.documents * text.cut(limit)
    each = encoder.forward_flop(text.cut(limit) / 2, output=False) if encoder else 0.0
    weights = encoder.parameters * _FLOAT16 if encoder else 0.0
    layers = encoder.layers if encoder else 0
    return Stage(
        name="embed",
        work=Work(
            products=each * tokens,
            numbers=tokens * layers * (10 * encoder.hidden + 3 * encoder.ffn) if encoder else 0.0,
            tokens=tokens,
            documents=text.documents,
        ),
        flop=f"{tokens:.3g} tokens x {each:.3g} of one in the encoder",
        read=text.bytes,
        stored=text.documents * dimensions * _FLOAT16,
        files=math.ceil(text.documents / per_shard),
        memory=weights,
    )


def train(
    name: str,
    shape: Shape,
    *,
    iterations: int,
    rows: int,
    sequence: int,
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
        saves: Checkpoints that are written.
        kept: Checkpoints that stay.
        memory: Bytes of a device.
        devices: Of the run.
    """
    tokens = float(iterations) * rows * sequence
    each = shape.training_flop(sequence)
    # bf16 weights, and fp32 weights and two moments of the optimizer.
    checkpoint = shape.parameters * (2 + 12)
    return Stage(
        name=name,
        work=Work(
            products=each * tokens,
            numbers=tokens * written_in_training(shape),
            steps=iterations * shape.layers,
        ),
        flop=f"{tokens:.3g} tokens x 3 x {each / 3:.3g} of one forward",
        read=tokens * _ID,
        stored=kept * checkpoint,
        files=2 * devices,
        memory=memory,
        notes={"checkpoint": checkpoint, "checkpoints": saves},
    )


def written_in_training(shape: Shape) -> float:
    """Numbers that everything between the products writes for a token, forward and backward."""
    return 3 * (shape.layers * (10 * shape.hidden + 3 * shape.ffn) + 2 * shape.vocabulary)


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
    return Stage(
        name="filter",
        work=Work(
            tokens=synthetic.tokens + real.tokens,
            documents=synthetic.documents + real.documents,
        ),
        read=synthetic.bytes + real.bytes,
        stored=synthetic.bytes,
        files=10,
    )
