"""A whole comparison, small: killed in the middle, continued, and reported on."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.manifest import FILENAME, Manifest
from tests.conftest import ROOT, run_command

LONG = bool(os.environ.get("COMPARE_LONG"))
"""All arms with two seeds, and the section `sensitivity`: some twenty minutes of a core."""
SHORT = "--seeds 1 --weight-decays 0.1 --dropouts 0.1 --arms repetition repetition-tuned sbp"
COMMAND = ["tools/compare_arms.py", "--recipe", "tests/comparison/tiny.yaml"]
COMMAND += ["--sensitivity"] if LONG else SHORT.split()


def kill_when(output: Path, marker: Path) -> None:
    """Start the comparison, and kill all of its processes once ``marker`` exists."""
    process = subprocess.Popen(
        [sys.executable, *COMMAND, "--output", str(output)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        for _ in process.stderr or ():
            if marker.exists():
                break
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("comparison") / "run"
    kill_when(output, output / "runs" / "repetition" / "seed-1" / FILENAME)
    before = {path: path.stat().st_mtime_ns for path in output.rglob(FILENAME)}
    assert before and not (output / "report").exists()
    again = run_command(*COMMAND, "--output", output)
    assert again.returncode == 0, again.stdout + again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "open " + str(output / "report" / "report.html") in again.stdout
    return output


def test_every_box_is_whole(output: Path) -> None:
    boxes = {
        "corpus": "preprocess",
        "embeddings": "embed",
        "pairs": "mine",
        "runs/synthesizer/seed-1": "train",
        "synthetic/sbp/seed-1": "synthesize",
        "filtered/sbp/seed-1": "filter",
        "runs/sbp/seed-1": "train",
        "evaluations/sbp/seed-1": "evaluate",
        "report": "compare",
    }
    assert {name: Manifest.read(output / name).stage for name in boxes} == boxes
    assert not list(output.rglob("*.partial"))


def test_the_report_has_the_losses_that_the_evaluations_found(output: Path) -> None:
    said = json.loads((output / "report" / "report.json").read_text())
    losses = {arm["arm"]: arm["runs"] for arm in said["arms"]}
    for arm in ("repetition", "sbp"):
        for run in losses[arm]:
            box = output / "evaluations" / arm / f"seed-{run['seed']}"
            loss, tokens = (
                np.load(box / f"real-heldout.{column}.npy") for column in ("loss", "tokens")
            )
            assert run["loss"] == pytest.approx(loss.sum() / tokens.sum(), rel=1e-12)
    swept = {
        box: json.loads((box / FILENAME).read_text())["counts"]["sources"]["real-heldout"]["loss"]
        for box in output.glob("evaluations/sweep/*/seed-1")
    }
    if not LONG:  # the only setting that was tried
        assert [losses["repetition-tuned"][0]["loss"]] == pytest.approx(list(swept.values()))
    assert said["truth"] and said["floor"] == Manifest.read(output / "corpus").counts["floor"]
    assert (output / "report" / "report.html").read_text().startswith("<!")
    if LONG:
        assert len(said["seeds"]) == 2 and len(said["arms"]) == 7 and not said["missing"]
        points = {knob["knob"]: len(knob["points"]) for knob in said["sensitivity"]}
        assert points == {"sbp-synthetic-share": 3, "tune.train-iters": 2}


def test_arms_read_as_many_tokens_and_synthetic_ones_once(output: Path) -> None:
    repetition, sbp = (
        Manifest.read(output / "runs" / arm / "seed-1").counts for arm in ("repetition", "sbp")
    )
    assert repetition["tokens"] == sbp["tokens"]
    (real, synthetic), (alone,) = sbp["ledger"], repetition["ledger"]
    assert alone["prefix"] == real["prefix"] and synthetic["epochs"] <= 1
    assert synthetic["tokens_seen"] == pytest.approx(0.2 * sbp["tokens"], abs=2 * 64)


def test_a_second_comparison_in_the_same_directory_is_refused(output: Path) -> None:
    with open(output / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = run_command(*COMMAND, "--output", output)
    assert said.returncode == 2
    assert said.stderr.startswith(f"error: {output}: another comparison, or a job")
