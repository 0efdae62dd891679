import subprocess

import pytest

from tests.conftest import run_command

PROGRAM = """
from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.ranks import Ranks

def main():
    with Ranks.open() as ranks:
        assert ranks.size == 2 and ranks.share(ranks.rank) == 0
        assert ranks.on_first(lambda: "done") == ("done" if ranks.rank == 0 else None)
        assert ranks.most(ranks.rank) == 1
        ranks.together(lambda: work(ranks))
        print("not reached")

def work(ranks):
{work}

cli.run(main)
"""


def run_ranks(work: str) -> subprocess.CompletedProcess[str]:
    indented = "\n".join("    " + line for line in work.splitlines())
    return run_command("-c", PROGRAM.replace("{work}", indented), ranks=2)


def test_an_error_on_one_rank_ends_the_work_of_the_other() -> None:
    done = run_ranks(
        "if ranks.rank == 1:\n    raise InputError('flag 7: wrong')\nwhile True:\n    ranks.check()"
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == ["error: rank 1: flag 7: wrong"]


def test_an_error_on_every_rank_is_said_once() -> None:
    done = run_ranks("raise InputError('flag 7: wrong')")
    assert done.returncode == 2 and done.stderr.splitlines() == ["error: flag 7: wrong"]


def test_a_crash_on_one_rank_ends_the_other() -> None:
    done = run_ranks(
        "if ranks.rank == 1:\n    raise RuntimeError('a bug')\nwhile True:\n    ranks.check()"
    )
    assert done.returncode not in (0, 2) and "RuntimeError: a bug" in done.stderr


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"])
def test_worlds_of_size_one_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    done = run_command("tools/mine_pairs.py", "--embeddings", "e", "--output", "o")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {variable} says 2 processes, but the MPI world has size 1")
