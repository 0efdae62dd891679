"""What a training run leaves besides Megatron's checkpoints: metrics and a manifest."""

import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.tensor_parallel.layers import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from megatron.training import global_vars

from megatron_sbp import manifest
from megatron_sbp.metrics import MetricsWriter, read_metrics
from megatron_sbp.training.data import data_paths
from megatron_sbp.training.interruption import Lock
from megatron_sbp.training.ledger import differences


class RunRecord:
    """Collects what a run did and writes it into ``--save`` (nothing without ``--save``).

    Args:
        args: Megatron's arguments; its TensorBoard writer is wrapped on the last rank, which is the
            one that logs.
        arguments: The command line.
        started: ``time.time()`` at the start of the process.
    """

    def __init__(self, args: Namespace, arguments: list[str], started: float):
        self._args, self._arguments, self._started = args, arguments, started
        self._parameters = 0
        self._writes = args.save is not None and args.rank == args.world_size - 1
        if self._writes:
            self._lock = Lock(args.save)
            self._inputs = manifest.fingerprints(_inputs(args))
            writer = MetricsWriter(args.save, global_vars._GLOBAL_TENSORBOARD_WRITER)
            global_vars._GLOBAL_TENSORBOARD_WRITER = writer

    def count_parameters(self, model: list[Any]) -> list[Any]:
        """A ``pre_wrap_hook``: count the whole model's parameters, each once."""
        local = sum(
            parameter.numel()
            for chunk in model
            for parameter in chunk.parameters()
            if param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter)
        )
        total = torch.tensor([local], dtype=torch.int64, device=torch.cuda.current_device())
        torch.distributed.all_reduce(total, group=mpu.get_model_parallel_group())
        self._parameters = int(total)
        return model

    def finish(self, ledger: list[dict[str, Any]] | None) -> None:
        """Write the manifest; collective over all ranks.

        Args:
            ledger: What was read of each source, None on ranks that read nothing.
        """
        ledgers: list[Any] = [None] * self._args.world_size
        torch.distributed.all_gather_object(ledgers, ledger)
        if self._writes:
            self._write(next(entries for entries in ledgers if entries is not None))

    def _write(self, ledger: list[dict[str, Any]]) -> None:
        args = self._args
        for difference in differences(ledger, args.seq_length):
            print(f"warning: {difference}", flush=True)
        series = read_metrics(args.save)
        manifest.Manifest(
            stage="train",
            options={"objective": args.sbp_objective, "arguments": self._arguments},
            inputs=self._inputs,
            counts={
                "iterations": args.consumed_train_samples // args.global_batch_size,
                "consumed_samples": args.consumed_train_samples,
                "tokens": args.consumed_train_samples * args.seq_length,
                "supervised_tokens": sum(entry["tokens_seen"] for entry in ledger),
                "parameters": self._parameters,
                "sequence_length": args.seq_length,
                "global_batch_size": args.global_batch_size,
                "ledger": ledger,
                "final": {name: values[-1][1] for name, values in series.items()},
            },
            seconds=time.time() - self._started,
            peak_memory_bytes=manifest.peak_memory_bytes(),
            environment=manifest.environment(),
        ).write(args.save)
        self._lock.remove()


def _inputs(args: Namespace) -> list[str]:
    """Files that decide what the run learns from."""
    files = [f"{prefix}.idx" for prefix in data_paths(args)]
    return files + [str(Path(pairs) / manifest.FILENAME) for pairs in args.sbp_pairs]
