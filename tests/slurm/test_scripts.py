"""What can be said of the scripts without a Slurm. Numbers are those of docs/cluster.md."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import ROOT
from tests.slurm.conftest import settings

SCRIPTS = sorted(
    path for path in (ROOT / "slurm").glob("*.sh") if path.name not in ("common.sh", "run_all.sh")
)
each = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def run_all(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "slurm" / "run_all.sh", *arguments],
        env={"PATH": "/usr/bin:/bin"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_shellcheck_finds_nothing() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    scripts = sorted((ROOT / "slurm").glob("*.sh"))
    done = subprocess.run(
        ["shellcheck", "-x", "-P", ROOT, *scripts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@each
def test_a_header_says_what_a_script_does_and_how_it_is_submitted(script: Path) -> None:
    header = script.read_text().split("\n#SBATCH")[0].splitlines()
    assert header[0] == "#!/usr/bin/env bash"
    assert re.match(r"# [A-Z].*", header[1])
    assert any(line.startswith("#   OUTPUT  ") for line in header)
    assert re.search(rf"OUTPUT=\S+ sbatch .*slurm/{script.name}", header[-1])


@each
def test_a_job_survives_its_limit_and_keeps_its_log(script: Path) -> None:
    """5, 7."""
    flags = set(re.findall(r"^#SBATCH (\S+)", script.read_text(), re.MULTILINE))
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@600"} <= flags


@each
def test_a_script_asks_for_nothing_that_a_cluster_may_lack(script: Path) -> None:
    """9, 10, 13: a log's directory, GPUs in total, a plugin for containers."""
    text = script.read_text()
    assert re.search(r"^#SBATCH --output=[^/]+$", text, re.MULTILINE)
    assert not re.search(r"^#SBATCH --(gpus=|gpus-per-task|container)", text, re.MULTILINE)


def test_no_script_needs_accounting_or_torchrun() -> None:
    """3, 14."""
    for script in (ROOT / "slurm").glob("*.sh"):
        assert not re.search(r"\b(sacct|torchrun)\b", script.read_text()), script


def test_the_loop_is_a_chain_of_jobs(tmp_path: Path) -> None:
    """12: and what waits for a job that failed is cancelled."""
    variables = settings(tmp_path / "output") | {"INPUT": "documents.jsonl", "RECIPE": "6b_1t"}
    done = run_all("--dry-run", **variables)
    assert done.returncode == 0, done.stderr
    commands = done.stdout.splitlines()
    names = [re.search(r"--job-name=(\w+)", command)[1] for command in commands]  # type: ignore[index]
    waits = {
        name: re.findall(r"<(\w+)>", command) for name, command in zip(names, commands, strict=True)
    }
    assert waits == {
        "preprocess": [],
        "embed": ["preprocess"],
        "mine": ["embed"],
        "repetition_indexes": ["preprocess"],
        "repetition": ["repetition_indexes"],
        "tune_indexes": ["mine"],
        "tune": ["tune_indexes", "repetition"],
        "synthesize": ["tune"],
        "filter": ["synthesize"],
        "audit": ["filter"],
        "sbp_indexes": ["filter"],
        "sbp": ["sbp_indexes"],
        "evaluate": ["audit", "sbp"],
    }
    assert all("--kill-on-invalid-dep=yes" in command for command in commands)
    assert sum("slurm/pretrain_6b.sh" in command for command in commands) == 2


def test_what_is_complete_is_not_submitted_again(tmp_path: Path) -> None:
    for box in ("corpus", "embeddings"):
        (tmp_path / box).mkdir()
        (tmp_path / box / "manifest.json").touch()
    done = run_all("--dry-run", **settings(tmp_path), INPUT="documents.jsonl")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" complete ") == 2
    (mine,) = (line for line in done.stdout.splitlines() if "--job-name=mine" in line)
    assert "--dependency" not in mine


@pytest.mark.parametrize(
    ("arguments", "variables", "named"),
    [
        ([], {"OUTPUT": ""}, "OUTPUT is not set"),
        ([], {}, "INPUT is not set"),
        (["--dryrun"], {"INPUT": "x"}, "--dryrun"),
        ([], {"INPUT": "x", "CONTAINER": "x", "CONTAINER_RUNTIME": "docker"}, "docker"),
    ],
)
def test_what_is_given_wrong_is_named_in_one_line(
    tmp_path: Path, arguments: list[str], variables: dict[str, str], named: str
) -> None:
    done = run_all(*arguments, **settings(tmp_path / "output") | variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert named in done.stderr
