"""Transformer Engine's layers as Megatron calls them, their kernels computed on the CPU.

What runs is in ``engine_on_cpu.py``: everything up to the kernels is what a GPU would run.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_sbp.corpus.documents import Corpus
from tests.conftest import run_command
from tests.training.runs import SHARP, data, pretrain, printed

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu runs the kernels themselves"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None, reason="needs Transformer Engine"
    ),
]
LOCAL, ENGINE = "megatron_sbp.pretrain", "tests.training.engine_on_cpu"
TP, PP = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
CP = ("--context-parallel-size", "2")
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "alone": (1, ()),
    "TP2": (2, TP),
    "TP2-SP": (2, (*TP, "--sequence-parallel")),
    "PP2": (2, PP),
    "TP2-PP2": (4, (*TP, *PP)),
    "DP2-distributed-optimizer": (2, ("--use-distributed-optimizer",)),
}


class Runs:
    """Runs of 20 steps over the same pairs.

    Args:
        corpus: With its held-out part.
        pairs: The pair store.
    """

    def __init__(self, corpus: Corpus, pairs: Path):
        self._tuning = ["--sbp-objective", "synthesis", "--sbp-pairs", str(pairs)]
        self._data = [*data(corpus), *SHARP]

    def losses(self, module: str, *flags: str, lm: bool = False, processes: int = 1) -> np.ndarray:
        """The loss of every step, and at the end those on the held-out set."""
        kind = ["--no-create-attention-mask-in-dataloader"] if lm else self._tuning
        line = [*self._data, *kind, "--train-iters", "20", *flags]
        evaluation = ["--eval-global-batch-size", str(processes)]
        if "parallel-size" in " ".join(flags):  # one data-parallel rank; a pipeline takes a row
            evaluation = ["--micro-batch-size", "1"]
        run = pretrain(*line, *evaluation, processes=processes, module=module)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
        names = ["lm loss"] if lm else ["synthesis loss", "random-d1 loss", "conditional gain"]
        trained = printed(run.stdout, names[0])
        held_out = [run.stdout.rsplit(f"{name} value: ", 1)[1].split()[0] for name in names]
        return np.array([*trained.values(), *map(float, held_out)])


@pytest.fixture(scope="module")
def runs(words_corpus: Corpus, words_pairs: Path) -> Runs:
    return Runs(words_corpus, words_pairs)


@pytest.fixture(scope="module")
def start(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of local layers, whose norms have no state."""
    box = tmp_path_factory.mktemp("start") / "start"
    runs.losses(LOCAL, "--save", str(box), lm=True)
    return box


@pytest.fixture(scope="module")
def local(
    runs: Runs, start: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, np.ndarray]:
    """A tuning with local layers, and its losses."""
    box = tmp_path_factory.mktemp("local") / "local"
    return box, runs.losses(LOCAL, "--pretrained-checkpoint", str(start), "--save", str(box))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_rows_give_the_losses_of_local_layers(
    layout: str, runs: Runs, start: Path, local: tuple[Path, np.ndarray]
) -> None:
    processes, flags = LAYOUTS[layout]
    line = ("--pretrained-checkpoint", str(start), *flags)
    found = runs.losses(ENGINE, *line, processes=processes)
    np.testing.assert_allclose(found, local[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("processes", "flags"),
    [(2, CP), (4, ("--context-parallel-size", "4")), (4, (*TP, "--sequence-parallel", *CP))],
)
@pytest.mark.parametrize("rows", [("--sbp-segment-multiple", "8"), ("--no-sbp-packing",)])
def test_context_parallel_ranks_give_them_too(
    rows: tuple[str, ...], processes: int, flags: tuple[str, ...], runs: Runs, start: Path
) -> None:
    line = ("--pretrained-checkpoint", str(start), *rows)
    found = runs.losses(ENGINE, *line, *flags, processes=processes)
    np.testing.assert_allclose(found, runs.losses(LOCAL, *line), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flag", ["--no-sbp-packing", "--no-rope-fusion"])
def test_other_paths_give_them_too(flag: str, runs: Runs, start: Path) -> None:
    line = ("--pretrained-checkpoint", str(start), flag)
    np.testing.assert_allclose(
        runs.losses(ENGINE, *line), runs.losses(LOCAL, *line), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("flags", [(), ("--dataloader-inter-document-masking",)])
def test_plain_documents_give_them_too(flags: tuple[str, ...], runs: Runs, start: Path) -> None:
    line = ("--pretrained-checkpoint", str(start), *flags)
    np.testing.assert_allclose(
        runs.losses(ENGINE, *line, lm=True), runs.losses(LOCAL, *line, lm=True), rtol=1e-4
    )


def test_checkpoints_are_read_by_local_layers_and_exported(
    runs: Runs, start: Path, local: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    box = tmp_path / "engine"
    runs.losses(ENGINE, "--pretrained-checkpoint", str(start), "--save", str(box))
    engine, plain = (
        runs.losses(LOCAL, "--pretrained-checkpoint", str(one), lm=True) for one in (box, local[0])
    )
    np.testing.assert_allclose(engine, plain, rtol=1e-3)  # forty steps on
    weights = []
    for number, checkpoint in enumerate((box, local[0])):
        output = tmp_path / f"exported-{number}"
        done = run_command("tools/export_hf.py", "--load", checkpoint, "--output", output)
        assert done.returncode == 0, done.stderr
        weights.append(load_file(output / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert (weight - weights[1][name]).norm() < 1e-3 * weight.norm(), name


def test_imported_checkpoints_are_read(
    runs: Runs, local: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    exported, imported = tmp_path / "exported", tmp_path / "imported"
    for tool, load, output in (
        ("export_hf", local[0], exported),
        ("import_hf", exported, imported),
    ):
        done = run_command(f"tools/{tool}.py", "--load", load, "--output", output)
        assert done.returncode == 0, done.stderr
    line = ("--pretrained-checkpoint", str(imported))
    engine, plain = (runs.losses(module, *line, lm=True) for module in (ENGINE, LOCAL))
    np.testing.assert_allclose(engine, plain, rtol=1e-4)
