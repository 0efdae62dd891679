"""One training in a process of its own, which steps when it is its turn.

    python -m benchmarks.training_peers ours <arguments of megatron_sbp.pretrain>

`ours` is that program as it is; `megatron` Megatron's own training of a GPT model; `plain` the same
model in plain PyTorch; `product` no training, but one large product of matrices after another. A
line of standard input is the number of steps of a turn, the line that answers says what they took.
What trainings print goes to standard error.
"""

import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import IO, Any

import torch


@dataclass(kw_only=True, slots=True)
class Turn:
    """What the steps of a turn were."""

    steps: int
    seconds: float
    supervised: float
    """Labels in the loss, where the objective says how many."""
    flop: float
    """By Megatron's formula, for the lengths of the segments; 0 where there is none."""


class Turns:
    """Waits for its turn before a step, and answers after the last of it.

    The time of a turn is that of everything between the starts of two steps: Megatron's logging,
    and whatever else its loop does, with the steps.

    Args:
        asked: Where the numbers of steps come from.
        answers: Where turns are told.
    """

    def __init__(self, asked: IO[str], answers: IO[str]):
        self._asked, self._answers = asked, answers
        self._steps = self._left = 0
        self._started = 0.0
        self._supervised: list[torch.Tensor] = []
        self._flop = 0.0
        self.flop_of_step = 0.0
        """To be set in every step."""

    def begin_step(self) -> None:
        """To be called at the start of every step."""
        self._flop += self.flop_of_step
        if self._left == 0:
            self._answer()
            self._wait()
        self._left -= 1

    def supervise(self, labels: torch.Tensor) -> None:
        """Count labels of a step, a number that is not read before the turn ends."""
        self._supervised.append(labels)

    def _answer(self) -> None:
        if not self._steps:
            return
        _synchronize()
        turn = Turn(
            steps=self._steps,
            seconds=time.perf_counter() - self._started,
            supervised=sum(map(float, self._supervised)),
            flop=self._flop,
        )
        print(json.dumps({field.name: getattr(turn, field.name) for field in fields(turn)}),
              file=self._answers, flush=True)  # fmt: skip

    def _wait(self) -> None:
        line = self._asked.readline()
        if not line:
            os._exit(0)  # Nobody wants more of a training that has no end.
        self._steps = self._left = int(line)
        self._supervised, self._flop = [], 0.0
        _synchronize()
        self._started = time.perf_counter()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Megatron's loop


def _take_turns(turns: Turns) -> None:
    """Have the training loop of Megatron wait before each step."""
    from megatron.training import training

    train_step, operations = training.train_step, training.num_floating_point_operations

    def step(*arguments: Any, **keywords: Any) -> Any:
        turns.begin_step()
        result = train_step(*arguments, **keywords)
        labels = result[0].get("supervised tokens")
        if labels is not None:
            turns.supervise(labels)
        return result

    def flop(*arguments: Any, **keywords: Any) -> float:
        turns.flop_of_step = operations(*arguments, **keywords)
        return turns.flop_of_step

    training.train_step, training.num_floating_point_operations = step, flop


def _ours(turns: Turns) -> None:
    from megatron_sbp import pretrain
    from megatron_sbp.training import platform

    platform.install()
    _take_turns(turns)
    pretrain.main()


def _megatron(turns: Turns) -> None:
    """Megatron's training of a GPT model, with nothing of ours where there is a GPU.

    On a CPU it gets the platform and the layers of ours, without which it does not run there, or
    slower.
    """
    from megatron_sbp.training import platform

    if platform.install():
        sys.argv += platform.CPU_ARGUMENTS
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import (
        gpt_config_from_args,
        pretrain_cfg_container_from_args,
    )
    from megatron.training.arguments import parse_and_validate_args

    from megatron_sbp.training.local_layers import local_block_spec

    _take_turns(turns)
    args = parse_and_validate_args()
    model = gpt_config_from_args(args)
    if args.transformer_impl == "local":
        model.transformer_layer_spec = local_block_spec
    pretrain(
        pretrain_cfg_container_from_args(args, model),
        _datasets,
        ModelType.encoder_or_decoder,
        _forward_step,
        store=torch.distributed.HashStore(),
    )


