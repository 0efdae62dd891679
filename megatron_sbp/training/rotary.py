"""Rotary position embedding of packed rows, all segments at once.

Megatron's own for CPUs writes segment by segment into one tensor, and the gradient of each write is
as long as the row. Positions restart with every segment, so it is enough to take every position's
frequencies by its number in its segment.
"""

from functools import lru_cache
from typing import Any

import torch
from megatron.core.models.common.embeddings import rope_utils

from megatron_sbp.training.context_parallel import chunks


def install() -> None:
    """Put ``rotate`` in place of Megatron's ``_apply_rotary_pos_emb_thd``."""
    rope_utils._apply_rotary_pos_emb_thd = rotate


def rotate(
    t: torch.Tensor,
    cu_seqlens: torch.Tensor,
    freqs: torch.Tensor,
    *,
    cp_group: Any,
    **keywords: Any,
) -> torch.Tensor:
    """Queries or keys of a packed row, rotated.

    Args:
        t: [positions, heads, channels], this context-parallel rank's positions.
        cu_seqlens: Boundaries of the segments, int32 [segments + 1].
        freqs: [at least the longest segment, 1, 1, channels].
        cp_group: The context-parallel ranks.
        **keywords: Megatron's further options.

    Returns:
        As ``t``.
    """
    held = _places(tuple(cu_seqlens.tolist()), cp_group.size(), cp_group.rank())
    rotated = rope_utils._apply_rotary_pos_emb_bshd(t.unsqueeze(1), freqs[held], **keywords)
    return rotated.squeeze(1)


# The queries and the keys of every layer ask for those of one row.
@lru_cache(maxsize=1)
def _places(boundaries: tuple[int, ...], size: int, rank: int) -> torch.Tensor:
    """Number of each position of a rank in its segment, int64 [positions]."""
    pieces = chunks(boundaries, size, rank)
    with torch.inference_mode(False):  # or a later pass could not keep them for its gradient
        return torch.cat([torch.arange(start - begin, end - begin) for begin, start, end in pieces])
