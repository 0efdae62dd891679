"""A training run on two nodes survives what happens to it, and learns the same."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Job, Submit, long
from tests.training.runs import series

HALF = " iteration       15/"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run that the others are compared with is kept."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture
def losses(submit: Submit, undisturbed: Path) -> dict[int, float]:
    """Losses of the run that nothing happens to, by iteration."""
    if not (undisturbed / "repetition").exists():
        submit("pretrain_3b", OUTPUT=str(undisturbed)).succeed()
    return series(undisturbed / "repetition", "lm loss")


@pytest.fixture
def running(submit: Submit, losses: dict[int, float]) -> Iterator[Job]:
    """The same run, later, in the middle of its iterations."""
    job = submit("pretrain_3b", SET="distributed-timeout-seconds-after-init=10")
    job.wait_until_written(HALF)
    yield job
    job.cluster.run("scancel", str(job.number))


def check(job: Job, losses: dict[int, float]) -> None:
    """The job went on in a second attempt, to the very same losses."""
    assert job.succeed()["Restarts"] == "1"
    assert series(job.output / "repetition", "lm loss") == losses
    assert len(losses) == 30


def test_usr1_saves_requeues_and_goes_on(
    cluster: Cluster, running: Job, losses: dict[int, float]
) -> None:
    cluster.run("scancel", "--batch", "--signal=USR1", str(running.number))
    check(running, losses)
    assert "exiting program after receiving SIGTERM" in running.text()
    assert "ended with status 0 after USR1" in running.text()


@long
def test_term_from_slurm_itself_saves_requeues_and_goes_on(
    cluster: Cluster, running: Job, losses: dict[int, float]
) -> None:
    """TERM reaches all processes of a rank, also those that write its checkpoints."""
    cluster.run("scancel", "--signal=TERM", str(running.number))
    check(running, losses)
    assert "ended with status 0 after no signal" in running.text()


@long
@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_lost_node_costs_the_iterations_since_the_last_checkpoint(
    cluster: Cluster, running: Job, losses: dict[int, float], node: str
) -> None:
    cluster.kill(node)
    cluster.wait_for(lambda: cluster.job(running.number)["Restarts"] == "1", "the requeue", 90)
    cluster.boot(node)
    check(running, losses)
    assert "at iteration 10" in running.text()


@long
def test_a_rank_that_hangs_is_named_and_ends_the_attempt(
    cluster: Cluster, running: Job, losses: dict[int, float]
) -> None:
    cluster.do("n2", "kill -STOP $(pgrep -f megatron_sbp.pretrain)")
    running.wait_until_written("did not report the same")
    assert "rank 0 (n1): communication failed, and 1 of 2 ranks did not" in running.text()
    assert "within 10 s: 1\n" in running.text()
    check(running, losses)


@long
def test_the_script_for_6b_runs_the_same_job(submit: Submit, losses: dict[int, float]) -> None:
    job = submit("pretrain_6b")
    assert job.succeed()["Restarts"] == "0"
    assert series(job.output / "repetition", "lm loss") == losses


def test_what_is_given_wrong_ends_the_job_in_one_line(submit: Submit) -> None:
    job = submit("pretrain_3b", ARM="sbp", SYNTHETIC="nowhere/synthetic")
    said = job.wait()
    assert (said["JobState"], said["Restarts"]) == ("FAILED", "0")
    (line,) = {line[3:] for line in job.text().splitlines() if ": error: " in line[:12]}
    assert "nowhere/synthetic" in line


def test_the_recipe_of_a_job_is_checked_before_anything_runs(submit: Submit) -> None:
    job = submit("pretrain_3b", RECIPE="no_such_recipe")
    assert job.wait()["ExitCode"] == "2:0"
    assert "no_such_recipe" in job.text()
    assert not os.path.exists(job.output / "repetition")
