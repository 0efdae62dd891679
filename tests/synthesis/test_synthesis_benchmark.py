"""The benchmark of synthesis: that it counts what its description says, for contenders alike."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthesis_work import Options, make_work
from tests.conftest import run_command


def test_contenders_make_documents_of_the_lengths_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = run_command(
        *("-m", "benchmarks.synthesis", "--contenders", "generate", "sorted", "hf", "megatron"),
        *("--layers", "1", "--width", "128", "--vocabulary", "256", "--context", "160"),
        *("--documents", "96", "--batch-size", "32", "--mean-length", "16", "--repetitions", "1"),
        *("--median-prompt", "20", "--threads", "1", "--device", "cpu", "--output", str(path)),
    )
    assert done.returncode == 0, done.stderr
    assert "without megatron: it needs --load of what Megatron saved to\n" in done.stdout
    turns = json.loads(path.read_text())["turns"]
    assert list(turns) == ["generate", "sorted", "hf"]
    for (turn,) in turns.values():
        # The standard error of a mean of 96 geometric lengths of mean 16 is 1.6.
        assert turn["tokens"] / 96 == pytest.approx(16, abs=6)
        assert 32 < turn["longest"] <= 80
    assert "tokens/s, hf / generate (on a CPU at least 1.5)" in done.stdout


def test_prompts_leave_room_for_documents(tmp_path: Path) -> None:
    options = Options(documents=50, layers=1, width=128, vocabulary=64, context=64)
    work = make_work(options, tmp_path / "model")
    lengths = np.array([len(request.prompt) for request in work.requests])
    assert lengths.min() >= 2 and lengths.max() == 32
    assert {len(request.uniforms) for request in work.requests} == {32}
    assert not any((request.prompt == work.eod).any() for request in work.requests)
