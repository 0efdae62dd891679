"""The processes of one job: MPI's, torchrun's, or this one alone.

An error on one rank ends all of them with one line and exit status 2, and no rank waits for ever:
every step that ranks do apart ends in ``together``, where they tell each other how it went, and
between its pieces a rank looks whether another one has failed (``check``).
"""

import contextlib
import fcntl
import os
import platform
import sys
import termios
import time
import traceback
import warnings
from array import array
from collections.abc import Callable
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import numpy as np

from megatron_sbp import torchrun
from megatron_sbp.errors import InputError, of_the_disk, require

# What launchers tell their processes about how many they started: MPICH, Intel MPI and PMI-2;
# Open MPI; Slurm. The first one present counts: mpiexec inside a Slurm job sets its own.
_LAUNCHERS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
_FAILED = 1  # tag of the message that a failing rank sends to all others
_PASSED = 2  # tag of an array that is passed round
_POLL_SECONDS = 1e-4
_SHARED = "/dev/shm"
_SHARED_BYTES = 6 << 20  # MPICH 5.0 takes 5.3 million bytes of it for every process of a machine.


class Stopped(Exception):
    """Another rank failed; it says why, this one only ends."""


class Ranks:
    """Rank, size and the few collective operations that stages need.

    Used as a context: an error that nobody expected is printed and aborts all ranks.

    Args:
        communicator: Of mpi4py or ``torchrun.Communicator``; None for one process by itself.
    """

    def __init__(self, communicator: Any = None):
        self._communicator = communicator
        self.rank: int = communicator.Get_rank() if communicator else 0
        self.size: int = communicator.Get_size() if communicator else 1
        self._transfers: list[Any] = []
        self._passed = 0  # arrays, by pass_round
        cores = os.sched_getaffinity(0)
        machines = self.gather((platform.node(), cores))
        here = [rank for rank, (name, _) in enumerate(machines) if name == platform.node()]
        self.local_rank: int = here.index(self.rank)
        """Number of this rank among those of its machine."""
        self.local_size: int = len(here)
        """Number of ranks on its machine."""
        self.processors = _even_share(cores, [machines[rank][1] for rank in here])
        """Worker processes for this rank: its even share of its machine's cores."""
        self.cores = _threads() or self.processors
        """Threads for this rank: OMP_NUM_THREADS, or its even share of its machine's cores."""

    @classmethod
    def open(cls) -> Self:
        """The ranks that the launcher started; MPI is not touched where there was no launcher.

        Raises:
            InputError: If MPI's world is not of the size that the launcher says. With an MPI that
                is not the launcher's every process is a world of its own, and would mine it all.
        """
        if torchrun.launched():  # before MPI's, as a Slurm job may have started torchrun
            return cls(torchrun.Communicator() if int(os.environ["WORLD_SIZE"]) > 1 else None)
        variable = next((name for name in _LAUNCHERS if name in os.environ), None)
        launched = int(os.environ[variable]) if variable else 1
        if launched == 1:
            return cls()
        require("mpi4py", package="mpi4py mpich")
        _check_shared_memory()
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
        ranks = cls(communicator)
        _unname_shared_memory()
        return ranks

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
        except Exception as error:
            said = error if isinstance(error, InputError) else of_the_disk(error)
            if said is None:
                raise
            message = str(said)
            told = self._tell()
        messages = self.gather(message)
        failed = [rank for rank, said in enumerate(messages) if said is not None]
        for rank in failed:
            if rank != self.rank:
                self._communicator.recv(source=rank, tag=_FAILED)
        for request in told:
            request.wait()
        if failed:
            self._drain()
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

    def pass_round(self, rows: np.ndarray, received: np.ndarray) -> Callable[[], None]:
        """Begin to send an array to the rank before this one, and to receive the next rank's.

        Neither may be touched until the function that is returned was called; it waits for both.
        The transfer goes on whenever MPI is called, by ``check`` for example, and by itself where
        MPI has a thread or a network adapter for it.

        Args:
            rows: Contiguous.
            received: Contiguous, of the type and size that the next rank sends.

        Raises:
            InputError: If the ranks are torchrun's.
        """
        if not hasattr(self._communicator, "Irecv"):
            raise InputError(
                "passing arrays round needs MPI; start the command with mpiexec or srun"
            )
        self._transfers = [
            self._communicator.Irecv(received.view(np.uint8), source=self._after, tag=_PASSED),
            self._communicator.Isend(rows.view(np.uint8), dest=self._before, tag=_PASSED),
        ]
        self._passed += 1

        def wait() -> None:
            while not all([request.Test() for request in self._transfers]):
                self.check()
                time.sleep(_POLL_SECONDS)

        return wait

    @property
    def _after(self) -> int:
        return (self.rank + 1) % self.size

    @property
    def _before(self) -> int:
        return (self.rank - 1) % self.size

    def _drain(self) -> None:
        """End the transfers that were under way when a rank failed; MPI cannot end before."""
        begun = self.gather(self._passed)
        if not any(begun):
            return
        from mpi4py import MPI

        for _ in range(begun[self._after] - self._passed):
            status = MPI.Status()
            self._communicator.Probe(source=self._after, tag=_PASSED, status=status)
            unwanted = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            self._communicator.Recv(unwanted, source=self._after, tag=_PASSED)
        receiving, sending = self._transfers
        if begun[self._after] < self._passed:
            receiving.Cancel()
        receiving.Wait()
        sending.Wait()

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of all ranks' arrays (float64, of one shape), on every rank.

        In what order ranks are added is not said, so that sums that are not exact may differ.
        """
        if not self._communicator:
            return values
        sums = np.empty_like(values)
        self._communicator.Allreduce(values, sums)
        return sums

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
            _wait_for_reader()
            self._communicator.Abort(1)


def _check_shared_memory() -> None:
    """Refuse a /dev/shm without room for the messages of MPI, which would end it by SIGBUS."""
    try:
        status = os.statvfs(_SHARED)
    except OSError:
        return
    processes = int(os.environ.get("MPI_LOCALNRANKS", 1))
    free, wanted = status.f_bavail * status.f_frsize, processes * _SHARED_BYTES
    if free >= wanted:
        return
    if os.environ.get("MPI_LOCALRANKID", "0") != "0":
        sys.exit(2)  # One of a machine says it.
    raise InputError(
        f"{_SHARED}: has {free:,} bytes free, and MPI needs {wanted:,} for {processes} processes; "
        "remove what is not in use from it, or mount it larger"
    )


def _unname_shared_memory() -> None:
    """Take the name from MPICH's shared memory, which all ranks of the machine have open by now.

    It is then gone with the last of them, however that ends; the names that killed runs leave
    fill /dev/shm.
    """
    with open("/proc/self/maps") as maps:
        mapped = {name for line in maps for name in line.split()[5:6]}
    for name in mapped:
        if name.startswith(f"{_SHARED}/mpich_shm_"):
            with contextlib.suppress(FileNotFoundError):  # Another rank was first.
                os.unlink(name)


def _wait_for_reader() -> None:
    """Give a launcher a second to read the pipe of errors: aborting drops what is left in it."""
    unread = array("i", [0])
    for _ in range(100):
        try:
            fcntl.ioctl(2, termios.FIONREAD, unread)
        except OSError:  # not a pipe
            return
        if not unread[0]:
            return
        time.sleep(0.01)


def _threads() -> int | None:
    """What OMP_NUM_THREADS says."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets 1 where the user set nothing, and warns that this should be tuned.
    if not given.isdecimal() or (torchrun.launched() and given == "1"):
        return None
    return max(1, int(given))


def _even_share(cores: set[int], ranks: list[set[int]]) -> int:
    """Cores for one rank: its own, each divided by the number of ranks that may run on it.

    Args:
        cores: The cores that it may run on.
        ranks: The same of every rank of its machine, itself included.
    """
    shares = sum(Fraction(1, sum(core in other for other in ranks)) for core in cores)
    return max(1, int(shares))
