"""The CPU's core attention, against softmax attention written out in float64."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_sbp.training import attention as attention_module
from megatron_sbp.training.attention import ScaledDotProductAttention
from megatron_sbp.training.context_parallel import positions

HEADS, CHANNELS = 6, 8


def config(**changes: Any) -> Any:
    values = {"context_parallel_size": 1, "attention_dropout": 0.0, "kv_channels": CHANNELS}
    return SimpleNamespace(**(values | changes))


def packed(boundaries: Sequence[int]) -> Any:
    return SimpleNamespace(cu_seqlens_q=torch.tensor(boundaries, dtype=torch.int32))


def reference(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, boundaries: Sequence[int]
) -> np.ndarray:
    length, batch, heads, channels = query.shape
    begins = np.repeat(boundaries[:-1], np.diff(boundaries))
    out = np.zeros((length, batch, heads, channels))
    for row in range(batch):
        for head in range(heads):
            group = head * key.shape[2] // heads
            for position in range(length):
                seen = slice(begins[position], position + 1)
                scores = key[seen, row, group] @ query[position, row, head]
                weights = np.exp(scores / np.sqrt(channels))
                weights /= weights.sum()
                out[position, row, head] = weights @ value[seen, row, group]
    return out.reshape(length, batch, -1)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_matches_attention_written_out(groups: int) -> None:
    random = np.random.default_rng(groups)
    query = random.normal(size=(11, 3, HEADS, CHANNELS))
    key, value = random.normal(size=(2, 11, 3, groups, CHANNELS))
    attention: Any = ScaledDotProductAttention(config(), 1, None, "self")
    got = attention(*map(torch.from_numpy, (query, key, value)), None)
    want = reference(query, key, value, [0, 11])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("longest", [8, 60])
def test_segments_of_a_packed_row_do_not_see_each_other(seed: int, longest: int) -> None:
    """Of about the same length they are attended to at once, else one after another."""
    random = np.random.default_rng(seed)
    lengths = random.permutation([longest, 8, 8, *random.integers(1, 9, size=2)])
    boundaries = [0, *np.cumsum(lengths).tolist()]
    query = random.normal(size=(boundaries[-1], 1, HEADS, CHANNELS))
    key, value = random.normal(size=(2, boundaries[-1], 1, 2, CHANNELS))
    attention: Any = ScaledDotProductAttention(config(), 1, None, "self")
    tensors = [torch.from_numpy(array[:, 0]) for array in (query, key, value)]
    got = attention(*tensors, None, packed_seq_params=packed(boundaries))
    want = reference(query, key, value, boundaries)[:, 0]
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-12)


def test_a_row_may_be_trained_on_after_it_was_evaluated() -> None:
    boundaries = [0, 5, 9, 12]
    query, key, value = torch.randn(3, 12, HEADS, CHANNELS, requires_grad=True)
    attention: Any = ScaledDotProductAttention(config(), 1, None, "self")
    with torch.inference_mode():
        before = attention(query, key, value, None, packed_seq_params=packed(boundaries))
    after = attention(query, key, value, None, packed_seq_params=packed(boundaries))
    after.sum().backward()
    assert torch.equal(before, after)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("rows", [None, [0, 16, 32, 72]])
def test_context_parallel_ranks_together_are_one(
    ranks: int, rows: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank from its own positions; what they exchange is put together here."""
    random = np.random.default_rng(ranks)
    boundaries = rows or [0, 48]
    length, batch = boundaries[-1], 1 if rows else 3
    query = random.normal(size=(length, batch, HEADS, CHANNELS))
    key, value = random.normal(size=(2, length, batch, 2, CHANNELS))
    want = reference(query, key, value, boundaries)
    held = [positions(boundaries, ranks, rank).numpy() for rank in range(ranks)]
    assert sorted(np.concatenate(held).tolist()) == list(range(length))
    for rank in range(ranks):
        exchanged = iter((key, value))
        monkeypatch.setattr(
            attention_module,
            "gather_from_sequence_parallel_region",
            lambda local, group, exchanged=exchanged: torch.from_numpy(
                next(exchanged)[np.concatenate(held)]
            ),
        )
        groups = SimpleNamespace(cp=SimpleNamespace(rank=lambda rank=rank: rank))
        changed = config(context_parallel_size=ranks)
        attention: Any = ScaledDotProductAttention(changed, 1, None, "self", pg_collection=groups)
        tensors = [torch.from_numpy(array[held[rank]]) for array in (query, key, value)]
        if rows:
            tensors = [tensor[:, 0] for tensor in tensors]
        got = attention(*tensors, None, packed_seq_params=packed(rows) if rows else None)
        expected = want[held[rank]][:, 0] if rows else want[held[rank]]
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9, atol=1e-12)


def test_dropout_leaves_out_whole_keys_in_training_only() -> None:
    share, rows = 0.3, 500
    random = np.random.default_rng(5)
    query = random.normal(size=(2, rows, HEADS, CHANNELS))
    key, value = random.normal(size=(2, 2, rows, HEADS, CHANNELS))
    # With sequence parallelism the random numbers are torch's own, which need no Megatron.
    options = config(attention_dropout=share, sequence_parallel=True)
    attention: Any = ScaledDotProductAttention(options, 1, None, "self")
    torch.manual_seed(5)
    got = attention(*map(torch.from_numpy, (query, key, value)), None)[0].numpy()
    # The first position sees itself alone, so there its value is left out or scaled up.
    heads, values = got.reshape(rows, HEADS, CHANNELS), value[0]
    kept = heads.any(axis=2)
    np.testing.assert_allclose(heads[kept], values[kept] / (1 - share), rtol=1e-9)
    assert kept.mean() == pytest.approx(1 - share, abs=5 * np.sqrt(0.21 / kept.size))
    got = attention.eval()(*map(torch.from_numpy, (query, key, value)), None)
    want = reference(query, key, value, [0, 2])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-12)
