"""slurm/common.sh on a real Slurm, with commands of a few lines in place of training.

The numbers are those of the pitfalls in docs/cluster.md.
"""

from pathlib import Path

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Job, Submit

# A run that trains: it makes checkpoints, and its box when it has made enough.
RUN = r"""
mkdir -p "$OUTPUT/box"
begin "$OUTPUT/box" "$OUTPUT/box/latest_checkpointed_iteration.txt"
"""
END = r"""
: > "$OUTPUT/box/manifest.json"
"""


def lines(job: Job) -> list[str]:
    return sorted(job.text().splitlines())


def test_ranks_are_known_inside_of_the_tasks(probe: Submit) -> None:
    """1, 3, 4, 10: names, numbers and devices are each task's own, the meeting point is common."""
    job = probe(
        """torch bash -c 'echo $RANK $LOCAL_RANK $WORLD_SIZE $(hostname) $CUDA_VISIBLE_DEVICES \\
            $MASTER_ADDR'""",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
    )
    job.succeed()
    shown = "{0}: {0} {1} 4 n{2} 0,1 n1"
    assert lines(job) == [shown.format(rank, rank % 2, 1 + rank // 2) for rank in range(4)]


def test_a_step_has_the_cores_of_the_job(probe: Submit) -> None:
    """11: srun does not take --cpus-per-task from sbatch."""
    job = probe("torch bash -c 'echo $SLURM_CPUS_PER_TASK $OMP_NUM_THREADS'", "--cpus-per-task=3")
    job.succeed()
    assert lines(job) == ["0: 3 3", "1: 3 3"]


def test_elements_of_an_array_meet_at_ports_of_their_own(probe: Submit, tmp_path: Path) -> None:
    """12."""
    job = probe(
        "torch bash -c 'echo $MASTER_PORT'",
        *("--array=1-2", "--nodes=1", f"--output={tmp_path}/element-%a.log"),
    )
    job.wait()
    ports = set()
    for element in (1, 2):
        log = tmp_path / f"element-{element}.log"
        job.cluster.wait_for(lambda log=log: log.exists() and log.read_text(), str(log))  # type: ignore[misc]
        ports.add(log.read_text())
    assert len(ports) == 2


def test_a_rank_that_fails_ends_the_others_and_the_job(probe: Submit) -> None:
    """8: a job whose step fails must not be COMPLETED."""
    job = probe(
        RUN + "torch bash -c '[ $RANK = 1 ] && exit 7; sleep 600' || status=$?; conclude $status"
    )
    said = job.wait()
    assert said["JobState"] == "FAILED" and said["ExitCode"] != "0:0", job.tail()
    assert said["Restarts"] == "0"
    assert "n2: task 1: Exited with exit code 7" in job.text()


def test_a_step_that_ends_with_0_and_leaves_no_box_is_not_complete(probe: Submit) -> None:
    job = probe(RUN + "torch true; conclude 0")
    assert job.wait()["ExitCode"] == "1:0", job.tail()
    assert "came no further" in job.text()


def test_a_crash_behind_a_new_checkpoint_is_tried_again_until_there_is_no_new_one(
    probe: Submit,
) -> None:
    job = probe(
        RUN
        + """
        [ "${SLURM_RESTART_COUNT:-}" ] || { sleep 1; echo 10 > "$trace"; }
        torch false || conclude $?"""
    )
    assert job.wait()["JobState"] == "FAILED", job.tail()
    assert job.wait()["Restarts"] == "1"


def test_before_the_limit_all_ranks_are_told_and_the_job_goes_on_in_a_requeued_one(
    probe: Submit,
) -> None:
    """5, 6, 7: the signal comes to the batch shell alone; the log keeps the first life's lines."""
    job = probe(
        RUN
        + """
        if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
            torch bash -c 'trap "sleep 1; echo 7 > \\"$0\\"; echo $RANK saved; exit 0" USR1
                echo ready; while true; do sleep 0.1; done' "$trace" || status=$?
        else"""
        + END
        + "fi; conclude ${status:-0}",
        "--time=1",
        "--signal=B:USR1@55",
    )
    said = job.succeed()
    assert said["Restarts"] == "1"
    text = job.text()
    assert "USR1: telling the ranks to end" in text
    assert "0: 0 saved" in text and "1: 1 saved" in text
    assert "attempt 1" in text and "attempt 2" in text


def test_a_job_whose_node_dies_is_requeued(probe: Submit, cluster: Cluster) -> None:
    """The surviving rank fails at once, before Slurm misses the node."""
    job = probe(
        RUN
        + """
        if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
            torch bash -c 'echo ready; [ $RANK = 1 ] || { sleep 5; exit 1; }; sleep 600' ||
                status=$?
        else"""
        + END
        + "fi; conclude ${status:-0}"
    )
    job.wait_until_written("1: ready")
    cluster.kill("n2")
    cluster.wait_for(lambda: cluster.job(job.number)["Restarts"] == "1", "the job's requeue", 60)
    cluster.boot("n2")
    assert job.succeed()["Restarts"] == "1"


def test_a_job_that_its_user_cancels_stays_cancelled(probe: Submit, cluster: Cluster) -> None:
    job = probe(RUN + 'torch sleep 600 || status=$?; sleep 1; echo 1 > "$trace"; conclude $status')
    job.wait_until_written("attempt 1")
    cluster.run("scancel", str(job.number))
    assert job.wait()["JobState"] == "CANCELLED"


def test_what_follows_a_job_that_failed_is_cancelled(probe: Submit, cluster: Cluster) -> None:
    """12: it would wait for ever."""
    first = probe("exit 3")
    second = probe("true", f"--dependency=afterok:{first.number}", "--kill-on-invalid-dep=yes")
    assert second.wait()["JobState"] == "CANCELLED"


def test_a_variable_that_is_missing_is_named(submit: Submit) -> None:
    job = submit("preprocess", "--nodes=1")
    assert job.wait()["ExitCode"] == "2:0", job.tail()
    assert job.text() == "error: INPUT is not set: files of documents\n"


def test_a_script_that_is_submitted_elsewhere_says_so(cluster: Cluster, tmp_path: Path) -> None:
    """9: the script that runs is a copy in Slurm's spool."""
    script = Path(__file__).parents[2] / "slurm" / "audit.sh"
    flags = ("--nodes=1", "--gpus-per-node=1", "--cpus-per-task=1", f"--output={tmp_path}/log")
    number = cluster.submit(*flags, script, cwd=tmp_path)
    assert cluster.wait(number) == ["FAILED"]
    assert "slurm/common.sh: No such file" in (tmp_path / "log").read_text()
