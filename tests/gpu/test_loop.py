"""The loop on one machine runs without its GPUs."""

import subprocess
import sys

import pytest
import torch

from megatron_sbp import loop

if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)


def test_stages_of_a_loop_see_no_gpu() -> None:
    look = "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"
    said = subprocess.check_output([sys.executable, "-c", look], env=loop.environment(1), text=True)
    assert said.split() == ["False", "0"]
