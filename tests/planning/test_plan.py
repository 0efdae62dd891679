"""The plan of a whole loop: its counts against Megatron's own, its arithmetic, its output."""

import json
import math
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.training.arguments import add_megatron_arguments
from megatron.training.training import num_floating_point_operations

from benchmarks import fitting
from megatron_sbp import recipes
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.planning import paper, rates, speed
from megatron_sbp.planning.plan import Plan, PlanOptions
from megatron_sbp.planning.work import Rates, Text, Work
from megatron_sbp.recipes.run import Run, RunOptions
from megatron_sbp.recipes.shape import Shape
from tests.conftest import ROOT, run_command

TOOL = ROOT / "tools" / "plan.py"
VOCABULARY = 49152
NO_TIMES = {"filter": Rates(each=Work(tokens=1e-7), start=1.0)}


def megatrons(name: str) -> tuple[dict[str, Any], float]:
    """The flags of a recipe's repetition run, and Megatron's count of operations in a step of it.

    The training log divides that by the time.
    """
    flags = Run(name, recipes.load(name), RunOptions(arm="repetition")).flags("pretrain")
    parser = add_megatron_arguments(ArgumentParser(allow_abbrev=False))
    args = parser.parse_args(recipes.arguments(flags | {"train-iters": 1}), None)
    args.padded_vocab_size, args.attention_output_gate = VOCABULARY, False
    args.kv_channels = args.kv_channels or args.hidden_size // args.num_attention_heads
    return flags, num_floating_point_operations(args, int(flags["global-batch-size"]))


@pytest.mark.parametrize("name", ["quickstart", "300m_4b", "3b_200b", "6b_1t"])
def test_operations_are_megatrons(name: str) -> None:
    flags, in_a_step = megatrons(name)
    rows, sequence = int(flags["global-batch-size"]), int(flags["seq-length"])
    ours = Shape.of(flags, VOCABULARY).training_flop(sequence) * rows * sequence
    assert ours == pytest.approx(in_a_step, rel=0.01)


def test_evaluation_goes_through_the_held_out_documents_once_forward() -> None:
    """Four times more often: 5 times in the quickstart's 320 steps, or at their end alone."""
    often, once = (
        Plan(
            PlanOptions(recipe="quickstart", documents=900, tokens=2e5, set=[f"eval-interval={n}"]),
            NO_TIMES,
        ).stages
        for n in (75, 1000)
    )
    more = {
        one.stage.name: one.stage.work.products - other.stage.work.products
        for one, other in zip(often, once, strict=True)
    }
    flags, in_a_step = megatrons("quickstart")
    vocabulary = 49152 - 4096  # the recipe's own has so many ids less
    tokens = 8 * 512
    forward = in_a_step / tokens / 3 - 2 * flags["hidden-size"] * vocabulary
    heldout = 2e5 * 0.1 / 0.9
    assert more["repetition"] == pytest.approx(4 * heldout * forward, rel=0.01)
    # 1,000 documents with 8 pairs each, of which one in a hundred has both documents held out; each
    # is evaluated after two d1, and no document of a pair is longer than half of a row.
    mean = 2e5 / 900
    pair = 2 * mean * (1 - math.exp(-256 / mean))
    assert more["tune"] == pytest.approx(2 * 2 * 80 * pair * forward, rel=0.01)
    assert more["embed"] == more["synthesize"] == 0


@pytest.mark.parametrize("name", paper.HOURS)
def test_the_papers_hours_stand_beside_the_plans(name: str) -> None:
    """A v5p's 459 TFLOP/s against the tokens that the paper states and Megatron's operations."""
    found = paper.compare(Plan(PlanOptions(recipe=name, nodes=8), NO_TIMES))
    assert found
    tokens = 200e9 if name == "3b_200b" else 1e12
    _, in_a_step = megatrons(name)
    hours = tokens * in_a_step / (2048 * 4096) / 459e12 / 3600
    assert found.utilisation == pytest.approx(hours / paper.HOURS[name], rel=0.01)
    assert found.planned["sbp"] == pytest.approx(hours / 0.4, rel=0.01)
    assert paper.compare(Plan(PlanOptions(recipe=name, nodes=8, share=0.1), NO_TIMES)) is None


def test_the_papers_runs_are_of_their_size() -> None:
    """3B and 6B parameters, 200B and 1T tokens, and the synthetic tokens of the paper."""
    for name, parameters, tokens, synthetic in (
        ("3b_200b", 3e9, 200e9, 75e9),
        ("3b_1t", 3e9, 1e12, 125e9),
        ("6b_1t", 6e9, 1e12, 250e9),
    ):
        plan = Plan(PlanOptions(recipe=name, nodes=8), NO_TIMES)
        assert plan.shape.parameters == pytest.approx(parameters, rel=0.05)
        joint = next(p.stage for p in plan.stages if p.stage.name == "sbp")
        assert joint.read / 2 == pytest.approx(tokens, rel=0.001)
        drawn = next(p.stage for p in plan.stages if p.stage.name == "synthesize")
        assert drawn.notes["tokens"] == pytest.approx(1.2 * synthetic, rel=0.001)


