"""SBP in a script of one's own: lm is the script's, synthesis is this package's."""

import functools
import importlib.util
import inspect
import os
import random
import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest
from megatron.training import global_vars, training

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.training import hooks
from tests.conftest import ROOT, run_command
from tests.test_patches import RELEASES, TOOL, take_checkout
from tests.training.runs import data

MODEL = """
    --num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 --swiglu
    --normalization RMSNorm --disable-bias-linear --position-embedding-type rope
    --attention-dropout 0 --hidden-dropout 0 --seq-length 128 --max-position-embeddings 128
    --tokenizer-type HuggingFaceTokenizer --make-vocab-size-divisible-by 64 --micro-batch-size 2
    --global-batch-size 8 --lr 1e-3 --lr-decay-style constant --seed 3 --num-workers 0
    --log-interval 1 --eval-interval 100 --eval-iters 1 --train-iters 3
""".split()

# What others have: Megatron's functions by name, a model by its arguments, functions of their own.
SCRIPT = """
from megatron.core.enums import ModelType
from megatron.training import pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args
from megatron_sbp.training.hooks import parse_and_validate_args, pretrain

def own(*arguments, **keywords):
    raise NotImplementedError

own.is_distributed = True
args = parse_and_validate_args()
container = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
pretrain(container, own, ModelType.encoder_or_decoder, own)
"""

# Megatron's local layers with an attention that knows the segments of a packed row.
LAYERS = """
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron_sbp.training.attention import ScaledDotProductAttention

spec = get_gpt_layer_local_spec(normalization="RMSNorm")
spec.submodules.self_attention.submodules.core_attention = ScaledDotProductAttention
"""

# Runs a script of a checkout, whose dataset helpers nobody compiled, on the CPU.
ON_CPU = """
import importlib.util, runpy, sys
from megatron_sbp.training import platform

name, helpers, *sys.argv = "megatron.core.datasets.helpers_cpp", *sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, helpers)
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
platform.install()
sys.argv += platform.CPU_ARGUMENTS
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def args(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """Megatron's global arguments, as they are after parsing."""
    args = Namespace(sbp_objective="lm", sbp_synthetic_data=[])
    monkeypatch.setattr(global_vars, "_GLOBAL_ARGS", args)
    return args


def own_datasets(sizes: Any, vp_stage: int | None = None) -> Any:
    return ["own datasets", sizes, vp_stage]


def own_step(iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
    return ["own step", iterator, model, return_schedule_plan]


@pytest.mark.parametrize("distributed", [True, False, None])
@pytest.mark.parametrize("known", [True, False])
def test_lm_is_the_scripts_own(args: Namespace, known: bool, distributed: bool | None) -> None:
    if not known:  # a configuration that takes the place of the command line
        del args.sbp_objective, args.sbp_synthetic_data
    own: Any = functools.partial(own_datasets)
    if distributed is not None:
        own.is_distributed = distributed
    datasets, step = hooks.Datasets(own), hooks.forward_step(own_step)
    sizes = [random.randrange(1000) for _ in range(3)]
    assert datasets(sizes) == own_datasets(sizes), sizes
    assert datasets(sizes, vp_stage=1) == own_datasets(sizes, vp_stage=1), sizes
    assert step("i", "m", return_schedule_plan=True) == own_step("i", "m", True)
    assert inspect.signature(datasets) == inspect.signature(own)
    assert inspect.signature(step) == inspect.signature(own_step)
    assert datasets.is_distributed == bool(distributed)
    if not known:
        hooks.validate(args)


def test_a_synthetic_corpus_is_never_read_twice_by_the_scripts_datasets(
    args: Namespace, words_corpus: Corpus
) -> None:
    real, synthetic = map(str, words_corpus.prefixes)
    vars(args).update(
        train_data_path=["0.5", real, "0.5", synthetic],
        **dict.fromkeys(["data_path", "data_args_path", "per_split_data_args_path"]),
        **dict.fromkeys(["valid_data_path", "test_data_path", "split"]),
        sbp_allow_synthetic_repeats=False,
        train_samples=2 * words_corpus.num_tokens,
        seq_length=1,
        rank=0,
    )
    datasets = hooks.Datasets(own_datasets)
    assert datasets([40, 0, 0]) == own_datasets([40, 0, 0])
    args.sbp_synthetic_data = [synthetic]
    with pytest.raises(InputError, match=rf"^{synthetic}: .* \d+ times"):
        datasets([40, 0, 0])
    args.sbp_allow_synthetic_repeats = True
    assert datasets([40, 0, 0]) == own_datasets([40, 0, 0])


def pretrain_0_17(
    train_valid_test_dataset_provider: Any,
    model_provider: Any,
    model_type: Any,
    forward_step_func: Any,
    process_non_loss_data_func: Any = None,
    extra_args_provider: Any = None,
    args_defaults: Any = None,
    store: Any = None,
) -> None:
    """The order of Megatron's up to 0.17: it parses, then builds the model, then the datasets."""
    parser = extra_args_provider(ArgumentParser())
    args = parser.parse_args(["--own", "7", "--sbp-objective", "synthesis"])
    global_vars._GLOBAL_ARGS = args
    assert (args.own, args_defaults, store) == (7, {"a": 1}, "store")
    assert model_provider(pre_process=True) == "model"
    assert train_valid_test_dataset_provider.is_distributed
    train_valid_test_dataset_provider([1, 2, 3])
    forward_step_func("iterator", "model")


def pretrain_0_18(
    cfg_container: Any,
    train_valid_test_dataset_provider: Any,
    model_provider: Any,
    model_type: Any,
    forward_step_func: Any,
    process_non_loss_data_func: Any = None,
    store: Any = None,
) -> None:
    """The order of Megatron's from 0.18 on: the script has parsed."""
    assert (cfg_container, store) == ("container", "store")
    assert model_provider(pre_process=True) == "model"
    train_valid_test_dataset_provider([1, 2, 3])
    forward_step_func("iterator", "model")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, args: Namespace) -> list[str]:
    """What is called of this package and of the script, in order."""
    events: list[str] = []
    monkeypatch.setattr(hooks, "validate", lambda args: events.append(f"validate {args.own}"))
    monkeypatch.setattr(hooks, "DatasetsProvider", lambda args: lambda _: events.append("datasets"))
    monkeypatch.setattr(hooks.objective, "forward_step", lambda *_: events.append("step"))
    return events


