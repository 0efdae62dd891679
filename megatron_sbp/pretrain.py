"""Megatron's pretraining with the SBP arguments: ``python -m megatron_sbp.pretrain <arguments>``.

The training loop, optimizer, scheduler and checkpoints are Megatron's. This file only hands it the
datasets and the loss.
"""

import os
import sys
import time
from functools import partial
from typing import Any

from megatron_sbp import lifeline
from megatron_sbp.cli import run
from megatron_sbp.errors import InputError

_START = time.time()


def main() -> None:
    """Parse Megatron's and the SBP arguments, train, and record the run in ``--save``."""
    from megatron_sbp.training import signals

    signals.receive_alone()
    lifeline.hold_managers()
    from megatron_sbp.training import platform

    arguments = sys.argv[1:]
    on_cpu = platform.install()
    if on_cpu:
        sys.argv += platform.CPU_ARGUMENTS

    from megatron.core.enums import ModelType
    from megatron.training import pretrain, set_startup_timestamps
    from megatron.training.argument_utils import (
        gpt_config_from_args,
        pretrain_cfg_container_from_args,
    )
    from megatron.training.arguments import parse_and_validate_args

    from megatron_sbp.training import arguments as sbp_arguments
    from megatron_sbp.training.data import DatasetsProvider
    from megatron_sbp.training.interruption import mend_tracker
    from megatron_sbp.training.layer_states import leave_out_missing
    from megatron_sbp.training.leaving import leaving
    from megatron_sbp.training.local_layers import local_block_spec
    from megatron_sbp.training.objective import forward_step
    from megatron_sbp.training.record import RunRecord
    from megatron_sbp.training.transformer_engine import check_engine

    args = parse_and_validate_args(extra_args_provider=sbp_arguments.add_sbp_arguments)
    sbp_arguments.validate_and_complete(args)
    if on_cpu and args.async_save:
        raise InputError(
            "--async-save: the process that writes Megatron's checkpoints needs a GPU; leave it out"
        )
    check_engine(args)
    model_config = gpt_config_from_args(args)
    if args.transformer_impl == "local":
        sbp_arguments.check_local_layers(args)
        model_config.transformer_layer_spec = local_block_spec
    if args.load is not None and args.rank == 0:  # Others read it when the model is built.
        mend_tracker(args.load)
    record = RunRecord(args, arguments, started=_START)
    model_config.pre_wrap_hooks += [record.count_parameters, partial(leave_out_missing, args)]
    datasets = DatasetsProvider(args)

    set_startup_timestamps(program_start=_START, main_entry=time.time())
    with leaving():
        # Does not return where a signal, --exit-interval or --exit-duration-in-mins ends the run
        # early: the run is then not complete, and has no manifest.
        pretrain(
            pretrain_cfg_container_from_args(args, model_config),
            datasets,
            ModelType.encoder_or_decoder,
            forward_step,
            store=_store(args.world_size),
        )
        record.finish(datasets.ledger())


def _store(world_size: int) -> Any:
    """None, so that torch reads torchrun's variables, or a store for one process without them."""
    import torch

    alone = world_size == 1 and "MASTER_ADDR" not in os.environ
    return torch.distributed.HashStore() if alone else None


if __name__ == "__main__":
    run(main)
