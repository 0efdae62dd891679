"""What a model's shape says: parameters, operations per token, bytes of a key-value cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from megatron_sbp.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder-only transformer: grouped queries, rotary positions, RMSNorm, no biases."""

    layers: int
    hidden: int
    ffn: int
    """Width of the feed-forward layer."""
    heads: int
    groups: int
    """Key and value heads."""
    channels: int
    """Of a head."""
    vocabulary: int
    """Rows of the embedding, padding included."""
    gated: bool = True
    """SwiGLU: three matrices in the feed-forward layer, not two."""
    tied: bool = True
    """The output layer is the embedding."""

    @classmethod
    def of(cls, flags: Mapping[str, Any], vocabulary: int) -> Self:
        """The shape that Megatron's training flags describe.

        Args:
            flags: Flag without dashes -> value.
            vocabulary: Ids of the tokenizer; padded as Megatron does.

        Raises:
            InputError: If a flag is missing.
        """
        try:
            hidden, heads = int(flags["hidden-size"]), int(flags["num-attention-heads"])
            layers = int(flags["num-layers"])
        except KeyError as error:
            raise InputError(f"the training flags have no --{error.args[0]}; add it") from None
        unit = int(flags.get("make-vocab-size-divisible-by", 128))
        unit *= int(flags.get("tensor-model-parallel-size", 1))
        grouped = flags.get("group-query-attention", False)
        gated = bool(flags.get("swiglu", False))
        return cls(
            layers=layers,
            hidden=hidden,
            ffn=int(flags.get("ffn-hidden-size") or _ffn(hidden, gated)),
            heads=heads,
            groups=int(flags.get("num-query-groups", 1)) if grouped else heads,
            channels=int(flags.get("kv-channels") or hidden // heads),
            vocabulary=-(-vocabulary // unit) * unit,
            gated=gated,
            tied=not flags.get("untie-embeddings-and-output-weights", False),
        )

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of a layer: queries and output, keys and values, feed-forward."""
        attention = 2 * self.hidden * self.channels * (self.heads + self.groups)
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def parameters(self) -> int:
        """All weights: layers with two norms each, embedding, output layer if it is its own."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (self.layer_weights + 2 * self.hidden) + embeddings + self.hidden

    def forward_flop(self, context: float, *, output: bool = True) -> float:
        """Operations of a token that looks back at ``context`` tokens.

        Two per weight of every matrix, and four per channel, head, layer and token looked at: the
        products with keys and with values.

        Args:
            context: Tokens attended to; half of the sequence on average in a causal one.
            output: Whether logits are computed.
        """
        weights = self.layers * self.layer_weights + output * self.vocabulary * self.hidden
        return 2 * weights + 4 * self.layers * self.heads * self.channels * context

    def training_flop(self, sequence: int) -> float:
        """Operations of a token in training: forward, and twice that backward (3x)."""
        return 3 * self.forward_flop(sequence / 2)

    def cache_bytes(self, width: int) -> int:
        """Bytes of keys and values of a token, of ``width`` bytes a number."""
        return 2 * self.layers * self.groups * self.channels * width


def _ffn(hidden: int, gated: bool) -> int:
    """Megatron's default: 4 h, or about as many parameters with a gate."""
    return int(4 * hidden * 2 / 3 / 64) * 64 if gated else 4 * hidden
