"""Micro-batches on the ranks that need them.

One rank of each tensor-parallel group reads a micro-batch and sends it to the others; with context
parallelism every rank then keeps its own positions.
"""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.training import get_args, training
from megatron.training.utils import is_first_or_last_pipeline_stage

from megatron_sbp.training.context_parallel import positions


@dataclass(slots=True, kw_only=True)
class Batch:
    """What a pipeline stage needs of a micro-batch; None where it needs nothing.

    Rows are those of the micro-batch, or one that holds them all if they are packed; positions are
    those of this context-parallel rank.
    """

    tokens: torch.Tensor | None = None
    """int64 [rows, positions]"""
    position_ids: torch.Tensor | None = None
    """int64 [rows, positions]"""
    labels: torch.Tensor | None = None
    """int64 [rows, positions]"""
    loss_mask: torch.Tensor | None = None
    """float32 [rows, positions]"""
    attention_mask: torch.Tensor | None = None
    """bool [rows, 1, positions, positions], True where attention is not allowed"""
    control: torch.Tensor | None = None
    """[rows, positions], 1 where d1 is that of another pair"""
    source: torch.Tensor | None = None
    """[rows, positions], number of the data path that the position comes from"""
    packed_seq_params: PackedSeqParams | None = None
    """Boundaries of the segments of a packed row"""


def get_batch(data_iterator: Any, vp_stage: int | None, rows: int) -> Batch:
    """A micro-batch of ``PairedDocumentDataset`` or Megatron's ``GPTDataset``.

    Both give the same fields. Where rows are packed every pipeline stage gets the batch, as the
    boundaries of the segments are every attention's business.

    Args:
        data_iterator: Yields collated samples; read on the first tensor-parallel rank only.
        vp_stage: Virtual pipeline stage.
        rows: Micro-batch size.
    """
    args = get_args()
    packed = is_packed(args)
    if not packed and not is_first_or_last_pipeline_stage(vp_stage):
        return Batch()
    length = args.seq_length
    sample = next(data_iterator) if mpu.get_tensor_model_parallel_rank() == 0 else {}
    widths = dict.fromkeys(("tokens", "labels", "position_ids", "loss_mask"), length)
    widths |= {"control": 1, "dataset_id": 1}
    if packed:
        widths["cu_seqlens"] = length + 1
    sent = _send(sample, rows, widths)
    fields = {
        "tokens": sent["tokens"].long(),
        "labels": sent["labels"].long(),
        "position_ids": sent["position_ids"].long(),
        "loss_mask": sent["loss_mask"].float(),
        "control": sent["control"].expand(rows, length),
        "source": sent["dataset_id"].expand(rows, length),
    }
    if packed:
        fields = {name: field.reshape(1, rows * length) for name, field in fields.items()}
        # The rank that reads has them at hand; others wait here for what their device has to do.
        boundaries = _merged(sample["cu_seqlens"] if sample else sent["cu_seqlens"].cpu(), length)
        # Documents of a plain row are of any length: Megatron cuts the row, not the documents.
        cut = boundaries.tolist() if args.sbp_objective == "synthesis" else [0, rows * length]
        return Batch(**_own(fields, cut), packed_seq_params=_packed_seq_params(boundaries))
    mask = None
    if args.create_attention_mask_in_dataloader:
        mask = _send_mask(sample, rows, length)
        mask = _own({"mask": mask}, [0, length], axis=2)["mask"]
    return Batch(**_own(fields, [0, length]), attention_mask=mask)


def is_packed(args: Any) -> bool:
    """Whether a row of the run holds segments that do not attend to each other."""
    if args.sbp_objective == "synthesis":
        return args.sbp_packing
    return args.dataloader_inter_document_masking


def _send(sample: dict[str, torch.Tensor], rows: int, widths: dict[str, int]) -> Any:
    """Fields of a sample, int32 [rows, width] each, on all tensor-parallel ranks."""
    whole = torch.empty(
        (rows, sum(widths.values())), dtype=torch.int32, device=torch.cuda.current_device()
    )
    if sample:
        # Only pairs have controls, and only a blend says which of its datasets a sample is from.
        none = torch.zeros(rows)
        parts = [sample.get(name, none).reshape(rows, -1).int() for name in widths]
        whole.copy_(torch.cat(parts, dim=1).pin_memory(), non_blocking=True)
    _broadcast(whole)
    return dict(zip(widths, whole.split(list(widths.values()), dim=1), strict=True))


def _send_mask(sample: dict[str, torch.Tensor], rows: int, length: int) -> torch.Tensor:
    """The attention mask, bool [rows, 1, length, length], on all tensor-parallel ranks."""
    mask = torch.empty(
        (rows, 1, length, length), dtype=torch.bool, device=torch.cuda.current_device()
    )
    if sample:
        mask.copy_(sample["attention_mask"], non_blocking=True)
    _broadcast(mask)
    return mask


def _broadcast(tensor: torch.Tensor) -> None:
    source = mpu.get_tensor_model_parallel_src_rank()
    group = mpu.get_tensor_model_parallel_group()
    torch.distributed.broadcast(tensor, source, group=group)


def _own(
    fields: dict[str, torch.Tensor], boundaries: list[int], axis: int = 1
) -> dict[str, torch.Tensor]:
    """What this context-parallel rank keeps of all positions along an axis."""
    size = mpu.get_context_parallel_world_size()
    if size == 1:
        return fields
    held = _on_device(positions(boundaries, size, mpu.get_context_parallel_rank()))
    return {name: field.index_select(axis, held) for name, field in fields.items()}


def _merged(cu_seqlens: torch.Tensor, length: int) -> torch.Tensor:
    """Boundaries of the segments of all rows as one, on the host: int32 [segments + 1].

    Args:
        cu_seqlens: [rows, length + 1], each row filled up with ``length``, which is also where the
            next row begins.
        length: Of a row.
    """
    offsets = length * torch.arange(len(cu_seqlens))
    return (cu_seqlens + offsets[:, None]).flatten().unique_consecutive().int()


def _on_device(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor of the host; the host does not wait for it."""
    return tensor.pin_memory().to(device=torch.cuda.current_device(), non_blocking=True)


def _packed_seq_params(boundaries: torch.Tensor) -> PackedSeqParams:
    longest = int(boundaries.diff().max())
    boundaries = _on_device(boundaries)
    # For Megatron's figures of FLOP/s; older releases do not look at segments.
    getattr(training, "update_seqlen_stats_from_cu_seqlens", lambda _: None)(boundaries)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
