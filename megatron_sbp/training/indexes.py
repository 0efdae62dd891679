"""Every index of a run, built by one process before the run.

Megatron shuffles documents and deals them to rows at the start of a run: rank 0 does it while all
others wait, and keeps the result in the data cache, where the next start finds it. Here one process
without a device does the same with the run's own arguments.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from megatron_sbp import manifest
from megatron_sbp.errors import InputError
from megatron_sbp.training.lint.check import findings, parsed, quiet


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What was built."""

    written: list[Path]
    """Files of the cache that were not there before."""
    present: int
    """Files of the cache that were."""
    seconds: float
    peak_memory_bytes: int

    @property
    def bytes(self) -> int:
        """Size of what was written."""
        return sum(path.stat().st_size for path in self.written)


def build(arguments: Sequence[str]) -> Built:
    """Build the indexes of a run's training, validation and test sets in its data cache.

    Prints what the run is to read of each source of documents.

    Args:
        arguments: The run's, Megatron's and the SBP group.

    Raises:
        InputError: If the run would refuse its arguments or its data.
    """
    os.environ.setdefault("RANK", "0")  # Megatron warns where nothing says which rank it is
    with quiet():
        from megatron.training import training

        from megatron_sbp.training.data import DatasetsProvider, data_paths
        from megatron_sbp.training.lint.arguments import check_arguments, check_tokenizer
        from megatron_sbp.training.sources import announce
    run = parsed(arguments, 0)
    for name, check in (
        ("arguments", partial(check_arguments, run)),
        ("tokenizer", partial(check_tokenizer, run.args)),
    ):
        for finding in findings(name, check):
            if finding.status == "error":
                raise InputError(finding.text)
    args = run.args
    if args.data_cache_path:
        places = [Path(args.data_cache_path)]
    else:  # Megatron's default (GPTDataset._build_document_sample_shuffle_indices)
        places = [Path(path, "cache") for path in data_paths(args)]
    before = _files(places)
    started = time.monotonic()
    if args.train_samples:
        training.update_train_iters(args)
    if args.sbp_objective == "lm":
        announce(args)
    with quiet(), one_builder():
        DatasetsProvider(args)(training.get_train_valid_test_num_samples())
    return Built(
        written=sorted(_files(places) - before),
        present=len(before),
        seconds=time.monotonic() - started,
        peak_memory_bytes=manifest.peak_memory_bytes(),
    )


def _files(places: Sequence[Path]) -> set[Path]:
    return {path for place in places for path in place.rglob("*") if path.is_file()}


@contextmanager
def one_builder() -> Iterator[None]:
    """Let this process, which is alone, be the one of a layout that builds all there is."""
    from megatron.core import mpu

    mpu.set_tensor_model_parallel_rank(0)
    mpu.set_pipeline_model_parallel_rank(0)
    try:
        yield
    finally:
        mpu.set_tensor_model_parallel_rank(None)
        mpu.set_pipeline_model_parallel_rank(None)
