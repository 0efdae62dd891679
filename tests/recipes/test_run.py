"""A recipe and choices become the arguments of a stage; what cannot be is refused."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_sbp import recipes
from megatron_sbp.errors import InputError
from megatron_sbp.recipes.run import STAGES, Run, RunOptions
from tests.conftest import ROOT

# Tokens of the paper's runs (arXiv 2509.15248) in 1e9: all, and synthetic ones.
PAPER = {"3b_200b": (200, 75), "3b_1t": (1000, 125), "6b_1t": (1000, 250)}


def show(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_sbp.recipes", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def write(directory: Path, name: str, **sections: Any) -> str:
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(sections))
    return str(path)


TRAIN = {"train-iters": 3, "global-batch-size": 24, "micro-batch-size": 2, "seq-length": 8}


def test_later_bases_refine_earlier_ones_and_the_recipe_refines_all(tmp_path: Path) -> None:
    first = write(tmp_path, "first", a={"x": 1, "y": 1, "z": 1}, b={"x": 1})
    second = write(tmp_path, "second", a={"y": 2, "z": 2})
    last = write(tmp_path, "last", base=[first, second], a={"z": 3}, c={"x": 3})
    assert recipes.load(last) == {"a": {"x": 1, "y": 2, "z": 3}, "b": {"x": 1}, "c": {"x": 3}}


def test_flags_become_a_command_line() -> None:
    flags = {"lr": 1e-2, "bf16": True, "swiglu": False, "seed": None, "blend": [1, "a"]}
    assert recipes.arguments(flags) == ["--lr", "0.01", "--bf16", "--blend", "1", "a"]


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_runs_have_its_numbers_of_tokens(name: str) -> None:
    total, synthetic = (1e9 * figure for figure in PAPER[name])
    run = Run(name, recipes.load(name), RunOptions(nodes=8))
    flags = run.flags("pretrain")
    assert flags["global-batch-size"] * flags["seq-length"] == 8 * 2**20
    tokens = run.training_rows() * flags["seq-length"]
    assert tokens == pytest.approx(total, abs=8 * 2**20)
    assert flags["sbp-synthetic-share"] * tokens == pytest.approx(synthetic, rel=1e-4)
    assert run.tokens_to_synthesize() >= 1.01 * synthetic
    for arm in ("repetition", "oracle"):
        other = Run(name, recipes.load(name), RunOptions(nodes=8, arm=arm)).flags("pretrain")
        assert other == {k: v for k, v in flags.items() if k != "sbp-synthetic-share"}


def test_an_entry_holds_up_to_the_next_one(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "r",
        train=TRAIN,
        layouts={"h100": {2: {"micro-batch-size": 4}, 6: {"micro-batch-size": 2}}},
        sizes={2: {"save-interval": 5}, 4: {"save-interval": 7}},
    )
    found: dict[int, Any] = {}
    for devices in range(1, 14):
        run = Run(path, recipes.load(path), RunOptions(gpus_per_node=devices))
        try:
            flags = run.flags("tune")
        except InputError as error:
            found[devices] = str(error)
        else:
            found[devices] = (flags["micro-batch-size"], flags["save-interval"])
    assert {k: v for k, v in found.items() if isinstance(v, tuple)} == {
        **{2: (4, 5), 3: (4, 5)},  # 24 rows over 4 x 2, 4 x 3 at a time
        **{6: (2, 7), 12: (2, 7)},
    }
    assert found[1] == f"{path} has lay-outs from 2 h100 on, not for 1: " + (
        "change --nodes or --gpus-per-node"
    )
    assert found[5].endswith("4 at a time, cannot be divided over them; the nearest numbers that "
                             "it can be: 3, 6")  # fmt: skip
    assert found[7].endswith("numbers that it can be: 6, 12")


def test_data_parallelism_is_what_the_other_sizes_leave(tmp_path: Path) -> None:
    sizes = {"tensor-model-parallel-size": 2, "pipeline-model-parallel-size": 3}
    flags = TRAIN | sizes | {"context-parallel-size": 2, "eval-micro-batch-size": 3}
    path = write(tmp_path, "r", train=flags)
    run = Run(path, recipes.load(path), RunOptions(nodes=3, gpus_per_node=16))
    layout = run.layout("tune")
    assert (layout.data, layout.accumulated, layout.devices) == (4, 3, 48)
    assert run.flags("tune")["eval-global-batch-size"] == 3 * 4


def test_every_stage_of_every_recipe_is_printed_one_argument_a_line() -> None:
    names = show("list").stdout.split()
    assert {"3b_200b", "3b_1t", "6b_200b", "6b_1t", "300m_4b"} < set(names)
    assert {"quickstart", "quickstart_smoke"} < set(names)
    for name in names:
        run = Run(name, recipes.load(name), RunOptions())
        for stage in STAGES:
            assert all(" " not in argument for argument in recipes.arguments(run.flags(stage)))
    setting = "synthesize.seed=7"
    said = show("show", "3b_1t", "--stage", "synthesize", "--share", "0.01", "--set", setting)
    tokens = math.ceil(0.01 * 119_209 * 2048 * 4096 * 1.2)
    run = Run("3b_1t", recipes.load("3b_1t"), RunOptions(share=0.01, set=[setting]))
    assert said.stdout.splitlines() == recipes.arguments(run.flags("synthesize"))
    assert said.stdout.splitlines()[:2] == ["--num-tokens", str(tokens)]


def test_settings_change_flags() -> None:
    settings = ["lr=3e-3", "swiglu=false", "--new=true", "blend=0.5 a 0.5 b", "seed=null"]
    settings += ["tune.lr=1", "train.clip-grad=2", "mine.neighbors=3"]
    run = Run("quickstart", recipes.load("quickstart"), RunOptions(set=settings))
    flags = run.flags("pretrain")
    assert (flags["lr"], flags["new"], flags["blend"]) == ("3e-3", True, ["0.5", "a", "0.5", "b"])
    line = recipes.arguments(flags)
    assert "--new" in line and "--swiglu" not in line and "--seed" not in line
    assert flags["clip-grad"] == "2" and "neighbors" not in flags
    assert (run.flags("tune")["lr"], run.flags("mine")["neighbors"]) == ("1", "3")
    # The tools have none of the flags of training, and refuse what they do not know.
    assert {"lr", "new"}.isdisjoint(run.flags("mine"))


def test_false_leaves_a_flag_of_megatron_out_and_switches_one_of_a_tool_off() -> None:
    settings = ["qk-layernorm=false", "filter.repetition=false", "filter.no-duplicates=false"]
    run = Run("quickstart", recipes.load("quickstart"), RunOptions(set=settings))
    line = recipes.arguments(run.flags("filter"))
    assert "--no-repetition" in line
    assert {"--repetition", "--no-duplicates", "--duplicates"}.isdisjoint(line)
    line = recipes.arguments(run.flags("pretrain"))
    assert {"--qk-layernorm", "--no-qk-layernorm"}.isdisjoint(line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command: give `list` or `show RECIPE`; --help says more"),
        (["show", "nothing"], "nothing.yaml: no such recipe; known ones: 300m_4b, "),
        (["show", "3b_1t", "--gpu", "cpu"], "--gpu cpu: 3b_1t has lay-outs for h100, h200, b200"),
        (["show", "quickstart", "--precision", "fp8"], "--precision fp8: quickstart has no choice"),
        (["show", "3b_1t", "--share", "1"], "--share 1.0: must be from 0 to below 1"),
        (["show", "3b_1t", "--set", "lr"], "--set lr: is not FLAG=VALUE"),
        (["show", "3b_1t", "--set", "no.lr=1"], "--set no.lr=1: no is no stage; there are prep"),
        (["show", "3b_1t", "--set", "train-iters=x"], "3b_1t: train-iters is x; give it a whole"),
        (["show", "3b_1t", "--nodes", "0"], "--nodes 0: must be at least 1"),
        (["show", "3b_1t", "--nodes", "12"], "96 h100: a global batch of 2048 rows, 2 at a time"),
        (["show", "3b_1t", "--stage", "x"], "argument --stage: invalid choice: 'x'"),
    ],
)
def test_an_error_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    said = show(*arguments)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1 and message in said.stderr
