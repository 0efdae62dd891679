"""The whole loop, small: killed in the middle, continued, and reported on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sbp.manifest import Manifest
from tests.conftest import ROOT, run_command

BOXES = {
    "corpus": "preprocess",
    "embeddings": "embed",
    "pairs": "mine",
    "baseline": "train",
    "synthesizer": "train",
    "synthetic": "synthesize",
    "filtered": "filter",
    "audit": "audit",
    "joint": "train",
    "report": "report",
}
QUICKSTART = ["tools/quickstart.py", "--smoke", "--output"]


def kill_when(output: Path, marker: Path) -> str:
    """Start the loop, kill all of its processes once ``marker`` exists; what it had printed."""
    process = subprocess.Popen(
        [sys.executable, *QUICKSTART, str(output)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if marker.exists():
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return said


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("loop") / "run"
    said = kill_when(output, output / "baseline" / "metrics.jsonl")
    assert not (output / "report").exists(), said
    again = run_command(*QUICKSTART, output)
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    return output


def test_every_stage_leaves_its_box(output: Path) -> None:
    assert {name: Manifest.read(output / name).stage for name in BOXES} == BOXES
    assert not list(output.glob("*.partial"))


def test_the_report_shows_every_part(output: Path) -> None:
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["missing"] == []
    assert len(report["examples"]["triples"]) == 5
    assert len(report["cost"]) == len(BOXES) - 1
    assert all(row["seconds"] > 0 and row["peak_memory_bytes"] > 0 for row in report["cost"])
    gain = report["headline"]["random_d1"] - report["headline"]["true_d1"]
    assert gain == pytest.approx(report["headline"]["gain"], abs=1e-4)
    page = (output / "report" / "report.html").read_text()
    assert "conditional gain" in page and "src=" not in page.replace('src="data:', "")


def test_both_runs_read_as_many_tokens_and_synthetic_ones_once(output: Path) -> None:
    baseline, joint = (Manifest.read(output / name).counts for name in ("baseline", "joint"))
    assert baseline["tokens"] == joint["tokens"]
    real, synthetic = joint["ledger"]
    assert (real["kind"], synthetic["kind"]) == ("real", "synthetic")
    assert 0 < synthetic["epochs"] <= 1
    assert real["tokens_seen"] + synthetic["tokens_seen"] == joint["tokens"]


def test_nothing_is_done_twice(output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in output.glob("*/manifest.json")}
    again = run_command(*QUICKSTART, output)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_corpus_without_heldout_documents_is_refused(tmp_path: Path) -> None:
    text = "the only document of a corpus, which is long enough for the recipe " * 5
    source = tmp_path / "one.jsonl"
    source.write_text(json.dumps({"text": text}))
    run = run_command(*QUICKSTART, tmp_path / "run", "--input", source)
    assert run.returncode == 2
    message = run.stderr.splitlines()[-1]
    assert message.startswith(f"error: {source}: none of the 1 documents was held out")
