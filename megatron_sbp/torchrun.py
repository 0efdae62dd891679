"""The processes of torchrun, with the methods of an mpi4py communicator that Ranks uses."""

import os
import pickle
from datetime import timedelta
from typing import Any

import numpy as np

# Ranks wait for the slowest one, and that may take days; torch keeps milliseconds in 32 bits. A
# rank that dies is torchrun's to notice: it ends all the others.
_TIMEOUT = timedelta(days=20)


def launched() -> bool:
    """Whether torchrun (or another launcher of torch elastic) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Communicator:
    """All processes of a torchrun job, through the store that torchrun keeps for them.

    Everything goes through the store, and no process group is made: gloo's has threads of its own,
    and one that lets go of a Python object while the interpreter ends aborts the process. Values
    are kept until every process has read them. A message has no content: it is a number in the
    store that counts what a rank has been told and not yet taken note of.

    ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` say who is there, as for every
    torch program.
    """

    def __init__(self) -> None:
        from torch import distributed

        store, self._rank, self._size = next(distributed.rendezvous("env://"))
        self._store = distributed.PrefixStore("ranks", store)
        self._gathered = 0

    def Get_rank(self) -> int:
        """Number of this process."""
        return self._rank

    def Get_size(self) -> int:
        """Number of processes."""
        return self._size

    def allgather(self, value: Any) -> list[Any]:
        """Every process's value (pickled), by rank."""
        self._gathered += 1
        keys = [f"value {self._gathered} {rank}" for rank in range(self._size)]
        self._store.set(keys[self._rank], pickle.dumps(value))
        self._store.wait(keys, _TIMEOUT)
        values = [pickle.loads(self._store.get(key)) for key in keys]
        if self._store.add(f"read {self._gathered}", 1) == self._size:
            for key in (*keys, f"read {self._gathered}"):
                self._store.delete_key(key)
        return values

    def bcast(self, value: Any) -> Any:
        """The value (pickled) of process 0."""
        return self.allgather(value if self._rank == 0 else None)[0]

    def Allreduce(self, values: np.ndarray, sums: np.ndarray) -> None:
        """Put the sum of every process's array into ``sums``."""
        np.sum(self.allgather(values), axis=0, out=sums)

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
