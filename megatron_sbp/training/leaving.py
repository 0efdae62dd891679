"""How a rank of a training run leaves: with the others, or saying what ended the run.

A collective operation that one rank never joins fails on the others when its time is over
(``--distributed-timeout-minutes``). Gloo's error then names addresses at best; the roll call here
names ranks and machines. NCCL's own watchdog ends the process and names the ranks that waited.
"""

import contextlib
import platform
import shutil
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from megatron.core.rerun_state_machine import (
    EXIT_CODE_FAILED_ON_RESULT_VALIDATION,
    EXIT_CODE_RESUME_TO_DISAMBIGUATE,
)
from torch import distributed

from megatron_sbp.errors import InputError

_REFUSED = (EXIT_CODE_FAILED_ON_RESULT_VALIDATION, EXIT_CODE_RESUME_TO_DISAMBIGUATE)
_SCARCE = 64 << 20
"""Bytes: a disk with less is full, for a checkpoint."""
_PATIENCE = timedelta(seconds=10)
"""Ranks whose operation began together run out of time together, give or take an iteration."""


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Around a run: name absent ranks if communication fails, and take the process group down.

    A group that is still there when the interpreter goes can abort the process, and the status of
    a run that was told to end would be that of a crash.
    """
    try:
        yield
    except SystemExit as stop:
        if stop.code in _REFUSED:
            _name_step()
        _destroy()
        raise
    except InputError:
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if isinstance(error, RuntimeError) and _is_of_communication(error):
            _call_roll()
        _name_full_disk()
        raise
    _destroy()


def _name_full_disk() -> None:
    """Megatron's error about a checkpoint that cannot be written may leave out why."""
    from megatron.training import get_args

    args = get_args()
    if args.rank == 0 and args.save is not None:
        with contextlib.suppress(OSError):
            left = shutil.disk_usage(args.save).free
            if left < _SCARCE:
                print(
                    f"error: --save {args.save}: its disk has {left:,} bytes left; make room, and "
                    "the same command goes on from the last checkpoint",
                    file=sys.stderr,
                )


def _name_step() -> None:
    """Say in which step Megatron found what ends the run; its own message may count others."""
    from megatron.training import get_args

    args = get_args()
    if args.rank == 0:
        step = args.curr_iteration + 1
        print(
            f"error: step {step}: the loss or a gradient is not a finite number (Megatron's "
            f"`Unexpected result` says which); the weights are those of step {step - 1}. Lower "
            "--lr, or begin with an earlier checkpoint",
            file=sys.stderr,
        )


def _is_of_communication(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _destroy() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _call_roll() -> None:
    """Report to the store that rank 0 keeps; rank 0 says who has not, the others wait for that."""
    if not distributed.is_initialized():
        return
    rank, size = distributed.get_rank(), distributed.get_world_size()
    store = distributed.PrefixStore("leaving", distributed.distributed_c10d._get_default_store())
    store.set_timeout(_PATIENCE)
    try:
        store.set(str(rank), platform.node())
        absent = _absent(store, size) if rank == 0 else []
        store.set("called", "") if rank == 0 else store.wait(["called"], 2 * _PATIENCE)
    except distributed.DistNetworkError:
        return  # rank 0 has ended, with a reason of its own
    except distributed.DistError:
        absent = [0]
    if absent:
        shown = ", ".join(map(str, absent[:16])) + (", ..." if len(absent) > 16 else "")
        print(
            f"rank {rank} ({platform.node()}): communication failed, and {len(absent)} of {size} "
            f"ranks did not report the same within {_PATIENCE.seconds} s: {shown}",
            file=sys.stderr,
            flush=True,
        )


def _absent(store: Any, size: int) -> list[int]:
    """Ranks that have not reported when the patience is over."""
    ranks = [str(rank) for rank in range(size)]
    with contextlib.suppress(distributed.DistError):
        store.wait(ranks, _PATIENCE)
    return [int(rank) for rank in ranks if not store.check([rank])]
