"""Tasks of lm-evaluation-harness, with task files and data of the tests' own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.tasks import parse_shots
from megatron_sbp.manifest import Manifest
from megatron_sbp.models import export
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from tests.conftest import ROOT, run_command

TOOL = ROOT / "tools" / "evaluate.py"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is asked, not even for what is not there."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[evaluation]'")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def questions(tmp_path: Path) -> list[dict[str, object]]:
    """Twelve questions with two or three answers of a few words, in a task and in one without data.

    Returns:
        The questions.
    """
    source = np.random.default_rng(7)
    asked: list[dict[str, object]] = []
    for _ in range(12):
        words = [f"word{number}" for number in source.integers(0, 400, 12)]
        choices = [" ".join(words[4 + 2 * part :][:2]) for part in range(source.integers(2, 4))]
        answer = int(source.integers(len(choices)))
        asked.append({"question": " ".join(words[:4]), "choices": choices, "answer": answer})
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    for name, data in (("small", directory / "data.jsonl"), ("absent", directory / "absent.jsonl")):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return asked


def accuracy(model: Path, tokenizer: Tokenizer, asked: list[dict[str, object]]) -> float:
    """Share of questions whose answer is the most probable continuation of the question."""
    scorer, right = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), 0
    for one in asked:
        question, sums = str(one["question"]), []
        for choice in one["choices"]:  # type: ignore[attr-defined]
            given = len(tokenizer.encode(question))
            tokens = torch.tensor([[tokenizer.bos, *tokenizer.encode(f"{question} {choice}")]])
            with torch.no_grad():
                logp = scorer(tokens).logits[0, :-1].log_softmax(-1)
            sums.append(float(logp.gather(1, tokens[0, 1:, None])[given:].sum()))
        right += int(np.argmax(sums)) == one["answer"]
    return right / len(asked)


@pytest.mark.usefixtures("offline")
def test_a_local_task_has_the_accuracy_of_the_definition_and_one_without_data_is_named(
    checkpoints: Path, words_corpus: Corpus, questions: list[dict[str, object]], tmp_path: Path
) -> None:
    tokenizer, checkpoint = words_corpus.tokenizer, MegatronCheckpoint(checkpoints / "qwen3")
    export.write_model(checkpoint, tokenizer, tmp_path / "model")
    expected = accuracy(tmp_path / "model", tokenizer, questions)
    flags = ["--load", str(checkpoints / "qwen3"), "--tokenizer", str(tokenizer.directory)]
    flags += ["--task-path", str(tmp_path / "tasks"), "--tasks", "small", "absent"]
    done = run_command(TOOL, *flags, "--output", tmp_path / "box")
    assert done.returncode == 0, done.stderr
    counts = Manifest.read(tmp_path / "box").counts
    assert list(counts["tasks"]) == ["small"] and list(counts["not_loaded"]) == ["absent"]
    assert "absent" in done.stdout and "not loaded: " in done.stdout
    task = counts["tasks"]["small"]
    assert (task["samples"], task["shots"]) == (12, 0)
    assert task["metrics"]["acc"]["value"] == pytest.approx(expected)
    deviation = np.sqrt(expected * (1 - expected) / (12 - 1))
    assert task["metrics"]["acc"]["standard_error"] == pytest.approx(deviation)
    written = json.loads((tmp_path / "box" / "tasks.json").read_text())
    assert written["tasks"] == counts["tasks"]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("task", "said"), [("absent", "none can be loaded (absent: "), ("no_such_task", "no_such_task")]
)
def test_a_run_in_which_no_task_can_be_scored_fails(
    task: str,
    said: str,
    checkpoints: Path,
    words_corpus: Corpus,
    questions: list[dict[str, object]],
    tmp_path: Path,
) -> None:
    flags = ["--load", str(checkpoints / "qwen3"), "--tasks", task]
    flags += ["--tokenizer", str(words_corpus.tokenizer.directory)]
    flags += ["--task-path", str(tmp_path / "tasks"), "--output", str(tmp_path / "box")]
    done = run_command(TOOL, *flags)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --tasks") and said in last
    assert not (tmp_path / "box").exists()


def test_the_papers_shots_are_the_defaults() -> None:
    tasks = "arc_challenge arc_easy sciq winogrande triviaqa webqs".split()
    zero = dict.fromkeys(tasks[:4], 0)
    assert parse_shots([], [*tasks, "mmlu"]) == zero | {"triviaqa": 1, "webqs": 1}
    assert parse_shots(["webqs=5", "mmlu=2"], ["webqs", "mmlu"]) == {"webqs": 5, "mmlu": 2}
    with pytest.raises(InputError, match="--shots sciq=-1"):
        parse_shots(["sciq=-1"], ["sciq"])
