"""The losses, against sums in float64."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_sbp.training import objective
from megatron_sbp.training.batch import Batch


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of one process with one micro-batch a step and one data path."""
    args = SimpleNamespace(sbp_sources=["web"], check_for_nan_in_loss_and_grad=False)
    monkeypatch.setattr(objective, "get_args", lambda: args)
    monkeypatch.setattr(objective, "get_num_microbatches", lambda: 1)
    monkeypatch.setattr(
        objective.mpu, "get_data_parallel_world_size", lambda with_context_parallel: 1
    )
    return args


def batch(mask: Any, control: Any = None, source: Any = None) -> Batch:
    """Of float64 arrays, [rows, positions] each."""
    mask = torch.as_tensor(mask)
    nothing = torch.zeros_like(mask)
    return Batch(
        loss_mask=mask,
        control=nothing if control is None else torch.as_tensor(control),
        source=nothing if source is None else torch.as_tensor(source),
    )


@pytest.mark.parametrize("seed", range(3))
def test_synthesis_loss_and_conditional_gain(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = random.gamma(2.0, size=(6, 40))
    mask = (random.random((6, 40)) < 0.4).astype(float)
    control = np.repeat([[0], [1], [0], [1], [0], [1]], 40, axis=1)
    mask[1::2] = mask[::2]  # both rows of a pair supervise as many tokens

    true = (losses * mask)[control == 0].sum()
    other = (losses * mask)[control == 1].sum()
    count = mask[control == 0].sum()

    total, number, report = objective.synthesis_loss(
        batch(mask, control), False, torch.from_numpy(losses)
    )
    assert total.item() == pytest.approx(true, rel=1e-6)
    assert number.item() == count
    means = {name: (entry[0] / entry[1]).item() for name, entry in report.items()}
    assert means["synthesis loss"] == pytest.approx(true / count, rel=1e-6)
    assert means["random-d1 loss"] == pytest.approx(other / count, rel=1e-6)
    assert means["conditional gain"] == pytest.approx((other - true) / count, rel=1e-5)


def test_a_training_step_reports_its_supervised_tokens(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron divides the sum over micro-batches and ranks: 3 of them on 2 ranks here."""
    monkeypatch.setattr(objective, "get_num_microbatches", lambda: 3)
    monkeypatch.setattr(
        objective.mpu, "get_data_parallel_world_size", lambda with_context_parallel: 2
    )
    random = np.random.default_rng(0)
    masks = (random.random((6, 2, 9)) < 0.5).astype(float)
    entries = [
        objective.synthesis_loss(batch(mask), True, torch.ones(2, 9))[2]["supervised tokens"]
        for mask in masks
    ]
    total = torch.stack(entries).sum(dim=0)
    assert (total[0] / total[1]).item() == pytest.approx(masks.sum())


@pytest.mark.parametrize("sources", [["web", "code"], ["web", "code", "rare"]])
@pytest.mark.parametrize("loss", [objective.synthesis_loss, objective.lm_loss])
def test_loss_of_every_source_of_a_blend(run: Any, loss: Any, sources: list[str]) -> None:
    run.sbp_sources = sources
    random = np.random.default_rng(1)
    losses, mask = random.gamma(2.0, size=(4, 30)), random.integers(0, 2, (4, 30)).astype(float)
    source = np.repeat([[0], [1], [1], [0]], 30, axis=1)
    _, _, report = loss(batch(mask, source=source), True, torch.from_numpy(losses))
    entries = {name.split()[-1]: entry for name, entry in report.items()}
    for number, name in enumerate(["web", "code"]):
        chosen = (source == number) & (mask == 1)
        mean = (entries[name][0] / entries[name][1]).item()
        assert mean == pytest.approx(losses[chosen].mean(), rel=1e-6)
    for name in sources[2:]:
        assert (entries[name][0] / entries[name][1]).item() == 0, "must not be a NaN"


def test_lm_loss_counts_masked_positions_only() -> None:
    losses = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 8.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    total, number, report = objective.lm_loss(batch(mask), True, losses)
    assert (total.item(), number.item()) == (15.0, 4)
    assert report["lm loss"].tolist() == [15.0, 4.0] and len(report) == 1


@pytest.mark.parametrize(("value", "name"), [(torch.nan, "NaN"), (torch.inf, "Inf")])
@pytest.mark.parametrize("loss", [objective.synthesis_loss, objective.lm_loss])
def test_a_loss_that_is_no_number_ends_the_run(
    run: Any, loss: Any, value: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)  # Megatron names it
    run.check_for_nan_in_loss_and_grad = True
    losses = torch.ones(2, 9)
    loss(batch(torch.ones(2, 9)), True, losses)
    losses[1, 3] = value
    with pytest.raises(RuntimeError, match=f"found {name} in the loss of a micro-batch"):
        loss(batch(torch.ones(2, 9)), True, losses)
