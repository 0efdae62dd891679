"""What Transformer Engine's kernels for context parallelism compute, written in torch.

Transformer Engine itself sends keys and values around the ring of ranks and puts the parts of the
attention together (``attn_forward_func_with_cp``); only its kernels are replaced. A rank holds of
every segment an early chunk and a late one: its first and its second half.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Replace the kernels in Transformer Engine's ``context_parallel``."""
    from transformer_engine.pytorch.attention.dot_product_attention import context_parallel as ring

    ring.fused_attn_fwd, ring.fused_attn_bwd = _attention, _attention_gradients
    ring.flash_attn_p2p_communicate = _waited_for_once(ring.flash_attn_p2p_communicate)
    ring.get_device_compute_capability = lambda: (9, 0)
    ring.get_cudnn_version = lambda: (9, 6, 0)  # statistics by position from here on
    for kernel in (
        thd_read_half_tensor,
        thd_second_half_lse_correction,
        thd_out_correction,
        thd_read_second_half_lse,
        thd_grad_correction,
    ):
        setattr(ring.tex, kernel.__name__, kernel)


class _Once:
    """A transfer that may be waited for twice, as NCCL's may; gloo's would wait for another."""

    def __init__(self, transfer: Any):
        self._transfer = transfer

    def wait(self) -> None:
        """Wait for the transfer."""
        if self._transfer is not None:
            self._transfer.wait()
        self._transfer = None


