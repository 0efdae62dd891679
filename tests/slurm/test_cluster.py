"""The cluster of the tests leaves nothing behind."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT, Cluster, reason_to_skip

UP = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
with Cluster(Path(sys.argv[1])) as cluster:
    cluster.submit("--nodes=2", "--output=/dev/null", "--wrap", "srun sleep 600")
    print("up", flush=True)
    time.sleep(600)
"""


def processes_of(directory: Path) -> int:
    """Number of processes whose environment names a file below the directory."""
    wanted, count = str(directory).encode() + b"/", 0
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended
            count += wanted in environment.read_bytes()
    return count


def test_a_cluster_goes_with_the_process_that_made_it(tmp_path: Path) -> None:
    if reason := reason_to_skip():
        pytest.skip(reason)
    command = [sys.executable, "-c", UP, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        running = processes_of(tmp_path)
        process.kill()
    assert line == "up\n"
    assert running >= 5  # munged, slurmctld, two of slurmd, and the job
    Cluster.wait_for(lambda: not processes_of(tmp_path), "its processes to end", 20)
