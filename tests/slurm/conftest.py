"""One cluster for all tests, a corpus to train on, and jobs of the size of a test."""

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, reason_to_skip

RECIPE = "tests/slurm/tiny.yaml"
SIZE = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")

long = pytest.mark.skipif(
    not os.environ.get("SLURM_LONG"), reason="takes minutes; `make test-slurm` runs it"
)

type Submit = Callable[..., "Job"]


class Job:
    """A job with a log and an output directory of its own.

    Args:
        cluster: Where it runs.
        number: Of the job.
        log: File with its output.
        output: Its $OUTPUT.
    """

    def __init__(self, cluster: Cluster, number: int, log: Path, output: Path):
        self.cluster, self.number, self.log, self.output = cluster, number, log, output

    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text() if self.log.exists() else ""

    def has_written(self, words: str) -> bool:
        return words in self.text()

    def wait_until_written(self, words: str) -> None:
        """Wait for some words in the log; the job must not end before."""
        self.cluster.wait_for(
            lambda: self.has_written(words) or self.cluster.has_ended(self.number), words
        )
        assert self.has_written(words), self.tail()

    def wait(self) -> dict[str, str]:
        """Wait for its end; what Slurm says of it then."""
        self.cluster.wait(self.number)
        return self.cluster.job(self.number)

    def succeed(self) -> dict[str, str]:
        job = self.wait()
        assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), self.tail()
        return job

    def tail(self) -> str:
        return "\n".join(self.text().splitlines()[-40:])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def probe(submit: Submit, tmp_path: Path) -> Submit:
    """Submit a script of a few lines of bash that has what slurm/common.sh defines."""

    def submitted(lines: str, *flags: str, **variables: str) -> Job:
        script = tmp_path / "probe.sh"
        head = '#!/usr/bin/env bash\ncd "$SLURM_SUBMIT_DIR" && source slurm/common.sh || exit 2\n'
        script.write_text(head + lines)
        return submit(str(script), "--open-mode=append", "--requeue", *flags, **variables)

    return submitted


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 150 documents over 30 topics, so that documents have neighbours."""
    source = random.Random(11)
    vocabulary = [f"word{number}" for number in range(400)]
    topics = [source.sample(vocabulary, 15) for _ in range(30)]
    path = tmp_path_factory.mktemp("documents") / "documents.jsonl"
    with open(path, "w") as file:
        for number in range(150):
            words = source.choices(topics[number % len(topics)], k=source.randint(40, 120))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


@pytest.fixture
def submit(cluster: Cluster, words_prefix: Path, tmp_path: Path) -> Submit:
    """Submit a script at the size of a test, with the variables given."""

    def submitted(script: str, *flags: str, **variables: str) -> Job:
        output = Path(variables.pop("OUTPUT", str(tmp_path / "output")))
        path = script if "/" in script else f"slurm/{script}.sh"
        log = output.with_name(f"{output.name}-{Path(path).stem}.log")
        environment = settings(output) | {"CORPUS": str(words_prefix)} | variables
        number = cluster.submit(*SIZE, f"--output={log}", *flags, path, env=environment)
        return Job(cluster, number, log, output)

    return submitted


def settings(output: Path) -> dict[str, str]:
    """Variables of every job here; those of a slurm/site.env do not count."""
    return {
        "OUTPUT": str(output),
        "RECIPE": RECIPE,
        "GPU": "cpu",
        "ARM": "repetition",
        "PYTHON": sys.executable,
        **dict.fromkeys(("GPU_FLAGS", "CPU_FLAGS", "MODULES", "CONTAINER", "MOUNTS"), ""),
        **{"NETWORK_INTERFACE": "", "MPI": "mpiexec"},
    }


@pytest.fixture(scope="session")
def words_prefix(words_corpus: object) -> Path:
    """Prefix of the shared corpus; its held-out part and tokenizer lie beside it."""
    return words_corpus.prefixes[0]  # type: ignore[attr-defined]
