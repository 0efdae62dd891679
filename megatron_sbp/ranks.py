"""The processes of one job: MPI's, or this one alone.

An error on one rank ends all of them with one line and exit status 2, and no rank waits for ever:
every step that ranks do apart ends in ``together``, where they tell each other how it went, and
between its pieces a rank looks whether another one has failed (``check``).
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from megatron_sbp.errors import InputError, require

# What launchers tell their processes about how many they started: MPICH, Intel MPI and PMI-2;
# Open MPI; Slurm. The first one present counts: mpiexec inside a Slurm job sets its own.
_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
_FAILED = 1  # tag of the message that a failing rank sends to all others


class Stopped(Exception):
    """Another rank failed; it says why, this one only ends."""


class Ranks:
    """Rank, size and the few collective operations that stages need.

    Used as a context: an error that nobody expected is printed and aborts all ranks.

    Args:
        communicator: Of mpi4py, or None for one process without MPI.
    """

    def __init__(self, communicator: Any = None):
        self._communicator = communicator
        self.rank: int = communicator.Get_rank() if communicator else 0
        self.size: int = communicator.Get_size() if communicator else 1
        self.cores = self._count_cores()
        """Threads for this rank: OMP_NUM_THREADS, or its even share of its machine's cores."""

    @classmethod
    def open(cls) -> Self:
        """The ranks that the launcher started; MPI is not touched where there was no launcher.

        Raises:
            InputError: If MPI's world is not of the size that the launcher says. With an MPI that
                is not the launcher's every process is a world of its own, and would mine it all.
        """
        variable = next((name for name in _LAUNCHERS if name in os.environ), None)
        launched = int(os.environ[variable]) if variable else 1
        if launched == 1:
            return cls()
        require("mpi4py", package="mpi4py mpich")
        try:
            with warnings.catch_warnings(action="ignore"):  # It may guess what is wrong; see below.
                from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"cannot start MPI ({reason}); install mpich or load MPI") from None
        communicator = MPI.COMM_WORLD
        if communicator.Get_size() != launched:
            library = MPI.Get_library_version().splitlines()[0]
            raise InputError(
                f"{variable} says {launched} processes, but the MPI world has size "
                f"{communicator.Get_size()} ({library}): the launcher is of another MPI; use the "
                "mpiexec beside this python, or srun with the --mpi that fits it"
            )
        return cls(communicator)

    def _count_cores(self) -> int:
        ranks = 1
        if self._communicator:
            from mpi4py import MPI

            machine = self._communicator.Split_type(MPI.COMM_TYPE_SHARED)
            ranks = machine.Get_size()
            machine.Free()
        if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
            return max(1, int(os.environ["OMP_NUM_THREADS"]))
        return max(1, len(os.sched_getaffinity(0)) // ranks)

    def share[T](self, value: T) -> T:
        """Rank 0's value (pickled) on every rank."""
        return self._communicator.bcast(value) if self._communicator else value

    def on_first[T](self, work: Callable[[], T]) -> T | None:
        """Do something on rank 0 while the others wait; None on the others.

        Raises:
            InputError: On rank 0, if it failed.
            SystemExit: With status 2, on the others.
        """
        return self.together(lambda: work() if self.rank == 0 else None)

    def together[T](self, work: Callable[[], T]) -> T:
        """Do something on every rank; if it fails on one, no rank goes on.

        Raises:
            InputError: On the rank that failed.
            SystemExit: With status 2, on the others.
        """
        result: T | None = None
        message: str | None = None
        told: list[Any] = []
        try:
            result = work()
        except Stopped:
            pass
        except InputError as error:
            message = str(error)
            told = self._tell()
        messages = self.gather(message)
        failed = [rank for rank, said in enumerate(messages) if said is not None]
        for rank in failed:
            if rank != self.rank:
                self._communicator.recv(source=rank, tag=_FAILED)
        for request in told:
            request.wait()
        if failed and failed[0] == self.rank:
            everywhere = len(failed) == self.size
            raise InputError(message if everywhere else f"rank {self.rank}: {message}")
        if failed:
            sys.exit(2)
        return result  # type: ignore[return-value]

    def _tell(self) -> list[Any]:
        """Send every other rank the message that ``check`` looks for; the requests to wait for."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        return [self._communicator.isend(None, dest=rank, tag=_FAILED) for rank in others]

    def check(self) -> None:
        """Stop this rank's share of the work if another rank has failed; call it between pieces.

        Raises:
            Stopped: Inside ``together`` only, which ends the rank.
        """
        if self._communicator and self._communicator.Iprobe(tag=_FAILED):
            raise Stopped

    def gather[T](self, value: T) -> list[T]:
        """Every rank's value (pickled), by rank, on every rank."""
        return self._communicator.allgather(value) if self._communicator else [value]

    def most(self, value: int) -> int:
        """The largest of all ranks' values."""
        return max(self.gather(value))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._communicator and isinstance(error, Exception) and kind is not InputError:
            traceback.print_exception(error)
            sys.stderr.flush()
            self._communicator.Abort(1)
