"""Core attention on torch's fused kernel, and Megatron's local layer spec with it.

Megatron's local attention writes out the full score matrix; this one calls
``torch.nn.functional.scaled_dot_product_attention``. It is used with ``--transformer-impl local``,
which is what the CPU platform runs.
"""

import math
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig


class ScaledDotProductAttention(torch.nn.Module):
    """Causal attention without dropout; the interface is Megatron's ``DotProductAttention``."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        **_: Any,
    ):
        super().__init__()
        if config.context_parallel_size > 1:
            raise ValueError("context parallelism needs --transformer-impl transformer_engine")
        if config.attention_dropout > 0:
            raise ValueError("--attention-dropout must be 0 with --transformer-impl local here")
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [sequence, batch, heads, channels].
            key: [sequence, batch, groups, channels]; groups divides heads.
            value: As ``key``.
            attention_mask: Ignored: the mask is causal.
            attn_mask_type: Ignored likewise.
            attention_bias: Must be None.
            packed_seq_params: Must be None.

        Returns:
            [sequence, batch, heads * channels].
        """
        if packed_seq_params is not None or attention_bias is not None:
            raise ValueError("packed sequences need --transformer-impl transformer_engine")
        length, batch, heads, _ = query.shape
        context = torch.nn.functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.scale,
            enable_gqa=key.size(2) != heads,
        )
        return context.permute(2, 0, 1, 3).reshape(length, batch, -1)


def local_layer_spec(model_config: Any) -> ModuleSpec:
    """Megatron's local layer spec for a ``GPTModelConfig``, with the attention above."""
    transformer = model_config.transformer
    spec = get_gpt_layer_local_spec(
        qk_layernorm=transformer.qk_layernorm, normalization=transformer.normalization
    )
    spec.submodules.self_attention.submodules.core_attention = ScaledDotProductAttention
    return spec
