"""What a training run needs of one device's memory, from its flags.

Weights, gradients and optimizer: Megatron's own account of its distributed optimizer, 6 + 12/DP
bytes a parameter: bf16 weights, fp32 gradients, and, divided over the data-parallel ranks, fp32
copies and Adam's two moments. Activations: what each layer keeps for its backward pass, counted
tensor by tensor as in Korthikanti et al. (arXiv 2205.05198, section 4) for this model: grouped
queries, SwiGLU, norms of queries and keys, no dropout, attention that keeps no scores, and, with
tensor parallelism, sequence parallelism. Norms and biases are too small to count.
"""

from dataclasses import dataclass, fields

from megatron_sbp.recipes import Flags
from megatron_sbp.recipes.run import Layout
from megatron_sbp.recipes.shape import Shape

_GIB = 1 << 30
CAPACITY = {"h100": 79 * _GIB, "h200": 139 * _GIB, "b200": 178 * _GIB}
"""Bytes that a process may allocate, by kind of device."""
USABLE = 0.9
"""Share of them that a run is planned to take: the allocator leaves gaps."""

_BF16, _FP32 = 2, 4
_OPTIMIZER = 3 * _FP32  # copy of the weight, two moments
_QUANTISED = 2  # FP8 copies of a weight, row by row and column by column, a byte each
_LOGIT = _BF16 + 2 * _FP32  # of the output layer, in the loss and its gradient
_RUNTIME = 4 * _GIB  # CUDA, NCCL's buffers and the libraries' workspaces


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device at the height of a step."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int = _RUNTIME

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, part.name) for part in fields(self))


def device_memory(flags: Flags, layout: Layout, vocabulary: int) -> Memory:
    """What a device needs at most: of a pipeline, the first one.

    Args:
        flags: Of a training run, as ``Run.flags`` gives them; the optimizer is distributed.
        layout: Of the run, without interleaved stages.
        vocabulary: Ids of the tokenizer, padded.
    """
    shape = Shape.of(flags, vocabulary)
    layers = -(-shape.layers // layout.pipeline)
    matrices = layers * shape.layer_weights // layout.tensor
    ends = shape.vocabulary * shape.hidden // layout.tensor
    if layout.pipeline == 1 and not shape.tied:
        ends *= 2
    parameters = matrices + ends
    quantised = matrices * _QUANTISED if flags.get("fp8-format") else 0
    positions = int(flags["seq-length"]) // layout.context * layout.micro_batch
    # The first stage holds as many micro-batches as there are stages before it gets one back.
    held = min(layout.pipeline, layout.accumulated)
    kept = _kept_per_position(shape, qk_norm=bool(flags.get("qk-layernorm")))
    logits = positions * shape.vocabulary * _LOGIT // layout.tensor
    return Memory(
        weights=parameters * _BF16 + quantised,
        gradients=parameters * _FP32,
        optimizer=parameters * _OPTIMIZER // (layout.data * layout.context),
        activations=held * layers * positions * kept // layout.tensor,
        logits=logits if layout.pipeline == 1 else 0,
    )


def _kept_per_position(shape: Shape, *, qk_norm: bool) -> int:
    """Bytes that one layer keeps of one position, in bf16.

    Both norms, the product of queries, keys and values, attention's last product and the first one
    of the feed-forward part keep their inputs; attention keeps queries, keys and values, and so do
    the norms of queries and keys; the gate keeps both halves, and the last product what it made of
    them.
    """
    queries, keys = shape.heads * shape.channels, shape.groups * shape.channels
    attention = shape.hidden + queries + queries + 2 * keys
    if qk_norm:
        attention += queries + keys
    feed_forward = shape.hidden + (3 if shape.gated else 2) * shape.ffn
    return _BF16 * (2 * shape.hidden + attention + feed_forward)
