import os
import subprocess
from pathlib import Path

import pytest

from megatron_sbp.ranks import Ranks
from tests.conftest import run_command

PROGRAM = """
from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.ranks import Ranks

def main():
    with Ranks.open() as ranks:
        assert ranks.size == 2 and ranks.share(ranks.rank) == 0
        assert ranks.gather(ranks.rank) == [0, 1] and ranks.local_rank == ranks.rank
        assert ranks.on_first(lambda: "done") == ("done" if ranks.rank == 0 else None)
        assert ranks.most(ranks.rank) == 1
        ranks.together(lambda: work(ranks))
        print("not reached")

def work(ranks):
{work}

cli.run(main)
"""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
# torchrun ends with a status and a report of its own, after what the ranks have said.
STATUS = {"mpiexec": 2, "torchrun": 1}


@pytest.fixture(params=["mpiexec", "torchrun"])
def launcher(request: pytest.FixtureRequest) -> str:
    return request.param


def run_ranks(launcher: str, work: str, directory: Path) -> subprocess.CompletedProcess[str]:
    program = directory / "program.py"
    indented = "\n".join("    " + line for line in work.splitlines())
    program.write_text(PROGRAM.replace("{work}", indented))
    if launcher == "torchrun":
        return run_command(*TORCHRUN, program)
    return run_command(program, ranks=2)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_an_error_on_one_rank_ends_the_work_of_the_other(launcher: str, tmp_path: Path) -> None:
    done = run_ranks(
        launcher,
        "if ranks.rank == 1:\n    raise InputError('flag 7: wrong')\n"
        "while True:\n    ranks.check()",
        tmp_path,
    )
    assert done.returncode == STATUS[launcher] and done.stdout == ""
    assert errors(done) == ["error: rank 1: flag 7: wrong"]


def test_an_error_on_every_rank_is_said_once(launcher: str, tmp_path: Path) -> None:
    done = run_ranks(launcher, "raise InputError('flag 7: wrong')", tmp_path)
    assert done.returncode == STATUS[launcher]
    assert errors(done) == ["error: flag 7: wrong"]


def test_a_crash_on_one_rank_ends_the_other(launcher: str, tmp_path: Path) -> None:
    done = run_ranks(
        launcher,
        "if ranks.rank == 1:\n    raise RuntimeError('a bug')\nwhile True:\n    ranks.check()",
        tmp_path,
    )
    assert done.returncode not in (0, 2) and "RuntimeError: a bug" in done.stderr


class Machines:
    """What rank 2 of a job sees: two machines, ranks 1 to 3 on this one."""

    def __init__(self, cores: list[set[int]]):
        self.cores = cores

    def Get_rank(self) -> int:
        return 2

    def Get_size(self) -> int:
        return 4

    def allgather(self, value: tuple[str, set[int]]) -> list[tuple[str, set[int]]]:
        return [("elsewhere", self.cores[0])] + [(value[0], cores) for cores in self.cores[1:]]


def test_a_rank_gets_its_share_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def cores(*ranks: set[int]) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: ranks[2])
        seen = Ranks(Machines(list(ranks)))
        assert (seen.local_rank, seen.local_size) == (1, 3)
        return seen.cores

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    everything = set(range(12))
    assert cores(everything, everything, everything, everything) == 4
    assert cores(everything, {0, 1}, set(range(2, 10)), {10, 11}) == 8  # bound by the launcher
    assert cores({0}, {0}, {0}, {0}) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores({0}, {0}, {0}, {0}) == 3 and Ranks(Machines([{0}] * 4)).processors == 1


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"])
def test_worlds_of_size_one_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    done = run_command("tools/mine_pairs.py", "--embeddings", "e", "--output", "o")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {variable} says 2 processes, but the MPI world has size 1")
