"""Whether Transformer Engine can do what a run asks of it: layers, and FP8's chip and shapes."""

import importlib
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from megatron_sbp.errors import InputError

_RECIPES = {"delayed": "1.0", "tensorwise": "2.2", "blockwise": "2.3", "mxfp8": "2.1"}
"""Recipes of ``--fp8-recipe`` and the first Transformer Engine that has them, as Megatron asks for
them in ``megatron.core.fp8_utils``."""


def check_fp8(args: Namespace) -> None:
    """Refuse a run in FP8 that would fail, or fall back, in its first step.

    Args:
        args: Megatron's arguments.

    Raises:
        InputError: Naming what is missing and the cure.
    """
    if args.fp8 is None:
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"--fp8-format {args.fp8} needs a GPU; this machine has none that torch sees"
        )
    check_shapes(args)
    _check_recipe(args)


def check_engine(args: Namespace) -> None:
    """Refuse layers of Transformer Engine, which are Megatron's default, where it is not there.

    Args:
        args: Megatron's arguments.

    Raises:
        InputError: With the reason and both cures.
    """
    if args.transformer_impl == "transformer_engine" and args.spec is None:
        _import(
            "transformer_engine.pytorch",
            "--transformer-impl transformer_engine",
            "or give --transformer-impl local --no-rope-fusion --no-gradient-accumulation-fusion",
        )


def _import(module: str, flag: str, cure: str) -> Any:
    """A module of Transformer Engine, for a flag that needs it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library of CUDA is missing
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(
            f"{flag} needs Transformer Engine ({reason}); install "
            f'"transformer-engine[pytorch]", use NVIDIA\'s PyTorch container, {cure}'
        ) from None


def _check_recipe(args: Namespace) -> None:
    """Version of Transformer Engine, and what it says of the chip."""
    flag, cure = f"--fp8-format {args.fp8}", "or leave the flag out"
    manager = _import("transformer_engine.pytorch.fp8", flag, cure).FP8GlobalStateManager
    from megatron.core.utils import get_te_version, is_te_min_version

    if args.fp8_recipe not in _RECIPES:
        return
    least = _RECIPES[args.fp8_recipe]
    if not is_te_min_version(least):
        raise InputError(
            f"--fp8-recipe {args.fp8_recipe} needs Transformer Engine {least} or newer, not "
            f"{get_te_version()}"
        )
    ask = {
        "blockwise": manager.is_fp8_block_scaling_available,
        "mxfp8": manager.is_mxfp8_available,
    }.get(args.fp8_recipe, manager.is_fp8_available)
    supported, reason = ask()
    if not supported:
        raise InputError(
            f"--fp8-recipe {args.fp8_recipe} does not run on this GPU ({reason}); blockwise suits "
            "Hopper, mxfp8 Blackwell, delayed and tensorwise both and Ada"
        )


def check_shapes(args: Namespace) -> None:
    """Refuse layers and shapes that FP8 has no kernels for, whatever machine this is.

    Matrix products need multiples of 16, of 32 for the blocks of mxfp8. What sequence parallelism
    gathers must be whole blocks on every rank: Transformer Engine's ``assert_dim_for_all_gather``.

    Args:
        args: Megatron's arguments, completed by its validation, with ``--fp8-format``.

    Raises:
        InputError: Naming the argument, its value and the cure.
    """
    if args.transformer_impl != "transformer_engine":
        raise InputError(
            f"--fp8-format {args.fp8} needs --transformer-impl transformer_engine, not "
            f"{args.transformer_impl}"
        )
    multiple = 32 if args.fp8_recipe == "mxfp8" else 16
    gathered = 128 if args.sequence_parallel and args.fp8_recipe == "blockwise" else multiple
    for name, size, needed in [
        *((name, size, gathered) for name, size in _input_shapes(args)),
        *((name, size, multiple) for name, size in _weight_shapes(args)),
    ]:
        if size % needed:
            parallel = " with --sequence-parallel" if needed > multiple else ""
            raise InputError(
                f"{name} gives each rank {size:g}, and --fp8-recipe {args.fp8_recipe}{parallel} "
                f"needs a multiple of {needed}: change it or the parallel sizes"
            )


def _input_shapes(args: Namespace) -> Iterator[tuple[str, float]]:
    """Name and size on a rank of what goes into the layers: positions, then features."""
    shards = args.context_parallel_size
    if args.sequence_parallel:
        shards *= args.tensor_model_parallel_size
    yield "--seq-length x --micro-batch-size", args.seq_length * args.micro_batch_size / shards
    rows = getattr(args, "eval_micro_batch_size", None) or args.micro_batch_size
    yield "--seq-length x --eval-micro-batch-size", args.seq_length * rows / shards
    yield "--hidden-size", args.hidden_size


def _weight_shapes(args: Namespace) -> Iterator[tuple[str, float]]:
    """Name and size on a rank of the other sides of the layers' weights."""
    tensor, heads = args.tensor_model_parallel_size, args.num_attention_heads
    groups = args.num_query_groups if args.group_query_attention else heads
    yield "--kv-channels x --num-attention-heads", args.kv_channels * heads / tensor
    yield "--kv-channels x 2 x --num-query-groups", args.kv_channels * 2 * groups / tensor
    yield "--ffn-hidden-size", args.ffn_hidden_size / tensor
