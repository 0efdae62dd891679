"""The processes of torchrun, with the methods of an mpi4py communicator that Ranks uses."""

import atexit
import os
from datetime import timedelta
from typing import Any

import numpy as np

# Ranks wait for the slowest one, and that may take days. A rank that dies is torchrun's to notice:
# it ends all the others.
_TIMEOUT = timedelta(days=365)


def launched() -> bool:
    """Whether torchrun (or another launcher of torch elastic) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Communicator:
    """All processes of a torchrun job, through torch.distributed with gloo.

    Messages have no content: one is a number in the job's store that counts what a rank has been
    told and not yet taken note of. ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``
    say who is there, as for every torch program.
    """

    def __init__(self) -> None:
        from torch import distributed

        self._distributed = distributed
        self._store, rank, size = next(distributed.rendezvous("env://"))
        distributed.init_process_group(
            "gloo",
            store=distributed.PrefixStore("ranks", self._store),
            rank=rank,
            world_size=size,
            timeout=_TIMEOUT,
        )
        # A group that is still there when the interpreter goes aborts the process now and then:
        # its threads let go of Python objects.
        atexit.register(distributed.destroy_process_group)

    def Get_rank(self) -> int:
        """Number of this process."""
        return self._distributed.get_rank()

    def Get_size(self) -> int:
        """Number of processes."""
        return self._distributed.get_world_size()

    def allgather(self, value: Any) -> list[Any]:
        """Every process's value (pickled), by rank."""
        values = [None] * self.Get_size()
        self._distributed.all_gather_object(values, value)
        return values

    def bcast(self, value: Any) -> Any:
        """The value (pickled) of process 0."""
        values = [value]
        self._distributed.broadcast_object_list(values, src=0)
        return values[0]

    def Allreduce(self, values: np.ndarray, sums: np.ndarray) -> None:
        """Put the sum of every process's array (float64) into ``sums``."""
        import torch

        sums[...] = values
        self._distributed.all_reduce(torch.from_numpy(sums))

    def isend(self, value: None, dest: int, tag: int) -> "_Sent":
        """Tell another process."""
        self._store.add(f"told {dest} {tag}", 1)
        return _Sent()

    def Iprobe(self, tag: int) -> bool:
        """Whether this process has been told something that it has not taken note of."""
        return self._store.add(f"told {self.Get_rank()} {tag}", 0) > 0

    def recv(self, source: int, tag: int) -> None:
        """Take note of a message that was sent before the last collective operation."""
        self._store.add(f"told {self.Get_rank()} {tag}", -1)

    def Abort(self, status: int) -> None:
        """End this process at once; torchrun then ends the others."""
        os._exit(status)


class _Sent:
    """A message that has arrived."""

    def wait(self) -> None:
        """Nothing to wait for."""
