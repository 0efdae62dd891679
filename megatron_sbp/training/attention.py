"""Core attention on torch's fused kernel, for Megatron's local layers.

Megatron's local attention writes out the full score matrix and knows neither packed sequences nor
context parallelism. This one calls ``torch.nn.functional.scaled_dot_product_attention``, for all
segments at once or for one after another. It is used with ``--transformer-impl local``, which is
what the CPU platform runs; with Transformer Engine the same batches go through its THD kernels.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_sbp.training.context_parallel import chunks, positions

# Segments are attended to at once, instead of one after another, if all of them filled up to the
# longest are at most so many times the positions of the row: calls for short ones cost more.
_PADDING = 2


class ScaledDotProductAttention(torch.nn.Module):
    """Causal attention; the interface is Megatron's ``DotProductAttention``."""

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
        given = config.attention_dropout if attention_dropout is None else attention_dropout
        self.dropout = given
        # With sequence parallelism Megatron has forked the random numbers of the whole layer.
        self._forks = given > 0 and not config.sequence_parallel
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self._ranks = config.context_parallel_size
        self._group = pg_collection.cp if pg_collection is not None and self._ranks > 1 else None

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
        """Attend, within each segment of a packed row.

        Args:
            query: [sequence, batch, heads, channels], or [positions, heads, channels] if packed;
                with context parallelism the rank's own positions (``context_parallel.chunks``).
            key: As ``query``, with groups for heads; groups divides heads.
            value: As ``key``.
            attention_mask: Ignored: the mask is causal.
            attn_mask_type: Ignored likewise.
            attention_bias: Must be None.
            packed_seq_params: ``PackedSeqParams`` of a packed row (THD): the boundaries of its
                segments.

        Returns:
            [sequence, batch, heads * channels], or [positions, heads * channels] if packed.
        """
        if attention_bias is not None:
            raise ValueError("an attention bias needs --transformer-impl transformer_engine")
        packed = packed_seq_params is not None
        if packed:
            boundaries = packed_seq_params.cu_seqlens_q.tolist()
            query, key, value = (tensor.unsqueeze(1) for tensor in (query, key, value))
        else:
            boundaries = [0, query.size(0) * self._ranks]
        context = self._attend(query, key, value, boundaries).flatten(2)
        return context.squeeze(1) if packed else context

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        boundaries: Sequence[int],
    ) -> torch.Tensor:
        """Attention of [positions, batch, heads, channels]."""
        lengths = [end - begin for begin, end in pairwise(boundaries)]
        if self._ranks == 1 and 1 < len(lengths) <= _PADDING * query.size(0) / max(lengths):
            return self._side_by_side(query, key, value, lengths)
        rank = 0
        if self._group is not None:
            rank = self._group.rank()
            key, value = (self._whole(tensor, boundaries) for tensor in (key, value))
        held = chunks(boundaries, self._ranks, rank)
        # Not slices: the gradient of each would be as long as the row.
        queries = query.split([end - start for _, start, end in held])
        segments = dict(
            zip(
                boundaries, zip(key.split(lengths), value.split(lengths), strict=True), strict=False
            )
        )
        pieces = []
        for mine, (begin, _, end) in zip(queries, held, strict=True):
            keys, values = (tensor[: end - begin] for tensor in segments[begin])
            pieces.append(self._causal(mine, keys, values))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _side_by_side(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]
    ) -> torch.Tensor:
        """Attention of the segments of one row at a time, each filled up to the longest.

        What fills a segment up stands after it, where causal attention does not look.
        """
        shape = (len(lengths), max(lengths))
        places = _places(tuple(lengths)).to(query.device)
        # Not pad_sequence: the gradient of each segment that it writes is as long as all of them.
        padded = (
            tensor.new_zeros(math.prod(shape), *tensor.shape[2:])
            .index_copy(0, places, tensor.squeeze(1))
            .unflatten(0, shape)
            .transpose(0, 1)
            for tensor in (query, key, value)
        )
        context = self._causal(*padded).transpose(0, 1)
        return context.flatten(0, 1).index_select(0, places).unsqueeze(1)

    def _causal(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention of queries that are the last ones of the keys' positions."""
        queries, keys = query.size(0), key.size(0)
        mask = None
        if queries < keys:
            allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
            mask = allowed.tril(diagonal=keys - queries)
        # Tensor-parallel ranks have other heads, so they need other random numbers.
        with get_cuda_rng_tracker().fork() if self._forks else nullcontext():
            context = torch.nn.functional.scaled_dot_product_attention(
                query.permute(1, 2, 0, 3),
                key.permute(1, 2, 0, 3),
                value.permute(1, 2, 0, 3),
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=self.dropout if self.training else 0.0,
                scale=self.scale,
                enable_gqa=key.size(2) != query.size(2),
            )
        return context.permute(2, 0, 1, 3)

    def _whole(self, local: torch.Tensor, boundaries: Sequence[int]) -> torch.Tensor:
        """Keys or values of the whole row, in its order, from every rank's part."""
        gathered = gather_from_sequence_parallel_region(local.contiguous(), group=self._group)
        held = [positions(boundaries, self._ranks, rank) for rank in range(self._ranks)]
        order = torch.argsort(torch.cat(held)).to(gathered.device)
        return gathered.index_select(0, order)


# Every layer asks for those of one row.
@lru_cache(maxsize=1)
def _places(lengths: tuple[int, ...]) -> torch.Tensor:
    """Where each position of a row lies when its segments are filled up, int64 [positions]."""
    longest = max(lengths)
    with torch.inference_mode(False):  # or a later pass could not keep them for its gradient
        return torch.cat(
            [torch.arange(length) + number * longest for number, length in enumerate(lengths)]
        )
