"""The CPU's core attention, against softmax attention written out in float64."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_sbp.training.attention import ScaledDotProductAttention


def config(**changes: Any) -> Any:
    values = {"context_parallel_size": 1, "attention_dropout": 0.0, "kv_channels": 8}
    return SimpleNamespace(**(values | changes))


def reference(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    length, batch, heads, channels = query.shape
    out = np.zeros((length, batch, heads, channels))
    for row in range(batch):
        for head in range(heads):
            group = head * key.shape[2] // heads
            for position in range(length):
                scores = key[: position + 1, row, group] @ query[position, row, head]
                weights = np.exp(scores / np.sqrt(channels))
                weights /= weights.sum()
                out[position, row, head] = weights @ value[: position + 1, row, group]
    return out.reshape(length, batch, -1)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_matches_attention_written_out(groups: int) -> None:
    random = np.random.default_rng(groups)
    query = random.normal(size=(11, 3, 6, 8))
    key, value = random.normal(size=(2, 11, 3, groups, 8))
    attention: Any = ScaledDotProductAttention(config(), 1, None, "self")
    got = attention(*map(torch.from_numpy, (query, key, value)), None)
    np.testing.assert_allclose(got.numpy(), reference(query, key, value), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("change", [{"context_parallel_size": 2}, {"attention_dropout": 0.1}])
def test_refuses_what_it_does_not_do(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ScaledDotProductAttention(config(**change), 1, None, "self")
