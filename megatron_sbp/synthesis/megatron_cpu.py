"""Megatron's dynamic inference without CUDA: attention over blocks of keys and values in torch.

Megatron attends through FlashAttention and writes keys and values with a Triton kernel, which are
for GPUs. Everything else it does runs on the CPU platform of the training loop.
"""

from typing import Any

import torch
from megatron.core.inference import communication_utils
from megatron.core.inference.contexts import dynamic_context
from megatron.core.transformer import attention
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron_sbp.training.local_layers import local_block_spec


def install() -> None:
    """Let Megatron's inference take the attention of this module; after ``platform.install``."""
    attention.HAVE_FA3 = True  # It asks for some FlashAttention before it calls the method below.
    dynamic_context.triton_append_key_value_cache = None  # It then assigns to slices.
    communication_utils._is_cuda = lambda tensor: None  # It asserts that gloo is not asked.
    # An index means a CUDA device to torch.Generator, which no function mode sees.
    torch.cuda.current_device = lambda: torch.device("cpu")


class BlockAttention(SelfAttention):
    """Self-attention of Megatron's local layers whose dynamic inference runs on any device."""

    def flash_decode_and_prefill(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        seqlens_k: torch.Tensor,
        block_table: torch.Tensor,
        is_decode_only: bool,
        softmax_offset: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend to every request's own keys and values.

        Args:
            q: [tokens, 1, heads, channels], the new tokens of all requests one after the other.
            k: [blocks, tokens of a block, groups, channels], of all requests.
            v: As ``k``.
            max_seqlen_q: Not used.
            max_seqlen_k: Not used.
            cu_seqlens_q: [requests + 1], where the new tokens of a request begin.
            cu_seqlens_k: Not used.
            seqlens_k: [requests], tokens of a request, the new ones included.
            block_table: [requests, most blocks of one], the numbers of its blocks.
            is_decode_only: Not used.
            softmax_offset: Must be None.

        Returns:
            [tokens, 1, heads, channels].
        """
        assert softmax_offset is None
        result = torch.zeros_like(q)
        begins, lengths = cu_seqlens_q.tolist(), seqlens_k.tolist()
        for request, length in enumerate(lengths):
            begin, end = begins[request], begins[request + 1]
            if begin == end:  # only pads the batch
                continue
            blocks = block_table[request, : -(-length // k.shape[1])].long()
            keys, values = (cache[blocks].flatten(0, 1)[:length] for cache in (k, v))
            visible = torch.ones(end - begin, length, dtype=torch.bool).tril(length - end + begin)
            attended = torch.nn.functional.scaled_dot_product_attention(
                q[begin:end, 0].transpose(0, 1),
                keys.transpose(0, 1),
                values.transpose(0, 1),
                attn_mask=visible,
                enable_gqa=keys.shape[1] != q.shape[2],
            )
            result[begin:end, 0] = attended.transpose(0, 1)
        return result


def block_spec(model_config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """The local layers of this pipeline stage with ``BlockAttention``."""
    block = local_block_spec(model_config, vp_stage)
    for layer in block.layer_specs:
        layer.submodules.self_attention.module = BlockAttention
    return block
