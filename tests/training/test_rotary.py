"""Rotary embedding of packed rows, against Megatron's own, segment by segment."""

from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils

from megatron_sbp.training.rotary import rotate


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("interleaved", [False, True])
def test_values_and_gradients_are_megatrons(ranks: int, interleaved: bool) -> None:
    assert rope_utils._apply_rotary_pos_emb_thd is not rotate, "compare with Megatron's own"
    draw = torch.Generator().manual_seed(ranks)
    boundaries = torch.tensor([0, 8, 12, 32], dtype=torch.int32)
    freqs = torch.randn(20, 1, 1, 6, generator=draw, dtype=torch.float64)
    for rank in range(ranks):
        group = SimpleNamespace(size=lambda: ranks, rank=lambda rank=rank: rank)
        rows = torch.randn(32 // ranks, 3, 8, generator=draw, dtype=torch.float64)
        results = []
        for function in (rope_utils._apply_rotary_pos_emb_thd, rotate):
            given = rows.clone().requires_grad_()
            out = function(given, boundaries, freqs, rotary_interleaved=interleaved, cp_group=group)
            (out**3).sum().backward()
            results.append((out.detach(), given.grad))
        for theirs, ours in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)