def _datasets(sizes: Sequence[int], vp_stage: int | None = None) -> list[Any]:
    """Megatron's datasets of documents, or its mock ones."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
    from megatron.training import get_args, get_tokenizer
    from megatron.training.utils import get_blend_and_blend_per_split

    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        path_to_cache=args.data_cache_path,
        tokenizer=get_tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=args.create_attention_mask_in_dataloader,
    )
    kind = MockGPTDataset if args.mock_data else GPTDataset
    return BlendedMegatronDatasetBuilder(kind, sizes, lambda: True, config).build()


def _forward_step(data_iterator: Any, model: Any) -> tuple[torch.Tensor, Any]:
    """What a GPT training gives Megatron, for one rank: next-token prediction."""
    from megatron.core import mpu
    from megatron.core.utils import get_batch_on_this_tp_rank
    from megatron.training import get_args

    args = get_args()
    names = ("tokens", "labels", "loss_mask", "position_ids")
    sample = next(data_iterator)
    batch = get_batch_on_this_tp_rank(
        {name: sample[name].cuda(non_blocking=True) for name in names},
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=False,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=1,
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
    )
    losses = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return losses, partial(_loss, batch["loss_mask"])


def _loss(loss_mask: torch.Tensor, losses: torch.Tensor) -> tuple[Any, Any, dict[str, Any]]:
    from megatron.core.rerun_state_machine import get_rerun_state_machine

    mask = loss_mask.view(-1).float()
    total, count = torch.sum(losses.view(-1).float() * mask), mask.sum()
    for test in (torch.isnan, torch.isinf):
        get_rerun_state_machine().validate_result(
            result=total, rejection_func=test, message="not a number", tolerance=0.0, fatal=True
        )
    return total, count.int(), {"lm loss": torch.stack([total.detach(), count])}


# Without Megatron


def _plain(turns: Turns) -> None:
    from benchmarks.plain_model import Shape, Training

    names = [field.name for field in fields(Shape)]
    args = _numbers(*names, "micro_batch_size", "global_batch_size")
    shape = Shape(**{name: getattr(args, name) for name in names})
    training = Training(shape, args.micro_batch_size, args.global_batch_size)
    while True:
        turns.begin_step()
        training.step()


def _numbers(*names: str) -> Namespace:
    """Some of Megatron's arguments, from the command line."""
    parser = ArgumentParser(allow_abbrev=False)
    for name in names:
        parser.add_argument("--" + name.replace("_", "-"), type=int, required=True)
    return parser.parse_known_args()[0]


def _product(turns: Turns) -> None:
    """Square matrices of bf16, of float32 without --bf16, or of FP8 with --fp8-format."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 8192 if device.type == "cuda" else 2048
    kind = torch.bfloat16 if "--bf16" in sys.argv else torch.float32
    left = torch.randn(size, size, device=device, dtype=kind)
    multiply: Callable[[], Any] = partial(torch.mm, left, left.T, out=torch.empty_like(left))
    if "--fp8-format" in sys.argv:
        small, scale = left.to(torch.float8_e4m3fn), torch.ones((), device=device)
        multiply = partial(
            torch._scaled_mm, small, small.T, scale_a=scale, scale_b=scale, out_dtype=kind
        )
    while True:
        turns.begin_step()
        multiply()
        turns.flop_of_step = 2.0 * size**3


def main() -> None:
    kind = sys.argv.pop(1)
    # Megatron prints to standard output, also from C++.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    starts = {"ours": _ours, "megatron": _megatron, "plain": _plain, "product": _product}
    starts[kind](Turns(sys.stdin, answers))


if __name__ == "__main__":
    main()