def test_time_falls_with_the_machines() -> None:
    few, many = (Plan(PlanOptions(nodes=nodes), NO_TIMES).stages for nodes in (8, 64))
    for one, other in zip(few, many, strict=True):
        if one.stage.kind in ("train", "synthesize"):
            assert (one.seconds - 60) / (other.seconds - 60) == pytest.approx(8, rel=0.01)


def test_cut_documents_of_exponential_length() -> None:
    seed = 5
    lengths = np.random.default_rng(seed).exponential(300, 200_000)
    text = Text(documents=len(lengths), tokens=lengths.sum())
    known = Text(documents=3, tokens=60, lengths=np.array([10, 20, 30], np.int32))
    for limit in (50, 300, 2000):
        assert text.cut(limit) == pytest.approx(np.minimum(lengths, limit).mean(), rel=0.01)
    assert [known.cut(limit) for limit in (5, 25, 1 << 31)] == [5, 55 / 3, 20]


def test_pairs_are_those_of_the_run_beside_which_the_plan_stands(tmp_path: Path) -> None:
    counts = {"candidates": 700, "documents": 100}
    (tmp_path / "pairs").mkdir()
    Manifest(stage="mine", options={}, inputs={}, counts=counts).write(tmp_path / "pairs")
    assert PlanOptions(measured=str(tmp_path)).pairs() == 7
    assert PlanOptions(measured=str(tmp_path), pairs_per_document=3).pairs() == 3
    assert PlanOptions(measured=str(tmp_path / "pairs")).pairs() == PlanOptions().pairs() == 16


def test_the_fit_finds_the_rates_that_made_the_times() -> None:
    seed = 3
    random = np.random.default_rng(seed)
    truth = Rates(each=Work(products=1e-11, numbers=2e-9, steps=1e-4), start=2.0)
    jobs = []
    for _ in range(8):
        work = Work(
            products=random.uniform(1e11, 1e13),
            numbers=random.uniform(1e9, 1e11),
            steps=random.uniform(1e3, 1e5),
        )
        seconds = truth.seconds(work, devices=2)
        jobs.append(fitting.Timed(work=work, devices=2, seconds=seconds))
    found = fitting.fit(Work, jobs)
    assert found.error < 1e-6 and found.start == pytest.approx(truth.start)
    for one in fields(Work):
        assert getattr(found.each, one.name) == pytest.approx(getattr(truth.each, one.name))


def test_the_command_says_which_search_and_what_is_at_risk() -> None:
    """1T tokens on 64 H100s, as the paper's 3B model."""
    process = run_command(
        TOOL, "--recipe", "3b_1t", "--gpu", "h100", "--nodes", "8",
        "--documents", "1.2e9", "--tokens", "1e12",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    names = [line.split()[0] for line in lines if line.startswith(tuple("emrtsf"))]
    assert names[1:9] == "embed mine repetition tune synthesize filter sbp mine".split()
    assert "mine with --search clusters: exact search costs" in process.stdout
    assert sum("cure: " in line for line in lines) == 3
    assert "the paper states 59,000 hours of TPU v5p" in process.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "3b_1x"], "no such recipe"),
        (["--recipe", "quickstart"], "does not say how large the corpus is; give --corpus PREFIX"),
        (["--documents", "9", "--tokens", "5"], "does not say how large the corpus is"),
        (["--nodes", "3", "--documents", "9", "--tokens", "99"], "cannot be divided over them"),
        (["--corpus", "nowhere"], "nowhere.idx: No such file"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str) -> None:
    process = run_command(TOOL, *flags)
    assert process.returncode == 2 and message in process.stderr, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr


def test_a_cpu_that_was_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rates, "PATH", tmp_path / "rates.json")
    with pytest.raises(InputError, match="measure this CPU with"):
        rates.of_cpu(here=True)
    assert rates.of_cpu(here=False) == {}


def test_a_cpu_half_as_fast_as_when_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rates, "PATH", tmp_path / "rates.json")
    each = {one.name: 0.0 for one in fields(Work)} | {"tokens": 2e-6}
    stages = {"filter": {"each": each, "start": 0.5, "error": 0.1}}
    rates.PATH.write_text(json.dumps({"task": 0.01, "stages": stages}))
    monkeypatch.setattr(speed, "task_seconds", lambda: 0.02)
    seconds = [
        rates.of_cpu(here=here)["filter"].seconds(Work(tokens=1e6), devices=4)
        for here in (False, True)
    ]
    assert seconds == pytest.approx([1.0, 2.0])