def _waited_for_once(communicate: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: [_Once(transfer) for transfer in communicate(*args)]


def attend(
    module: Any,
    qkv: list[torch.Tensor],
    boundaries: torch.Tensor | None = None,
    longest: int | None = None,
) -> torch.Tensor:
    """Attention of a context-parallel rank, called as ``FusedAttention`` calls it.

    Args:
        module: Transformer Engine's ``DotProductAttention``.
        qkv: Query, key and value.
        boundaries: ``cu_seqlens`` of a packed row.
        longest: ``max_seqlen`` of a packed row.
    """
    from transformer_engine.pytorch.attention.dot_product_attention import context_parallel as ring

    qkv = [part.contiguous() for part in qkv]
    layout, mask = "thd", "padding_causal"
    if boundaries is None:
        layout, mask = "sbhd", "causal"
        longest = len(qkv[0]) * module.cp_group.size()
        boundaries = longest * torch.arange(qkv[0].size(1) + 1, dtype=torch.int32)
    return ring.attn_forward_func_with_cp(
        module.training,
        *qkv,
        *(boundaries, boundaries, longest, longest, boundaries, boundaries),
        *(0.0, module.cp_group, module.cp_global_ranks, module.cp_stream, module.cp_comm_type),
        qkv_format=layout,
        attn_mask_type=mask,
        use_fused_attention=True,
    ).flatten(-2)


type _Index = Any


def _segments(
    layout: str, query: torch.Tensor, cu_q: torch.Tensor, cu_kv: torch.Tensor
) -> Iterator[tuple[_Index, _Index]]:
    """Where the queries of every segment lie, and its keys."""
    if layout == "sbhd_sbhd_sbhd":
        for row in range(query.size(1)):
            yield np.s_[:, row], np.s_[:, row]
    else:
        assert layout == "thd_thd_thd" and cu_q[-1] == len(query)
        for mine, theirs in zip(pairwise(cu_q.tolist()), pairwise(cu_kv.tolist()), strict=True):
            yield slice(*mine), slice(*theirs)


def _statistics(packed: bool, tensor: torch.Tensor, mine: _Index) -> torch.Tensor:
    """Those of a segment, [heads, queries]; a view."""
    # [positions, heads, 1], or [rows, heads, queries, 1]
    return tensor[mine, :, 0].T if packed else tensor[mine[1], :, :, 0]


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float, mask: str) -> torch.Tensor:
    """[heads, queries, keys]."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if "causal" in mask:
        assert len(query) == len(key)
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
    return scores


def _heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values of every head: [keys, groups, channels] to [keys, heads, channels]."""
    return tensor.repeat_interleave(heads // tensor.size(1), dim=1)


def _attention(
    is_training: bool,
    max_seqlen_q: int,
    max_seqlen_kv: int,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    qkv_layout: str,
    attn_mask_type: str,
    attn_scale: float,
    cu_seqlens_q_padded: torch.Tensor | None,
    cu_seqlens_kv_padded: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    packed, heads = qkv_layout == "thd_thd_thd", q.size(-2)
    if packed:
        assert cu_seqlens_q_padded is not None and cu_seqlens_kv_padded is not None
        assert torch.equal(cu_seqlens_q, cu_seqlens_q_padded)
        assert torch.equal(cu_seqlens_kv, cu_seqlens_kv_padded)
        assert cu_seqlens_q.diff().max() <= max_seqlen_q
        assert cu_seqlens_kv.diff().max() <= max_seqlen_kv
    out = torch.zeros_like(q)
    statistics = torch.zeros((len(q), heads, 1) if packed else (q.size(1), heads, len(q), 1))
    for mine, theirs in _segments(qkv_layout, q, cu_seqlens_q, cu_seqlens_kv):
        scores = _scores(q[mine], _heads(k[theirs], heads), attn_scale, attn_mask_type)
        out[mine] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _heads(v[theirs], heads))
        _statistics(packed, statistics, mine).copy_(scores.logsumexp(-1))
    return out, [statistics, torch.zeros(2, dtype=torch.int64)]


def _attention_gradients(
    max_seqlen_q: int,
    max_seqlen_kv: int,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    o: torch.Tensor,
    d_o: torch.Tensor,
    fake_dtype: torch.dtype,
    dqkv_dtype: Any,
    aux_ctx_tensors: list[torch.Tensor],
    *_: Any,
    qkv_layout: str,
    attn_mask_type: str,
    attn_scale: float,
    **__: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
    """Of one part; output and statistics are those of the whole attention."""
    packed, (heads, groups) = qkv_layout == "thd_thd_thd", (q.size(-2), k.size(-2))
    dq, dk, dv = (torch.zeros_like(part) for part in (q, k, v))
    q, k, v, o, d_o = (part.float() for part in (q, k, v, o, d_o))
    for mine, theirs in _segments(qkv_layout, q, cu_seqlens_q, cu_seqlens_kv):
        keys, values = _heads(k[theirs], heads), _heads(v[theirs], heads)
        scores = _scores(q[mine], keys, attn_scale, attn_mask_type)
        weights = (scores - _statistics(packed, aux_ctx_tensors[0], mine)[..., None]).exp()
        d_weights = torch.einsum("qhd,khd->hqk", d_o[mine], values)
        rest = (d_o[mine] * o[mine]).sum(-1).T[..., None]
        d_scores = attn_scale * weights * (d_weights - rest)
        dq[mine] = torch.einsum("hqk,khd->qhd", d_scores, keys)
        for gradient, whole in (
            (dk, torch.einsum("hqk,qhd->khd", d_scores, q[mine])),
            (dv, torch.einsum("hqk,qhd->khd", weights, d_o[mine])),
        ):
            gradient[theirs] = whole.unflatten(1, (groups, heads // groups)).sum(2)
    return dq, dk, dv, None


def _half(cu_seqlens: torch.Tensor, number: int) -> torch.Tensor:
    """Places of the first (0) or second (1) half of every segment."""
    return torch.cat(
        [torch.arange(begin, end).chunk(2)[number] for begin, end in pairwise(cu_seqlens.tolist())]
    )


def thd_read_half_tensor(tensor: torch.Tensor, cu_seqlens: torch.Tensor, half: int) -> torch.Tensor:
    """One half of every segment: [positions / 2, heads, channels]."""
    return tensor[_half(cu_seqlens, half)]


def thd_second_half_lse_correction(
    lse: torch.Tensor, lse_per_step: torch.Tensor, cu_seqlens: torch.Tensor, packed: bool
) -> None:
    """Add the statistics of a step to those of the second halves, both [heads, positions]."""
    assert packed
    places = _half(cu_seqlens, 1)
    lse[:, places] = torch.logaddexp(lse[:, places], lse_per_step)


def thd_read_second_half_lse(
    lse: torch.Tensor, cu_seqlens: torch.Tensor, packed: bool, _: int
) -> torch.Tensor:
    """Statistics of the second halves: [heads, positions / 2]."""
    assert packed
    return lse[:, _half(cu_seqlens, 1)]


def thd_out_correction(
    out: torch.Tensor,
    out_per_step: torch.Tensor,
    lse: torch.Tensor,
    lse_per_step: torch.Tensor,
    cu_seqlens: torch.Tensor,
    only_second_half: bool,
    packed: bool,
) -> None:
    """Add the output of a step, weighed by its share of the whole softmax."""
    assert packed
    places = _half(cu_seqlens, 1) if only_second_half else torch.arange(len(out))
    share = (lse_per_step - lse[:, places]).exp().T[..., None]
    out[places] += share * out_per_step


def thd_grad_correction(
    gradient: torch.Tensor,
    gradient_per_step: torch.Tensor,
    cu_seqlens: torch.Tensor,
    first_half: str,
    second_half: str,
) -> None:
    """Add a step's gradient to each half, copy it there, or neither ("none")."""
    actions = (first_half, second_half)
    whole = "none" not in actions
    for number, action in enumerate(actions):
        if action == "none":
            continue
        places = _half(cu_seqlens, number)
        step = gradient_per_step[places] if whole else gradient_per_step
        gradient[places] = step + (gradient[places] if action == "add" else 0)
