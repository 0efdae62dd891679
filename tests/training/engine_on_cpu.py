"""``megatron_sbp.pretrain`` on Transformer Engine's layers, on a machine without a GPU.

Megatron builds, calls, saves and loads Transformer Engine's own modules as on a GPU, and this
package does what it does there (``platform.install()`` stays away). Only what Transformer Engine
would give to a kernel is computed by torch, and CUDA's tensors lie on the CPU.
"""

import sys
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from megatron_sbp.training import platform
from tests.training import engine_kernels

ARGUMENTS = [
    *("--transformer-impl", "transformer_engine", "--distributed-backend", "gloo"),
    *("--use-cpu-initialization", "--no-gradient-accumulation-fusion", "--disable-jit-fuser"),
]


def _norm(weights: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, weights.eps)


def _linear(self: Any, x: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
    """The product, with the communication of tensor parallelism before or after it."""
    from megatron.core.tensor_parallel import mappings

    if self.parallel_mode == "column":
        x = (
            mappings.gather_from_sequence_parallel_region(x)
            if self.sequence_parallel
            else mappings.copy_to_tensor_model_parallel_region(x)
        )
    y = F.linear(x, self.weight)
    if self.parallel_mode == "row":
        y = (
            mappings.reduce_scatter_to_sequence_parallel_region(y)
            if self.sequence_parallel
            else mappings.reduce_from_tensor_model_parallel_region(y)
        )
    return (y, None) if self.te_return_bias else y


def _norm_linear(self: Any, x: torch.Tensor, is_first_microbatch: bool | None = None) -> Any:
    return _linear(self, _norm(self, x, self.layer_norm_weight))


def _rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return _norm(self, x, self.weight)


def _attention(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    attn_mask_type: str,
    qkv_format: str = "sbhd",
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_kv: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_kv: int | None = None,
    **others: Any,
) -> torch.Tensor:
    """What the documentation of ``DotProductAttention.forward`` asks for, and its result."""
    assert not any(other is not None for other in others.values()), others
    ranks = 1 if self.cp_group is None else self.cp_group.size()
    if qkv_format == "sbhd":
        assert attn_mask_type == "causal" and attention_mask is None
        if ranks > 1:
            return engine_kernels.attend(self, [query, key, value])
        heads = [part.permute(1, 2, 0, 3) for part in (query, key, value)]
        return _causal(heads).permute(2, 0, 1, 3).flatten(2)
    assert qkv_format == "thd" and attn_mask_type == "padding_causal"
    assert cu_seqlens_q is not None and cu_seqlens_kv is not None
    assert cu_seqlens_q.dtype == torch.int32 and torch.equal(cu_seqlens_q, cu_seqlens_kv)
    assert cu_seqlens_q[0] == 0 and cu_seqlens_q[-1] == len(query) * ranks
    assert cu_seqlens_q.diff().min() > 0 and cu_seqlens_q.diff().max() == max_seqlen_q
    assert isinstance(max_seqlen_q, int) and max_seqlen_kv == max_seqlen_q
    if ranks > 1:
        assert not (cu_seqlens_q % (2 * ranks)).any()
        return engine_kernels.attend(self, [query, key, value], cu_seqlens_q, max_seqlen_q)
    parts = []
    for begin, end in pairwise(cu_seqlens_q.tolist()):
        heads = [part[begin:end].transpose(0, 1) for part in (query, key, value)]
        parts.append(_causal(heads).transpose(0, 1))
    return torch.cat(parts).flatten(1)


def _causal(heads: list[torch.Tensor]) -> torch.Tensor:
    query, key, value = heads
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


@contextmanager
def _with_a_gpu() -> Any:
    with mock.patch.object(torch.cuda, "is_available", lambda: True):
        yield


def install() -> None:
    """Call it before anything of ``megatron`` is imported."""
    platform._map_torch_cuda()
    platform.CudaToCpu().__enter__()
    import transformer_engine.pytorch as engine
    from transformer_engine.pytorch import attention
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule as Base

    Base.__init__ = _with_a_gpu()(Base.__init__)
    engine.LayerNormLinear.forward = _norm_linear
    engine.Linear.forward = _linear
    engine.RMSNorm.forward = _rms_norm
    engine.DotProductAttention.forward = _attention
    engine_kernels.install()
    rotary = attention.rope.apply_rotary_pos_emb

    def unfused(*args: Any, **kwargs: Any) -> torch.Tensor:
        return rotary(*args, **kwargs | {"fused": False})

    attention.apply_rotary_pos_emb = attention.rope.apply_rotary_pos_emb = unfused
    # Megatron then takes torch's optimizers.
    sys.modules["transformer_engine.pytorch.optimizers"] = None  # type: ignore[assignment]
    platform._map_megatron()
    platform.install = lambda: False


if __name__ == "__main__":
    install()
    from megatron_sbp import pretrain
    from megatron_sbp.cli import run

    sys.argv += ARGUMENTS
    run(pretrain.main)
