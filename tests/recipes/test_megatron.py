"""Every run of every recipe, on every machine: Megatron takes it, and a GPU holds it."""

import io
import itertools
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import redirect_stdout

import pytest
from megatron.training import arguments as megatron_arguments
from megatron.training import theoretical_memory_usage
from megatron.training.argument_utils import (
    gpt_config_from_args,
    pretrain_cfg_container_from_args,
)

from megatron_sbp import recipes
from megatron_sbp.recipes.memory import CAPACITY, USABLE, device_memory
from megatron_sbp.recipes.run import ARMS, Arm, Gpu, Layout, Precision, Run, RunOptions, Stage
from megatron_sbp.recipes.shape import Shape
from megatron_sbp.training.arguments import add_sbp_arguments
from megatron_sbp.training.lint.arguments import Run as Checked
from megatron_sbp.training.lint.arguments import check_arguments

RECIPES = {name: 1024 for name in ("3b_200b", "3b_1t", "6b_200b", "6b_1t")} | {"300m_4b": 256}
"""Recipe -> the most GPUs it is for."""
PATHS = "--tokenizer-model x --train-data-path real --valid-data-path heldout".split()


GPUS: tuple[Gpu, ...] = ("h100", "h200", "b200")
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp8")
STAGES: list[tuple[Stage, Arm]] = [*(("pretrain", arm) for arm in ARMS), ("tune", "sbp")]


def runs(name: str) -> Iterator[tuple[Stage, Run]]:
    """A recipe's training runs: stage and run."""
    recipe, counts = recipes.load(name), (2**power for power in range(3, 11))
    for devices, gpu, precision in itertools.product(counts, GPUS, PRECISIONS):
        if devices > RECIPES[name]:
            continue
        for stage, arm in STAGES:
            options = RunOptions(nodes=devices // 8, gpu=gpu, precision=precision, arm=arm)
            yield stage, Run(name, recipe, options)


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    """Megatron's own with the SBP group; building it takes longer than parsing."""
    parser = ArgumentParser(allow_abbrev=False)
    return add_sbp_arguments(megatron_arguments.add_megatron_arguments(parser))


def validated(parser: ArgumentParser, line: list[str], devices: int) -> Namespace:
    """The arguments as the run's first process has them, validated by Megatron and by SBP."""
    args = parser.parse_args(line)
    args.rank, args.world_size = 0, devices
    args._is_global_batch_size_explicitly_specified = True
    with redirect_stdout(io.StringIO()):
        list(check_arguments(Checked(args)))
    return args


@pytest.mark.parametrize("name", RECIPES)
def test_megatron_accepts_every_run(name: str, parser: ArgumentParser) -> None:
    seen = set()
    for stage, run in runs(name):
        flags = run.flags(stage)
        # The share is computed from files: see tests/training/test_sources.py.
        share = flags.pop("sbp-synthetic-share", None)
        assert (share is None) == (stage == "tune" or run.arm != "sbp")
        line = [*recipes.arguments(flags), *PATHS]
        if stage == "tune":
            line += ["--sbp-objective", "synthesis", "--sbp-pairs", "pairs"]
        if (run.devices, *line) in seen:
            continue
        seen.add((run.devices, *line))
        args = validated(parser, line, run.devices)
        assert (args.data_parallel_size, args.tensor_model_parallel_size) == (
            run.layout(stage).data,
            run.layout(stage).tensor,
        )
        assert args.async_save and args.bf16 and args.eval_global_batch_size


@pytest.mark.parametrize("name", ["3b_200b", "6b_1t", "300m_4b"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_megatron_makes_its_configuration(
    name: str, precision: Precision, parser: ArgumentParser
) -> None:
    for gpu in GPUS:
        options = RunOptions(gpu=gpu, precision=precision, arm="repetition")
        run = Run(name, recipes.load(name), options)
        line = [*recipes.arguments(run.flags("pretrain")), *PATHS, "--no-rope-fusion"]
        args = validated(parser, line, run.devices)
        args.padded_vocab_size = run.vocabulary
        config = gpt_config_from_args(args)
        container = pretrain_cfg_container_from_args(args, config)
        assert container.checkpoint.async_save
        assert config.transformer.fp8 == (None if precision == "bf16" else "e4m3")


@pytest.mark.parametrize("name", RECIPES)
def test_every_run_fits_into_its_gpu(name: str) -> None:
    for stage, run in runs(name):
        needed = device_memory(run.flags(stage), run.layout(stage), run.vocabulary or 0).total
        assert needed < USABLE * CAPACITY[run.gpu], (stage, run.devices, run.gpu)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("pipeline", [1, 2])
@pytest.mark.parametrize("name", ["3b_200b", "6b_1t", "300m_4b"])
def test_weights_and_optimizer_take_what_megatron_says(
    name: str, tensor: int, pipeline: int, parser: ArgumentParser
) -> None:
    sizes = [f"tensor-model-parallel-size={tensor}", f"pipeline-model-parallel-size={pipeline}"]
    run = Run(name, recipes.load(name), RunOptions(nodes=8, arm="repetition", set=sizes))
    flags = run.flags("pretrain")
    args = validated(parser, [*recipes.arguments(flags), *PATHS], run.devices)
    args.padded_vocab_size = run.vocabulary
    with redirect_stdout(io.StringIO()):
        wanted = theoretical_memory_usage.compute_weight_and_optimizer_memory(args)
    found = device_memory(flags, run.layout("pretrain"), run.vocabulary or 0)
    assert found.weights + found.gradients + found.optimizer == pytest.approx(wanted, rel=1e-3)


def test_activations_are_those_of_the_paper_they_come_from() -> None:
    """Korthikanti et al., arXiv 2205.05198: 34 sbh a layer, 2 of them masks of dropout."""
    flags = {
        **{"num-layers": 5, "hidden-size": 64, "num-attention-heads": 4, "seq-length": 128},
        "ffn-hidden-size": 256,
    }
    layout = Layout(tensor=2, pipeline=1, context=1, data=1, micro_batch=3, accumulated=1)
    wanted = 5 * (34 - 2) * 128 * 3 * 64 // 2
    assert device_memory(flags, layout, 1000).activations == wanted


def test_parameters_are_those_that_the_names_say() -> None:
    for name, wanted in (("3b_200b", 3e9), ("6b_1t", 6e9), ("300m_4b", 0.3e9)):
        run = Run(name, recipes.load(name), RunOptions())
        shape = Shape.of(run.flags("pretrain"), run.vocabulary or 0)
        assert shape.parameters == pytest.approx(wanted, rel=0.03)
