"""Generation on a GPU: Megatron's inference and vLLM against the hf engine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.manifest import Manifest
from megatron_sbp.synthesis.store import SyntheticCorpus
from tests.conftest import ROOT
from tests.training.runs import data, pretrain

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DOCUMENTS = 32


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")


@pytest.fixture(scope="module")
def synthesizer(
    words_corpus: Corpus, words_pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model that was tuned for some steps, so that few of its logits are close."""
    box = tmp_path_factory.mktemp("tuned") / "tuned"
    line = ["--sbp-objective", "synthesis", "--sbp-pairs", str(words_pairs), "--bf16"]
    local = ["--transformer-impl", "local", "--no-persist-layer-norm"]
    layers = ["--no-gradient-accumulation-fusion", *local]
    run = pretrain(
        *(*data(words_corpus), *line, *layers, "--train-iters", "200", "--save", str(box))
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    return box


def synthesize(
    engine: str, load: Path, corpus: Corpus, output: Path, *flags: str, ranks: int = 1
) -> SyntheticCorpus:
    """The command, greedy in bf16."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    process = subprocess.run(
        [
            *(sys.executable, *(launcher if ranks > 1 else [])),
            *(str(ROOT / "tools" / "synthesize.py"), "--engine", engine, "--load", str(load)),
            *("--corpus", str(corpus.prefixes[0]), "--num-documents", str(DOCUMENTS)),
            *("--output-prefix", str(output / "new"), "--model-generation", "0"),
            *("--temperature", "0", "--dtype", "bf16", "--max-new-tokens", "32", *flags),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-5000:]
    assert json.loads((output / "manifest.json").read_text())["options"]["engine"] == engine
    return SyntheticCorpus(output / "new")


def alike(first: SyntheticCorpus, second: SyntheticCorpus) -> float:
    """Share of the tokens of the first corpus up to where its documents differ from the second's.

    In bf16 two kernels may round a logit to either side of another one.
    """
    same = total = 0
    for number in range(DOCUMENTS):
        one, other = (corpus.documents.tokens(number) for corpus in (first, second))
        total += len(one)
        for mine, theirs in zip(one.tolist(), other.tolist(), strict=False):
            if mine != theirs:
                break
            same += 1
    return same / total


@pytest.fixture(scope="module")
def hf(synthesizer: Path, words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("hf") / "box"
    return synthesize("hf", synthesizer, words_corpus, output)


def test_hf_gives_the_documents_of_a_cpu(
    synthesizer: Path, words_corpus: Corpus, hf: SyntheticCorpus, tmp_path: Path
) -> None:
    flags = ("--device", "cpu")
    assert alike(synthesize("hf", synthesizer, words_corpus, tmp_path / "box", *flags), hf) > 0.8


def test_megatron_gives_the_documents_of_hf(
    synthesizer: Path, words_corpus: Corpus, hf: SyntheticCorpus, tmp_path: Path
) -> None:
    needs("einops", "flash_attn")
    found = synthesize("megatron", synthesizer, words_corpus, tmp_path / "box")
    assert alike(hf, found) > 0.8


def test_fp8_gives_most_of_them(
    synthesizer: Path, words_corpus: Corpus, hf: SyntheticCorpus, tmp_path: Path
) -> None:
    needs("einops", "flash_attn", "transformer_engine")
    flags = ("--fp8-format", "e4m3", "--fp8-recipe", "tensorwise")
    found = synthesize("megatron", synthesizer, words_corpus, tmp_path / "box", *flags)
    assert Manifest.read(tmp_path / "box").options["fp8_format"] == "e4m3"
    assert alike(hf, found) > 0.3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("flag", ["--tensor-model-parallel-size", "--pipeline-model-parallel-size"])
def test_two_gpus_give_the_documents_of_hf(
    flag: str, synthesizer: Path, words_corpus: Corpus, hf: SyntheticCorpus, tmp_path: Path
) -> None:
    needs("einops", "flash_attn")
    found = synthesize("megatron", synthesizer, words_corpus, tmp_path / "box", flag, "2", ranks=2)
    assert alike(hf, found) > 0.8


def test_vllm_gives_the_documents_of_hf(
    synthesizer: Path, words_corpus: Corpus, hf: SyntheticCorpus, tmp_path: Path
) -> None:
    needs("vllm")
    flags = ("--gpu-memory-share", "0.5")
    found = synthesize("vllm", synthesizer, words_corpus, tmp_path / "box", *flags)
    assert alike(hf, found) > 0.8
