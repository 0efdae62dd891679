"""The losses, against sums in float64."""

import numpy as np
import pytest
import torch

from megatron_sbp.training import objective


@pytest.fixture(autouse=True)
def without_megatrons_nan_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective, "_check", lambda loss: None)


@pytest.mark.parametrize("seed", range(3))
def test_synthesis_loss_and_conditional_gain(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = random.gamma(2.0, size=(6, 40))
    mask = (random.random((6, 40)) < 0.4).astype(float)
    control = np.array([0, 1, 0, 1, 0, 1])
    mask[1::2] = mask[::2]  # both rows of a pair supervise as many tokens

    true = (losses * mask)[control == 0].sum()
    other = (losses * mask)[control == 1].sum()
    count = mask[control == 0].sum()

    tensors = [torch.from_numpy(array) for array in (mask, control, losses)]
    total, number, report = objective.synthesis_loss(tensors[0], tensors[1], False, tensors[2])
    assert total.item() == pytest.approx(true, rel=1e-6)
    assert number.item() == count
    means = {name: (entry[0] / entry[1]).item() for name, entry in report.items()}
    assert means["synthesis loss"] == pytest.approx(true / count, rel=1e-6)
    assert means["random-d1 loss"] == pytest.approx(other / count, rel=1e-6)
    assert means["conditional gain"] == pytest.approx((other - true) / count, rel=1e-5)


def test_training_rows_report_no_gain() -> None:
    mask, control = torch.ones(2, 3), torch.zeros(2, dtype=torch.int64)
    losses = torch.arange(6.0).reshape(2, 3)
    total, number, report = objective.synthesis_loss(mask, control, True, losses)
    assert (total.item(), number.item(), list(report)) == (15.0, 6, ["synthesis loss"])


def test_lm_loss_counts_masked_positions_only() -> None:
    losses = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 8.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    total, number, report = objective.lm_loss(mask, losses)
    assert (total.item(), number.item()) == (15.0, 4)
    assert report["lm loss"].tolist() == [15.0, 4.0]
