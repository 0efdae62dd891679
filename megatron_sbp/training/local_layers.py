"""Megatron's local layers with this package's attention and norm."""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_sbp.training.attention import ScaledDotProductAttention


class TorchNorm:
    """torch's LayerNorm or RMSNorm; the interface is Megatron's ``WrappedTorchNorm``.

    That one refuses sequence parallelism. All there is to it is that a weight is marked, so that
    Megatron sums its gradient over the tensor-parallel ranks, each of which saw other positions.
    """

    def __new__(
        cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> Any:
        """The norm of vectors of ``hidden_size`` numbers."""
        if config.layernorm_zero_centered_gamma:
            raise ValueError("--apply-layernorm-1p needs --transformer-impl transformer_engine")
        rms = config.normalization == "RMSNorm"
        norm = (torch.nn.RMSNorm if rms else torch.nn.LayerNorm)(hidden_size, eps=eps)
        for weight in norm.parameters():
            weight.sequence_parallel = config.sequence_parallel
        return norm


def local_block_spec(model_config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage for a ``GPTModelConfig``."""
    transformer = model_config.transformer
    layer = get_gpt_layer_local_spec(
        qk_layernorm=transformer.qk_layernorm, normalization=transformer.normalization
    )
    layer.submodules.input_layernorm = TorchNorm
    layer.submodules.pre_mlp_layernorm = TorchNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = ScaledDotProductAttention
    if transformer.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = TorchNorm
    layers = get_num_layers_to_build(transformer, vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=TorchNorm)