def test_pretrain_that_parses_validates_before_the_model(
    monkeypatch: pytest.MonkeyPatch, events: list[str]
) -> None:
    def own_arguments(parser: ArgumentParser) -> ArgumentParser:
        parser.add_argument("--own", type=int)
        return parser

    def own_model(pre_process: bool) -> str:
        events.append("model")
        return "model"

    monkeypatch.setattr(training, "pretrain", pretrain_0_17)
    given = {"args_defaults": {"a": 1}, "extra_args_provider": own_arguments, "store": "store"}
    hooks.pretrain(own_datasets, own_model, "type", forward_step_func=own_step, **given)
    assert events == ["validate 7", "model", "datasets", "step"]


def test_pretrain_after_parsing_is_given_the_objective(
    monkeypatch: pytest.MonkeyPatch, args: Namespace, events: list[str]
) -> None:
    args.sbp_objective = "synthesis"
    monkeypatch.setattr(training, "pretrain", pretrain_0_18)
    own_model = lambda pre_process: "model"  # noqa: E731
    hooks.pretrain("container", own_datasets, own_model, "type", own_step, store="store")
    assert events == ["datasets", "step"]


def test_wrong_input_ends_the_script_in_one_line(
    monkeypatch: pytest.MonkeyPatch, args: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(sizes: Any) -> None:
        raise InputError("pairs/anchor.npy: is\nshort")

    monkeypatch.setattr(training, "pretrain", pretrain_0_18)
    with pytest.raises(SystemExit) as ended:
        hooks.pretrain(
            "container", refuse, lambda pre_process: "model", "type", own_step, store="store"
        )
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: pairs/anchor.npy: is short\n"


# Whole runs


def train(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run one training process with the megatron and the scripts of ``cwd`` before all others."""
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | alone | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{cwd}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def on_cpu(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    helpers = importlib.util.find_spec("megatron.core.datasets.helpers_cpp")
    assert helpers is not None and helpers.origin is not None
    return train("-c", ON_CPU, helpers.origin, script, *MODEL, *arguments, cwd=script.parent)


def logged(run: subprocess.CompletedProcess[str]) -> list[float]:
    """Losses and norms of the gradient in the order of the log."""
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    figures = re.findall(r"(?:loss(?: value)?|grad norm): ([\d.E+-]+)", run.stdout)
    return [float(figure) for figure in figures]


@pytest.fixture(scope="module")
def synthesis(words_corpus: Corpus, words_pairs: Path) -> list[str]:
    return [*data(words_corpus), "--sbp-objective", "synthesis", "--sbp-pairs", str(words_pairs)]


@pytest.fixture(scope="module")
def expected(synthesis: list[str]) -> list[float]:
    """What ``megatron_sbp.pretrain`` logs."""
    figures = logged(train("-m", "megatron_sbp.pretrain", *MODEL, *synthesis))
    assert len(figures) >= 2 * 3 + 2
    return figures


def check_synthesis(script: Path, synthesis: list[str], expected: list[float]) -> None:
    """Train on pairs: with layers that know segments, and refused with those that do not."""
    (script.parent / "layers.py").write_text(LAYERS)
    run = on_cpu(script, *synthesis, "--spec", "layers", "spec")
    assert logged(run) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    refused = on_cpu(script, *synthesis)
    assert refused.returncode == 2
    assert "error: --transformer-impl local packs no rows: " in refused.stderr.splitlines()[-1]


def test_a_script_with_one_more_import_trains_on_pairs(
    synthesis: list[str], expected: list[float], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    check_synthesis(script, synthesis, expected)


@pytest.mark.parametrize("tag", RELEASES)
def test_a_patched_release_trains_on_pairs(
    tag: str, synthesis: list[str], expected: list[float], words_corpus: Corpus, tmp_path: Path
) -> None:
    checkout = take_checkout(tag, tmp_path)
    script = checkout / "pretrain_gpt.py"
    plain = on_cpu(script, *data(words_corpus))
    assert run_command(TOOL, checkout).returncode == 0
    assert logged(on_cpu(script, *data(words_corpus))) == logged(plain)
    check_synthesis(script, synthesis, expected)
