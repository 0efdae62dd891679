"""Forward step and losses: next-token prediction, and log p(d2|d1) with its conditional gain."""

from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model, get_batch_on_this_tp_rank
from megatron.training import get_args, get_timers
from megatron.training.utils import is_first_or_last_pipeline_stage

_FIELDS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask", "control")


def forward_step(data_iterator: Any, model: Any) -> tuple[torch.Tensor, Any]:
    """Megatron's ``forward_step_func``: one micro-batch through the model.

    Returns:
        The model's output (on the last pipeline stage the loss of every position,
        [batch, sequence_length]) and the function that sums it up.
    """
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    vp_stage = get_attr_wrapped_model(model, "vp_stage")
    batch = get_batch(data_iterator, vp_stage, training=model.training)
    timers("batch-generator").stop()
    output = model(
        batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"]
    )
    if get_args().sbp_objective == "synthesis":
        reduce = partial(synthesis_loss, batch["loss_mask"], batch["control"], model.training)
    else:
        reduce = partial(lm_loss, batch["loss_mask"])
    return output, reduce


def get_batch(data_iterator: Any, vp_stage: int | None, training: bool) -> dict[str, Any]:
    """A micro-batch on every rank that needs one.

    Tensor-parallel rank 0 reads it and broadcasts it (Megatron's ``get_batch_on_this_tp_rank``,
    which carries the usual fields; ``control`` goes beside them).
    """
    if not is_first_or_last_pipeline_stage(vp_stage):
        return dict.fromkeys(_FIELDS)
    args = get_args()
    rows = args.micro_batch_size if training else args.eval_micro_batch_size
    group = mpu.get_tensor_model_parallel_group()
    source = mpu.get_tensor_model_parallel_src_rank()
    rank = mpu.get_tensor_model_parallel_rank()
    read: dict[str, Any] = {}
    if rank == 0:
        sample = next(data_iterator)
        read = {name: sample[name].cuda(non_blocking=True) for name in _FIELDS if name in sample}
        read.setdefault("attention_mask", None)
    batch = get_batch_on_this_tp_rank(
        dict(read),
        broadcast_src_rank=source,
        broadcast_group=group,
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        cp_size=args.context_parallel_size,
        tp_rank=rank,
        micro_batch_size=rows,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(),
    )
    if args.sbp_objective == "synthesis":
        empty = torch.empty(rows, dtype=torch.int64, device=torch.cuda.current_device())
        batch["control"] = read.get("control", empty)
        torch.distributed.broadcast(batch["control"], source, group=group)
    return batch


def lm_loss(
    loss_mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Next-token loss.

    Args:
        loss_mask: [batch, sequence_length].
        losses: Loss of every position, of the same shape.

    Returns:
        Sum over supervised positions, their number (int32 []), and what to log: [sum, number].
    """
    total, count = _masked_sum(losses, loss_mask)
    _check(total)
    return total, count.int(), {"lm loss": _entry(total, count)}


def synthesis_loss(
    loss_mask: torch.Tensor, control: torch.Tensor, training: bool, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """-log p(d2|d1), summed over the tokens of d2 and its end-of-document.

    On validation, rows with ``control`` 1 have the d1 of another pair. Both rows of a pair
    supervise the same tokens, so the conditional gain, log p(d2|d1) - log p(d2|random d1) in nats
    per token, is the difference of their sums over the number of those tokens.

    Args:
        loss_mask: [batch, sequence_length], 1 where the label belongs to d2.
        control: [batch].
        training: Whether this is a training step; then no row is a control.
        losses: [batch, sequence_length].

    Returns:
        As ``lm_loss``.
    """
    own = loss_mask * (1 - control)[:, None]
    total, count = _masked_sum(losses, own)
    _check(total)
    report = {"synthesis loss": _entry(total, count)}
    if not training:
        random_total, random_count = _masked_sum(losses, loss_mask - own)
        report["random-d1 loss"] = _entry(random_total, random_count)
        report["conditional gain"] = _entry(random_total - total, count)
    return total, count.int(), report


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
