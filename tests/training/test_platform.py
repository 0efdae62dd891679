"""The CPU platform: what names CUDA lands on the CPU, and it stays away where CUDA is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_sbp.corpus.documents import Corpus
from tests.training.runs import data, pretrain

CHECK = """
import torch
from megatron_sbp.training import platform

assert platform.install()
assert torch.zeros(2, device="cuda").device.type == "cpu"
assert torch.zeros(2, device="cuda:0").device.type == "cpu"
assert torch.empty(2, device=torch.cuda.current_device()).device.type == "cpu"
assert torch.tensor([1], device=torch.device("cuda")).device.type == "cpu"
assert torch.ones(1).cuda().to("cuda").device.type == "cpu"
assert torch.ones(1).to(device="cuda", dtype=torch.float16).dtype == torch.float16
assert torch.tensor([1], pin_memory=True).pin_memory().tolist() == [1]
assert torch.ones(1).type() == "torch.cuda.FloatTensor"
assert torch.ones(1).type(torch.int32).dtype == torch.int32
stream = torch.cuda.Stream()
with torch.cuda.stream(stream):
    stream.wait_stream(torch.cuda.current_stream())
state = torch.cuda.get_rng_state()
first = torch.rand(3)
torch.cuda.set_rng_state(state)
assert torch.equal(first, torch.rand(3))
assert torch.compile(len) is len
print("mapped")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_calls_run_on_the_cpu() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout.splitlines()
    assert said == ["no CUDA device: Megatron's training loop runs on the CPU (gloo)", "mapped"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_run_leaves_libraries_alone_that_need_a_gpu(
    words_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA's containers have Transformer Engine and Apex also on machines without a GPU."""
    for name in ("transformer_engine", "apex", "amp_C"):
        (tmp_path / f"{name}.py").write_text("raise OSError('libcuda.so.1 is not here')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    run = pretrain(*data(words_corpus), "--train-iters", "2")
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_is_installed_beside_cuda() -> None:
    from megatron_sbp.training import platform

    before = torch.cuda.current_device
    assert not platform.install()
    assert torch.cuda.current_device is before
