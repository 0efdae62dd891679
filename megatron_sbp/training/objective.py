"""Forward step and losses: next-token prediction, and log p(d2|d1) with its conditional gain."""

from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args, get_timers

from megatron_sbp.training.batch import Batch, get_batch

type Loss = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]
"""Sum over supervised positions, their number (int32 []), and what to log: [sum, number] each."""


def forward_step(data_iterator: Any, model: Any) -> tuple[torch.Tensor, Any]:
    """Megatron's ``forward_step_func``: one micro-batch through the model.

    Returns:
        The model's output (on the last pipeline stage the loss of every position,
        [rows, positions]) and the function that sums it up.
    """
    args, timers = get_args(), get_timers()
    timers("batch-generator", log_level=2).start()
    vp_stage = get_attr_wrapped_model(model, "vp_stage")
    rows = args.micro_batch_size
    if not model.training:
        rows = getattr(args, "eval_micro_batch_size", rows)  # older releases have one size
    batch = get_batch(data_iterator, vp_stage, rows)
    timers("batch-generator").stop()
    output = model(
        batch.tokens,
        batch.position_ids,
        batch.attention_mask,
        labels=batch.labels,
        packed_seq_params=batch.packed_seq_params,
    )
    loss = synthesis_loss if args.sbp_objective == "synthesis" else lm_loss
    return output, partial(loss, batch, model.training)


def lm_loss(batch: Batch, training: bool, losses: torch.Tensor) -> Loss:
    """Next-token loss.

    Args:
        batch: The micro-batch.
        training: Whether this is a training step.
        losses: Loss of every position, [rows, positions].
    """
    assert batch.loss_mask is not None
    total, count = _masked_sum(losses, batch.loss_mask)
    _check(total)
    report = {"lm loss": _entry(total, count)}
    if training:
        report |= _by_source("lm loss", batch, losses)
    return total, count.int(), report


def synthesis_loss(batch: Batch, training: bool, losses: torch.Tensor) -> Loss:
    """-log p(d2|d1), summed over the tokens of d2 and its end-of-document.

    On validation, positions with ``control`` 1 have the d1 of another pair before them. Both rows
    of a pair supervise the same tokens, so the conditional gain, log p(d2|d1) - log p(d2|random d1)
    in nats per token, is the difference of their sums over the number of those tokens.

    Args:
        batch: The micro-batch; a training step's has no controls.
        training: Whether this is a training step.
        losses: Loss of every position, [rows, positions].
    """
    assert batch.loss_mask is not None and batch.control is not None
    own = batch.loss_mask * (1 - batch.control)
    total, count = _masked_sum(losses, own)
    _check(total)
    report = {"synthesis loss": _entry(total, count)}
    if training:
        # Megatron logs the mean over micro-batches and ranks; this is to be the sum.
        parts = get_num_microbatches() * mpu.get_data_parallel_world_size(
            with_context_parallel=True
        )
        report["supervised tokens"] = _entry(count * parts, torch.ones_like(count))
        report |= _by_source("synthesis loss", batch, losses)
    else:
        random_total, random_count = _masked_sum(losses, batch.loss_mask - own)
        report["random-d1 loss"] = _entry(random_total, random_count)
        report["conditional gain"] = _entry(random_total - total, count)
    return total, count.int(), report


def _by_source(name: str, batch: Batch, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss of every data path of a blend; 0 where a step has no token of it."""
    report = {}
    sources = get_args().sbp_sources
    for number, source in enumerate(sources if len(sources) > 1 else []):
        assert batch.loss_mask is not None
        total, count = _masked_sum(losses, batch.loss_mask * (batch.source == number))
        # Megatron divides by the sum of the counts, and stops at a NaN.
        report[f"{name} {source}"] = _entry(total, count.clamp(min=1e-6))
    return report


def _masked_sum(losses: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mask = mask.reshape(-1).float()
    return torch.sum(losses.reshape(-1).float() * mask), mask.sum()


def _entry(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return torch.stack([total.detach(), count.detach()]).float()


def _check(loss: torch.Tensor) -> None:
    """End the run on a loss that is not a number, through Megatron's own check."""
    if not get_args().check_for_nan_in_loss_and_grad:
        return
    for test, name in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
        get_rerun_state_machine().validate_result(
            result=loss,
            rejection_func=test,
            message=f"found {name} in the loss of a micro-batch",
            tolerance=0.0,
            fatal=True,
        )
